"""Where each tensor of training and detection lies, and what the host waits for, on a GPU that is none.

Faults planted into each part show that the instruments see them.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import parts_data
import pytest
import ragged_data
import torch
from fake_gpu import GPU, Waits, fake_gpu, no_transfers, pretend, pretended_gpu, values
from square_view import VIEW, view_with
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils.data._utils.pin_memory import pin_memory
from torchvision.ops import nms

from pipelines import augmentation
from pipelines.no_dali import loaders
from pipelines.ragged.order import Sample
from pipelines.ragged.targets import ragged_batch
from pipelines.readers.coco import read_annotations
from ssd import constants
from ssd.batch import Detections, GroundTruth, MatchedBatch, Predictions, on_host
from ssd.boxes import pairwise_iou
from ssd.config import Config
from ssd.detectors import suppression
from ssd.detectors.ssd300 import postprocess
from ssd.detectors.ssd300.anchors import NUM_BOXES, default_boxes_cxcywh, default_boxes_ltrb
from ssd.detectors.ssd300.postprocess import detect
from ssd.detectors.ssd300.settings import SSD300Settings
from ssd.distributed import Ranks
from ssd.evaluation import detect as evaluation
from ssd.images import normalise, normalise_padded
from ssd.matching import decode, offsets_of
from ssd.training import state
from ssd.training.build import build_training
from ssd.training.step import build_step
from ssd.views import Augmentation, ObjectParts, SquareView

SETTINGS: dict[str, Any] = {"score_threshold": 0.05, "nms_iou": 0.5, "max_per_class": 200, "max_per_image": 200}


# Detection


def greedy_detect(
    predictions: Predictions, *, score_threshold: float, nms_iou: float, max_per_class: int, max_per_image: int
) -> Detections:
    """Box after box, in plain Python, by the arithmetic of `detect`: what it has to give bit for bit."""
    batch = len(predictions.logits)
    detections = Detections(
        torch.zeros(batch, max_per_image, 4),
        torch.zeros(batch, max_per_image),
        torch.zeros(batch, max_per_image, dtype=torch.int64),
        torch.zeros(batch, dtype=torch.int64),
    )
    for image, (offsets, logits) in enumerate(zip(*predictions, strict=True)):
        boxes_ltrb = decode(offsets.float(), default_boxes_cxcywh())
        probabilities = logits.float().softmax(dim=1)
        found = []
        for label in range(1, logits.shape[1]):
            scores = probabilities[:, label]
            is_box = ~boxes_ltrb.isnan().any(dim=1)
            box = ((scores > score_threshold) & is_box).nonzero().squeeze(1)
            box = box[scores[box].argsort(descending=True, stable=True)][:max_per_class]
            share = (boxes_ltrb[box, 2:] - boxes_ltrb[box, :2]).clamp(min=0).prod(dim=1) * (nms_iou / (1 + nms_iou))
            left, top, right, bottom = boxes_ltrb[box].t()
            stays = torch.ones(len(box), dtype=torch.bool)
            for i in range(len(box)):
                if stays[i]:
                    width = (torch.minimum(right, right[i]) - torch.maximum(left, left[i])).clamp(min=0)
                    height = (torch.minimum(bottom, bottom[i]) - torch.maximum(top, top[i])).clamp(min=0)
                    falls = width * height > share + share[i]
                    stays[i + 1 :] &= ~falls[i + 1 :]
            found += [(float(scores[k]), label, boxes_ltrb[k].clamp(0, 1)) for k in box[stays].tolist()]
        found.sort(key=lambda each: -each[0])  # stable: of equals the one that came first
        for rank, (score, label, box_ltrb) in enumerate(found[:max_per_image]):
            detections.boxes_ltrb[image, rank] = box_ltrb
            detections.scores[image, rank], detections.labels[image, rank] = score, label
        detections.counts[image] = min(len(found), max_per_image)
    return detections


def noise(images: int, num_classes: int, background: float, seed: int = 1) -> Predictions:
    """Dense boxes anywhere. A higher logit for background leaves fewer candidates."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, NUM_BOXES, num_classes, generator=generator)
    logits[..., 0] += background
    return Predictions(1.5 * torch.randn(images, NUM_BOXES, 4, generator=generator), logits)


