"""Detectron's R-CNNs: every kind trains and detects, as large as Detectron's, and by its rules."""

import math
import re
from dataclasses import replace
from typing import Any

import detectron_by_hand as by_hand
import numpy as np
import pytest
import torch
from detectron_models import C4, KINDS, NUM_CLASSES, SMALL, batch_for, eval_batch_for, small
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from ssd.config import Thresholds
from ssd.detectors.contract import Detect
from ssd.detectors.detectron.builders import build
from ssd.detectors.detectron.config.naming import settings_named
from ssd.detectors.detectron.config.shipped import NAMES
from ssd.detectors.detectron.detector import DETECTRON
from ssd.detectors.detectron.network.heads import enlarged
from ssd.detectors.detectron.settings import BLOCKS, DetectronSettings
from ssd.detectors.postprocess.candidates import Candidates
from ssd.detectors.torchvision.rcnn.parts import CandidatesOfMaps
from ssd.errors import InputError

THRESHOLDS = Thresholds(0.05, 0.5, 1000, 6)
LOSSES = {"loss_objectness", "loss_rpn_box_reg"}


def built(settings: DetectronSettings, num_classes: int = NUM_CLASSES) -> Any:
    torch.manual_seed(0)
    return build(settings, num_classes)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_and_detects(kind: str) -> None:
    settings = small(kind)
    model, batch = built(settings), batch_for(settings)
    losses = DETECTRON.losses_of(settings, False)(model, batch)
    names = set(LOSSES)
    if kind != "proposals":
        names |= {"loss_classifier", "loss_box_reg"}
    names |= {"loss_mask"} if settings.mask_head else set()
    names |= {"loss_keypoint"} if settings.finds_keypoints else set()
    assert losses.keys() == names
    assert all(loss.isfinite() and loss.dtype == torch.float32 and loss >= 0 for loss in losses.values())
    sum(losses.values()).backward()  # type: ignore[union-attr]
    silent = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []  # which ranks would wait for

    model.eval()
    with torch.no_grad():
        found = DETECTRON.detect(settings, THRESHOLDS)(model, eval_batch_for(batch))
    count = 10 if kind == "proposals" else 6  # which keeps all
    assert found.counts.min() > 0 and found.boxes_ltrb.shape == (2, count, 4)
    assert ((found.boxes_ltrb >= 0) & (found.boxes_ltrb <= 1)).all()
    if settings.mask_head:
        assert found.masks is not None and found.masks.shape == (2, 6, settings.mask_side, settings.mask_side)
    if settings.finds_keypoints:
        assert found.keypoints is not None and found.keypoints.shape == (2, 6, 17, 3)


@pytest.mark.parametrize("kind", ["mask", "keypoints", "C4 v0up", "proposals"])
def test_images_without_boxes_train(kind: str) -> None:
    settings = small(kind)
    batch = batch_for(settings)
    empty = batch._replace(
        boxes_ltrb_px=batch.boxes_ltrb_px[:0],
        labels=batch.labels[:0],
        counts=torch.tensor([0, 0]),
        masks=None if batch.masks is None else batch.masks[:0],
        mask_windows_ltrb_px=None if batch.mask_windows_ltrb_px is None else batch.mask_windows_ltrb_px[:0],
        keypoints_px=None if batch.keypoints_px is None else batch.keypoints_px[:0],
    )
    model = built(settings)
    losses = DETECTRON.losses_of(settings, False)(model, empty)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(loss.isfinite() for loss in losses.values()) and losses["loss_rpn_box_reg"] == 0
    for name in losses.keys() & {"loss_box_reg", "loss_mask", "loss_keypoint"}:
        assert losses[name] == 0
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_points_that_are_not_stated_give_no_loss() -> None:
    settings = small("keypoints")
    batch = batch_for(settings)
    assert batch.keypoints_px is not None
    batch.keypoints_px[..., 2] = 0
    assert DETECTRON.losses_of(settings, False)(built(settings), batch)["loss_keypoint"] == 0


