"""Mask and Keypoint R-CNN: their losses and what they find are torchvision's."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision.models.detection as theirs
from test_torchvision_losses import OursInTheirs
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.roi_heads import keypointrcnn_loss, maskrcnn_loss, project_masks_on_boxes
from torchvision.models.resnet import resnet18
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision_models import NUM_CLASSES, AsItIs, batch_of, eval_batch, their_targets, with_opinions

from ssd.batch import RaggedBatch
from ssd.config import Thresholds
from ssd.detectors.torchvision.builders import build
from ssd.detectors.torchvision.detector import TORCHVISION
from ssd.detectors.torchvision.names import settings_of
from ssd.detectors.torchvision.rcnn import faster_rcnn
from ssd.detectors.torchvision.rcnn.parts import boxes_of, keypoint_loss, keypoint_targets, mask_loss
from ssd.detectors.torchvision.targets import targets_of

FAMILIES = ("maskrcnn", "keypointrcnn")
POINTS = ("nose", "left_eye", "right_eye")


def batch_with_parts(counts: tuple[int, ...] = (3, 1)) -> RaggedBatch:
    """Each mask is the left half of its box. Of the points one is not stated, and the second object has none."""
    batch = batch_of(counts)
    boxes = batch.boxes_ltrb_px
    masks = torch.zeros(len(boxes), 112, 112, dtype=torch.uint8)
    masks[:, 1:-1, 1:56] = 1
    pixel = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2) / 110
    generator = torch.Generator().manual_seed(2)
    share = torch.rand(len(boxes), len(POINTS), 2, generator=generator)
    points = boxes[:, None, :2] + (boxes[:, None, 2:] - boxes[:, None, :2]) * share
    visible = torch.full((len(boxes), len(POINTS), 1), 2.0)
    visible[:1, 1] = 0
    visible[1:2] = 0
    return batch._replace(
        masks=masks,
        mask_windows_ltrb_px=boxes + pixel * torch.tensor([-1, -1, 1, 1]),
        keypoints_px=torch.cat([points, visible], dim=2),
    )


def targets_for_theirs(batch: RaggedBatch) -> list[dict[str, Tensor]]:
    """Masks are whole images, with a pixel where the middle of it is in the object."""
    targets = their_targets(batch)
    height, width = batch.images.shape[2:]
    x, y = torch.arange(width) + 0.5, (torch.arange(height) + 0.5).unsqueeze(1)
    points = batch.keypoints_px.split(batch.counts.tolist())  # type: ignore[union-attr]
    for target, of_image in zip(targets, points, strict=True):
        left, top, right, bottom = (side.view(-1, 1, 1) for side in target["boxes"].unbind(1))
        target["masks"] = ((x > left) & (x < (left + right) / 2) & (y > top) & (y < bottom)).to(torch.uint8)
        target["keypoints"] = of_image
    return targets


def settings_for(family: str) -> Any:
    settings = settings_of(f"{family}_resnet18_fpn")
    return replace(settings, keypoints=POINTS, keypoint_links=()) if family == "keypointrcnn" else settings


def their_model(family: str, batch: RaggedBatch, **options: Any) -> nn.Module:
    returned = {f"layer{stage}": str(stage - 1) for stage in (1, 2, 3, 4)}
    body = resnet18(norm_layer=FrozenBatchNorm2d)
    pyramid = BackboneWithFPN(body, returned, [64, 128, 256, 512], 256, extra_blocks=LastLevelMaxPool())
    if family == "keypointrcnn":
        model: nn.Module = theirs.KeypointRCNN(pyramid, NUM_CLASSES, num_keypoints=len(POINTS), **options)
    else:
        model = theirs.MaskRCNN(pyramid, NUM_CLASSES, **options)
    model.transform = AsItIs(batch)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_torchvisions(family: str) -> None:
    """Those of masks within 2 %: theirs come of bitmaps of the image's pixels, whose edges are not where ours are."""
    batch = batch_with_parts()
    torch.manual_seed(0)
    ours = build(settings_for(family), NUM_CLASSES).train()
    ours.numbers = replace(ours.numbers, boxes_an_image=32)
    other = their_model(family, batch, box_batch_size_per_image=32).train()
    other.load_state_dict(ours.state_dict())
    other.rpn.fg_bg_sampler = OursInTheirs(256, 0.5, [0, 0])
    other.roi_heads.fg_bg_sampler = OursInTheirs(32, 0.25, batch.counts.tolist())
    torch.manual_seed(1)
    losses = TORCHVISION.losses_of(settings_for(family), False)(ours, batch)
    torch.manual_seed(1)
    expected = other(list(batch.images), targets_for_theirs(batch))
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        tolerance = 2e-2 if name == "loss_mask" else 1e-5
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    part = losses["loss_mask" if family == "maskrcnn" else "loss_keypoint"]
    assert part > 0.1
    part.backward()
    expected["loss_mask" if family == "maskrcnn" else "loss_keypoint"].backward()
    # Sums in another order make some activations positive that were not: gradients differ by 0.0015 of their norm.
    tolerance = 5e-2 if family == "maskrcnn" else 5e-3
    for (name, own), their in zip(ours.named_parameters(), other.parameters(), strict=True):
        assert (own.grad is None) == (their.grad is None or not own.requires_grad), name
        if own.grad is not None:
            assert (own.grad - their.grad).norm() <= tolerance * their.grad.norm() + 1e-7, name


