"""Batches of images that keep their shapes, of both data paths: pixels, targets, order, and going on."""

import math
import re
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from ragged_data import ALONE, VIEW, eval_loader, ranks_of, train_loader, write
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from pipelines import show
from pipelines.annotations import Annotations
from pipelines.dali import ragged as dali_ragged
from pipelines.no_dali import ragged
from pipelines.ragged.order import TrainingOrder
from pipelines.readers.image_files import read_rgb
from ssd.batch import RaggedBatch
from ssd.config import DATA_PIPELINES
from ssd.errors import InputError
from ssd.images import normalise, normalise_one_by_one, normalise_padded, resize
from ssd.pictures.drawing import Box
from ssd.views import ShortSideView, largest_px, padded_px, resized_px

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in (VIEW.mean, VIEW.std))


@pytest.fixture(params=DATA_PIPELINES)
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    return request.param


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    return write(tmp_path_factory.mktemp("ragged"))


def _equal(a: list[RaggedBatch], b: list[RaggedBatch]) -> bool:
    return all(_same(x, y) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True))


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is b is None or torch.equal(a, b)  # type: ignore[arg-type]


def _images(batch: RaggedBatch) -> list[torch.Tensor]:
    """Without their padding."""
    return [image[:, :h, :w] for image, (w, h) in zip(batch.images, batch.sizes_px.tolist(), strict=True)]


def _boxes(batch: RaggedBatch) -> list[torch.Tensor]:
    return list(batch.boxes_ltrb_px.split(batch.counts.tolist()))


# Sizes


@pytest.mark.parametrize(
    ("size_px", "short_side_px", "expected"),
    [
        ((640, 480), 800, (1066, 800)),  # 640 x 5/3 = 1066.67, rounded down
        ((480, 640), 800, (800, 1066)),
        ((1000, 1000), 800, (800, 800)),
        ((2000, 500), 800, (1333, 333)),  # 1333 / 2000 = 0.6665 is less than 1.6
        ((1333, 800), 800, (1333, 800)),
        ((4000, 1), 800, (1333, 1)),  # torchvision has no pixel left here
    ],
)
def test_sizes(size_px: tuple[int, int], short_side_px: int, expected: tuple[int, int]) -> None:
    assert resized_px(ShortSideView(), size_px, short_side_px) == expected


def test_no_image_is_larger_than_the_largest() -> None:
    sides = np.random.default_rng(0).integers(1, 3000, (200, 2)).tolist()
    for view in (ShortSideView(), VIEW, ShortSideView(short_sides_px=(500,), long_side_px=300)):
        sizes_px = [resized_px(view, (w, h), short) for w, h in sides for short in view.short_sides_px]
        assert max(map(math.prod, sizes_px)) <= largest_px(view)
    assert largest_px(ShortSideView()) == 1333 * 800 and largest_px(view) == 300 * 300


def test_a_batch_is_as_large_as_its_largest_sides() -> None:
    assert padded_px(ShortSideView(), [(1066, 800), (800, 1066)]) == (1088, 1088)
    assert padded_px(ShortSideView(divisor=1), [(5, 7), (6, 3)]) == (6, 7)
    assert padded_px(ShortSideView(), [(64, 32)]) == (64, 32)


