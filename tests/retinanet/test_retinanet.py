"""detectron2's RetinaNet against its rules written once more: anchors, losses, their normaliser, detections, input."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_training
from fake_gpu import pretend, pretended_gpu, values
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d, batched_nms
from torchvision_models import NUM_CLASSES, assert_same_detections, batch_of, eval_batch

from ssd.batch import Detections, RaggedBatch
from ssd.config import Thresholds
from ssd.detectors.retinanet import recipes
from ssd.detectors.retinanet.anchors import anchors_ltrb_px, cell_anchors_ltrb_px
from ssd.detectors.retinanet.detector import RETINANET
from ssd.detectors.retinanet.model import body_of, build
from ssd.detectors.retinanet.settings import MULTI_SCALE_PX, NAMES, RetinaNetSettings, settings_named, settled
from ssd.detectors.torchvision.dense.retinanet import Outputs
from ssd.detectors.torchvision.postprocess import without_empty
from ssd.detectors.torchvision.targets import targets_of
from ssd.options.detectors import for_detector
from ssd.running_statistics import RunningMean
from ssd.schedule import peak_lr
from ssd.training.state import Training
from ssd.views import ShortSideView, resized_px

R18 = RetinaNetSettings("retinanet_r18_fpn")
CLASSES = NUM_CLASSES - 1


@pytest.fixture(scope="module")
def model() -> Any:
    """With logits and offsets that differ as much as those of one that has learned."""
    torch.manual_seed(0)
    model: Any = build(R18, NUM_CLASSES)
    with torch.no_grad():
        said = model.outputs(batch_of().images)
        head = model.head
        head.classification_head.cls_logits.weight *= 1.5 / said.logits.std()
        head.classification_head.cls_logits.bias.fill_(-2)
        head.regression_head.bbox_reg.weight *= 0.5 / said.offsets.std()
    return model


# Anchors


def test_anchors_of_a_cell_are_not_rounded_and_come_by_sizes() -> None:
    """Of P3: 32 pixels times 1, 2 ** (1 / 3) and 2 ** (2 / 3), and of each size 0.5, 1 and 2 times as high as wide."""
    found = cell_anchors_ltrb_px(8)
    sides = [32, 40.3174736, 50.7968337]
    expected = []
    for side in sides:
        for width, height in ((side * 2**0.5, side / 2**0.5), (side, side), (side / 2**0.5, side * 2**0.5)):
            expected.append([-width / 2, -height / 2, width / 2, height / 2])
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=0)
    assert found[1].tolist() == [-16, -16, 16, 16]
    assert cell_anchors_ltrb_px(128)[1].tolist() == [-256, -256, 256, 256]


def test_strides_are_fixed_whatever_the_grid() -> None:
    """An image of 800 x 1344 has 7 x 11 cells on P7; torchvision's would be 114 and 122 pixels apart there."""
    sides = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
    anchors = anchors_ltrb_px([torch.zeros(1, 1, *side) for side in sides])
    assert len(anchors) == 9 * sum(rows * columns for rows, columns in sides)
    of_p7 = anchors[-7 * 11 * 9 :].view(7, 11, 9, 4)
    centre = (of_p7[..., :2] + of_p7[..., 2:]) / 2
    assert centre[2, 3].allclose(torch.tensor([3 * 128.0, 2 * 128.0]).expand(9, 2))
    of_p6 = anchors[-(7 * 11 + 13 * 21) * 9 : -7 * 11 * 9].view(13, 21, 9, 4)
    assert of_p6[12, 20, 1].tolist() == [20 * 64 - 128, 12 * 64 - 128, 20 * 64 + 128, 12 * 64 + 128]
    assert anchors[9, 0] - anchors[0, 0] == 8  # the next column's


# The model


@pytest.mark.parametrize(("name", "parameters", "weights"), [("r50", 37_915_572, 301), ("r101", 56_855_476, 556)])
def test_sizes_are_detectron2s(name: str, parameters: int, weights: int) -> None:
    with torch.device("meta"):
        model = build(RetinaNetSettings(f"retinanet_{name}_fpn"), 81)
    assert sum(each.numel() for each in model.parameters()) == parameters
    assert len(model.state_dict()) == weights + 1  # the normaliser