def test_the_mask_loss_of_equal_targets_is_torchvisions() -> None:
    torch.manual_seed(0)
    boxes = torch.tensor([[2.0, 3, 20, 30], [5, 1, 33, 25], [8, 8, 30, 22], [0, 0, 9, 9]])
    bitmaps = (torch.rand(2, 40, 40) < 0.5).to(torch.uint8)
    labels, matched = torch.tensor([2, 1]), torch.tensor([0, 1, 1, 0])
    logits = torch.randn(4, 3, 28, 28, requires_grad=True)
    aims = project_masks_on_boxes(bitmaps, boxes, matched, 28)
    counted = torch.tensor([True, True, True, False])
    loss = mask_loss(logits, labels[matched], aims, counted)
    expected = maskrcnn_loss(logits[:3], [boxes[:3]], [bitmaps], [labels], [matched[:3]])
    torch.testing.assert_close(loss, expected)
    assert torch.autograd.grad(loss, logits)[0][3].abs().sum() == 0
    assert mask_loss(logits, labels[matched], aims, counted & False) == 0


def test_the_keypoint_loss_is_torchvisions() -> None:
    torch.manual_seed(0)
    boxes = torch.tensor([[2.0, 3, 20, 30], [5, 1, 33, 25], [8, 8, 30, 22]])
    points = torch.cat([torch.rand(3, 5, 2) * 35, torch.randint(0, 3, (3, 5, 1)).float()], dim=2)
    logits = torch.randn(3, 5, 56, 56)
    cells, stated = keypoint_targets(points, boxes, 56)
    assert 2 < stated.sum() < 13
    expected = keypointrcnn_loss(logits, [boxes], [points], [torch.arange(3)])
    torch.testing.assert_close(keypoint_loss(logits, cells, stated), expected)
    assert keypoint_loss(logits, cells, stated & False) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_may_have_no_objects_at_all(family: str) -> None:
    torch.manual_seed(0)
    settings = replace(settings_for(family), norm="batch", trainable_layers=5)
    model = build(settings, NUM_CLASSES).train()
    losses = TORCHVISION.losses_of(settings, False)(model, batch_with_parts((0, 0)))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["loss_mask" if family == "maskrcnn" else "loss_keypoint"] == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_of_fixed_shapes_are_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where nothing is dropped that only fills up."""
    batch = batch_with_parts((3, 0))
    torch.manual_seed(0)
    model = build(settings_for(family), NUM_CLASSES).train()
    model.numbers = replace(model.numbers, boxes_an_image=32)
    losses = {}
    for way in (("cpu",), ()):
        monkeypatch.setattr(faster_rcnn, "_DROPS_AT_ONCE_ON", way)
        torch.manual_seed(1)
        with torch.no_grad():
            losses[way] = model(batch.images, targets_of(batch))
    for name, loss in losses[()].items():
        assert loss > 0
        torch.testing.assert_close(loss, losses[("cpu",)][name])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_found_in_fixed_shapes_is_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(family)
    torch.manual_seed(0)
    model = build(settings, NUM_CLASSES).eval()
    maps = [torch.randn(2, 256, 24 >> level, 24 >> level) for level in range(5)]
    boxes_ltrb_px = torch.tensor([[[3.0, 4, 50, 60], [0, 0, 0, 0]]] * 2)
    boxes = boxes_of(boxes_ltrb_px, torch.tensor([[2, 0], [1, 0]]), settings.skeleton)
    found = []
    for way in (("cpu",), ()):
        monkeypatch.setattr(faster_rcnn, "_DROPS_AT_ONCE_ON", way)
        with torch.no_grad():
            found.append(model(maps, boxes))
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one[:, 0], other[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_found_is_torchvisions(family: str) -> None:
    batch, settings = batch_with_parts(), settings_for(family)
    torch.manual_seed(0)
    ours = with_opinions(build(settings, NUM_CLASSES).eval(), batch.images)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name.endswith(("mask_fcn_logits.weight", "kps_score_lowres.weight")):
                parameter *= 10 if "mask" in name else 30
    other = their_model(family, batch, box_score_thresh=0.05, box_nms_thresh=0.5, box_detections_per_img=20).eval()
    other.load_state_dict(ours.state_dict())
    with torch.no_grad():
        found = TORCHVISION.detect(settings, Thresholds(0.05, 0.5, 5000, 20))(ours, eval_batch(batch))
        expected = other(list(batch.images))
    assert found.counts.sum() > 20, "a comparison of nothing"
    for image, theirs_of in enumerate(expected):
        count = int(found.counts[image])
        assert count == len(theirs_of["scores"])
        if family == "maskrcnn":
            assert found.keypoints is None and found.masks is not None and found.masks.shape[2:] == (28, 28)
            masks = theirs_of["masks"][:, 0]
            torch.testing.assert_close(found.masks[image, :count], masks, rtol=1e-4, atol=1e-4)
            assert masks.std() > 0.05 and not found.masks[image, count:].any()
        else:
            assert found.masks is None and found.keypoints is not None
            points = found.keypoints[image, :count]
            size_px = batch.sizes_px[image]
            torch.testing.assert_close(points[..., :2] * size_px, theirs_of["keypoints"][..., :2], rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(points[..., 2], theirs_of["keypoints_scores"], rtol=1e-4, atol=1e-4)
            assert not found.keypoints[image, count:].any()


def test_points_are_of_classes_that_have_them() -> None:
    """In an image with objects of other classes too, the head has less to do, and finds the same."""
    batch, settings = batch_with_parts(), settings_for("keypointrcnn")
    torch.manual_seed(0)
    model = with_opinions(build(settings, NUM_CLASSES).eval(), batch.images)
    of_one = replace(settings, keypoint_labels=(2,))
    with torch.no_grad():
        every, found = (
            TORCHVISION.detect(each, Thresholds(0.05, 0.5, 6, 20))(model, eval_batch(batch))
            for each in (settings, of_one)
        )
    is_own = found.labels == 2
    assert is_own.any() and (~is_own & (found.labels > 0)).any(), "a comparison of nothing"
    torch.testing.assert_close(found.keypoints[is_own], every.keypoints[is_own], rtol=1e-4, atol=1e-4)
    assert not found.keypoints[~is_own].any() and every.keypoints[~is_own].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_out_of_nothing_train(family: str) -> None:
    settings = replace(settings_for(family), short_sides_px=(64,), long_side_px=96)
    batch = TORCHVISION.synthetic(settings, NUM_CLASSES, torch.device("cpu"), 1)
    assert (batch.masks is None, batch.keypoints_px is None) == (family == "keypointrcnn", family == "maskrcnn")
    losses = TORCHVISION.losses_of(settings, False)(build(settings, NUM_CLASSES).train(), batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
