"""Files of weights, read so that a damaged one is named and none can run code."""

import json
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from ssd.errors import InputError
from ssd.storage.given import require_file
from ssd.storage.pickles import read_pickle

# What a damaged or foreign file makes torch.load raise.
_UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    struct.error,
    zlib.error,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)


ABOUT_KEY = "ssd300"
"""The entry of a safetensors file's metadata that holds, as JSON, what a checkpoint has beside its weights. Of
any detector: files that are there have it by the name of the first one."""


def read(file: Path, what: str) -> Any:
    """Whatever torch saved in a file. Raises InputError that says it is not `what` if the file is damaged, or could run
    code when read."""
    require_file(file, what)
    try:
        if zipfile.is_zipfile(file):
            _verify(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        if isinstance(error, InputError):
            raise
        if isinstance(error, pickle.UnpicklingError):  # torch's own text advises to trust the file
            raise InputError(f"{file}: is not {what}, or holds more than plain weights; use another file") from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{file}: cannot be read as {what} ({reason[:200]}); use another file") from error


def read_any(file: Path, what: str) -> Any:
    """A torch file's content; of a safetensors file {"model": its tensors} with what `conversion.save` noted of
    them, if it did; of a .weights file its bytes; of a .pkl file what `read_pickle` gives. Raises InputError for any
    other file."""
    if file.suffix == ".pkl":
        return read_pickle(file, what)
    if file.suffix == ".weights" and file.is_file():
        try:
            return file.read_bytes()
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror}); use another file") from None
    if file.suffix != ".safetensors" or not file.is_file():
        return read(file, what)
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            about = json.loads((opened.metadata() or {}).get(ABOUT_KEY, "{}"))
            return {**about, "model": {name: opened.get_tensor(name) for name in opened.keys()}}
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{file}: cannot be read as {what} ({reason[:200]}); use another file") from error


def _verify(file: Path) -> None:
    """Raises InputError if the zip archive is damaged: torch does not check the checksums that it writes."""
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
        for entry in archive.infolist():
            # torch stores its entries plainly; it takes memory as it finds it for what claims to be a folder.
            if entry.compress_type != zipfile.ZIP_STORED or entry.external_attr != 0:
                damaged = damaged or entry.filename
    if damaged is not None:
        raise InputError(f"{file}: damaged at {damaged}; use another checkpoint")


def fits(value: Any, own: Tensor) -> bool:
    """Whether a value out of a file can take the place of a model's own tensor."""
    return isinstance(value, Tensor) and value.shape == own.shape