def test_sizes_and_pixels_are_those_of_torchvisions_transform() -> None:
    """Over random sizes and sides, shrinking and enlarging: sizes equal, pixels within two levels of 255, as ours are
    resized in whole levels, and padding the same."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        width, height = rng.integers(5, 160, 2).tolist()
        short, long = (int(side) for side in (rng.integers(8, 90), rng.integers(60, 150)))
        view = VIEW._replace(short_sides_px=(short,), long_side_px=long, divisor=int(rng.choice([1, 16, 32])))
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        box = torch.tensor([[0.25 * width, 0.5 * height, 0.75 * width, height]])
        transform = GeneralizedRCNNTransform(short, long, view.mean, view.std, view.divisor)
        theirs, (target,) = transform(
            [torch.from_numpy(image).permute(2, 0, 1) / 255], [{"boxes": box, "labels": torch.tensor([1])}]
        )
        size_px = resized_px(view, (width, height), short)
        assert theirs.image_sizes == [size_px[::-1]]
        ours = normalise_padded([torch.from_numpy(resize(image, size_px, antialias=False))], view)
        assert ours.shape == theirs.tensors.shape
        assert ((ours - theirs.tensors)[0] * STD).abs().max() <= 2.01 / 255
        assert ((ours - theirs.tensors)[0] * STD).abs().mean() < 0.5 / 255
        scaled = torch.tensor([0.25, 0.5, 0.75, 1]) * torch.tensor([*size_px, *size_px])
        torch.testing.assert_close(target["boxes"][0], scaled, rtol=1e-6, atol=1e-4)


def test_finishing_is_the_plain_normalisation_bit_for_bit() -> None:
    """Rows in parts and channels side by side are for speed alone. 70 rows are more than two parts."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (h, w, 3), dtype=torch.uint8, generator=generator) for h, w in ((70, 9), (31, 50))]
    padded = normalise_padded(images, VIEW)
    assert padded.shape == (2, 3, 72, 56) and padded.is_contiguous(memory_format=torch.channels_last)
    for image, place in zip(images, padded, strict=True):
        height, width, _ = image.shape
        assert torch.equal(place[:, :height, :width], normalise(image.permute(2, 0, 1)[None])[0])
        assert not place[:, height:].any() and not place[:, :, width:].any()


def test_resize_takes_any_size_and_both_filters() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    for antialias in (True, False):
        expected = F.interpolate(planes, (17, 60), mode="bilinear", antialias=antialias)[0].permute(1, 2, 0)
        ours = resize(image, (60, 17), antialias=antialias)
        assert ours.shape == (17, 60, 3) and ours.dtype == np.uint8
        assert np.abs(ours - expected.numpy()).max() <= 1.01


# Training


def test_batches_are_finished(name: str, split: Annotations) -> None:
    for batch in islice(train_loader(name, split).batches(0), 6):
        assert batch.images.dtype == torch.float32 and batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.images.shape[2:] == padded_px(VIEW, batch.sizes_px.tolist())[::-1]
        for image, (width, height) in zip(batch.images, batch.sizes_px.tolist(), strict=True):
            assert not image[:, height:].any() and not image[:, :, width:].any()
            assert -2.13 < image.min() < image.max() < 2.65 and image[:, :height, :width].std() > 0.1
        assert (batch.sizes_px.dtype, batch.counts.dtype, batch.image_ids.dtype) == (torch.int64,) * 3
        assert batch.boxes_ltrb_px.dtype == torch.float32 and batch.labels.dtype == torch.int64
        assert batch.counts.sum() == len(batch.boxes_ltrb_px) == len(batch.labels) > 0
        for boxes, (width, height) in zip(_boxes(batch), batch.sizes_px.tolist(), strict=True):
            assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] > boxes[:, :2]).all()
            assert (boxes[:, 2:] <= torch.tensor([width, height])).all()


def test_samples_are_those_of_the_order(name: str, split: Annotations) -> None:
    order = TrainingOrder(split, VIEW, batch_size=2, seed=3, ranks=ALONE)
    for batch, step in islice(zip(train_loader(name, split).batches(0), order.steps((0, 0)), strict=False), 20):
        assert batch.image_ids.tolist() == [1000 + sample.image for sample in step.samples]
        assert batch.sizes_px.tolist() == [list(sample.size_px) for sample in step.samples]
    assert train_loader(name, split, ranks=ranks_of(3)[1]).steps_per_epoch == 2  # 10 images to learn, 6 a step