def test_the_body_is_msras() -> None:
    with torch.device("meta"):
        body, other = body_of(RetinaNetSettings()), body_of(RetinaNetSettings(stride_in="3x3"))
    for stage, stride in (("layer1", 1), ("layer2", 2), ("layer3", 2), ("layer4", 2)):
        blocks: Any = body.get_submodule(stage)
        first, second, theirs = blocks[0], blocks[1], other.get_submodule(f"{stage}.0")
        assert (first.conv1.stride, first.conv2.stride) == ((stride, stride), (1, 1))
        assert (theirs.conv1.stride, theirs.conv2.stride) == ((1, 1), (stride, stride))
        assert second.conv1.stride == second.conv2.stride == (1, 1)
    assert isinstance(body.bn1, FrozenBatchNorm2d) and body.bn1.eps == 1e-5


def test_the_pyramid_the_head_and_what_learns() -> None:
    with torch.device("meta"):
        model: Any = build(RetinaNetSettings(), 81)
    assert model.backbone.fpn.extra_blocks.p6.weight.shape == (256, 2048, 3, 3)  # of the body's last map
    assert model.head.classification_head.cls_logits.out_channels == 9 * 80
    learns = {name.partition(".")[0] for name, each in model.backbone.body.named_parameters() if each.requires_grad}
    assert learns == {"layer2", "layer3", "layer4"}
    torch.manual_seed(0)
    head: Any = build(R18, 5).head  # type: ignore[union-attr]
    assert head.classification_head.cls_logits.bias.allclose(torch.tensor(-math.log(99)))
    for each in (*head.classification_head.conv, *head.regression_head.conv):
        assert each[0].weight.std().item() == pytest.approx(0.01, rel=0.02) and not each[0].bias.any()
    assert not any(isinstance(module, nn.GroupNorm | nn.BatchNorm2d) for module in head.modules())


# Losses


def iou_of(box: np.ndarray, anchor: np.ndarray) -> float:
    width = min(box[2], anchor[2]) - max(box[0], anchor[0])
    height = min(box[3], anchor[3]) - max(box[1], anchor[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return float(both / (sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, anchor)) - both))


def expected_losses(said: Any, batch: RaggedBatch, beta: float) -> tuple[float, float, int]:
    """(classification, boxes, anchors that learn a box), each summed over the batch, in float64 and by loops."""
    logits, offsets, anchors = (each.detach().double().numpy() for each in said[:3])
    of_classes, of_boxes, objects, first = 0.0, 0.0, 0, 0
    for image, count in enumerate(batch.counts.tolist()):
        boxes = batch.boxes_ltrb_px[first : first + count].double().numpy()
        labels = batch.labels[first : first + count].tolist()
        first += count
        ious = np.array([[iou_of(box, anchor) for anchor in anchors] for box in boxes])
        for place, anchor in enumerate(anchors):
            box = None
            if count:
                best = int(ious[:, place].argmax())
                low_quality = any(ious[i, place] == ious[i].max() for i in range(count))
                if ious[best, place] >= 0.5 or low_quality:
                    box = best
                elif ious[best, place] >= 0.4:
                    continue  # neither
            for label in range(1, CLASSES + 1):
                p = 1 / (1 + math.exp(-logits[image, place, label - 1]))
                if box is not None and labels[box] == label:
                    of_classes += -0.25 * (1 - p) ** 2 * math.log(p)
                else:
                    of_classes += -0.75 * p**2 * math.log(1 - p)
            if box is None:
                continue
            objects += 1
            (left, top, right, bottom), (a_left, a_top, a_right, a_bottom) = boxes[box], anchor
            width, height = a_right - a_left, a_bottom - a_top
            target = (
                ((left + right) - (a_left + a_right)) / 2 / width,
                ((top + bottom) - (a_top + a_bottom)) / 2 / height,
                math.log((right - left) / width),
                math.log((bottom - top) / height),
            )
            for value, wanted in zip(offsets[image, place], target, strict=True):
                error = abs(value - wanted)
                of_boxes += 0.5 * error**2 / beta if error < beta else error - 0.5 * beta
    return of_classes, of_boxes, objects


