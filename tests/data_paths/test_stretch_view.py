"""Images stretched to one size, of both data paths: sizes, windows, boxes, colours, and going on."""

import colorsys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ragged_data import eval_loader, ranks_of, train_loader, write

from pipelines.annotations import Annotations
from pipelines.ragged.draws import Sample, _factor
from pipelines.ragged.order import TrainingOrder, identity_of
from pipelines.ragged.shown import distorted, shown, windowed
from pipelines.ragged.targets import boxes_and_labels, boxes_left_out
from pipelines.readers.coco import read_annotations
from pipelines.readers.scan import read_image
from ssd.batch import whole
from ssd.images import fitted, resize
from ssd.views import StretchView, evaluated_px, fitted_ltrb_px, for_a_few_steps, for_run, largest_px, placed_ltrb_px

PLAIN = StretchView((40, 32), ((40, 32),), flips=False)
DRAWN = StretchView(
    (40, 32), ((24, 24), (32, 32), (40, 40)), steps_a_size=2, jitter=0.3, hue=0.1, saturation=1.5, exposure=1.5
)
NAMES = ("dali", "no_dali")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    return write(tmp_path_factory.mktemp("stretched"))


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_shows_the_whole_image(name: str, split: Annotations) -> None:
    if name == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    batches = list(eval_loader(name, split, DRAWN))
    assert sorted(index for batch in batches for index in batch.indices.tolist()) == list(range(len(split)))
    for batch in batches:
        assert batch.images.shape[1:] == (3, 32, 40) and torch.equal(batch.placed_ltrb_px, whole(batch.images))
        for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
            expected = torch.from_numpy(resize(read_image(split, index), (40, 32), antialias=False)).permute(2, 0, 1)
            assert (image * 255 - expected).abs().max() < 0.01


@pytest.mark.parametrize("fits", [False, True], ids=["stretched", "fitted"])
def test_both_paths_show_the_same(fits: bool, split: Annotations) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    view = DRAWN._replace(fits=fits)
    loaders = [islice(train_loader(name, split, view, batch=4).batches(0), 6) for name in NAMES]
    for one, other in zip(*loaders, strict=True):
        assert torch.equal(one.image_ids, other.image_ids) and torch.equal(one.boxes_ltrb_px, other.boxes_ltrb_px)
        assert torch.equal(one.labels, other.labels) and torch.equal(one.counts, other.counts)
        assert one.images.shape == other.images.shape and one.images.min() >= 0 and one.images.max() <= 1
        assert one.images.is_contiguous(memory_format=torch.channels_last)
        assert (one.images - other.images).abs().mean() < 1 / 255


def test_one_size_holds_for_some_steps_on_all_ranks_and_after_a_resume(split: Annotations) -> None:
    orders = [TrainingOrder(split, DRAWN, batch_size=2, seed=3, ranks=ranks) for ranks in ranks_of(2)]
    steps = [list(islice(order.steps((0, 0)), 40)) for order in orders]
    sizes = []
    for of_ranks in zip(*steps, strict=True):
        (size_px,) = {sample.size_px for step in of_ranks for sample in step.samples}
        sizes.append(size_px)
    assert sizes[::2] == sizes[1::2] and set(sizes) == set(DRAWN.train_sizes_px)
    place = steps[0][4].after  # in the middle of a block
    again = list(islice(orders[0].steps(place), 35))
    assert [step.samples for step in again] == [step.samples for step in steps[0][5:]]


def test_a_few_steps_see_several_sizes(split: Annotations) -> None:
    view = for_a_few_steps(DRAWN._replace(steps_a_size=10))
    assert isinstance(view, StretchView)
    order = TrainingOrder(split, view, batch_size=2, seed=3, ranks=ranks_of(1)[0])
    assert {step.samples[0].size_px for step in islice(order.steps((0, 0)), 10)} == set(DRAWN.train_sizes_px)


def test_images_without_boxes_train(split: Annotations) -> None:
    """The eighth image has no box; those of views that keep shapes leave it out."""
    order = TrainingOrder(split, DRAWN, batch_size=len(split), seed=3, ranks=ranks_of(1)[0])
    assert sorted(sample.image for sample in next(order.steps((0, 0))).samples) == list(range(len(split)))
    assert len(split) - 1 == len(split.trainable_indices()) and 7 not in split.trainable_indices()
    batch = next(iter(train_loader("no_dali", split, DRAWN, batch=len(split)).batches(0)))
    assert int(batch.counts[batch.image_ids == 1007]) == 0


