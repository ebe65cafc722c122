"""RoIAlign for the CPU: torchvision's own values and gradients, for boxes as they come and as they should not."""

import pytest
import torch
from torchvision.ops import roi_align

from ssd.detectors.torchvision.rcnn import roi_pooling
from ssd.detectors.torchvision.rcnn.roi_align_cpu import roi_align_cpu

# Image, left, top, right, bottom on maps of 13 x 9 cells of 4 pixels: inside, the whole map, smaller than a cell, of no
# area, turned round, over each edge, up to a cell outside, and far outside.
ROIS = torch.tensor(
    [
        [0, 3.3, 5.1, 30.7, 28.2],
        [1, 0, 0, 52, 36],
        [1, 9.9, 9.9, 10.1, 10.2],
        [0, 8, 8, 8, 8],
        [0, 30, 20, 10, 5],
        [1, -9.2, -7.2, 12, 11],
        [0, 40, 25, 70, 55],
        [1, -3.9, -3.9, -0.1, -0.1],
        [0, 51.5, 35.5, 55.5, 39.5],
        [1, 300, 300, 400, 400],
    ]
)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=["rows", "planes"])
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_values_and_gradients_are_torchvisions(samples: int, memory_format: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, 5, 9, 13, generator=generator).contiguous(memory_format=memory_format)
    weights = torch.randn(len(ROIS), 5, 7, 7, generator=generator)
    both = []
    for look in (roi_align_cpu, roi_align):
        features = drawn.clone().requires_grad_()
        pooled = look(features, ROIS, 7, 0.25, samples)
        (pooled * weights).sum().backward()
        both.append((pooled, features.grad))
    torch.testing.assert_close(both[0], both[1], rtol=1e-5, atol=1e-5)
    assert both[0][0].abs().amax(dim=(1, 2, 3))[:-1].min() > 0 and both[0][0][-1].abs().max() == 0


def test_no_boxes_give_nothing_and_no_gradient() -> None:
    features = torch.ones(1, 3, 4, 4, requires_grad=True)
    pooled = roi_align_cpu(features, torch.zeros(0, 5), 7, 0.25, 2)
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert features.grad is not None and features.grad.abs().max() == 0


@pytest.mark.parametrize("chooses_on", [("cpu",), ()], ids=["chooses", "samples all"])
def test_maps_of_16_bits_are_read_where_the_boxes_are(
    chooses_on: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roi_pooling, "_CHOOSES_ON", chooses_on)
    from_middle = (torch.arange(64.0) - 48).expand(1, 1, 64, 64).bfloat16()
    # The box's middle is 49.375 cells from the left. In bfloat16, which holds 8 bits, its edges would be 194 and 202.
    rois = torch.tensor([[0, 193.5, 100, 201.5, 108]])
    pooled = roi_pooling.pool([from_middle], (4,), rois, side=1)
    assert pooled.dtype == torch.bfloat16 and pooled.item() == 1.375