def test_pixels_and_boxes_are_those_of_the_file_resized_and_flipped(name: str, split: Annotations) -> None:
    """Within 1/255 on average: resizers round differently. Image 3 has three boxes, image 0 a crowd, left out."""
    order = TrainingOrder(split, VIEW, batch_size=2, seed=3, ranks=ALONE)
    kinds = set()
    for batch, step in islice(zip(train_loader(name, split).batches(0), order.steps((0, 0)), strict=False), 15):
        labels = batch.labels.split(batch.counts.tolist())
        for image, boxes, of_image, sample in zip(_images(batch), _boxes(batch), labels, step.samples, strict=True):
            plain = read_rgb(split.image_folder / split.file_names[sample.image])
            expected = torch.from_numpy(resize(plain, sample.size_px, antialias=False)).permute(2, 0, 1) / 255
            expected = expected.flip(2) if sample.flip else expected
            assert (image * STD + MEAN - expected).abs().mean() < 1 / 255
            old, new = np.array([*split.sizes_px[sample.image]] * 2), np.array([*sample.size_px] * 2)
            rows = [[2 + n, 3, 2 + n + old[0] / 2, 3 + old[1] / 2] for n in range(3 if sample.image == 3 else 1)]
            ltrb = np.minimum(rows, old) * new / old
            if sample.flip:
                ltrb[:, [0, 2]] = new[0] - ltrb[:, [2, 0]]
            np.testing.assert_allclose(boxes, ltrb, rtol=1e-5, atol=1e-4)
            assert of_image.tolist() == [sample.image % 3 + 1] * len(boxes)
            kinds.add((sample.image, sample.flip))
    assert len(kinds) > 12 and {(0, False), (0, True)} & kinds


