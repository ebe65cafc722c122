"""The pure-PyTorch data path of whole images (`RaggedView`): worker processes decode, resize and flip; colour,
normalisation and padding run on the training device."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import tee

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipelines.annotations import Annotations
from pipelines.no_dali.workers import outlast_stop_signals, plain_errors
from pipelines.ragged.draws import Sample
from pipelines.ragged.order import Place, TrainingOrder, evaluation_batches, identity_of, place_of, state_of
from pipelines.ragged.shown import shown
from pipelines.ragged.targets import eval_batch, ragged_batch
from pipelines.readers.scan import read_image
from ssd.batch import EvalBatch, RaggedBatch
from ssd.distributed import Ranks
from ssd.images import normalise_one_by_one
from ssd.views import RaggedView, largest_px, parts_of

# DataLoader's default: each worker has so many under way, batches for a GPU and images for a CPU.
_AHEAD_A_WORKER = 2


class _Pixels(Dataset[Tensor | int]):
    """Images h x w x 3 uint8 by (number, samples). Without blocks: the bytes of the samples' images, one after the
    other. With blocks of shared memory: the one sample's image is written to a block, and the block's row is given.

    blocks: N x (the bytes of the largest image) uint8. They are written to over and over: new shared memory for each
    image costs a page fault for every 4 KiB, in the worker and again where the image is read.
    """

    def __init__(self, annotations: Annotations, view: RaggedView, blocks: Tensor | None):
        self._annotations, self._antialias, self._blocks = annotations, view.antialias, blocks

    def __getitem__(self, key: tuple[int, list[Sample]]) -> Tensor | int:
        number, samples = key
        if self._blocks is None:
            return torch.cat([self._pixels(sample).flatten() for sample in samples])
        (sample,) = samples
        row = number % len(self._blocks)
        _place_in(self._blocks[row], sample).copy_(self._pixels(sample))
        return row

    def _pixels(self, sample: Sample) -> Tensor:
        return shown(read_image(self._annotations, sample.image), sample, antialias=self._antialias)


def _place_in(block: Tensor, sample: Sample) -> Tensor:
    """The h x w x 3 view of a sample's bytes at a block's start."""
    width, height = sample.size_px
    return block[: height * width * 3].view(height, width, 3)


def _unpack(packed: Tensor, samples: Sequence[Sample]) -> list[Tensor]:
    """h x w x 3 views of the samples' bytes."""
    parts = packed.split([width * height * 3 for width, height in (sample.size_px for sample in samples)])
    return [_place_in(part, sample) for part, sample in zip(parts, samples, strict=True)]


def _finished(
    annotations: Annotations,
    view: RaggedView,
    batches: Iterable[list[Sample]],
    *,
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """The batches' images as `normalise_padded` makes them, in their order, on the device.

    For a CPU, workers hand over one image at a time, and at least a batch of them is ahead of the step. For a GPU they
    hand over batches, each of which is one copy. Raises RuntimeError as DataLoader does.
    """
    one_by_one = num_workers > 0 and device.type == "cpu"
    ahead_a_worker, blocks = _AHEAD_A_WORKER, None
    if one_by_one:
        ahead_a_worker = max(_AHEAD_A_WORKER, -(-batch_size // num_workers))
        blocks = _shared_blocks(ahead_a_worker * num_workers + 1, 3 * largest_px(view))  # one is being finished
    ahead, taken = tee(batches)
    loader = iter(
        DataLoader(
            _Pixels(annotations, view, blocks),
            batch_size=None,
            sampler=enumerate([sample] for samples in ahead for sample in samples) if one_by_one else enumerate(ahead),
            num_workers=num_workers,
            prefetch_factor=ahead_a_worker if num_workers else None,
            pin_memory=device.type == "cuda",
            worker_init_fn=outlast_stop_signals,
            # Else it draws from torch's own one, and an evaluation or a resumption would change what others draw.
            generator=torch.Generator(),
        )
    )
    for samples in taken:
        images: Iterable[Tensor]
        if blocks is None:
            images = _unpack(next(loader).to(device, non_blocking=True), samples)
        else:
            images = (_place_in(blocks[next(loader)], sample) for sample in samples)
        yield normalise_one_by_one(images, [sample.size_px for sample in samples], view, device)


def _shared_blocks(count: int, size_bytes: int) -> Tensor:
    # As default_collate makes it: share_memory_() would copy, and so write, all of it.
    storage = torch.UntypedStorage._new_shared(count * size_bytes)
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(count, size_bytes)


class TrainLoader:
    """See `ssd.batch.TrainLoader` for the contract. num_workers: processes; 0 loads in this one."""

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
        self._annotations, self._view, self._device = annotations, view, ranks.device
        self._batch_size, self._num_workers = batch_size, num_workers
        self._order = TrainingOrder(annotations, view, batch_size=batch_size, seed=seed, ranks=ranks)
        self._place: Place | None = None
        self.steps_per_epoch = self._order.steps_per_epoch
        self.identity = identity_of(view)

    def batches(self, first_step: int) -> Iterator[RaggedBatch]:
        if self._place is None:
            self._place = self._order.place_after(first_step)
        ahead = (step.samples for step in self._order.steps(self._place))
        finished = _finished(
            self._annotations,
            self._view,
            ahead,
            batch_size=self._batch_size,
            num_workers=self._num_workers,
            device=self._device,
        )
        for images, step in zip(plain_errors(finished), self._order.steps(self._place), strict=False):
            self._place = step.after
            yield ragged_batch(images, step.samples, self._annotations, parts_of(self._view))

    def state(self) -> bytes:
        return state_of(self._place)

    def restore(self, state: bytes) -> None:
        self._place = place_of(state)


class EvalLoader:
    """See `ssd.batch.EvalLoader` for the contract."""

    def __init__(self, annotations: Annotations, *, batch_size: int, num_workers: int, ranks: Ranks, view: RaggedView):
        self._annotations, self._view, self._device = annotations, view, ranks.device
        self._batch_size, self._num_workers = batch_size, num_workers
        self._batches = evaluation_batches(annotations, view, batch_size=batch_size, ranks=ranks)

    def __iter__(self) -> Iterator[EvalBatch]:
        finished = _finished(
            self._annotations,
            self._view,
            self._batches,
            batch_size=self._batch_size,
            num_workers=self._num_workers,
            device=self._device,
        )
        for images, samples in zip(plain_errors(finished), self._batches, strict=True):
            yield eval_batch(images, samples, self._annotations)