def ties() -> Predictions:
    """Few different scores, and boxes that are equal or share the same."""
    offsets, logits = noise(2, 4, 6)
    return Predictions(offsets.round(), logits.round())


def crowd() -> Predictions:
    """120 objects of one class in one image, each told by many default boxes; nothing in the other."""
    generator = torch.Generator().manual_seed(2)
    sides = 0.08 + 0.1 * torch.rand(120, 2, generator=generator)
    corners = (1 - sides) * torch.rand(120, 2, generator=generator)
    boxes_ltrb = torch.cat([corners, corners + sides], dim=1)
    iou, box = pairwise_iou(boxes_ltrb, default_boxes_ltrb()).max(dim=0)
    offsets, logits = torch.zeros(2, NUM_BOXES, 4), torch.zeros(2, NUM_BOXES, 5)
    logits[..., 0] = 12
    hit = (iou > 0.3).nonzero().squeeze(1)
    offsets[0, hit] = offsets_of(boxes_ltrb[box[hit]], default_boxes_cxcywh()[hit])
    logits[0, hit, 2] = 8 + 8 * iou[hit]
    return Predictions(offsets, logits)


def chain() -> Predictions:
    """150 boxes of one class, each of which overlaps its neighbours too much and no others: the longest chain."""
    left = torch.arange(150) * 0.25
    boxes_ltrb = torch.stack([left, torch.zeros(150), left + 1, torch.ones(150)], dim=1)
    offsets, logits = torch.zeros(1, NUM_BOXES, 4), torch.zeros(1, NUM_BOXES, 2)
    logits[..., 0] = 20
    here = slice(1000, 1150)
    offsets[0, here] = offsets_of(boxes_ltrb, default_boxes_cxcywh()[here])
    logits[0, here, 1] = 24 - 0.01 * torch.arange(150)
    return Predictions(offsets, logits)


def nothing() -> Predictions:
    return noise(3, 4, 60)


def odd_numbers() -> Predictions:
    """Offsets and logits that are not finite, or whose sizes are not."""
    offsets, logits = noise(2, 4, 8)
    offsets[0, ::3, 2:] = 1000
    offsets[0, ::5] = math.nan
    logits[1, ::7] = math.nan
    return Predictions(offsets, logits)


CASES: list[Any] = [
    pytest.param(lambda: noise(2, 5, 0), {}, id="both limits reached"),
    pytest.param(lambda: noise(3, 5, 12), {}, id="few candidates"),
    pytest.param(lambda: noise(2, 2, 6), {}, id="one class"),
    pytest.param(lambda: noise(2, 5, 6), {"max_per_class": 1}, id="one of each class"),
    pytest.param(lambda: noise(2, 5, 6), {"max_per_class": 30, "max_per_image": 10}, id="low limits"),
    pytest.param(lambda: noise(2, 5, 6), {"max_per_image": 3000}, id="no limit of an image"),
    pytest.param(lambda: noise(1, 3, 6), {"nms_iou": 0.0}, id="no overlap at all"),
    pytest.param(lambda: noise(1, 3, 6), {"nms_iou": 1.0}, id="no suppression"),
    pytest.param(ties, {}, id="ties"),
    pytest.param(crowd, {}, id="crowd"),
    pytest.param(chain, {"nms_iou": 0.45}, id="long chain"),
    pytest.param(nothing, {}, id="nothing"),
    pytest.param(odd_numbers, {}, id="odd numbers"),
]


def on_gpu(predictions: Predictions) -> Predictions:
    return Predictions(*map(pretend, predictions))


def warm_up() -> None:
    """Constants come to the device once."""
    detect(on_gpu(noise(1, 2, 12)), **SETTINGS)
    normalise(pretend(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)))


def same_bits(found: Detections, expected: Detections) -> None:
    assert found[4:] == expected[4:] == (None, None)  # no masks, no keypoints
    for ours, theirs in zip(found[:4], expected[:4], strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("make", "settings"), CASES)
