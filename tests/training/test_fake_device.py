"""Where each tensor of training and detection lies, and what the host waits for, on a GPU that is none.

Faults planted into each part show that the instruments see them.
"""

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
from torch.utils.data._utils.pin_memory import pin_memory

from pipelines import augmentation
from pipelines.no_dali import loaders
from pipelines.ragged.draws import Sample
from pipelines.ragged.targets import ragged_batch
from pipelines.readers.coco import read_annotations
from ssd.batch import MatchedBatch
from ssd.config import Config
from ssd.detectors.ssd300.anchors import NUM_BOXES
from ssd.detectors.ssd300.settings import SSD300Settings
from ssd.distributed import Ranks
from ssd.images import normalise, normalise_padded
from ssd.training.build import build_training
from ssd.training.step import build_step
from ssd.views import Augmentation, ObjectParts, SquareView


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
        assert set(batch[6:]) == set(expected[6:]) == {None}


def test_masks_and_keypoints_come_to_the_device_without_a_wait(tmp_path: Path) -> None:
    asked = ObjectParts(masks=True, keypoints=True)
    split = read_annotations(parts_data.write(tmp_path / "data"), "train", asked)
    samples = [Sample(0, (48, 32), True), Sample(1, (30, 40), False)]
    expected = ragged_batch(torch.zeros(2, 3, 40, 48), samples, split, asked)
    with pretended_gpu() as waits:
        batch = ragged_batch(pretend(torch.zeros(2, 3, 40, 48)), samples, split, asked)
        assert waits.found == []
        for ours, theirs in zip(batch[6:9], expected[6:9], strict=True):
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
