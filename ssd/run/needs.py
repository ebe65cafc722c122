"""What a run takes of a machine's shared memory and disk, by its detector."""

from typing import Any, NamedTuple

import torch

from ssd.detectors.table import detector_of, view_of
from ssd.views import SquareView, View, largest_px


class Needs(NamedTuple):
    """In bytes. image: the largest that a worker process of the PyTorch path hands over, uint8. checkpoint: the weights
    with the optimiser's momentum, without a moving average."""

    image: int
    checkpoint: int


def needs_of(settings: Any) -> Needs:
    """settings: of a detector. Its model is made without memory for its weights."""
    detector = detector_of(settings)
    with torch.device("meta"):
        model = detector.build(settings, detector.num_classes(settings))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    momentum = sum(parameter.numel() * 4 for parameter in parameters)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return Needs(_image_bytes(view_of(settings)), weights + momentum)


def _image_bytes(view: View) -> int:
    return 3 * (view.size_px**2 if isinstance(view, SquareView) else largest_px(view))