def test_detection_is_the_same_on_both_devices_and_waits_three_times(
    make: Callable[[], Predictions], settings: dict[str, Any]
) -> None:
    predictions, settings = make(), {**SETTINGS, **settings}
    expected = greedy_detect(predictions, **settings)
    same_bits(detect(predictions, **settings), expected)
    with pretended_gpu() as waits:
        warm_up()
        waits.found, waits.launches = [], 0
        found = detect(on_gpu(predictions), **settings)
        assert len(waits.found) <= 3, waits.found
        # Views among them. 150 rounds of two operators and three views each are the worst, and no tenth of what it was.
        assert waits.launches < 1200
        same_bits(Detections(*map(values, found[:4])), expected)


def test_a_crowd_launches_no_more_than_few_objects() -> None:
    launches = []
    with pretended_gpu() as waits:
        for predictions in (noise(2, 5, 12), crowd(), noise(1, 5, 0)):
            warm_up()
            waits.launches = 0
            detect(on_gpu(predictions), **SETTINGS)
            launches.append(waits.launches)
    assert launches[0] == launches[1] == launches[2] < 250


def test_the_long_chain_needs_the_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the case above would say nothing of it."""
    rounds: list[int] = []
    settle = suppression._settle

    def recording(*arguments: Any) -> Tensor:
        rounds.append(arguments[-1])
        return settle(*arguments)

    monkeypatch.setattr(suppression, "_settle", recording)
    with pretended_gpu():
        found = detect(on_gpu(chain()), **{**SETTINGS, "nms_iou": 0.45})
        assert values(found.counts).tolist() == [75]  # every other one
    assert rounds == [suppression._ROUNDS_BEFORE_LOOKING, 150]


@pytest.mark.parametrize("make", [lambda: noise(1, 3, 8), crowd, chain])
def test_memory_is_bounded_by_comparing_in_parts(
    make: Callable[[], Predictions], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions, settings = make(), {**SETTINGS, "nms_iou": 0.45}
    monkeypatch.setattr(suppression, "_PAIRS_AT_ONCE", 20_000)
    sizes: list[int] = []
    minimum = torch.minimum

    def recording(a: Tensor, b: Tensor) -> Tensor:
        sizes.append((out := minimum(a, b)).numel())
        return out

    expected = detect(predictions, **settings)
    with pretended_gpu() as waits:
        warm_up()
        waits.found = []
        monkeypatch.setattr(torch, "minimum", recording)
        same_bits(Detections(*map(values, detect(on_gpu(predictions), **settings)[:4])), expected)
        assert len(waits.found) <= 3
    assert len(sizes) > 2 and max(sizes) <= 20_000


@pytest.mark.parametrize("nms_iou", [0.3, 0.5, 0.7])
def test_the_fixed_point_is_torchvisions_nms(nms_iou: float) -> None:
    """On boxes without ties, where the roundings of both say the same."""
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(1200, 2, generator=generator, dtype=torch.float32)
    boxes_ltrb = torch.cat([corners, corners + 0.05 + 0.3 * torch.rand(1200, 2, generator=generator)], dim=1)
    group = torch.arange(1200) // 150  # 8 groups of 150
    stays = suppression._fixed_point_nms(boxes_ltrb, group, nms_iou, 150)
    for number in range(8):
        kept = nms(boxes_ltrb[group == number], torch.arange(150, 0, -1).float(), nms_iou)
        assert stays[group == number].nonzero().squeeze(1).tolist() == sorted(kept.tolist())


def coco_rows(found: Detections) -> Tensor:
    count = len(found.counts)
    truth = GroundTruth(np.arange(count), np.full((count, 2), 100, dtype=np.int32), [7, 8, 9, 11], list("abcd"), {})
    return evaluation._coco_rows(on_host(found), torch.arange(count), truth)


def test_an_evaluated_batch_waits_four_times() -> None:
    """Three in detection, and once for what was found."""
    predictions = noise(2, 5, 6)
    expected = coco_rows(detect(predictions, **SETTINGS))
    assert len(expected) > 20
    with pretended_gpu() as waits:
        warm_up()
        waits.found = []
        rows = coco_rows(detect(on_gpu(predictions), **SETTINGS))
        assert len(waits.found) <= 4 and waits.found[-1] == "copy to the host"
    assert torch.equal(rows, expected)


@pytest.mark.parametrize("make", [lambda: noise(2, 5, 6), nothing])
def test_detections_come_to_the_host_as_they_are(make: Callable[[], Predictions]) -> None:
    found = detect(make(), **SETTINGS)
    same_bits(on_host(found), found)


# Finishing


def host_batch() -> loaders._HostBatch:
    rng = np.random.default_rng(4)
    boxes = [np.array([[0.1, 0.1, 0.5, 0.6]], np.float32), np.array([[0.2, 0.3, 0.9, 0.8]] * 2, np.float32)]
    return loaders._collate(
        [
            loaders.Sample(
                rng.integers(0, 256, (300, 300, 3), dtype=np.uint8),
                augmentation.random_colour(rng),
                bool(number),
                boxes_ltrb,
                np.arange(1, 1 + len(boxes_ltrb)),
                40 + number,
            )
            for number, boxes_ltrb in enumerate(boxes)
        ],
        defaults_cxcywh=VIEW.defaults_cxcywh,
    )


def finished(waits: Waits, view: SquareView = VIEW) -> MatchedBatch:
    """A batch of the PyTorch path, as its loader's thread pins it. Constants are there already."""
    host = pin_memory(host_batch())
    loaders._finish(host, GPU, view)
    waits.found = []
    return loaders._finish(host, GPU, view)


