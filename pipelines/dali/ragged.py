"""The DALI data path of whole images (`RaggedView`): DALI is fed with files in our order, so that its state is a place
in it."""

import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import nvidia.dali
import torch
from nvidia.dali.plugin.pytorch import DALIRaggedIterator
from torch import Tensor

from pipelines.annotations import Annotations
from pipelines.dali.ragged_graph import inputs_of, ragged_graph
from pipelines.ragged.draws import Sample
from pipelines.ragged.order import Place, TrainingOrder, evaluation_batches, identity_of, place_of, state_of
from pipelines.ragged.shown import shown
from pipelines.ragged.targets import eval_batch, ragged_batch
from pipelines.readers.scan import read_encoded, read_image
from ssd.batch import EvalBatch, RaggedBatch
from ssd.console import say_on_stderr
from ssd.distributed import Ranks
from ssd.images import normalise_one_by_one
from ssd.views import RaggedView, parts_of

_BATCHES_READ_AHEAD = 2
_TRAINING_BATCHES_AHEAD = 1


def _read_ahead(
    annotations: Annotations, batches: Iterable[list[Sample]], num_threads: int
) -> Iterator[tuple[list[Sample], list[np.ndarray]]]:
    """The batches, which do not end, with their files' bytes, which threads read before they are asked for."""
    ahead: deque[tuple[list[Sample], list[Future[np.ndarray]]]] = deque()
    pool = ThreadPoolExecutor(num_threads)
    try:
        for samples in batches:
            ahead.append((samples, [pool.submit(read_encoded, annotations, sample.image) for sample in samples]))
            if len(ahead) > _BATCHES_READ_AHEAD:
                samples, files = ahead.popleft()
                yield samples, [file.result() for file in files]
    finally:
        # Without waiting. A generator that was left may be closed by the garbage collector, in a thread that just
        # starts and holds the lock of all threads; to wait for another thread then takes that lock again, for ever.
        pool.shutdown(wait=False, cancel_futures=True)


def _finished(
    annotations: Annotations,
    view: RaggedView,
    batches: Iterable[list[Sample]],
    *,
    batch_size: int,
    num_workers: int,
    batches_ahead: int,
    ranks: Ranks,
) -> Iterator[Tensor]:
    """`RaggedBatch.images` of each of the batches, which do not end. batches_ahead: how many are finished on a CPU
    before they are asked for."""
    on_gpu = ranks.device.type == "cuda"
    num_threads = max(1, num_workers)
    in_dali: deque[list[Sample]] = deque()

    def fed() -> Iterator[Any]:
        for samples, encoded in _read_ahead(annotations, batches, num_threads):
            in_dali.append(samples)
            yield inputs_of(samples, encoded, view, annotations) if on_gpu else encoded

    pipeline = ragged_graph(
        source=fed(),
        view=view,
        ranks=ranks,
        upright=annotations.is_upright,
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=ranks.local_rank if on_gpu else None,
    )
    pipeline.build()
    kind = DALIRaggedIterator.DENSE_TAG if on_gpu else DALIRaggedIterator.SPARSE_LIST_TAG
    iterator = DALIRaggedIterator(pipeline, ["images"], output_types=[kind], size=-1, prepare_first_batch=False)

    def decoded() -> Iterator[tuple[Any, list[Sample]]]:
        while True:
            try:
                (output,) = next(iterator)
            except RuntimeError:
                say_on_stderr("DALI failed; reading the images again to find the one it could not read")
                for sample in itertools.chain.from_iterable(in_dali):
                    read_image(annotations, sample.image)
                raise
            yield output["images"], in_dali.popleft()

    if on_gpu:
        return (images.permute(0, 3, 1, 2) for images, _ in decoded())
    return _finished_by_threads(decoded(), num_threads, batches_ahead, view)


