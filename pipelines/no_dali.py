"""The pure-PyTorch data path: worker processes decode, crop, resize, flip and match; colour and normalisation run on
whole uint8 batches on the training device.

The randomness of every sample derives from (seed, pass, index), so the number of workers and restarts change nothing.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipelines import augmentation
from pipelines.annotations import Annotations
from pipelines.images import read_rgb, require_size, resize
from ssd import anchors
from ssd.batch import Batch, EvalBatch
from ssd.distributed import Ranks
from ssd.errors import InputError

_T = TypeVar("_T")


def _read(annotations: Annotations, index: int) -> np.ndarray:
    """H x W x 3 uint8 RGB of the size that the annotations say, or InputError."""
    pixels = read_rgb(annotations.image_folder / annotations.file_names[index])
    require_size(annotations, index, (pixels.shape[1], pixels.shape[0]))
    return pixels


class Sample(NamedTuple):
    """One cropped and resized image, and what is to be done to it yet.

    pixels: 300 x 300 x 3 uint8. colour: 4 of `random_colour`. flip: whether to mirror the pixels, as the boxes are.
    boxes_ltrb: n x 4 float32. labels: n int64.
    """

    pixels: np.ndarray
    colour: np.ndarray
    flip: bool
    boxes_ltrb: np.ndarray
    labels: np.ndarray


class TrainSamples(Dataset[Sample]):
    """Augmented samples by (pass through the images, image index)."""

    def __init__(self, annotations: Annotations, seed: int):
        self.annotations = annotations
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        number, index = key
        rng = np.random.default_rng((self.seed, number, index))
        rows = self.annotations.boxes_of(index)
        trains = ~self.annotations.is_crowd[rows]
        boxes_ltrb, labels = self.annotations.boxes_ltrb[rows][trains], self.annotations.labels[rows][trains]

        crop = augmentation.random_crop(boxes_ltrb, rng)
        image = _read(self.annotations, index)
        left, top, right, bottom = augmentation.window_px(crop.window_ltrb, image.shape[1], image.shape[0])
        pixels = resize(image[top:bottom, left:right])
        boxes_ltrb = crop.boxes_ltrb
        flip = augmentation.random_flip(rng)
        if flip:
            left, top, right, bottom = boxes_ltrb.T
            boxes_ltrb = np.stack([1 - right, top, 1 - left, bottom], axis=1)
        return Sample(pixels, augmentation.random_colour(rng), flip, boxes_ltrb, labels[crop.kept])


class _HostBatch(NamedTuple):
    """What a worker hands over: uint8 images, and the matched default boxes alone: a fifth in bytes."""

    pixels: Tensor
    colour: Tensor
    flip: Tensor
    image: Tensor
    default: Tensor
    offsets: Tensor
    labels: Tensor


def _collate(samples: list[Sample]) -> _HostBatch:
    matches = [anchors.encode_sparse(torch.from_numpy(s.boxes_ltrb), torch.from_numpy(s.labels)) for s in samples]
    counts = torch.tensor([len(default) for default, _, _ in matches])
    return _HostBatch(
        pixels=torch.from_numpy(np.stack([sample.pixels for sample in samples])),
        colour=torch.from_numpy(np.stack([sample.colour for sample in samples])),
        flip=torch.tensor([sample.flip for sample in samples]),
        image=torch.arange(len(samples)).repeat_interleave(counts),
        default=torch.cat([default for default, _, _ in matches]),
        offsets=torch.cat([offsets for _, offsets, _ in matches]),
        labels=torch.cat([labels for _, _, labels in matches]),
    )


def _finish(host: _HostBatch, device: torch.device) -> Batch:
    host = _HostBatch(*(tensor.to(device, non_blocking=True) for tensor in host))
    offsets = torch.zeros(len(host.pixels), anchors.NUM_BOXES, 4, device=device)
    labels = torch.zeros(len(host.pixels), anchors.NUM_BOXES, dtype=torch.int64, device=device)
    offsets[host.image, host.default] = host.offsets
    labels[host.image, host.default] = host.labels
    images = augmentation.finish(host.pixels, augmentation.colour_affine(host.colour), host.flip)
    return Batch(images, offsets, labels)


class _Keys:
    """The endless sequence of a rank's batches of (pass, image index), from a given step on."""

    def __init__(self, indices: np.ndarray, batch_size: int, seed: int, ranks: Ranks):
        self.indices, self.batch_size, self.seed, self.ranks = indices, batch_size, seed, ranks
        self.global_batch_size = batch_size * ranks.world_size
        self.first_step = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order_of = functools.lru_cache(maxsize=2)(self._order_of)  # a batch may end one pass and begin the next
        for step in itertools.count(self.first_step):
            first = step * self.global_batch_size + self.ranks.rank * self.batch_size
            places = (divmod(place, len(self.indices)) for place in range(first, first + self.batch_size))
            yield [(number, int(order_of(number)[row])) for number, row in places]

    def _order_of(self, number: int) -> np.ndarray:
        return np.random.default_rng((self.seed, number)).permutation(self.indices)