@pytest.mark.parametrize("contrast_centre", [None, 128.0])
def test_the_torch_path_finishes_without_a_wait(contrast_centre: float | None) -> None:
    view = view_with(Augmentation(contrast_centre=contrast_centre))
    expected = loaders._finish(host_batch(), torch.device("cpu"), view)
    with pretended_gpu() as waits:
        batch = finished(waits, view)
        assert waits.found == []
        for ours, theirs in zip(map(values, batch[:3]), expected[:3], strict=True):
            # The GPU's way takes the whole batch at once, so sums may be in another order.
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        assert values(batch.labels).dtype == torch.int64
    assert batch.image_ids.device.type == "cpu" and batch.image_ids.tolist() == [40, 41]


def dali_output(on: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "images": on(torch.randint(0, 256, (2, 300, 300, 3), dtype=torch.uint8, generator=generator)),
        "colour": on(torch.tensor([[10.0, 0.8, 1.1, 0.9], [-5, 1.2, 0.9, 1.1]])),
        "flip": on(torch.tensor([1, 0], dtype=torch.int32)),
        "offsets": on(torch.rand(2, NUM_BOXES, 4, generator=generator)),
        "labels": on(torch.ones(2, NUM_BOXES, dtype=torch.int32)),
        "indices": torch.tensor([[1], [0]]),
    }


class Images:
    image_ids = np.array([40, 41])
    is_upright = False

    def trainable_indices(self) -> np.ndarray:
        return np.arange(2)

    def __len__(self) -> int:
        return 2


def test_the_dali_path_finishes_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from pipelines.dali import loaders

    def batches(ranks: Ranks, outputs: list[dict[str, Tensor]]) -> Any:
        monkeypatch.setattr(loaders, "graph_digest", lambda *_: "")
        monkeypatch.setattr(loaders, "build_pipeline", lambda *_, **__: None)
        monkeypatch.setattr(loaders, "_iterator", lambda *_, **__: None)
        monkeypatch.setattr(loaders, "_outputs", lambda *_: iter(outputs))
        images: Any = Images()
        loader = loaders.TrainLoader(images, batch_size=2, num_workers=1, seed=0, ranks=ranks, view=VIEW)
        return loader.batches(0)

    (expected,) = batches(Ranks(0, 0, 1, torch.device("cpu")), [dali_output(lambda tensor: tensor)])
    with pretended_gpu() as waits:
        loader = batches(Ranks(0, 0, 1, GPU), [dali_output(pretend)] * 2)
        next(loader)  # constants come to the device once
        waits.found = []
        batch = next(loader)
        assert waits.found == []
        for ours, theirs in zip(map(values, batch[:3]), expected[:3], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert batch.image_ids.tolist() == expected.image_ids.tolist() == [41, 40]


def test_normalisation_waits_for_nothing() -> None:
    pixels = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).view(2, 3, 8, 8)
    expected = normalise(pixels)
    with pretended_gpu() as waits:
        normalise(pretend(pixels))
        waits.found = []
        assert torch.equal(values(normalise(pretend(pixels))), expected)
        assert waits.found == []