def test_the_two_paths_give_the_same_samples(split: Annotations, coco256: Path) -> None:
    """In the same order, targets bit for bit and pixels within 1/255 on average in any image: on made-up images, and
    on photographs that are enlarged and made smaller, with and without a filter."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from pipelines.readers.coco import read_annotations

    photographs = read_annotations(coco256, "train2017")
    large = ShortSideView(short_sides_px=(160, 500), long_side_px=700)
    for of, view, steps in (
        (split, VIEW, 15),
        (photographs, large, 4),
        (photographs, large._replace(short_sides_px=(100, 220), antialias=True), 4),
    ):
        batches = [islice(train_loader(path, of, view, batch=3).batches(0), steps) for path in DATA_PIPELINES]
        for ours, theirs in zip(*batches, strict=True):
            for one, other in zip(ours[1:], theirs[1:], strict=True):
                assert _same(one, other)
            assert ours.images.shape == theirs.images.shape
            differences = [(a - b) * STD for a, b in zip(_images(ours), _images(theirs), strict=True)]
            assert max(difference.abs().mean().item() for difference in differences) < 1 / 255


def test_workers_change_nothing(name: str, split: Annotations) -> None:
    """Nor does the order in which they are done: memory that they share comes around three times here."""
    none, two = (list(islice(train_loader(name, split, workers=workers).batches(0), 15)) for workers in (0, 2))
    assert _equal(none, two)


def test_workers_write_while_an_image_is_finished(split: Annotations, monkeypatch: pytest.MonkeyPatch) -> None:
    """All images under way have been written when the bytes of the one that was taken are looked at."""
    order = TrainingOrder(split, VIEW, batch_size=2, seed=3, ranks=ALONE)
    steps = [step.samples for step in islice(order.steps((0, 0)), 12)]
    alone = list(ragged._finished(split, VIEW, steps, batch_size=2, num_workers=0, device=torch.device("cpu")))

    def slowly(images: Iterable[torch.Tensor], *arguments: Any) -> torch.Tensor:
        def late() -> Iterator[torch.Tensor]:
            for image in images:
                time.sleep(0.1)
                yield image

        return normalise_one_by_one(late(), *arguments)

    monkeypatch.setattr(ragged, "normalise_one_by_one", slowly)
    for ours, theirs in zip(
        ragged._finished(split, VIEW, steps, batch_size=2, num_workers=1, device=torch.device("cpu")),
        alone,
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_dalis_threads_take_one_core_each_and_others_as_many_as_before() -> None:
    counts: list[int] = []
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with dali_ragged._one_core_each(2) as pool:
            assert [pool.submit(torch.get_num_threads).result() for _ in range(4)] == [1] * 4
        thread = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert [*counts, torch.get_num_threads()] == [3, 3]
    finally:
        torch.set_num_threads(before)


def test_equal_seeds_give_equal_batches_and_others_do_not(name: str, split: Annotations) -> None:
    first, again, other = (list(islice(train_loader(name, split, seed=seed).batches(0), 5)) for seed in (3, 3, 4))
    assert _equal(first, again)
    assert not all(a.image_ids.tolist() == b.image_ids.tolist() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("stop", [1, 5, 8])
def test_goes_on_where_it_was(name: str, split: Annotations, stop: int) -> None:
    """Within a pass, at its end (5 steps of 2 are 10 images) and in the next one; what was read ahead is not lost."""
    whole = list(islice(train_loader(name, split).batches(0), 12))
    before = train_loader(name, split, workers=1)
    assert before.state() == b"" and before.ranks_share_state
    batches = before.batches(0)
    assert _equal(list(islice(batches, stop)), whole[:stop])
    after = train_loader(name, split)
    after.restore(before.state())
    assert after.state() == before.state()
    assert _equal(list(islice(after.batches(99), 12 - stop)), whole[stop:])


def test_goes_on_with_two_ranks_batches_on_one(name: str, split: Annotations) -> None:
    """After three steps of two ranks with two images each, one rank with four goes on as the two would have."""
    pair = [train_loader(name, split, ranks=ranks) for ranks in ranks_of(2)]
    batches = [loader.batches(0) for loader in pair]
    for each in batches:
        list(islice(each, 3))
    assert pair[0].state() == pair[1].state()
    alone = train_loader(name, split, batch=4)
    alone.restore(pair[1].state())
    for batch, *parts in islice(zip(alone.batches(3), *batches, strict=False), 4):
        assert batch.image_ids.tolist() == [id for part in parts for id in part.image_ids.tolist()]
        assert torch.equal(batch.boxes_ltrb_px, torch.cat([part.boxes_ltrb_px for part in parts]))
        for one, other in zip(_images(batch), [image for part in parts for image in _images(part)], strict=True):
            assert torch.equal(one, other)


def test_going_on_without_a_state_does_not_repeat_the_beginning(name: str, split: Annotations) -> None:
    whole = list(islice(train_loader(name, split).batches(0), 7))
    assert _equal(list(islice(train_loader(name, split).batches(5), 2)), whole[5:])


def test_identity_is_the_views(name: str, split: Annotations) -> None:
    """Whatever the data, the seed, the batch and the ranks."""
    first = train_loader(name, split).identity
    assert first == train_loader(name, split, ranks=ranks_of(2)[1], seed=9, batch=3).identity
    other = train_loader(name, split, VIEW._replace(long_side_px=57)).identity
    assert {key for key in first if first[key] != other[key]} == {"long_side_px"}
    assert ("dali" in first) == (name == "dali")


def test_an_abandoned_evaluation_leaves_the_next_one_whole(name: str, split: Annotations) -> None:
    loader = eval_loader(name, split)
    whole = list(loader)
    next(iter(loader))
    for again, batch in zip(loader, whole, strict=True):
        assert torch.equal(again.images, batch.images) and torch.equal(again.indices, batch.indices)


def test_images_without_a_box_do_not_train(name: str, split: Annotations) -> None:
    ids = {id for batch in islice(train_loader(name, split).batches(0), 20) for id in batch.image_ids.tolist()}
    assert ids == {1000 + i for i in range(11) if i != 7}


@pytest.mark.parametrize("view", [VIEW, VIEW._replace(short_sides_px=(8,), long_side_px=8)])
def test_the_mosaic_shows_images_with_their_boxes(
    split: Annotations, view: ShortSideView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Enlarged to a tile, without the padding. Boxes in the mosaic are where they are in the file, or mirrored."""
    drawn: list[tuple[tuple[int, int], list[Box]]] = []
    monkeypatch.setattr(show, "draw_boxes", lambda picture, boxes: drawn.append((picture.size, list(boxes))))
    loader = train_loader("no_dali", split, view)
    show.write_mosaic(tmp_path / "mosaic.png", {"no_dali": loader}, ["a", "b", "c"], view, rows=2, columns=3)
    with Image.open(tmp_path / "mosaic.png") as mosaic:
        assert mosaic.width > 3 * 300 and mosaic.height > 2 * 300
    order = TrainingOrder(split, view, batch_size=2, seed=3, ranks=ALONE)
    samples = [sample for step in islice(order.steps((0, 0)), 3) for sample in step.samples]
    for (size_px, boxes), sample in zip(drawn, samples, strict=True):
        assert max(size_px) == 300 and size_px[0] / size_px[1] == pytest.approx(
            sample.size_px[0] / sample.size_px[1], rel=0.02
        )
        stated = split.boxes_ltrb[split.boxes_of(sample.image)][~split.is_crowd[split.boxes_of(sample.image)]]
        if sample.flip:
            stated = np.stack([1 - stated[:, 2], stated[:, 1], 1 - stated[:, 0], stated[:, 3]], axis=1)
        np.testing.assert_allclose([box.ltrb for box in boxes], stated, atol=1e-5)
        assert {(box.label, box.text) for box in boxes} == {(sample.image % 3 + 1, "abc"[sample.image % 3])}