def test_a_run_goes_on_with_the_same_batches(split: Annotations) -> None:
    loader = train_loader("no_dali", split, DRAWN, batch=3)
    batches = loader.batches(0)
    for _ in range(3):
        next(batches)
    state, expected = loader.state(), next(batches)
    other = train_loader("no_dali", split, DRAWN, batch=3)
    other.restore(state)
    found = next(other.batches(3))
    assert all(torch.equal(a, b) for a, b in zip(found[:6], expected[:6], strict=True))
    assert set(found[6:]) == set(expected[6:]) == {None}


@pytest.mark.parametrize("name", NAMES)
def test_gray_images_have_three_channels(name: str, tmp_path: Path) -> None:
    if name == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    write(tmp_path)
    file = tmp_path / "train" / "0.jpg"
    Image.open(file).convert("L").save(file)
    batch = next(iter(eval_loader(name, read_annotations(tmp_path, "train"), DRAWN)))
    assert batch.images.shape[1] == 3 and batch.images[0].std() > 0.05
    assert torch.equal(batch.images[0], batch.images[0][:1].expand(3, -1, -1))
    assert not torch.equal(batch.images[1, 0], batch.images[1, 1])


def test_images_that_fill_the_workers_memory_are_whole(split: Annotations) -> None:
    view = PLAIN._replace(size_px=(40, 40), train_sizes_px=((40, 40),))
    assert largest_px(view) == 40 * 40
    alone, handed_over = (
        list(islice(train_loader("no_dali", split, view, batch=3, workers=workers).batches(0), 8)) for workers in (0, 2)
    )
    for one, other in zip(alone, handed_over, strict=True):
        assert torch.equal(one.images, other.images)


def test_a_window_repeats_the_border() -> None:
    image = np.arange(6, dtype=np.uint8).reshape(2, 3, 1).repeat(3, axis=2)
    assert windowed(image, (-1, 0, 2, 3))[..., 0].tolist() == [[0, 0, 1], [3, 3, 4], [3, 3, 4]]
    assert windowed(image, (1, -2, 5, 1))[..., 0].tolist() == [[1, 2, 2, 2]] * 3
    assert windowed(image, (1, 1, 2, 2))[..., 0].tolist() == [[4]]


def test_boxes_move_with_the_window(split: Annotations) -> None:
    """The first image has 48 x 32 pixels and a box of left 2, top 3, width 24, height 16; a crowd is left out."""
    boxes, labels = boxes_and_labels(split, Sample(0, (40, 32), False))
    np.testing.assert_allclose(boxes, [[2 / 48 * 40, 3, 26 / 48 * 40, 19]], rtol=1e-6)
    assert labels.tolist() == [1]
    # 60 x 40 pixels that begin 10 to the left and 5 above.
    boxes, _ = boxes_and_labels(split, Sample(0, (60, 40), False, (-10, -5, 50, 35)))
    np.testing.assert_allclose(boxes, [[12, 8, 36, 24]], rtol=1e-6)
    boxes, _ = boxes_and_labels(split, Sample(0, (60, 40), True, (-10, -5, 50, 35)))
    np.testing.assert_allclose(boxes, [[24, 8, 48, 24]], rtol=1e-6)
    boxes, _ = boxes_and_labels(split, Sample(0, (20, 20), False, (20, 10, 40, 30)))  # cut
    np.testing.assert_allclose(boxes, [[0, 0, 6, 9]], rtol=1e-6)
    boxes, labels = boxes_and_labels(split, Sample(0, (20, 20), False, (27, 10, 47, 30)))  # beside the box
    assert boxes.shape == (0, 4) and labels.shape == (0,)