@pytest.mark.parametrize("learned", [True, False])
def test_ragged_batches_are_finished_without_a_wait(learned: bool, tmp_path: Path) -> None:
    """What the PyTorch path does with the pixels, and both paths with the targets."""
    split = ragged_data.write(tmp_path)
    indices = [3, 0] if learned else [7, 7]  # three boxes and one; none at all
    samples = [Sample(index, (32, 24), flip) for index, flip in zip(indices, (True, False), strict=True)]
    pixels = torch.randint(0, 256, (2, 24, 32, 3), dtype=torch.uint8)
    expected = ragged_batch(normalise_padded(list(pixels), ragged_data.VIEW), samples, split)
    with pretended_gpu() as waits:
        normalise_padded(list(pretend(pixels)), ragged_data.VIEW)  # constants come to the device once
        waits.found = []
        batch = ragged_batch(normalise_padded(list(pretend(pixels)), ragged_data.VIEW), samples, split)
        assert waits.found == []
        for ours, theirs in zip(batch[:6], expected[:6], strict=True):
            on_gpu = ours is batch.images or ours is batch.boxes_ltrb_px or ours is batch.labels
            assert torch.equal(values(ours) if on_gpu else ours, theirs)
        assert [tensor.device.type for tensor in batch[:6]] == ["cuda", "cpu", "cuda", "cuda", "cpu", "cpu"]
        assert batch[6:] == expected[6:] == (None, None, None)


def test_masks_and_keypoints_come_to_the_device_without_a_wait(tmp_path: Path) -> None:
    asked = ObjectParts(masks=True, keypoints=True)
    split = read_annotations(parts_data.write(tmp_path / "data"), "train", asked)
    samples = [Sample(0, (48, 32), True), Sample(1, (30, 40), False)]
    expected = ragged_batch(torch.zeros(2, 3, 40, 48), samples, split, asked)
    with pretended_gpu() as waits:
        batch = ragged_batch(pretend(torch.zeros(2, 3, 40, 48)), samples, split, asked)
        assert waits.found == []
        for ours, theirs in zip(batch[6:], expected[6:], strict=True):
            assert ours is not None and ours.device.type == "cuda" and torch.equal(values(ours), theirs)


# The step


@contextmanager
def a_step(config: Config) -> Iterator[Callable[[], None]]:
    """A step of R18 on torch's fake GPU: raises where the host waits for it, or a tensor is on the wrong device."""
    with fake_gpu():
        training, _ = build_training(config, [(1, "a")], Ranks(0, 0, 1, GPU))
        training.model.train()
        step = build_step(training)
        images = torch.empty(4, 3, 300, 300, device=GPU).to(memory_format=torch.channels_last)
        offsets = torch.empty(4, NUM_BOXES, 4, device=GPU)
        labels = torch.empty(4, NUM_BOXES, dtype=torch.int64, device=GPU)
        batch = MatchedBatch(images, offsets, labels, torch.arange(4))
        step(batch, 1e-3)  # what is made once is made now

        def take() -> None:
            with no_transfers():
                losses = step(batch, 1e-3)
            assert losses.device == GPU and losses.shape == (2,)
            assert training.skipped_steps.device == GPU

        yield take


PLAIN = Config(detector=SSD300Settings("resnet18"), backbone_weights="none", batch_size=4, seed=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fp16": True},
        {"bf16": True},
        {"ema": 0.9},
        {"accumulate": 2},
        {"clip_norm": 1.0},
        {"freeze_backbone": True},
        {"fp16": True, "ema": 0.9, "accumulate": 2, "clip_norm": 1.0},
    ],
    ids=lambda options: "+".join(options) or "plain",
)
def test_a_step_waits_for_nothing(options: dict[str, Any]) -> None:
    with a_step(replace(PLAIN, **options)) as take:
        take()


