"""The pure-PyTorch data path: worker processes decode, crop, resize, flip and match; colour and normalisation run on
whole uint8 batches on the training device.

The randomness of every sample derives from (seed, pass, index), so the number of workers and restarts change nothing.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from pipelines import augmentation
from pipelines.annotations import Annotations
from pipelines.no_dali.samples import EvalSamples, Sample, TrainSamples
from pipelines.no_dali.workers import outlast_stop_signals, plain_errors
from ssd.batch import EvalBatch, MatchedBatch, whole
from ssd.distributed import Ranks
from ssd.images import normalise
from ssd.matching import encode_sparse
from ssd.views import SquareView

_ALIGNMENT_BYTES = 8  # of int64, the widest dtype of what is packed


@dataclass(frozen=True)
class _HostBatch:
    """What a worker hands over: uint8 images, and the matched default boxes alone: a fifth in bytes.

    The pixels are a tensor, which DataLoader moves by shared memory. What is small goes through the pipe as one array
    of numpy's: a shared segment each would cost more. It goes to a GPU as one too: each copy costs a launch.
    """

    pixels: Tensor
    packed: np.ndarray | Tensor
    layout: list[tuple[torch.dtype, tuple[int, ...]]]
    image_ids: np.ndarray

    def pin_memory(self) -> "_HostBatch":
        """What DataLoader asks of a batch for a GPU. It leaves numpy's arrays alone, and from memory that is not pinned
        the host waits for each copy."""
        packed = torch.as_tensor(self.packed).pin_memory()
        return _HostBatch(self.pixels.pin_memory(), packed, self.layout, self.image_ids)


def _pack(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, list[tuple[torch.dtype, tuple[int, ...]]]]:
    """The arrays' bytes one after the other, and what `_unpack` needs to know of them."""
    flat = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays]
    padded = [np.pad(part, (0, -len(part) % _ALIGNMENT_BYTES)) for part in flat]
    return np.concatenate(padded), [(torch.from_numpy(array[:0]).dtype, array.shape) for array in arrays]


def _unpack(packed: Tensor, layout: list[tuple[torch.dtype, tuple[int, ...]]]) -> list[Tensor]:
    """Views of the packed bytes, on their device."""
    arrays, first = [], 0
    for dtype, shape in layout:
        size = math.prod(shape) * dtype.itemsize
        arrays.append(packed[first : first + size].view(dtype).view(shape))
        first += size + -size % _ALIGNMENT_BYTES
    return arrays


def _collate(samples: list[Sample], *, defaults_cxcywh: Tensor) -> _HostBatch:
    matches = encode_sparse(
        [torch.from_numpy(sample.boxes_ltrb) for sample in samples],
        [torch.from_numpy(sample.labels) for sample in samples],
        defaults_cxcywh,
    )
    image_ids = torch.tensor([sample.image_id for sample in samples])
    colour, flip = np.stack([sample.colour for sample in samples]), np.array([sample.flip for sample in samples])
    return _HostBatch(
        default_collate([torch.from_numpy(sample.pixels) for sample in samples]),  # into shared memory at once
        *_pack([colour, flip, *(part.numpy() for part in matches)]),
        image_ids.numpy(),
    )


def _finish(host: _HostBatch, device: torch.device, view: SquareView) -> MatchedBatch:
    pixels, packed = (torch.as_tensor(part).to(device, non_blocking=True) for part in (host.pixels, host.packed))
    colour, flip, image, default, matched_offsets, matched_labels = _unpack(packed, host.layout)
    offsets = torch.zeros(len(pixels), len(view.defaults_cxcywh), 4, device=device)
    labels = torch.zeros(len(pixels), len(view.defaults_cxcywh), dtype=torch.int64, device=device)
    offsets[image, default] = matched_offsets
    labels[image, default] = matched_labels
    images = augmentation.finish(pixels, colour, flip, view.augmentation.contrast_centre, mean=view.mean, std=view.std)
    return MatchedBatch(images, offsets, labels, torch.from_numpy(host.image_ids))


class _Keys:
    """One rank's batches of (pass, image index), without end.

    The passes lie one after the other, and all ranks together take images from them in that order. The sequence begins
    at first_place: the number of images that all ranks have taken before, such as 96 after three steps of 2 x 16.
    """

    def __init__(self, indices: np.ndarray, batch_size: int, seed: int, ranks: Ranks):
        self.indices, self.batch_size, self.seed, self.ranks = indices, batch_size, seed, ranks
        self.global_batch_size = batch_size * ranks.world_size
        self.first_place = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order_of = functools.lru_cache(maxsize=2)(self._order_of)  # a batch may end one pass and begin the next
        for first in itertools.count(self.first_place + self.ranks.rank * self.batch_size, self.global_batch_size):
            places = (divmod(place, len(self.indices)) for place in range(first, first + self.batch_size))
            yield [(number, int(order_of(number)[row])) for number, row in places]

    def _order_of(self, number: int) -> np.ndarray:
        return np.random.default_rng((self.seed, number)).permutation(self.indices)


class TrainLoader:
    """See `ssd.batch.TrainLoader` for the contract. num_workers: processes; 0 loads in this one."""

    identity: dict[str, str] = {}
    ranks_share_state = True

    def __init__(
        self,
        annotations: Annotations,
        *,
        batch_size: int,
        num_workers: int,
        seed: int,
        ranks: Ranks,
        view: SquareView,
    ):
        self.device = ranks.device
        self._view = view
        self._keys = _Keys(annotations.trainable_indices(), batch_size, seed, ranks)
        self._place: int | None = None
        self.steps_per_epoch = -(-len(self._keys.indices) // self._keys.global_batch_size)
        self._loader = DataLoader(
            TrainSamples(annotations, seed, view),
            batch_sampler=self._keys,
            num_workers=num_workers,
            collate_fn=functools.partial(_collate, defaults_cxcywh=view.defaults_cxcywh),
            pin_memory=self.device.type == "cuda",
            worker_init_fn=outlast_stop_signals,
            # Else it draws from torch's own one, and an evaluation or a resumption would change what others draw.
            generator=torch.Generator(),
        )

    def batches(self, first_step: int) -> Iterator[MatchedBatch]:
        if self._place is None:
            self._place = first_step * self._keys.global_batch_size
        self._keys.first_place = self._place
        for host in plain_errors(self._loader):
            self._place += self._keys.global_batch_size
            yield _finish(host, self.device, self._view)

    def state(self) -> bytes:
        """The place in the passes, which says it all: a sample's randomness derives from its pass and index."""
        return b"" if self._place is None else self._place.to_bytes(8)

    def restore(self, state: bytes) -> None:
        self._place = int.from_bytes(state) if state else None


def _collate_eval(samples: list[tuple[int, np.ndarray]]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.stack([pixels for _, pixels in samples])), torch.tensor([index for index, _ in samples])


class EvalLoader:
    """See `ssd.batch.EvalLoader` for the contract."""

    def __init__(self, annotations: Annotations, *, batch_size: int, num_workers: int, ranks: Ranks, view: SquareView):
        self.device = ranks.device
        self._view = view
        self._loader = DataLoader(
            EvalSamples(annotations, view),
            batch_size=batch_size,
            sampler=range(ranks.rank, len(annotations), ranks.world_size),
            num_workers=num_workers,
            collate_fn=_collate_eval,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=outlast_stop_signals,
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[EvalBatch]:
        for pixels, indices in plain_errors(self._loader):
            pixels = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            images = normalise(pixels, self._view.mean, self._view.std)
            yield EvalBatch(images, whole(images), indices)