def _finished_by_threads(
    decoded: Iterator[tuple[list[Tensor], list[Sample]]], num_threads: int, batches_ahead: int, view: RaggedView
) -> Iterator[Tensor]:
    """The images as threads finish them on a CPU, while so many batches before are at work."""
    resizing, finishing = _one_core_each(num_threads), _one_core_each(1)
    ahead: deque[Future[Tensor]] = deque()

    def finished(images: list[Future[Tensor]], samples: list[Sample]) -> Tensor:
        sizes_px = [sample.size_px for sample in samples]
        return normalise_one_by_one((image.result() for image in images), sizes_px, view, torch.device("cpu"))

    try:
        for images, samples in decoded:
            pairs = zip(images, samples, strict=True)
            resized = [resizing.submit(shown, image.numpy(), of, antialias=view.antialias) for image, of in pairs]
            ahead.append(finishing.submit(finished, resized, samples))
            if len(ahead) > batches_ahead:
                yield ahead.popleft().result()
    finally:
        for pool in (finishing, resizing):
            pool.shutdown(wait=False, cancel_futures=True)  # as in `_read_ahead`


def _one_core_each(num_threads: int) -> ThreadPoolExecutor:
    """Threads whose operators do not share their work with further threads: these would wait for each other, as the
    cores are taken."""
    of_others = torch.get_num_threads()
    all_started = threading.Barrier(num_threads)
    pool = ThreadPoolExecutor(num_threads, initializer=_take_one_core)
    try:
        for started in [pool.submit(all_started.wait) for _ in range(num_threads)]:
            started.result()
    except BaseException:  # one that waits for a thread that never started would keep the program from its end
        all_started.abort()
        pool.shutdown(wait=False)
        raise
    finally:
        torch.set_num_threads(of_others)  # threads that start later have what was set last
    return pool


def _take_one_core() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread that was never asked takes at its first operator what was set last


class TrainLoader:
    """See `ssd.batch.TrainLoader` for the contract. num_workers: threads that read, and as many of DALI's."""

    ranks_share_state = True

    def __init__(
        self,
        annotations: Annotations,
        *,
        batch_size: int,
        num_workers: int,
        seed: int,
        ranks: Ranks,
        view: RaggedView,
    ):
        self._annotations, self._view, self._ranks = annotations, view, ranks
        self._batch_size, self._num_workers = batch_size, num_workers
        self._order = TrainingOrder(annotations, view, batch_size=batch_size, seed=seed, ranks=ranks)
        self._place: Place | None = None
        self.steps_per_epoch = self._order.steps_per_epoch
        self.identity = {"dali": nvidia.dali.__version__, **identity_of(view)}

    def batches(self, first_step: int) -> Iterator[RaggedBatch]:
        if self._place is None:
            self._place = self._order.place_after(first_step)
        images_of_steps = _finished(
            self._annotations,
            self._view,
            (step.samples for step in self._order.steps(self._place)),
            batch_size=self._batch_size,
            num_workers=self._num_workers,
            batches_ahead=_TRAINING_BATCHES_AHEAD,
            ranks=self._ranks,
        )
        for images, step in zip(images_of_steps, self._order.steps(self._place), strict=False):
            self._place = step.after
            yield ragged_batch(images, step.samples, self._annotations, parts_of(self._view))

    def state(self) -> bytes:
        return state_of(self._place)

    def restore(self, state: bytes) -> None:
        self._place = place_of(state)


class EvalLoader:
    """See `ssd.batch.EvalLoader` for the contract."""

    def __init__(self, annotations: Annotations, *, batch_size: int, num_workers: int, ranks: Ranks, view: RaggedView):
        self._annotations, self._view, self._ranks = annotations, view, ranks
        self._batch_size, self._num_workers = batch_size, num_workers
        self._batches = evaluation_batches(annotations, view, batch_size=batch_size, ranks=ranks)
        self._images: Iterator[Tensor] | None = None

    def __iter__(self) -> Iterator[EvalBatch]:
        # The graph goes on with the next evaluation, unless one was given up: then it stands at another batch.
        images, self._images = self._images or self._begin(), None
        for samples in self._batches:
            yield eval_batch(next(images), samples, self._annotations)
        self._images = images

    def _begin(self) -> Iterator[Tensor]:
        return _finished(
            self._annotations,
            self._view,
            itertools.cycle(self._batches),
            batch_size=self._batch_size,
            num_workers=self._num_workers,
            batches_ahead=0,  # none of the next evaluation while one trains
            ranks=self._ranks,
        )
