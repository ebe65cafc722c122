"""Which image comes when, by (seed, pass, image) alone: once, outside both data paths."""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipelines.annotations import Annotations
from pipelines.ragged.draws import Sample, drawn, looks
from pipelines.ragged.learned import shown_indices
from ssd.distributed import Ranks
from ssd.views import BOXES, RaggedView, StretchView

Place = tuple[int, int]
"""How many images all ranks have taken since the run began: wide ones (all, unless they are grouped) and tall ones."""


def state_of(place: Place | None) -> bytes:
    """`ssd.batch.TrainLoader.state` of a place, which says it all: what is drawn derives from pass and image."""
    return b"" if place is None else b"".join(taken.to_bytes(8) for taken in place)


def place_of(state: bytes) -> Place | None:
    return (int.from_bytes(state[:8]), int.from_bytes(state[8:])) if state else None


def identity_of(view: RaggedView) -> dict[str, str]:
    """`ssd.batch.TrainLoader.identity` as far as the view goes."""
    fields = {name: value for name, value in view._asdict().items() if name not in _MAY_CHANGE}
    return {name: str(value) for name, value in fields.items() if name not in _LATER or value != _LATER[name]}


_MAY_CHANGE = ("final_steps", "run_steps")
"""A run may become longer."""
_LATER = {"parts": BOXES, "resize_rule": "torchvision", "evaluated_sides_px": None, "fits": False, "further_looks": ()}
"""What views have beside the first ones, and what it was before: checkpoints from then do not name it."""


class Step(NamedTuple):
    """One rank's samples of a step, and the place after the step."""

    samples: list[Sample]
    after: Place


class _Pass(NamedTuple):
    """images: N int64, all of them in the order of the pass. rows: the ascending places in it of wide and of tall
    ones."""

    images: np.ndarray
    rows: tuple[np.ndarray, np.ndarray]


class TrainingOrder:
    """The endless order of the images that a view shows in training.

    Shuffled passes come one after the other. Grouped by shape, the wide images and the tall ones of that order make a
    line each, from which global batches are taken: next is the batch whose last image comes first in the order, as in
    torchvision's GroupedBatchSampler. So no image is lost or repeated within a pass, and all batches are full, some
    with images of a pass and of the next. A global batch is cut into one batch a rank.

    batch_size: images a rank.
    """

    def __init__(self, annotations: Annotations, view: RaggedView, *, batch_size: int, seed: int, ranks: Ranks):
        self._annotations, self._view, self._seed = annotations, view, seed
        self._images = shown_indices(annotations, view)
        width, height = annotations.sizes_px.T
        self._is_tall = (width < height) & (not isinstance(view, StretchView) and view.by_shape)
        tall = int(self._is_tall[self._images].sum())
        self._counts = (len(self._images) - tall, tall)
        self._global_batch_size = batch_size * ranks.world_size
        self._share = slice(ranks.rank * batch_size, (ranks.rank + 1) * batch_size)
        self._pass = functools.lru_cache(maxsize=4)(self._pass_of)
        self.steps_per_epoch = -(-len(self._images) // self._global_batch_size)

    def steps(self, place: Place) -> Iterator[Step]:
        """From a place on, without end. It need not be one of as many ranks."""
        for shape, first, after in self._global_batches(place):
            numbers = range(first, first + self._global_batch_size)[self._share]
            size_px = self._size_of_step_px(first // self._global_batch_size)
            taken = [self._taken(shape, number) for number in numbers]
            yield Step([self._sample(number, image, size_px) for number, image in taken], after)

    def place_after(self, steps: int) -> Place:
        """The place after so many steps of these ranks from the beginning."""
        batches, place = self._global_batches((0, 0)), (0, 0)
        for _ in range(steps):
            _, _, place = next(batches)
        return place

    def _global_batches(self, place: Place) -> Iterator[tuple[int, int, Place]]:
        """Of each global batch: its shape, the number of its first image among those of that shape, the place after."""
        taken = list(place)
        ends = [self._end(shape, taken[shape]) for shape in (0, 1)]
        while True:
            shape = int(ends[1] < ends[0])
            first = taken[shape]
            taken[shape] += self._global_batch_size
            ends[shape] = self._end(shape, taken[shape])
            yield shape, first, (taken[0], taken[1])

    def _end(self, shape: int, first: int) -> float:
        """Where in the order of all images a global batch has its last one."""
        if self._counts[shape] == 0:
            return math.inf
        number, row = divmod(first + self._global_batch_size - 1, self._counts[shape])
        return number * len(self._images) + int(self._pass(number).rows[shape][row])

    def _taken(self, shape: int, taken: int) -> tuple[int, int]:
        """The pass and the image of that shape that comes after so many of them."""
        number, row = divmod(taken, self._counts[shape])
        one = self._pass(number)
        return number, int(one.images[one.rows[shape][row]])

    def _pass_of(self, number: int) -> _Pass:
        images = np.random.default_rng((self._seed, number)).permutation(self._images)
        is_tall = self._is_tall[images]
        return _Pass(images, (np.flatnonzero(~is_tall), np.flatnonzero(is_tall)))

    def _size_of_step_px(self, step: int) -> tuple[int, int] | None:
        """The same on all ranks, and after a resume."""
        if not isinstance(self._view, StretchView):
            return None
        block = step // self._view.steps_a_size
        final, run = self._view.final_steps, self._view.run_steps
        if 0 < final < run and block * self._view.steps_a_size + final > run:
            return self._view.train_sizes_px[-1]
        rng = np.random.default_rng((self._seed, block, 0, _FOR_SIZES))
        return self._view.train_sizes_px[rng.integers(len(self._view.train_sizes_px))]

    def _sample(self, number: int, image: int, size_px: tuple[int, int] | None) -> Sample:
        rng = np.random.default_rng((self._seed, number, image))
        return drawn(self._annotations, self._view, image, size_px, rng)


_FOR_SIZES = 1
"""Keeps the numbers that sizes are drawn with apart from others of the same seed."""


def evaluation_batches(
    annotations: Annotations, view: RaggedView, *, batch_size: int, ranks: Ranks
) -> list[list[Sample]]:
    """One rank's images, in order: every world_size-th of the split, each once, or of each batch as many in a row as
    the view has looks."""
    images = range(ranks.rank, len(annotations), ranks.world_size)
    sizes_px = annotations.sizes_px
    samples = [looks(view, image, (int(sizes_px[image][0]), int(sizes_px[image][1]))) for image in images]
    batches = [samples[first : first + batch_size] for first in range(0, len(samples), batch_size)]
    return [list(look) for batch in batches for look in zip(*batch, strict=True)]
