"""darknet's files of weights: a header, then float32 little endian, layer after layer in the order of the cfg.

The header: int32 major, minor and revision, then the images seen, as int64 from version 0.2 on and as int32 before.
darknet checks nothing when it reads: a short file leaves the rest as it was, of a long one the end is ignored. Here the
bytes have to come out even.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssd.detectors.yolov2.darknet.sections import Convolutional, Network
from ssd.errors import InputError

_FLOAT = np.dtype("<f4")


class Weights(NamedTuple):
    """What a file says. tensors: by the names of a model's state dict; of a layer with numload its first filters only.
    layers: the indices of the layers that it has."""

    version: tuple[int, int, int]
    seen: int
    tensors: dict[str, Tensor]
    layers: list[int]


class _Part(NamedTuple):
    """A piece of a file. is_flipped: it lies there transposed, as shape[1:] by shape[0]."""

    layer: int
    name: str
    shape: tuple[int, ...]
    is_flipped: bool = False

    @property
    def floats(self) -> int:
        return math.prod(self.shape)


def _parts(network: Network, *, saving: bool = False) -> Iterator[_Part]:
    """The pieces of a file that darknet reads for a network, or that it writes: which keys of a layer may change."""
    channels = network.net.channels
    for index, (layer, shape) in enumerate(zip(network.layers, network.shapes, strict=True)):
        if isinstance(layer, Convolutional) and not (layer.dontsave if saving else layer.dontload):
            filters = layer.filters if saving else layer.numload or layer.filters
            kernel = (filters, channels // layer.groups, layer.size, layer.size)
            own = f"layers.{index}"
            if layer.batch_normalize:
                has_scales = saving or not layer.dontloadscales
                names = ("bias", "weight", "running_mean", "running_var") if has_scales else ("bias",)
                yield from (_Part(index, f"{own}.norm.{name}", (filters,)) for name in names)
            else:
                yield _Part(index, f"{own}.conv.bias", (filters,))
            yield _Part(index, f"{own}.conv.weight", kernel, layer.flipped and not saving)
        channels = shape[0]


def _has_wide_seen(major: int, minor: int) -> bool:
    return 10 * major + minor >= 2 and major < 1000 and minor < 1000


def num_floats(network: Network) -> int:
    """How many a whole file has behind its header."""
    return sum(part.floats for part in _parts(network))


def read_weights(content: bytes, network: Network, file: Path, *, is_backbone: bool = False) -> Weights:
    """The weights of a file's content.

    is_backbone: the file may end before the network does, behind any layer of it. Raises InputError, with expected and
    found bytes, for a file that does not come out even, and for numbers that are no weights.
    """
    if len(content) < 16:
        raise InputError(
            f"{file}: {len(content)} bytes are not even the header of darknet's weights; pass another file"
        )
    major, minor, revision = struct.unpack_from("<3i", content)
    wide = _has_wide_seen(major, minor)
    header = 20 if wide else 16
    if len(content) < header:
        raise InputError(f"{file}: ends in its header of {header} bytes; pass another file")
    (seen,) = struct.unpack_from("<q" if wide else "<I", content, 12)
    parts = list(_parts(network))
    parts = parts[: _count_of_whole_parts(parts, len(content), header, is_backbone, network, file)]
    tensors, place = {}, header
    for part in parts:
        values = np.frombuffer(content, _FLOAT, part.floats, place).astype(np.float32)
        place += 4 * part.floats
        _check(values, part, file)
        if part.is_flipped:
            values = np.ascontiguousarray(values.reshape(-1, part.shape[0]).T)
        tensors[part.name] = torch.from_numpy(values).view(part.shape)
    return Weights((major, minor, revision), seen, tensors, sorted({part.layer for part in parts}))


def _count_of_whole_parts(
    parts: list[_Part], size: int, header: int, is_backbone: bool, network: Network, file: Path
) -> int:
    ends, total = {}, header
    for number, part in enumerate(parts, 1):
        total += 4 * part.floats
        if number == len(parts) or parts[number].layer != part.layer:
            ends[total] = number
    if size == total or (is_backbone and size in ends):
        return ends[size]
    hint = " (4 bytes more or less are the other version's header)" if abs(size - total) == 4 else ""
    if is_backbone:
        nearest = min(ends, key=lambda end: abs(end - size))
        hint = (
            f", and behind none of its layers; nearest is the end of layer {parts[ends[nearest] - 1].layer}, {nearest}"
        )
    raise InputError(
        f"{file}: {network.name} has {total} bytes of weights, this file has {size}{hint}; pass the file of this "
        "network, or the cfg of this file"
    )


def _check(values: np.ndarray, part: _Part, file: Path) -> None:
    is_variance = part.name.endswith("running_var")
    if not np.isfinite(values).all() or (is_variance and values.min() < 0):
        what = "a variance below 0" if is_variance and np.isfinite(values).all() else "numbers that are not finite"
        raise InputError(f"{file}: {what} in layer {part.layer}; it is damaged, or of another network")


def write_weights(network: Network, tensors: dict[str, Tensor], version: tuple[int, int, int], seen: int) -> bytes:
    """The content of a file with a network's weights, by the names of its model's state dict. As darknet, it writes
    whole layers, none with dontsave, and nothing flipped."""
    parts = [np.array(tensors[part.name].numpy(), _FLOAT).tobytes() for part in _parts(network, saving=True)]
    wide = _has_wide_seen(*version[:2])
    return b"".join([struct.pack("<3iq" if wide else "<3iI", *version, seen), *parts])


def copy_into(weights: Weights, state: dict[str, Tensor]) -> None:
    """Writes a file's weights into the tensors of a model's state dict, in place."""
    for name, values in weights.tensors.items():
        state[name][: len(values)].copy_(values)