def test_other_images_of_a_batch_change_nothing_that_a_detection_is_made_of() -> None:
    """But by their size: padding beyond an image's own multiple of 32 changes its maps, so each is judged alone."""
    settings = small("mask")
    model, batch = built(settings).eval(), eval_batch_for(batch_for(settings))
    detect = DETECTRON.detect(settings, THRESHOLDS)
    of_second = type(batch)(*(None if each is None else each[1:] for each in batch))
    with torch.no_grad():
        both, alone = detect(model, batch), detect(model, of_second)
        padded = detect(model, of_second._replace(images=F.pad(of_second.images, (0, 32))))
    assert not torch.equal(padded.scores, alone.scores)
    torch.testing.assert_close(both.boxes_ltrb[1:], alone.boxes_ltrb, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both.scores[1:], alone.scores, atol=1e-4, rtol=1e-4)


def parameters_of(settings: DetectronSettings, num_classes: int = 81) -> int:
    """As Detectron counts them: a frozen scale and shift too."""
    with torch.device("meta"):
        model = build(settings, num_classes)
    frozen = [each for each in model.modules() if isinstance(each, FrozenBatchNorm2d)]
    return sum(p.numel() for p in model.parameters()) + sum(2 * each.weight.numel() for each in frozen)


DEFAULT = DetectronSettings()


