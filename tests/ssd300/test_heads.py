"""The heads and the loss skip what has no gradient: their backward passes against those that torch derives."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssd.detectors.ssd300.heads import _per_box, predict
from ssd.detectors.ssd300.loss import _cross_entropy

CLASSES = 5


def heads_of(channels: list[int], shapes: list[int], values: int) -> nn.ModuleList:
    pairs = zip(channels, shapes, strict=True)
    return nn.ModuleList(nn.Conv2d(c, n * values, 3, padding=1) for c, n in pairs)


def separate_heads(maps: list[Tensor], heads: nn.ModuleList, values: int) -> Tensor:
    """As the ancestors have it: a convolution of its own for each of a map's two heads."""
    return torch.cat([_per_box(head(m), values) for head, m in zip(heads, maps, strict=True)], dim=1)


@pytest.mark.parametrize("share", [0.0, 0.03, 1.0], ids=lambda share: f"{share:.0%} learn")
def test_forward_and_backward_are_those_of_two_dense_convolutions(share: float) -> None:
    torch.manual_seed(0)
    channels, shapes, sizes = [8, 6], [4, 6], [7, 3]
    maps = [torch.randn(2, c, s, s).requires_grad_() for c, s in zip(channels, sizes, strict=True)]
    boxes, classes = heads_of(channels, shapes, 4), heads_of(channels, shapes, CLASSES)
    inputs = [*maps, *boxes.parameters(), *classes.parameters()]
    ours = predict(maps, boxes, classes, CLASSES)
    theirs = separate_heads(maps, boxes, 4), separate_heads(maps, classes, CLASSES)
    learns = torch.rand(ours.logits.shape[:2]) < share
    if share == 0.03:
        learns[0, 0] = learns[1, 6] = learns[0, -1] = True  # in corners, where a convolution meets its border
    of_offsets, of_logits = (torch.randn_like(part) * learns.unsqueeze(2) for part in ours)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5)  # sums of 72 products in another order
    our_gradients = torch.autograd.grad(list(ours), inputs, [of_offsets, of_logits])
    their_gradients = torch.autograd.grad(list(theirs), inputs, [of_offsets, of_logits])
    for our, their in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-5)
        assert our.any() == (share > 0)


def test_a_gradient_that_is_not_a_number_is_not_taken_for_zero() -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 8, 9, 9).requires_grad_()
    boxes, classes = heads_of([8], [4], 4), heads_of([8], [4], CLASSES)
    predictions = predict([features], boxes, classes, CLASSES)
    of_logits = torch.zeros_like(predictions.logits)
    of_logits[0, 5, 2] = torch.nan
    torch.autograd.backward(list(predictions), [torch.zeros_like(predictions.offsets), of_logits])
    assert classes[0].weight.grad is not None and classes[0].weight.grad.isnan().any()


def test_bfloat16_differs_by_its_own_rounding() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 16, 8, 8).requires_grad_()
    boxes, classes = heads_of([16], [4], 4), heads_of([16], [4], CLASSES)
    inputs = [features, *boxes.parameters(), *classes.parameters()]
    of_logits = torch.randn(2, 256, CLASSES) * (torch.rand(2, 256, 1) < 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        half = predict([features], boxes, classes, CLASSES)
    assert half.logits.dtype == torch.bfloat16
    gradients = torch.autograd.grad(half.logits, inputs, of_logits.bfloat16())
    whole = predict([features], boxes, classes, CLASSES)
    for ours, expected in zip(gradients, torch.autograd.grad(whole.logits, inputs, of_logits), strict=True):
        assert ours.dtype == torch.float32
        # bfloat16 has 8 bits; the largest gradient's last one, a few times over.
        torch.testing.assert_close(ours, expected, rtol=0, atol=0.03 * float(expected.abs().max()) + 1e-6)


def test_cross_entropy_and_its_gradient_are_torchs() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(40, CLASSES).requires_grad_(), torch.randint(0, CLASSES, (40,))
    chosen = torch.rand(40) < 0.2
    ours, theirs = _cross_entropy(logits, labels), F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(ours, theirs)
    gradient = torch.randn(40) * chosen
    (our_gradient,) = torch.autograd.grad(ours, logits, gradient)
    (their_gradient,) = torch.autograd.grad(theirs, logits, gradient)
    torch.testing.assert_close(our_gradient, their_gradient)
    assert not our_gradient[~chosen].any()
