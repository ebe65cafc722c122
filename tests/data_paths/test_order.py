"""Which image comes when: passes, groups by shape, ranks, and going on at any place."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from ragged_data import VIEW, ranks_of, write

from pipelines.annotations import Annotations
from pipelines.ragged.draws import Sample
from pipelines.ragged.order import Place, TrainingOrder, evaluation_batches, place_of, state_of
from ssd.views import ShortSideView


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    return write(tmp_path_factory.mktemp("ragged"))


def _order(
    split: Annotations, view: ShortSideView = VIEW, rank: int = 0, ranks: int = 1, batch: int = 2, seed: int = 3
):
    return TrainingOrder(split, view, batch_size=batch, seed=seed, ranks=ranks_of(ranks)[rank])


def _taken(
    split: Annotations, steps: int, ranks: int, view: ShortSideView = VIEW, place: Place = (0, 0), batch: int = 2
):
    """The samples of each global batch, and the place after the last."""
    orders = [_order(split, view, rank, ranks, batch) for rank in range(ranks)]
    found: list[list[Sample]] = []
    for step in islice(zip(*(order.steps(place) for order in orders), strict=True), steps):
        assert len({of_rank.after for of_rank in step}) == 1 and all(len(of_rank.samples) == batch for of_rank in step)
        found.append([sample for of_rank in step for sample in of_rank.samples])
        after = step[0].after
    return found, after


def _is_tall(split: Annotations, index: int) -> bool:
    width, height = split.sizes_px[index]
    return bool(width < height)


@pytest.mark.parametrize("by_shape", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_no_image_is_lost_or_repeated_within_a_pass(split: Annotations, ranks: int, by_shape: bool) -> None:
    view = VIEW._replace(by_shape=by_shape)
    batches, place = _taken(split, 60, ranks, view)
    lines = [[], []]
    for sample in (sample for batch in batches for sample in batch):
        lines[by_shape and _is_tall(split, sample.image)].append(sample.image)
    assert tuple(map(len, lines)) == place
    trained = split.trainable_indices().tolist()
    for shape, line in enumerate(lines):
        members = [i for i in trained if not by_shape or _is_tall(split, i) == bool(shape)]
        for first in range(0, len(line) - len(members) + 1, len(members) or 1):
            assert not members or sorted(line[first : first + len(members)]) == members
    if by_shape:  # six wide ones, four tall ones: neither line is a batch and a pass ahead of its share
        assert abs(place[1] - sum(place) * 4 / 10) <= 2 * ranks + 4


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_batch_has_one_shape_and_ranks_share_it(split: Annotations, ranks: int) -> None:
    batches, _ = _taken(split, 40, ranks)
    assert all(len({_is_tall(split, sample.image) for sample in batch}) == 1 for batch in batches)
    assert {_is_tall(split, batch[0].image) for batch in batches} == {True, False}
    mixed, _ = _taken(split, 40, ranks, VIEW._replace(by_shape=False))
    assert any(len({_is_tall(split, sample.image) for sample in batch}) == 2 for batch in mixed)


def test_batches_come_as_from_torchvisions_grouped_sampler(split: Annotations) -> None:
    """An independent statement of the rule: images in the order of the passes fill a buffer a shape, and a full one is
    the next batch."""
    plain, _ = _taken(split, 100, 1, VIEW._replace(by_shape=False), batch=1)
    buffers: dict[bool, list[Sample]] = {True: [], False: []}
    expected = []
    for (sample,) in plain:
        buffer = buffers[_is_tall(split, sample.image)]
        buffer.append(sample)
        if len(buffer) == 4:
            expected.append(list(buffer))
            buffer.clear()
    found, _ = _taken(split, len(expected), 1, batch=4)
    assert len(expected) > 20 and found == expected


def test_two_ranks_take_what_one_of_twice_the_batch_takes(split: Annotations) -> None:
    assert _taken(split, 30, 2, batch=2) == _taken(split, 30, 1, batch=4)


def test_passes_are_shuffled_anew_and_by_the_seed(split: Annotations) -> None:
    view = VIEW._replace(by_shape=False)
    batches, _ = _taken(split, 10, 1, view)
    indices = [sample.image for batch in batches for sample in batch]
    assert sorted(indices[:10]) == sorted(indices[10:]) == split.trainable_indices().tolist()
    assert indices[:10] != indices[10:] and indices[:10] != sorted(indices[:10])
    other = [sample.image for step in islice(_order(split, view, seed=4).steps((0, 0)), 5) for sample in step.samples]
    assert other != indices[:10]


@pytest.mark.parametrize("stop", [0, 1, 7, 23])
def test_goes_on_at_any_place(split: Annotations, stop: int) -> None:
    whole, end = _taken(split, 40, 2)
    _, place = _taken(split, stop, 2) if stop else ([], (0, 0))
    assert place_of(state_of(place)) == place and len(state_of(place)) == 16
    assert _taken(split, 40 - stop, 2, place=place) == (whole[stop:], end)
    assert _order(split, ranks=2).place_after(stop) == place


@pytest.mark.parametrize(("ranks", "new_ranks"), [(2, 1), (1, 2), (2, 3)])
def test_goes_on_with_the_rest_of_the_pass_on_other_ranks(split: Annotations, ranks: int, new_ranks: int) -> None:
    """The lines of wide and of tall images go on where they were: nothing is lost, nothing comes twice."""
    before, place = _taken(split, 7, ranks)
    after, _ = _taken(split, 40, new_ranks, place=place)
    for tall in (True, False):
        line = [s.image for batch in (*before, *after) for s in batch if _is_tall(split, s.image) == tall]
        members = sorted({*line})
        for first in range(0, len(line) - len(members) + 1, len(members)):
            assert sorted(line[first : first + len(members)]) == members


def test_no_state_is_the_empty_one() -> None:
    assert state_of(None) == b"" and place_of(b"") is None


def test_short_sides_and_flips_are_drawn_for_each_image_and_pass(split: Annotations) -> None:
    """Of two square images, whose short side shows, in 80 passes: 40 +- 5 standard deviations of 5.5 a kind."""
    batches, _ = _taken(split, 400, 1)
    draws = Counter((s.image, s.size_px, s.flip) for batch in batches for s in batch if s.image in (2, 6))
    kinds = Counter((size_px, flip) for _, size_px, flip in draws.elements())
    assert set(kinds) == {((side, side), flip) for side in (24, 32) for flip in (True, False)}
    assert all(abs(count - 40) < 28 for count in kinds.values()), kinds
    assert len(draws) == 8, "an image's draws change from pass to pass"
    never, _ = _taken(split, 50, 1, VIEW._replace(flips=False))
    assert not any(sample.flip for batch in never for sample in batch)
    # Without flips the short sides stay what they are.
    assert [s.size_px for batch in never for s in batch] == [s.size_px for batch in batches[:50] for s in batch]


def test_the_few_of_a_shape_fill_batches_over_passes(split: Annotations) -> None:
    """One tall image among seven: a batch of three of it comes every third pass."""
    tall = [i for i in split.trainable_indices() if _is_tall(split, i)]
    few = split.without({split.file_names[i]: "left out" for i in tall[1:]})
    batches, place = _taken(few, 35, 1, batch=3)
    tall_batches = [batch for batch in batches if _is_tall(few, batch[0].image)]
    assert 3 * len(tall_batches) == place[1] and len({s.image for batch in tall_batches for s in batch}) == 1
    assert abs(len(tall_batches) - 35 / 7) <= 1


def test_one_shape_alone_is_all_batches(split: Annotations) -> None:
    wide = split.without({split.file_names[i]: "left out" for i in range(len(split)) if _is_tall(split, i)})
    batches, place = _taken(wide, 12, 1)
    assert place == (24, 0) and np.unique([s.image for batch in batches for s in batch]).size == 6


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_evaluation_takes_every_image_once_in_order(split: Annotations, ranks: int) -> None:
    of_ranks = [evaluation_batches(split, VIEW, batch_size=2, ranks=each) for each in ranks_of(ranks)]
    indices = [[sample.image for batch in batches for sample in batch] for batches in of_ranks]
    assert indices == [list(range(rank, len(split), ranks)) for rank in range(ranks)]
    assert all(len(batch) == 2 for batches in of_ranks for batch in batches[:-1])
    assert not any(sample.flip for batches in of_ranks for batch in batches for sample in batch)
    assert of_ranks[0][0][0].size_px == (48, 32)  # 48 x 32, to the last of the short sides