# The instruments


def plant_item(tensor: Tensor) -> None:
    tensor.flatten()[0].item()


def plant_nonzero(tensor: Tensor) -> None:
    tensor.flatten()[:4].nonzero()


def plant_host_constant(tensor: Tensor) -> None:
    tensor.flatten()[:4] + torch.ones(4)


def plant_copied_constant(tensor: Tensor) -> None:
    torch.tensor([1.0, 2.0], device=tensor.device)


def plant_mask(tensor: Tensor) -> None:
    tensor.flatten()[tensor.flatten() > 0]


FAULTS = [plant_item, plant_nonzero, plant_host_constant, plant_copied_constant, plant_mask]
faults = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)


def test_faults_in_the_step_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = state.Training._sum_of_gradients
    with a_step(PLAIN) as take:
        for fault, error, text in (
            (plant_item, DataDependentOutputException, "_local_scalar_dense"),
            (plant_nonzero, DynamicOutputShapeException, "nonzero"),
            (plant_mask, DynamicOutputShapeException, "nonzero"),
            (plant_host_constant, RuntimeError, "device"),
            (plant_copied_constant, AssertionError, "a copy between the host and the GPU"),
        ):

            def with_fault(training: state.Training, fault: Callable[[Tensor], None] = fault) -> Tensor:
                fault(training.statistics)
                return norm(training)

            monkeypatch.setattr(state.Training, "_sum_of_gradients", with_fault)
            with pytest.raises(error, match=text):
                take()
            monkeypatch.undo()
            take()


def seen(waits: Waits, allowed: int, run: Callable[[], Any]) -> bool:
    """Whether the instrument tells a fault: a tensor on the wrong device, or more waits than allowed."""
    waits.found = []
    try:
        run()
    except AssertionError as error:
        return "on the GPU and on the host" in str(error)
    return len(waits.found) > allowed


@faults
def test_a_fault_in_finishing_is_seen(fault: Callable[[Tensor], None], monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_gpu() as waits:
        host = pin_memory(host_batch())
        loaders._finish(host, GPU, VIEW)
        assert not seen(waits, 0, lambda: loaders._finish(host, GPU, VIEW))
        maps = augmentation.colour_maps

        def with_fault(colour: Tensor) -> tuple[Tensor, Tensor]:
            fault(colour)
            return maps(colour)

        monkeypatch.setattr(augmentation, "colour_maps", with_fault)
        assert seen(waits, 0, lambda: loaders._finish(host, GPU, VIEW))


def test_a_batch_that_is_not_pinned_is_seen() -> None:
    with pretended_gpu() as waits:
        loaders._finish(host_batch(), GPU, VIEW)
        assert seen(waits, 0, lambda: loaders._finish(host_batch(), GPU, VIEW))


@faults
def test_a_fault_in_detection_is_seen(fault: Callable[[Tensor], None], monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_gpu() as waits:
        predictions = on_gpu(noise(1, 4, 8))
        warm_up()
        assert not seen(waits, 3, lambda: detect(predictions, **SETTINGS))
        share = suppression._share

        def with_fault(boxes_ltrb: Tensor, nms_iou: float) -> Tensor:
            fault(boxes_ltrb)
            return share(boxes_ltrb, nms_iou)

        monkeypatch.setattr(suppression, "_share", with_fault)
        assert seen(waits, 3, lambda: detect(predictions, **SETTINGS))


def test_rounds_on_a_gpu_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's way, which there would wait twice a round."""
    for module in (postprocess, suppression):
        monkeypatch.setattr(module, "_DROPS_AT_ONCE_ON", ("cpu", "cuda"))
    with pretended_gpu() as waits:
        warm_up()
        assert seen(waits, 20, lambda: detect(on_gpu(noise(1, 4, 8)), **SETTINGS))


def test_uncached_constants_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_gpu() as waits:
        warm_up()
        monkeypatch.setattr(constants, "_kept", constants._kept.__wrapped__)
        assert seen(waits, 0, lambda: normalise(pretend(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))))
        monkeypatch.undo()
