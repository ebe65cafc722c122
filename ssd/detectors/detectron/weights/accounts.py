"""What of a file's weights a model takes, and what is missing, does not fit, or is left over."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssd.detectors.detectron.weights.names import CONV1, fallback, is_no_weight

_SHOWN = 3
Arrays = Mapping[str, np.ndarray]


class Account(NamedTuple):
    """state: the weights that fit, by their names here. missing: blobs that the model has and the file has not.
    mismatched: blobs of another shape, with both. unused: blobs that no weight takes."""

    state: dict[str, Tensor]
    missing: list[str]
    mismatched: list[str]
    unused: list[str]

    def text(self) -> str:
        """Such as "2 missing (fc6_w, fc6_b)", or "" where all fits."""
        lists = (("missing", self.missing), ("of another shape", self.mismatched), ("unused", self.unused))
        return ", ".join(f"{len(names)} {what} ({_first(names)})" for what, names in lists if names)


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def account(arrays: Arrays, blobs: Mapping[str, str], own: Mapping[str, Tensor]) -> Account:
    """arrays: of a file, by blob. blobs: by name here, those that the model has. own: its weights, for their shapes."""
    state: dict[str, Tensor] = {}
    missing, mismatched, used = [], [], set()
    for name, blob in blobs.items():
        found = blob if blob in arrays else fallback(blob)
        if found is None or found not in arrays:
            missing.append(blob)
            continue
        used.add(found)
        array, shape = arrays[found], tuple(own[name].shape)
        if array.shape != shape:
            mismatched.append(f"{found}: {_sides(array.shape)} in the place of {_sides(shape)}")
            continue
        state[name] = as_tensor(name, array)
    unused = [blob for blob in arrays if blob not in used and not is_no_weight(blob)]
    return Account(state, missing, mismatched, unused)


def as_tensor(name: str, array: np.ndarray) -> Tensor:
    """A blob as the weight of that name."""
    tensor = torch.from_numpy(np.array(array, dtype=np.float32))  # a copy that may be written to
    return tensor.flip(1) if name == CONV1 else tensor


def as_array(name: str, weight: Tensor) -> np.ndarray:
    """A weight as the blob of its name: `as_tensor` undone."""
    weight = weight.detach().cpu().float()
    return (weight.flip(1) if name == CONV1 else weight).contiguous().numpy()


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"