class TrainLoader:
    """See `ssd.batch.TrainLoader` for the contract. num_workers: processes; 0 loads in this one."""

    def __init__(self, annotations: Annotations, *, batch_size: int, num_workers: int, seed: int, ranks: Ranks):
        self.device = ranks.device
        self._keys = _Keys(annotations.trainable_indices(), batch_size, seed, ranks)
        self.steps_per_epoch = -(-len(self._keys.indices) // self._keys.global_batch_size)
        self._loader = DataLoader(
            TrainSamples(annotations, seed),
            batch_sampler=self._keys,
            num_workers=num_workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
        )

    def batches(self, first_step: int) -> Iterator[Batch]:
        self._keys.first_step = first_step
        for host in _plain_errors(self._loader):
            yield _finish(host, self.device)

    def state(self) -> bytes:
        """Nothing: the step says it all."""
        return b""

    def restore(self, state: bytes) -> None:
        """Nothing to restore, see `state`."""


class EvalSamples(Dataset[tuple[int, np.ndarray]]):
    """(image index, the whole image resized to 300 x 300 x 3 uint8)."""

    def __init__(self, annotations: Annotations):
        self.annotations = annotations

    def __getitem__(self, index: int) -> tuple[int, np.ndarray]:
        return index, resize(_read(self.annotations, index))


def _collate_eval(samples: list[tuple[int, np.ndarray]]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.stack([pixels for _, pixels in samples])), torch.tensor([index for index, _ in samples])


class EvalLoader:
    """See `ssd.batch.EvalLoader` for the contract."""

    def __init__(self, annotations: Annotations, *, batch_size: int, num_workers: int, ranks: Ranks):
        self.device = ranks.device
        self._loader = DataLoader(
            EvalSamples(annotations),
            batch_size=batch_size,
            sampler=range(ranks.rank, len(annotations), ranks.world_size),
            num_workers=num_workers,
            collate_fn=_collate_eval,
            pin_memory=self.device.type == "cuda",
        )

    def __iter__(self) -> Iterator[EvalBatch]:
        for pixels, indices in _plain_errors(self._loader):
            yield EvalBatch(augmentation.finish(pixels.to(self.device, non_blocking=True)), indices)


def _plain_errors(batches: Iterable[_T]) -> Iterator[_T]:
    """The batches. A worker's InputError comes without DataLoader's traceback; a worker's death is one too."""
    try:
        yield from batches
    except InputError as error:
        raise InputError(str(error).strip().splitlines()[-1].removeprefix("ssd.errors.InputError: ")) from None
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise InputError(
            f"--num-workers: {str(error).splitlines()[0]} Was it killed for its memory, or is /dev/shm full? "
            "Pass fewer workers, or give more shared memory (docker run --ipc=host or --shm-size)"
        ) from error
