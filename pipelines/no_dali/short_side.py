"""The pure-PyTorch data path of a `ShortSideView`: worker processes decode, resize and flip; normalisation and padding
run on the training device."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipelines.annotations import Annotations
from pipelines.no_dali.workers import outlast_stop_signals, plain_errors
from pipelines.order import Place, Sample, TrainingOrder, evaluation_batches, place_of, state_of
from pipelines.readers.scan import read_image
from pipelines.targets import eval_batch, ragged_batch
from ssd.batch import EvalBatch, RaggedBatch
from ssd.distributed import Ranks
from ssd.images import normalise_padded, resize
from ssd.views import ShortSideView


class _Pixels(Dataset[Tensor]):
    """Of a sample: h x w x 3 uint8."""

    def __init__(self, annotations: Annotations, view: ShortSideView):
        self._annotations, self._antialias = annotations, view.antialias

    def __getitem__(self, sample: Sample) -> Tensor:
        image = read_image(self._annotations, sample.image)
        pixels = torch.from_numpy(resize(image, sample.size_px, antialias=self._antialias))
        return pixels.flip(1) if sample.flip else pixels


def _pack(images: list[Tensor]) -> Tensor:
    """The bytes of all images, one after the other: one block of shared memory, and one copy to a GPU."""
    return torch.cat([image.flatten() for image in images])


def _unpack(packed: Tensor, samples: Sequence[Sample]) -> list[Tensor]:
    """h x w x 3 views of what `_pack` made of the samples."""
    shapes = [(height, width, 3) for width, height in (sample.size_px for sample in samples)]
    parts = packed.split([height * width * 3 for height, width, _ in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _packed(
    annotations: Annotations,
    view: ShortSideView,
    batches: Iterable[list[Sample]],
    *,
    num_workers: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """The batches' pixels, in their order, on the device."""
    loader = DataLoader(
        _Pixels(annotations, view),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_pack,
        pin_memory=device.type == "cuda",
        worker_init_fn=outlast_stop_signals,
        # Else it draws from torch's own one, and an evaluation or a resumption would change what others draw.
        generator=torch.Generator(),
    )
    for packed in plain_errors(loader):
        yield packed.to(device, non_blocking=True)


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
        view: ShortSideView,
    ):
        self._annotations, self._view, self._num_workers, self._device = annotations, view, num_workers, ranks.device
        self._order = TrainingOrder(annotations, view, batch_size=batch_size, seed=seed, ranks=ranks)
        self._place: Place | None = None
        self.steps_per_epoch = self._order.steps_per_epoch
        self.identity = {name: str(value) for name, value in view._asdict().items()}

    def batches(self, first_step: int) -> Iterator[RaggedBatch]:
        if self._place is None:
            self._place = self._order.place_after(first_step)
        ahead = (step.samples for step in self._order.steps(self._place))
        packed = _packed(self._annotations, self._view, ahead, num_workers=self._num_workers, device=self._device)
        for pixels, step in zip(packed, self._order.steps(self._place), strict=False):
            self._place = step.after
            images = normalise_padded(_unpack(pixels, step.samples), self._view)
            yield ragged_batch(images, step.samples, self._annotations)

    def state(self) -> bytes:
        return state_of(self._place)

    def restore(self, state: bytes) -> None:
        self._place = place_of(state)


class EvalLoader:
    """See `ssd.batch.EvalLoader` for the contract."""

    def __init__(
        self, annotations: Annotations, *, batch_size: int, num_workers: int, ranks: Ranks, view: ShortSideView
    ):
        self._annotations, self._view, self._num_workers, self._device = annotations, view, num_workers, ranks.device
        self._batches = evaluation_batches(annotations, view, batch_size=batch_size, ranks=ranks)

    def __iter__(self) -> Iterator[EvalBatch]:
        packed = _packed(
            self._annotations, self._view, self._batches, num_workers=self._num_workers, device=self._device
        )
        for pixels, samples in zip(packed, self._batches, strict=True):
            yield eval_batch(normalise_padded(_unpack(pixels, samples), self._view), samples)