def test_boxes_that_windows_leave_out_are_counted(split: Annotations) -> None:
    """As many as the batches of the first epoch lack; on two ranks with half the batch as on one."""

    def learned(view: StretchView) -> int:
        loaders = [train_loader("no_dali", split, view, ranks, batch=2) for ranks in ranks_of(2)]
        batches = [batch for each in loaders for batch in islice(each.batches(0), each.steps_per_epoch)]
        return sum(int(batch.counts.sum()) for batch in batches)

    view = DRAWN._replace(jitter=0.9)
    left_out, of_all = boxes_left_out(split, view, batch_size=4, seed=3)
    assert 0 < left_out < of_all == learned(DRAWN._replace(jitter=0.0)) and left_out == of_all - learned(view)
    assert boxes_left_out(split, DRAWN._replace(jitter=0.0), batch_size=4, seed=3) == (0, of_all)


def test_windows_and_colours_are_drawn_within_their_ranges(split: Annotations) -> None:
    order = TrainingOrder(split, DRAWN, batch_size=10, seed=0, ranks=ranks_of(1)[0])
    samples = [sample for step in islice(order.steps((0, 0)), 40) for sample in step.samples]
    moved = []
    for sample in samples:
        width, height = split.sizes_px[sample.image].tolist()
        assert sample.window_ltrb_px is not None and sample.colour is not None
        left, top, right, bottom = sample.window_ltrb_px
        moved.append((left / width, top / height, 1 - right / width, 1 - bottom / height))
    assert np.abs(moved).max() <= 0.3 and np.ptp(moved, axis=0).min() > 0.5
    turns, *factors = np.array([sample.colour for sample in samples]).T
    assert np.abs(turns).max() <= 0.1 and np.ptp(turns) > 0.19
    for factor in factors:
        assert factor.min() >= 1 / 1.5 and factor.max() <= 1.5 and 0.4 < (factor > 1).mean() < 0.6
    assert 0.4 < np.mean([sample.flip for sample in samples]) < 0.6


@pytest.mark.parametrize("largest", [0.75, 1.0, 1.5])
def test_a_factor_or_its_inverse_is_drawn(largest: float) -> None:
    rng = np.random.default_rng(0)
    drawn = [_factor(rng, largest) for _ in range(500)]
    assert all(min(largest, 1 / largest) <= factor <= max(largest, 1 / largest) for factor in drawn)
    assert largest == 1 or {factor > 1 for factor in drawn} == {True, False}


def test_colours_are_those_of_the_standard_library() -> None:
    pixels = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    pixels[0, :, 0, 0], pixels[0, :, 0, 1] = 0, 0.5  # black and gray have no hue
    colours = [(0.07, 1.4, 0.8), (-0.1, 0.7, 1.5)]
    found = distorted(pixels, [Sample(0, (7, 5), False, None, colour) for colour in colours])
    for image, result, (turn, saturation, value) in zip(pixels, found, colours, strict=True):
        for rgb, ours in zip(image.flatten(1).T.tolist(), result.flatten(1).T.tolist(), strict=True):
            h, s, v = colorsys.rgb_to_hsv(*rgb)
            # hsv_to_rgb is linear in saturation and value, beyond 1 too.
            theirs = colorsys.hsv_to_rgb((h + turn) % 1, s * saturation, v * value)
            np.testing.assert_allclose(ours, np.clip(theirs, 0, 1), atol=1e-5)
    same = distorted(pixels, [Sample(0, (7, 5), False, None, (0.0, 1.0, 1.0))] * 2)
    torch.testing.assert_close(same, pixels, rtol=0, atol=1e-6)
    assert distorted(pixels, [Sample(0, (7, 5), False)] * 2) is pixels


FITTED = DRAWN._replace(fits=True)


