"""The host does not wait for the device between two lines of the log of a Detectron's R-CNN."""

from dataclasses import replace
from typing import Any

import torch
from detectron_models import SMALL
from fake_gpu import pretend, pretended_gpu, values
from torch import Tensor

from ssd.batch import RaggedBatch
from ssd.detectors.detectron.rcnn.boxes import closed
from ssd.detectors.detectron.rcnn.losses import box_losses, keypoint_loss, mask_targets, rpn_losses
from ssd.detectors.detectron.rcnn.rois import level_of, sample_keypoint_rois, sample_rois
from ssd.detectors.detectron.rcnn.rpn import join, propose, sample_anchors
from ssd.detectors.detectron.targets import placement, targets_of
from ssd.detectors.torchvision.rcnn.parts import keypoint_targets, mask_loss
from ssd.detectors.torchvision.rcnn.proposals import Proposals, with_boxes
from ssd.detectors.torchvision.targets import Targets, gather

SETTINGS = replace(SMALL, rpn_samples=40, roi_samples=16)


def batch() -> RaggedBatch:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(4, 2, generator=generator) * 50
    boxes = torch.cat([corner, corner + 10 + torch.rand(4, 2, generator=generator) * 30], dim=1)
    points = torch.cat(
        [corner.unsqueeze(1) + torch.rand(4, 5, 2, generator=generator) * 20, torch.ones(4, 5, 1)], dim=2
    )
    return RaggedBatch(
        torch.zeros(2, 3, 96, 96), torch.tensor([[96, 96], [90, 80]]), boxes, torch.tensor([1, 2, 3, 1]),
        torch.tensor([3, 1]), torch.arange(2), torch.ones(4, 12, 12, dtype=torch.uint8), boxes + 1, points,
        torch.tensor([1.5, 0.7], dtype=torch.float64),
    )  # fmt: skip


def anchors() -> Tensor:
    corner = torch.cartesian_prod(torch.arange(0.0, 96, 8), torch.arange(0.0, 96, 8))
    return torch.cat([torch.cat([corner, corner + side], dim=1) for side in (16, 40)])


def losses(targets: Targets, anchors: Tensor, proposed: Tensor, draws: Tensor) -> dict[str, Tensor]:
    """All that stands between what the layers say and the losses. draws: B x 40 x 4 of what they might say."""
    samples = sample_anchors(targets, anchors, SETTINGS)
    own = anchors[samples.anchor]
    logits = draws[:, : own.shape[1], 0]
    found = rpn_losses(
        logits, draws[:, : own.shape[1]], samples, gather(targets.boxes_ltrb_px, samples.matched), own, SETTINGS
    )
    scores = draws[:, : proposed.shape[1], 1].sigmoid()
    proposals = with_boxes(join(Proposals(proposed, scores > 0.1, scores), 25), targets)
    rois = sample_rois(proposals, targets, SETTINGS)
    boxes = rois.rois[:, 1:]
    level_of(boxes, SETTINGS)
    say = draws.flatten(0, 1)[: len(boxes)]
    learned = gather(targets.boxes_ltrb_px, rois.matched)
    offsets = say.unsqueeze(1).expand(-1, 4, -1)
    found |= box_losses(say, offsets, rois.labels, rois.counted, learned, boxes, SETTINGS)
    assert targets.masks is not None and targets.mask_windows_ltrb_px is not None and targets.keypoints_px is not None
    aims = mask_targets(targets.masks, targets.mask_windows_ltrb_px, rois.matched, closed(boxes), 8)
    heat = say[:, :, None, None].expand(-1, -1, 8, 8)
    found["loss_mask"] = mask_loss(heat, rois.labels, aims, rois.counted & (rois.labels > 0))
    rois = sample_keypoint_rois(proposals, targets, SETTINGS)
    points = gather(targets.keypoints_px, rois.matched)
    cells, stated = keypoint_targets(points, closed(rois.rois[:, 1:]), 8)
    heat = say[: len(cells), :1, None, None].expand(-1, 5, 8, 8)
    found["loss_keypoint"] = keypoint_loss(heat, cells, stated & rois.counted.unsqueeze(1), 2, SETTINGS)
    return found


def test_no_loss_waits_for_the_device() -> None:
    generator = torch.Generator().manual_seed(1)
    draws = torch.randn(2, 40, 4, generator=generator)
    corner = torch.rand(2, 30, 2, generator=generator) * 60
    proposed = torch.cat([corner, corner + 20], dim=2)
    expected = losses(targets_of(batch()), anchors(), proposed, draws)
    assert all(loss.isfinite() for loss in expected.values()) and len(expected) == 6
    with pretended_gpu() as waits:
        there = RaggedBatch(*(
            pretend(part) if name in ON_DEVICE else part for name, part in batch()._asdict().items()
        ))  # fmt: skip
        found = losses(targets_of(there), pretend(anchors()), pretend(proposed), pretend(draws))
        placement(
            torch.tensor([[90, 64]]), torch.ones(1), torch.tensor([[180, 128]]), SETTINGS, torch.device("cuda", 0)
        )
        assert waits.found == []
    # Other samples are drawn there; what they are made of is the same.
    assert found.keys() == expected.keys()
    assert all(values(loss).isfinite() for loss in found.values())


ON_DEVICE = ("images", "boxes_ltrb_px", "labels", "masks", "mask_windows_ltrb_px", "keypoints_px")


def test_proposals_wait_once_and_are_those_of_a_cpu() -> None:
    generator = torch.Generator().manual_seed(2)
    every, limits = anchors(), torch.tensor([[[96.0, 96, 96, 96]], [[90, 80, 90, 80]]])
    counts = [len(every) - 60, 60]
    objectness = [torch.randn(2, count, generator=generator) for count in counts]
    offsets = [0.3 * torch.randn(2, count, 4, generator=generator) for count in counts]
    least = torch.full((2, 1), 3.0)

    def proposed(inputs: Any) -> Proposals:
        objectness, offsets, every, limits, least = inputs
        return join(propose(objectness, offsets, every, limits, least, SETTINGS, training=True), 30)

    expected = proposed((objectness, offsets, every, limits, least))
    with pretended_gpu() as waits:
        there = ([*map(pretend, objectness)], [*map(pretend, offsets)], pretend(every), pretend(limits), pretend(least))
        found = proposed(there)
        assert len(waits.found) <= 2  # one for each of two maps, which have more than they may keep
    for image in range(2):
        mine = values(found.boxes_ltrb_px)[image][values(found.real)[image]]
        torch.testing.assert_close(mine, expected.boxes_ltrb_px[image][expected.real[image]], rtol=1e-4, atol=1e-3)
    assert values(found.real).sum() == 30
