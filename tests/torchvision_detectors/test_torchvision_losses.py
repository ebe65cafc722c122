"""The losses of torchvision's detectors here are torchvision's own, and so are their gradients."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection import _utils
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss
from torchvision_models import FAMILIES, NUM_CLASSES, batch_of, their_model, their_targets

from ssd.batch import RaggedBatch
from ssd.boxes import giou_loss
from ssd.detectors.torchvision.builders import build
from ssd.detectors.torchvision.dense.losses import focal_loss
from ssd.detectors.torchvision.detector import TORCHVISION
from ssd.detectors.torchvision.names import settings_of
from ssd.detectors.torchvision.rcnn.sampling import sample


class OursInTheirs:
    """This project's sampler in the place of torchvision's, drawing the same numbers.

    boxes: how many of the places of each image are its own boxes; they come last there and first here.
    """

    def __init__(self, size: int, positive_share: float, boxes: Sequence[int]):
        self.size, self.positive_share, self.boxes = size, positive_share, boxes

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        most = max(self.boxes)
        filled = []
        for of_image, boxes in zip(labels, self.boxes, strict=True):
            own, others = of_image[len(of_image) - boxes :], of_image[: len(of_image) - boxes]
            filled.append(torch.cat([own, own.new_full((most - boxes,), -1), others]))
        place, counted = sample(
            pad_sequence(filled, batch_first=True, padding_value=-1), self.size, self.positive_share
        )
        positive, negative = [], []
        for image, (of_image, boxes) in enumerate(zip(labels, self.boxes, strict=True)):
            chosen = place[image][counted[image]]
            # Back to where torchvision has them.
            chosen = torch.where(chosen < boxes, len(of_image) - boxes + chosen, chosen - most)
            mask = torch.zeros(len(of_image), dtype=torch.bool)
            mask[chosen] = True
            positive.append((mask & (of_image >= 1)).to(torch.uint8))
            negative.append((mask & (of_image == 0)).to(torch.uint8))
        return positive, negative


def their_losses(model: nn.Module, batch: RaggedBatch) -> dict[str, Tensor]:
    losses: dict[str, Tensor] = model(list(batch.images), their_targets(batch))
    return losses


def pair(family: str, batch: RaggedBatch, **options: Any) -> tuple[nn.Module, nn.Module]:
    """This project's model and torchvision's, of equal weights."""
    torch.manual_seed(0)
    settings = settings_of(f"{family}_resnet18_fpn")
    if family == "fasterrcnn":  # a tenth of its work
        settings = replace(settings, boxes_an_image=48)
        options["box_batch_size_per_image"] = 48
    ours = build(settings, NUM_CLASSES).train()
    theirs = their_model(family, batch, **options).train()
    theirs.load_state_dict(ours.state_dict())
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        other.requires_grad_(own.requires_grad)
    if family == "fasterrcnn":
        none = [0] * len(batch.counts)
        theirs.rpn.fg_bg_sampler = OursInTheirs(256, 0.5, none)
        theirs.roi_heads.fg_bg_sampler = OursInTheirs(48, 0.25, batch.counts.tolist())
    return ours, theirs


@pytest.mark.parametrize("counts", [(3, 1), (2, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_torchvisions(family: str, counts: tuple[int, ...]) -> None:
    batch = batch_of(counts)
    ours, theirs = pair(family, batch)
    losses_of = TORCHVISION.losses_of(settings_of(f"{family}_resnet18_fpn"), False)
    torch.manual_seed(5)
    losses = losses_of(ours, batch)
    torch.manual_seed(5)
    expected = their_losses(theirs, batch)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        assert value.dtype == torch.float32 and value.shape == ()
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    for (name, own), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if not own.requires_grad:
            assert own.grad is None
            continue
        # Sums of thousands of products in another order.
        scale = other.grad.abs().max().item()
        torch.testing.assert_close(
            own.grad, other.grad, rtol=1e-4, atol=2e-5 * scale + 1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_batch_may_have_no_boxes_at_all() -> None:
    for family in FAMILIES:
        torch.manual_seed(0)
        settings = settings_of(f"{family}_resnet18_fpn", "none")
        model = build(settings, NUM_CLASSES).train()
        losses = TORCHVISION.losses_of(settings, False)(model, batch_of((0, 0)))
        sum(losses.values()).backward()
        assert all(torch.isfinite(loss) for loss in losses.values())
        # Every rank takes part in averaging all of the gradients, whatever its batch has.
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_focal_loss_is_torchvisions() -> None:
    torch.manual_seed(0)
    logits = (torch.randn(2, 7, 3) * 4).requires_grad_()
    labels = torch.tensor([[0, 1, -1, -1, 2, -1, 1], [-1, -1, -1, 2, -1, -1, -1]])
    counted = torch.rand(2, 7) < 0.7
    target = torch.zeros(2, 7, 3)
    target[labels >= 0, labels[labels >= 0]] = 1
    expected = (sigmoid_focal_loss(logits, target) * counted.unsqueeze(2)).sum(dim=(1, 2))
    weights = torch.tensor([1.0, 3.0])
    (of_logits,) = torch.autograd.grad((expected * weights).sum(), logits)
    loss = focal_loss(logits, labels, counted)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad((loss * weights).sum(), logits)[0], of_logits)


def test_giou_loss_is_torchvisions() -> None:
    torch.manual_seed(0)
    boxes = torch.rand(2, 50, 4) * 10
    boxes[..., 2:] += boxes[..., :2]
    one, other = boxes
    torch.testing.assert_close(giou_loss(one, other), generalized_box_iou_loss(one, other))


def test_samples_are_as_many_as_torchvisions_and_of_the_same_kinds() -> None:
    labels = torch.tensor([[1] * 30 + [0] * 40 + [-1] * 30, [3] * 2 + [0] * 5 + [-1] * 93])
    place, counted = sample(labels, 20, 0.25)
    assert place.shape == counted.shape == (2, 20)
    theirs = _utils.BalancedPositiveNegativeSampler(20, 0.25)(list(labels))
    for image in range(2):
        chosen = place[image][counted[image]]
        assert len(chosen.unique()) == len(chosen)
        for kind, mask in zip((labels[image] > 0, labels[image] == 0), (each[image] for each in theirs), strict=True):
            assert kind[chosen].sum() == mask.sum()


def test_samples_are_drawn_evenly() -> None:
    labels = torch.zeros(400, 10)
    labels[:, :4] = 1
    torch.manual_seed(0)
    place, counted = sample(labels, 5, 0.4)
    assert counted.all()
    share = torch.bincount(place.flatten(), minlength=10) / 400
    # 2 of 4 and 3 of 6: a standard deviation is 0.025.
    assert torch.allclose(share, torch.full((10,), 0.5), atol=0.1)