# Evaluation


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_image_exactly_once(name: str, split: Annotations, world_size: int) -> None:
    loaders = [eval_loader(name, split, ranks=ranks) for ranks in ranks_of(world_size)]
    for _ in range(2):
        of_ranks = [list(loader) for loader in loaders]
        indices = [[i for batch in batches for i in batch.indices.tolist()] for batches in of_ranks]
        assert indices == [list(range(rank, 11, world_size)) for rank in range(world_size)]


def test_more_ranks_than_images_evaluate(name: str, split: Annotations) -> None:
    few = split.without({file: "left out" for file in split.file_names[2:]})
    assert [len(list(eval_loader(name, few, ranks=ranks))) for ranks in ranks_of(3)] == [1, 1, 0]


def test_evaluated_images_lie_where_they_are_said_to(name: str, split: Annotations) -> None:
    (first, *_) = eval_loader(name, split)
    # 48 x 32 to a short side of 32; 30 x 40; 64 x 64.
    assert first.placed_ltrb_px.tolist() == [[0, 0, 48, 32], [0, 0, 32, 42], [0, 0, 32, 32]]
    assert first.images.shape == (3, 3, 48, 48) and first.placed_ltrb_px.dtype == first.indices.dtype == torch.int64
    assert first.images.is_contiguous(memory_format=torch.channels_last)
    for image, (_, _, width, height), i in zip(first.images, first.placed_ltrb_px.tolist(), range(3), strict=True):
        plain = read_rgb(split.image_folder / split.file_names[i])
        expected = torch.from_numpy(resize(plain, (width, height), antialias=False)).permute(2, 0, 1) / 255
        assert (image[:, :height, :width] * STD + MEAN - expected).abs().mean() < 1 / 255
        assert not image[:, height:].any() and not image[:, :, width:].any()


# Bad images


@pytest.mark.parametrize("spoil", ["no image", "cut short", "other size"])
def test_a_bad_image_is_named(name: str, spoil: str, tmp_path: Path) -> None:
    split = write(tmp_path)
    file = tmp_path / "train" / "5.jpg"
    if spoil == "other size":
        Image.new("RGB", (20, 30)).save(file)
        message = "is 20 x 30 pixels, but .* says 33 x 47"
    else:
        file.write_bytes(b"no image" if spoil == "no image" else file.read_bytes()[:-200])
        message = "cannot be read as an image"
    for batches_of in (
        lambda: train_loader(name, split).batches(0),
        lambda: train_loader(name, split, workers=2).batches(0),
        lambda: iter(eval_loader(name, split)),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(str(file))}: {message}"):
            list(islice(batches_of(), 11))