def test_an_image_is_fitted_in() -> None:
    """500 x 375 in 416 x 416: as wide as that, 375 * 416 / 500 = 312 high, and (416 - 312) / 2 from the top."""
    assert fitted_ltrb_px((416, 416), (500, 375)) == (0, 52, 416, 364)
    assert fitted_ltrb_px((416, 416), (333, 500)) == (69, 0, 346, 416)  # 277 wide, 139 are left
    assert fitted_ltrb_px((40, 32), (80, 64)) == (0, 0, 40, 32)
    assert fitted_ltrb_px((40, 32), (4000, 2)) == (0, 15, 40, 16)
    image = np.full((2, 4, 3), 7, dtype=np.uint8)
    found = fitted(image, (0, 1, 4, 3), (4, 4), antialias=False)
    assert found[..., 0].tolist() == [[128] * 4, [7] * 4, [7] * 4, [128] * 4]


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_fits_the_whole_image_in(name: str, split: Annotations) -> None:
    if name == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    view = DRAWN._replace(fits=True, size_px=(40, 40))
    for batch in eval_loader(name, split, view):
        for image, index, place in zip(
            batch.images, batch.indices.tolist(), batch.placed_ltrb_px.tolist(), strict=True
        ):
            width, height = split.sizes_px[index].tolist()
            assert tuple(place) == fitted_ltrb_px((40, 40), (width, height)) == placed_ltrb_px(view, (width, height))
            left, top, right, bottom = place
            expected = torch.from_numpy(resize(read_image(split, index), (right - left, bottom - top), antialias=False))
            assert (image[:, top:bottom, left:right] * 255 - expected.permute(2, 0, 1)).abs().max() < 0.01
            around = image.clone()
            around[:, top:bottom, left:right] = 128 / 255
            assert (around - 128 / 255).abs().max() < 1e-6


def test_fitted_images_lie_anywhere_with_their_boxes(split: Annotations) -> None:
    order = TrainingOrder(split, FITTED, batch_size=10, seed=0, ranks=ranks_of(1)[0])
    shapes, places = [], set()
    for step in islice(order.steps((0, 0)), 40):
        for sample in step.samples:
            assert sample.placed_ltrb_px is not None and sample.window_ltrb_px is None
            left, top, right, bottom = sample.placed_ltrb_px
            width, height = sample.size_px
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            assert right - left == width or bottom - top == height  # as large as its shape allows
            places.add((left, top))
            of_width, of_height = split.sizes_px[sample.image].tolist()
            shapes.append((right - left) / (bottom - top) * of_height / of_width)
    least = 0.7 / 1.3
    assert 0.9 * least < min(shapes) < 0.75 and 1.4 < max(shapes) < 1.1 / least and len(places) > 30
    # The first image has 48 x 32 pixels and a box of left 2, top 3, width 24, height 16.
    sample = Sample(0, (40, 40), False, placed_ltrb_px=(4, 10, 28, 26))
    boxes, _ = boxes_and_labels(split, sample)
    np.testing.assert_allclose(boxes, [[5, 11.5, 17, 19.5]], rtol=1e-6)
    boxes, _ = boxes_and_labels(split, sample._replace(flip=True))
    np.testing.assert_allclose(boxes, [[23, 11.5, 35, 19.5]], rtol=1e-6)
    image = read_image(split, 0)
    once, mirrored = (shown(image, sample._replace(flip=flip), antialias=False) for flip in (False, True))
    assert torch.equal(once.flip(1), mirrored) and (once[:, :4] == 128).all() and not (once[10:26, 4:28] == 128).all()


def test_the_last_steps_have_the_largest_size(split: Annotations) -> None:
    view = DRAWN._replace(final_steps=7)

    def sizes(view: StretchView) -> list[tuple[int, int]]:
        order = TrainingOrder(split, view, batch_size=2, seed=3, ranks=ranks_of(1)[0])
        return [step.samples[0].size_px for step in islice(order.steps((0, 0)), 30)]

    free, bound = sizes(view), sizes(for_run(view, 30))  # type: ignore[arg-type]
    # From the first block of two that has at most seven steps behind its beginning.
    assert bound[:24] == free[:24] and set(bound[24:]) == {(40, 40)} != set(free[24:])
    assert sizes(for_run(view, 7)) == free  # type: ignore[arg-type]
    assert identity_of(view) == identity_of(for_run(view, 30)) == identity_of(DRAWN)  # type: ignore[arg-type]
    assert "fits" not in identity_of(DRAWN) and identity_of(FITTED)["fits"] == "True"


def test_a_view_says_its_sizes() -> None:
    assert evaluated_px(DRAWN, (999, 3)) == (40, 32) and largest_px(DRAWN) == 40 * 40
    assert not PLAIN.distorts_colour and DRAWN.distorts_colour


def test_a_picture_shows_it(split: Annotations, tmp_path: Path) -> None:
    from pipelines import show

    loader = train_loader("no_dali", split, DRAWN)
    show.write_mosaic(tmp_path / "m.png", {"no_dali": loader}, ["a", "b", "c"], DRAWN, rows=1, columns=2)
    assert (tmp_path / "m.png").stat().st_size > 1000