@pytest.mark.parametrize(("counts", "beta"), [((3, 1), 0.0), ((2, 0), 0.1), ((0, 0), 0.0)], ids=str)
def test_losses_are_detectron2s(
    counts: tuple[int, ...], beta: float, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Summed over the batch and divided by the running mean; an anchor that a box overlaps most learns, however little
    that is. Equal to the last digits of float32."""
    batch = batch_of(counts, 64, 64)
    monkeypatch.setattr(model, "smooth_l1_beta", beta)
    model.loss_normaliser.mean.fill_(100)
    losses = RETINANET.losses_of(R18, False)(model.train(), batch)
    with torch.no_grad():
        of_classes, of_boxes, objects = expected_losses(model.outputs(batch.images), batch, beta)
    assert objects > 8 if sum(counts) else objects == 0
    normaliser = 0.9 * 100 + 0.1 * max(objects, 1)
    assert losses["classification"].item() == pytest.approx(of_classes / normaliser, rel=1e-5)
    assert losses["bbox_regression"].item() == pytest.approx(of_boxes / normaliser, rel=1e-5)
    assert model.loss_normaliser.mean.item() == pytest.approx(normaliser, rel=1e-6)


def test_the_normaliser_is_a_running_mean() -> None:
    mean = RunningMean(100.0, 0.9)
    first, second = mean(torch.tensor(1)), mean(torch.tensor(50))
    assert first.item() == pytest.approx(90.1) and second.item() == pytest.approx(0.9 * 90.1 + 5)
    assert mean.mean.item() == second.item() and mean.mean.dtype == torch.float32
    assert dict(mean.named_buffers()).keys() == {"mean"} and not list(mean.parameters())


def test_losses_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of((3, 0))
    with torch.device("meta"):
        model: Any = build(R18, NUM_CLASSES)
    torch.manual_seed(0)
    grids = ((12, 12), (6, 6), (3, 3), (2, 2), (1, 1))
    anchors = anchors_ltrb_px([torch.zeros(1, 1, *grid) for grid in grids])
    outputs = Outputs(torch.randn(2, len(anchors), CLASSES), torch.rand(2, len(anchors), 4), anchors, [])
    monkeypatch.setattr(model, "outputs", lambda images: outputs)
    model.loss_normaliser = RunningMean(100.0, 0.9)
    targets = targets_of(batch)
    with torch.no_grad():
        expected = model(batch.images, targets)
    model.loss_normaliser = RunningMean(100.0, 0.9)
    with pretended_gpu() as waits:
        model.loss_normaliser.mean = pretend(model.loss_normaliser.mean)
        there = outputs._replace(logits=pretend(outputs.logits), offsets=pretend(outputs.offsets))
        there = there._replace(anchors_ltrb_px=pretend(anchors))
        monkeypatch.setattr(model, "outputs", lambda images: there)
        boxes, labels = pretend(targets.boxes_ltrb_px), pretend(targets.labels)
        losses = model(None, targets._replace(boxes_ltrb_px=boxes, labels=labels))
        assert waits.found == []
    for name, loss in losses.items():
        torch.testing.assert_close(values(loss), expected[name])


# The normaliser in a run


class Counting(toy_training.Tiny):
    """A toy whose losses have a running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.normaliser = RunningMean(100.0, 0.9)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = toy_training.losses_of

    def losses(model: Any, batch: Any) -> dict[str, Tensor]:
        normaliser = model.normaliser(batch.images.square().sum().detach())
        return {name: 50 * loss / normaliser for name, loss in plain(model, batch).items()}

    monkeypatch.setattr(toy_training, "Tiny", Counting)
    monkeypatch.setattr(toy_training, "losses_of", losses)


def mean_of(training: Training) -> float:
    return float(training.model.normaliser.mean)  # type: ignore[union-attr, arg-type]


def test_a_run_goes_on_with_its_normaliser_bit_for_bit(counting: None, tmp_path: Path) -> None:
    """In the middle of an epoch, with a moving average."""
    every_step = {"checkpoint_every": (1, "steps"), "keep_checkpoints": 99, "ema": 0.9}
    whole = toy_training.new_training(**every_step)
    toy_training.run_training(whole, tmp_path / "whole")
    again, loader = toy_training.resumed(tmp_path / "whole" / "checkpoints" / "step-00000004.pt", **every_step)
    at_step_4 = mean_of(again)
    toy_training.run_training(again, tmp_path / "again", loader)
    assert toy_training.equal(toy_training.weights_of(whole), toy_training.weights_of(again))
    assert mean_of(again) == mean_of(whole) != at_step_4 != 100


def test_a_step_that_is_skipped_leaves_the_normaliser(counting: None) -> None:
    training = toy_training.new_training()
    forward = training.model
    training.train_step(forward, toy_training.batch_of(toy_training.GOOD), 0.1)
    before = mean_of(training)
    training.train_step(forward, toy_training.batch_of(toy_training.NAN), 0.1)
    assert mean_of(training) == before != 100 and int(training.skipped_steps) == 1


# Detections

THRESHOLDS = Thresholds(score_threshold=0.05, nms_iou=0.5, max_per_class=5000, max_per_image=100)


def expected_detections(said: Any, batch: RaggedBatch) -> tuple[Detections, int]:
    """An image after the other, by torchvision's operators: and how many boxes were empty after they were cut."""
    detections, empty = [], 0
    for image, (width, height) in enumerate(batch.sizes_px.tolist()):
        boxes, scores, labels = [], [], []
        first = 0
        for count in said.per_map:
            logits, offsets, anchors = said.logits[image], said.offsets[image], said.anchors_ltrb_px
            of_level = slice(first, first + count)
            first += count
            flat = logits[of_level].sigmoid().flatten()
            over = (flat > 0.05).nonzero().squeeze(1)
            over = over[flat[over].argsort(descending=True)[:1000]]
            sides = anchors[of_level, 2:] - anchors[of_level, :2]
            centres = anchors[of_level, :2] + sides / 2 + offsets[of_level, :2] * sides
            sides = offsets[of_level, 2:].clamp(max=math.log(62.5)).exp() * sides
            decoded = torch.cat([centres - sides / 2, centres + sides / 2], dim=1)
            boxes.append(decoded[over // CLASSES])
            scores.append(flat[over])
            labels.append(over % CLASSES + 1)
        box, score, label = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
        keep = batched_nms(box, score, label, 0.5)[:100]
        box, score, label = box[keep], score[keep], label[keep]
        box = box.clamp(min=0).minimum(torch.tensor([width, height] * 2))
        real = ((box[:, 2:] - box[:, :2]) > 0).all(dim=1)
        empty += int((~real).sum())
        detections.append((box[real] / torch.tensor([width, height] * 2), score[real], label[real]))
    rows = [torch.nn.utils.rnn.pad_sequence([*part, torch.zeros(100, *part[0].shape[1:])], batch_first=True)[:-1]
            for part in zip(*detections, strict=True)]  # fmt: skip
    return Detections(*rows, torch.tensor([len(part[1]) for part in detections])), empty


@torch.no_grad()
def test_detections_are_detectron2s(model: Any) -> None:
    batch = batch_of()
    found = RETINANET.detect(R18, THRESHOLDS)(model.eval(), eval_batch(batch))
    expected, empty = expected_detections(model.outputs(batch.images), batch)
    assert empty > 3, "no box lies beside the narrow image"
    assert_same_detections(found[:4], expected)


def test_boxes_of_which_nothing_is_left_are_no_detections() -> None:
    boxes = torch.tensor([[[0.1, 0.1, 0.2, 0.2], [1, 0.2, 1, 0.5], [0.3, 0.3, 0.6, 0.6], [0, 0, 0, 0]]])
    detections = Detections(boxes, torch.tensor([[0.9, 0.8, 0.7, 0]]), torch.tensor([[1, 2, 3, 0]]), torch.tensor([3]))
    found = without_empty(detections)
    assert found.counts.tolist() == [2] and found.labels.tolist() == [[1, 3, 0, 0]]
    assert found.boxes_ltrb[0, 1].tolist() == pytest.approx([0.3, 0.3, 0.6, 0.6]) and not found.boxes_ltrb[0, 2:].any()
    assert found.scores.tolist()[0] == pytest.approx([0.9, 0.7, 0, 0])


# What it sees


@pytest.mark.parametrize(
    ("size_px", "short_side_px", "expected"),
    [
        ((640, 480), 800, (1067, 800)),  # 1066.7, which torchvision makes 1066
        ((640, 427), 800, (1199, 800)),  # 1199.1
        ((427, 640), 800, (800, 1199)),
        ((900, 400), 800, (1333, 592)),  # 1800 x 800 is too long; 592.4
        ((500, 375), 640, (853, 640)),
        ((3, 999), 800, (4, 1333)),
    ],
)
def test_sides_are_rounded(size_px: tuple[int, int], short_side_px: int, expected: tuple[int, int]) -> None:
    view = RETINANET.view(RetinaNetSettings())
    assert isinstance(view, ShortSideView) and view.antialias
    assert resized_px(view, size_px, short_side_px) == expected


# Names, schedules


def test_a_name_with_several_sizes_has_a_checkpoint_trained_at_them() -> None:
    """Of a checkpoint's detector the sizes are its own, unless the command names others."""
    of_file = RetinaNetSettings("retinanet_r18_fpn", short_sides_px=(256,))
    for name, sides_px in (("retinanet_r18_fpn_3x", (256,)), ("retinanet_r18_fpn_3x_multi-scale", MULTI_SCALE_PX)):
        asked = recipes.defaults(settled(settings_named(name), "none"))
        found = for_detector(of_file, asked, {"detector", "checkpoint"})
        assert (found.detector.short_sides_px, found.epochs) == (sides_px, 37)


def test_names_say_body_schedule_and_sizes() -> None:
    assert len(set(NAMES)) == len(NAMES) == 35
    settings = settings_named("retinanet_r101_fpn_3x_multi-scale")
    assert (settings.name, settings.body, settings.short_sides_px[0]) == ("retinanet_r101_fpn", "r101", 640)
    assert RETINANET.title(settings) == "detectron2's RetinaNet-R101-FPN"
    assert settings_named("retinanet_r50_fpn").schedule == settings_named("retinanet_r50_fpn_1x").schedule
    assert {settings_named(name).body for name in NAMES} == {"r18", "r34", "r50", "r101", "r152"}


def test_settings_follow_the_weights() -> None:
    settings = settings_named("retinanet_r50_fpn_1x")
    assert (settings.norm, settings.stride_in, settings.trainable_layers) == (None, None, None)
    for weights, norm, stride_in, layers in (
        ("none", "batch", "1x1", 5),
        ("imagenet", "frozen", "3x3", 3),
        ("x/R-50.pkl", "frozen", "1x1", 3),
    ):
        found = settled(settings, weights)
        assert (found.norm, found.stride_in, found.trainable_layers) == (norm, stride_in, layers)


@pytest.mark.parametrize(
    ("name", "steps", "falls"),
    [
        ("retinanet_r50_fpn_1x", 90_000, (60_000, 80_000)),
        ("retinanet_r50_fpn_2x_multi-scale", 180_000, (120_000, 160_000)),
        ("retinanet_r101_fpn_3x", 270_000, (210_000, 250_000)),
    ],
)
def test_schedules_are_detectron2s_at_16_images(name: str, steps: int, falls: tuple[int, ...]) -> None:
    config = recipes.detectron2(world_size=8, detector=settings_named(name))
    assert (config.batch_size, config.steps, config.multistep) == (2, steps, falls)
    assert peak_lr(config.learning_rate, 16) == pytest.approx(0.01)
    assert (config.momentum, config.weight_decay, config.warmup, config.warmup_factor) == (0.9, 1e-4, 1000, 1e-3)
    assert (config.bias_decay, config.norm_decay, config.bias_rate) == (1e-4, 0.0, 1.0)
    assert config.thresholds == Thresholds(0.05, 0.5, 1000, 100)
    four_times = recipes.detectron2(64, detector=settings_named(name))
    assert (four_times.steps, four_times.warmup) == (steps // 4, 250)
    assert peak_lr(four_times.learning_rate, 64) == pytest.approx(0.04)
