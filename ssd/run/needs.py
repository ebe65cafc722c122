"""What a run takes of a machine's shared memory and disk, by its detector."""

from typing import Any, NamedTuple

import torch

from ssd.detectors.table import detector_of, num_classes_of, view_of
from ssd.views import SquareView, View, largest_px


class Needs(NamedTuple):
    """In bytes. image: the largest that a worker process of the PyTorch path hands over, uint8. checkpoint: the weights
    with the optimiser's momentum, without a moving average. one_by_one: whether images are handed over so, and not in
    batches."""

    image: int
    checkpoint: int
    one_by_one: bool


def needs_of(settings: Any) -> Needs:
    """settings: of a detector. Its model is made without memory for its weights."""
    with torch.device("meta"):
        model = detector_of(settings).build(settings, num_classes_of(settings))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    momentum = sum(parameter.numel() * 4 for parameter in parameters)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    view = view_of(settings)
    one_by_one = not isinstance(view, SquareView) and not torch.cuda.is_available()
    return Needs(_image_bytes(view), weights + momentum, one_by_one)


def _image_bytes(view: View) -> int:
    return 3 * (view.size_px**2 if isinstance(view, SquareView) else largest_px(view))
