"""The pure-PyTorch data path of whole images (`RaggedView`): worker processes decode, resize and flip; colour,
normalisation and padding run on the training device."""

from collections.abc import Iterable, Iterator, Sequence

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
from ssd.images import normalise_padded
from ssd.views import RaggedView, largest_px, parts_of

# DataLoader's default: so many batches a worker are under way while one is taken.
_BATCHES_A_WORKER = 2


class _Pixels(Dataset[Tensor | int]):
    """Of a batch and the block of shared memory for it: its images h x w x 3 uint8, the bytes of one after those of the
    other. That is one copy to a GPU. Without blocks it gives the bytes; with them it writes them there, and gives how
    many they are.

    blocks: N x (the bytes of the largest batch) uint8. They are written to over and over: new shared memory for each
    batch costs a page fault for every 4 KiB, in the worker and again where the batch is read.
    """

    def __init__(self, annotations: Annotations, view: RaggedView, blocks: Tensor | None):
        self._annotations, self._antialias, self._blocks = annotations, view.antialias, blocks

    def __getitem__(self, key: tuple[int, list[Sample]]) -> Tensor | int:
        number, samples = key
        images = [self._pixels(sample).flatten() for sample in samples]
        if self._blocks is None:
            return torch.cat(images)
        count = sum(map(len, images))
        torch.cat(images, out=self._blocks[number % len(self._blocks), :count])
        return count

    def _pixels(self, sample: Sample) -> Tensor:
        return shown(read_image(self._annotations, sample.image), sample, antialias=self._antialias)


def _unpack(packed: Tensor, samples: Sequence[Sample]) -> list[Tensor]:
    """h x w x 3 views of the samples' bytes."""
    shapes = [(height, width, 3) for width, height in (sample.size_px for sample in samples)]
    parts = packed.split([height * width * 3 for height, width, _ in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _packed(
    annotations: Annotations,
    view: RaggedView,
    batches: Iterable[list[Sample]],
    *,
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """The batches' bytes, in their order, on the device. Those of a batch on a CPU are gone when the next is asked for.

    Raises RuntimeError as DataLoader does.
    """
    blocks = None
    if num_workers and device.type == "cpu":  # for a GPU, DataLoader copies the bytes into pinned memory at once
        blocks = _shared_blocks(_BATCHES_A_WORKER * num_workers + 1, batch_size * 3 * largest_px(view))
    loader = DataLoader(
        _Pixels(annotations, view, blocks),
        batch_size=None,
        sampler=enumerate(batches),
        num_workers=num_workers,
        prefetch_factor=_BATCHES_A_WORKER if num_workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=outlast_stop_signals,
        # Else it draws from torch's own one, and an evaluation or a resumption would change what others draw.
        generator=torch.Generator(),
    )
    for number, packed in enumerate(loader):
        yield (packed if blocks is None else blocks[number % len(blocks), :packed]).to(device, non_blocking=True)


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
        packed = _packed(
            self._annotations,
            self._view,
            ahead,
            batch_size=self._batch_size,
            num_workers=self._num_workers,
            device=self._device,
        )
        for pixels, step in zip(plain_errors(packed), self._order.steps(self._place), strict=False):
            self._place = step.after
            images = normalise_padded(_unpack(pixels, step.samples), self._view)
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
        packed = _packed(
            self._annotations,
            self._view,
            self._batches,
            batch_size=self._batch_size,
            num_workers=self._num_workers,
            device=self._device,
        )
        for pixels, samples in zip(plain_errors(packed), self._batches, strict=True):
            images = normalise_padded(_unpack(pixels, samples), self._view)
            yield eval_batch(images, samples, self._annotations)