def resnet_parameters(depth: int, groups: int = 1, width: int = 64, stages: int = 4) -> int:
    """Of convolutions without biases, and scales and shifts."""
    total, seen = 3 * 64 * 49 + 2 * 64, 64
    for stage, blocks in enumerate(BLOCKS[depth][:stages]):
        inner, outer = groups * width * 2**stage, 256 * 2**stage
        for block in range(blocks):
            total += seen * inner + inner * (inner // groups) * 9 + inner * outer + 2 * (2 * inner + outer)
            total += (seen * outer + 2 * outer) if block == 0 else 0
            seen = outer
    return total


def normed(seen: int, made: int, group_norm: bool) -> int:
    """Of a 3 x 3 convolution with a bias, or with group norm's scale and shift."""
    return seen * made * 9 + made * (2 if group_norm else 1)


def detectrons_parameters(name: str) -> int:
    """What a name says: a body, proposals, and the heads of 81 classes, or of persons with 17 points."""
    gn, on_c4 = name.endswith("_gn"), "-C4" in name
    depth = int(name.split("_")[-2 if gn else -1].split("-")[1])
    groups, width = (32, 8) if "32x8d" in name else (64, 4) if "64x4d" in name else (1, 64)
    stages = 3 if on_c4 else 4  # the fourth is the box head
    total, classes = resnet_parameters(depth, groups, width, stages), 2 if "keypoint" in name else 81
    if on_c4:
        total += 1024 * 1024 * 9 + 1024 + 1025 * 75
    else:
        total += sum(c * 256 + (512 if gn else 256) for c in (256, 512, 1024, 2048)) + 4 * normed(256, 256, gn)
        total += normed(256, 256, False) + 257 * 15
    if name.startswith("rpn"):
        return total
    if on_c4:
        total += resnet_parameters(depth) - resnet_parameters(depth, stages=3) + 2049 * classes * 5
    else:
        total += 4 * normed(256, 256, True) if gn else 1025 * 1024
        total += 12545 * 1024 + 1025 * classes * 5
    if "mask" in name:
        total += (2048 * 256 * 4 if on_c4 else 4 * normed(256, 256, gn) + 256 * 256 * 4) + 256 + 257 * classes
    if "keypoint" in name:
        total += normed(256, 512, False) + 7 * normed(512, 512, False) + 512 * 17 * 16 + 17
    return total


# Names of one network, which differ by schedules and sizes of images.
NETWORKS: dict[str, list[str]] = {}
for each in NAMES:
    same = re.sub(r"^scratch_|^tutorial_\dgpu_|-IN5k|_(s?1|2|3|1\.44)x", "", each)
    NETWORKS.setdefault(same, []).append(each)
OF_A_NETWORK = (
    "blocks", "groups", "width_per_group", "norm", "maps", "anchor_sizes_px", "rpn_levels", "fpn_channels",
    "fpn_group_norm", "box_head", "box_head_channels", "box_head_convs", "box_head_group_norm", "mask_head",
    "mask_channels", "mask_head_group_norm", "finds_keypoints", "keypoint_convs", "keypoint_channels", "rpn_only",
)  # fmt: skip
STATED = {
    "e2e_mask_rcnn_R-50-FPN": 44_400_693, "e2e_keypoint_rcnn_R-50-FPN": 59_190_378,
    "e2e_mask_rcnn_R-50-FPN_gn": 45_715_509,
}  # fmt: skip


@pytest.mark.parametrize("network", NETWORKS)
def test_shipped_names_have_detectrons_number_of_parameters(network: str) -> None:
    of_names = [settings_named(name) for name in NETWORKS[network]]
    assert len({tuple(getattr(each, field) for field in OF_A_NETWORK) for each in of_names}) == 1
    expected = detectrons_parameters(network)
    assert parameters_of(of_names[0], 2 if "keypoint" in network else 81) == expected
    assert expected == STATED.get(network, expected)


def test_all_names_are_counted() -> None:
    assert sum(map(len, NETWORKS.values())) == 45 and STATED.keys() <= NETWORKS.keys()


def test_what_freeze_at_says_and_no_affine_learns() -> None:
    with torch.device("meta"):
        model = build(replace(DEFAULT, blocks=(1, 1, 1, 1)), 3)
        free = build(replace(DEFAULT, blocks=(1, 1, 1, 1), norm="group", freeze_at=0), 3)
        c4 = build(replace(DEFAULT, **C4, blocks=(1, 1, 1, 1), freeze_at=3), 3)

    def frozen_of(model: nn.Module) -> set[str]:
        return {name.split(".")[2] for name, p in model.named_parameters() if not p.requires_grad}

    assert frozen_of(model) == {"conv1", "layer1"} and frozen_of(free) == set()
    assert frozen_of(c4) == {"conv1", "layer1", "layer2"}
    norms = [each for each in c4.modules() if isinstance(each, FrozenBatchNorm2d)]
    assert norms and all(each.eps == 0 for each in norms)
    assert any(name.startswith("roi_heads.box_head.layer4.0.bn1") for name in c4.state_dict())
    assert not any(isinstance(each, nn.BatchNorm2d) for each in c4.modules())


@pytest.mark.parametrize(("in_1x1", "strides"), [(True, (2, 1)), (False, (1, 2))])
def test_the_stride_is_where_the_weights_were_trained_with_it(in_1x1: bool, strides: tuple[int, int]) -> None:
    with torch.device("meta"):
        model: Any = build(replace(DEFAULT, stride_in_1x1=in_1x1), 3)
        dilated: Any = build(replace(DEFAULT, maps="C5", res5_dilation=2, stride_in_1x1=in_1x1), 3)
        v0up: Any = build(replace(DEFAULT, **C4, mask_head="v0up", mask_pooled=7, mask_side=14, mask_dilation=2), 3)
    for layer in (model.backbone.body.layer2, model.backbone.body.layer4):
        assert (layer[0].conv1.stride[0], layer[0].conv2.stride[0]) == strides
        assert layer[0].downsample[0].stride == (2, 2) and layer[1].conv2.stride == (1, 1)
    assert model.backbone.body.layer1[0].conv1.stride == (1, 1)
    assert {block.conv2.dilation for block in dilated.backbone.body.layer4} == {(2, 2)}
    assert dilated.backbone.body.layer4[0].conv1.stride == dilated.backbone.body.layer4[0].conv2.stride == (1, 1)
    assert v0up.roi_heads["box_head"].layer4[0].conv1.stride == (2, 2)
    assert v0up.roi_heads["mask_head"].layer4[0].conv1.stride == (1, 1)
    assert {block.conv2.dilation for block in v0up.roi_heads["mask_head"].layer4} == {(2, 2)}


def test_weights_begin_as_detectrons() -> None:
    settings = replace(
        SMALL, fpn_channels=64, box_head_channels=256, mask_head="v1up4convs", mask_channels=64, finds_keypoints=True,
        keypoint_channels=64, mask_msra_init=False, fpn_zero_lateral=True, norm="affine", group_norm_groups=32,
    )  # fmt: skip
    weights = dict(built(settings, 40).named_parameters())
    normal = {
        "rpn.head.conv.0.0": 0.01,
        "rpn.head.cls_logits": 0.01,
        "roi_heads.box_predictor.cls_score": 0.01,
        "roi_heads.box_predictor.bbox_pred": 0.001,
        "roi_heads.mask_head.0.0": 0.001,
        "roi_heads.mask_predictor.conv5_mask": 0.001,
        "roi_heads.keypoint_head.0": math.sqrt(2 / (64 * 9)),
        "roi_heads.keypoint_predictor.kps_score_lowres": math.sqrt(2 / (64 * 16)),  # what goes in counts here
    }
    for name, std in normal.items():
        weight = weights[f"{name}.weight"]
        # So many draws' standard deviation is within 4 of its own standard errors.
        assert abs(weight.std().item() / std - 1) < 4 / math.sqrt(2 * weight.numel()), name
        assert abs(weight.mean().item()) < 4 * std / math.sqrt(weight.numel()), name
    for name, fan_in in {"backbone.fpn.layer_blocks.0.0": 64 * 9, "roi_heads.box_head.fc7": 256}.items():
        weight = weights[f"{name}.weight"]
        assert 0.99 * math.sqrt(3 / fan_in) < weight.abs().max() <= math.sqrt(3 / fan_in)
        assert abs(weight.std().item() * math.sqrt(fan_in) - 1) < 0.02
    assert not any(weights[f"backbone.fpn.inner_blocks.{place}.0.weight"].any() for place in range(3))
    assert weights["backbone.fpn.inner_blocks.3.0.weight"].any()
    assert not any(w.any() for name, w in weights.items() if name.endswith("bias"))


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_logits_are_enlarged_by_a_deconvolution(factor: int) -> None:
    """Caffe2's ConvTranspose with the kernel of upsample_filt: beyond the input there is 0."""
    maps = torch.randn(2, 3, 4, 5)
    found = enlarged(maps, factor)
    size = 2 * factor
    rise = 1 - np.abs(np.arange(size) - (factor - 0.5)) / factor
    expected = np.zeros((2, 3, 4 * factor + size, 5 * factor + size))
    for row in range(4):
        for column in range(5):
            place = np.s_[:, :, row * factor : row * factor + size, column * factor : column * factor + size]
            expected[place] += maps[:, :, row, column, None, None].numpy() * rise[:, None] * rise
    pad = factor // 2
    expected = expected[:, :, pad : pad + 4 * factor, pad : pad + 5 * factor]
    np.testing.assert_allclose(found, maps if factor == 1 else expected, rtol=1e-4, atol=1e-5)


class Says(nn.Module):
    """A head that says what it is told."""

    def __init__(self, *said: Tensor) -> None:
        super().__init__()
        self.said = said

    def forward(self, *seen: Any) -> Any:
        return self.said


@pytest.mark.parametrize("agnostic", [False, True])
def test_detections_are_decoded_in_the_files_pixels(agnostic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """im_detect_bbox and box_results_with_nms_and_limit: rois / im_scale, clipped, suppressed there."""
    settings = replace(SMALL, class_agnostic_boxes=agnostic)
    model, batch = built(settings).eval(), eval_batch_for(batch_for(settings))
    assert batch.scales is not None and batch.stated_px is not None
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 1.5, (20, NUM_CLASSES))
    deltas = rng.normal(0, 0.5, (20, (2 if agnostic else NUM_CLASSES) * 4))
    proposals: list[Any] = []
    own = model._proposals

    def remembered(*inputs: Any, **options: Any) -> Any:
        proposals.append(own(*inputs, **options))
        return proposals[0]

    monkeypatch.setattr(model, "_proposals", remembered)
    monkeypatch.setitem(
        model.roi_heads._modules, "box_predictor", Says(*(torch.tensor(each).float() for each in (logits, deltas)))
    )
    with torch.no_grad():
        found = DETECTRON.detect(settings, Thresholds(0.05, 0.5, 1000, 100))(model, batch)
    assert proposals[0].real.all() and proposals[0].real.shape == (2, 10)
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for image in range(2):
        scale, size = float(batch.scales[image]), batch.stated_px[image].tolist()
        rows = slice(10 * image, 10 * image + 10)
        rois = by_hand.closed(proposals[0].boxes_ltrb_px[image].double().numpy()) / scale
        expected = []
        for label in range(1, NUM_CLASSES):
            columns = slice(4, 8) if agnostic else slice(4 * label, 4 * label + 4)
            boxes = by_hand.clipped(by_hand.decoded(rois, deltas[rows, columns], (10, 10, 5, 5)), *size)
            likely = np.flatnonzero(scores[rows, label] > 0.05)
            boxes, of_boxes = boxes[likely], scores[rows, label][likely]
            expected += [(of_boxes[i], label, *by_hand.half_open(boxes[i])) for i in by_hand.nms(boxes, of_boxes, 0.5)]
        expected.sort(reverse=True)
        count = int(found.counts[image])
        assert count == len(expected) > 5
        wanted = np.array(expected)
        np.testing.assert_allclose(found.scores[image, :count], wanted[:, 0], rtol=1e-5)
        assert found.labels[image, :count].tolist() == wanted[:, 1].astype(int).tolist()
        np.testing.assert_allclose(found.boxes_ltrb[image, :count].numpy() * np.tile(size, 2), wanted[:, 2:], atol=2e-3)


def test_masks_and_points_are_looked_for_in_closed_boxes_of_the_resized_image() -> None:
    """A box of the file's pixels 10 to 29 is looked at from 10 s to 29 s, and heat maps are 19 pixels wide."""
    settings = small("keypoints")
    batch = eval_batch_for(batch_for(settings))
    assert batch.scales is not None and batch.stated_px is not None
    asked: list[Any] = []
    size = batch.stated_px[0].to(torch.float32)

    def forward(seen: Any, about: Any) -> Any:
        if isinstance(seen, Tensor):
            box = torch.tensor([[[10.0, 8, 30, 27]], [[10.0, 8, 30, 27]]])
            return CandidatesOfMaps(Candidates(box, torch.tensor([[0.9], [0.9]]), torch.tensor([[1], [1]])), [])
        asked.append(about)
        # Highest in the last column of the first row.
        return None, (torch.arange(56.0) - torch.arange(56.0).unsqueeze(1)).expand(2, 6, 17, -1, -1)

    detect: Detect = DETECTRON.detect(settings, THRESHOLDS)
    found = detect(forward, batch)
    (boxes,) = asked
    for image, scale in enumerate(batch.scales.tolist()):
        expected = [10 * scale, 8 * scale, 29 * scale + 1, 26 * scale + 1]
        torch.testing.assert_close(boxes.boxes_ltrb_px[image, 0], torch.tensor(expected), rtol=1e-4, atol=1e-3)
    assert found.keypoints is not None
    # Of 19 x 18 pixels from 10 and 8 on; without the last pixel's own width, as Detectron has it.
    x, y = (found.keypoints[0, 0, 0, :2] * size).tolist()
    assert 28.4 < x < 28.6 and 8.4 < y < 8.6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "layer"}, "norm 'layer' is none of affine, group"),
        ({"mask_head": "v2"}, "mask_head 'v2' is none of"),
        ({"maps": "C4"}, "the box head res5 goes with a conv4 body"),
        ({"mask_head": "v0up"}, "needs a conv4 body"),
        ({"mask_head": "v1up", "mask_side": 14}, "MRCNN.RESOLUTION is 14, and its head makes masks of 28"),
        ({"finds_keypoints": True, "keypoint_side": 28}, "its head makes heat maps of 56"),
        ({"rpn_only": True, "finds_keypoints": True}, "finds neither masks nor keypoints"),
        ({"rpn_levels": (2, 3, 4, 5, 6, 7)}, "6 levels"),
        ({"long_side_px": 60}, "MAX_SIZE"),
        ({"mask_head": "v1up", "mask_upsampling": 3, "mask_side": 84}, "odd factor"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        replace(SMALL, **changes)
    assert "small: " in str(caught.value) and "\n" not in str(caught.value)
