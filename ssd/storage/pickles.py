"""Pickled arrays, as Detectron and detectron2 keep weights: read without running what a pickle names, and written so
that either reads them."""

import io
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ssd.errors import InputError
from ssd.storage.given import require_file

# What a damaged or foreign file makes the standard library's reader raise.
_UNREADABLE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    OverflowError,
    AssertionError,
    struct.error,
)


def read_pickle(file: Path, what: str) -> Any:
    """The dicts, lists, tuples, texts, numbers and numpy arrays of a pickle of protocol 0 to 4; texts of Python 2 as
    latin-1, arrays of numbers or truths only, in this machine's byte order.

    Nothing that the file names is imported or called: numpy's array pieces have stand-ins here, and any other name
    raises an InputError that tells it. So does a damaged file, and one that is not `what`.
    """
    require_file(file, what)
    try:
        with file.open("rb") as stream:
            # A damaged length asks for more than there is and gets what is there, where a stream that reads ahead
            # would make room for all of it first.
            return _ArraysOnly(_Exactly(stream.read())).load()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); use another file") from None
    except _UNREADABLE as error:
        if isinstance(error, InputError):
            raise InputError(f"{file}: {error}; use {what}") from None
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{file}: cannot be read as {what} ({reason[:200]}); use another file") from error


def pickled(content: Any) -> bytes:
    """Dicts, lists, texts, numbers and numpy arrays as a pickle of protocol 2 that `read_pickle`, detectron2 and, by
    Python 2, Detectron read."""
    stream = io.BytesIO()
    _AsPython2(stream, protocol=2).dump(content)
    return stream.getvalue()


class _AsPython2(pickle._Pickler):
    """Writes bytes as Python 2 did, so that they are read as latin-1, and calls numpy's modules as all of its versions
    know them. Python 3's own way for bytes in protocol 2 takes half as much space again."""

    def _save_bytes(self, data: bytes) -> None:
        write: Any = self.write  # type: ignore[attr-defined]
        write(pickle.BINSTRING + struct.pack("<i", len(data)))
        write(data)
        self.memoize(data)  # type: ignore[attr-defined]

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if getattr(obj, "__module__", None) == "numpy._core.multiarray":
            self.write(pickle.GLOBAL + f"numpy.core.multiarray\n{obj.__name__}\n".encode())  # type: ignore[attr-defined]
            self.memoize(obj)  # type: ignore[attr-defined]
        else:
            super().save_global(obj, name)  # type: ignore[misc]

    dispatch = {**pickle._Pickler.dispatch, bytes: _save_bytes}  # type: ignore[dict-item]


class _Exactly:
    """A file in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def read(self, count: int) -> bytes:
        """The next count bytes. Raises EOFError where fewer are left."""
        if not 0 <= count <= len(self._data) - self._at:
            raise EOFError("it ends too early")
        self._at += count
        return self._data[self._at - count : self._at]

    def readline(self) -> bytes:
        end = self._data.find(b"\n", self._at)
        return self.read(end + 1 - self._at)


class _Kind:
    """A numpy.dtype of numbers or truths: `code` such as "f4", `order` "<", ">" or "|"."""

    def __init__(self, code: str, order: str) -> None:
        self.code = code
        self.order = order

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


def _kind(code: Any, *_: Any) -> _Kind:
    """numpy.dtype("f4", False, True)"""
    found = re.fullmatch("([<>|=]?)(b1|[iu][1248]|f[248])", _text(code))
    if found is None:
        raise pickle.UnpicklingError(f"it has an array of {_text(code)[:40]!r}, which are no numbers")
    return _Kind(found[2], found[1] or "=")


def _array_type(*_: Any) -> Any:
    """numpy.ndarray, which is only named; called, it would make an array of any size."""
    raise pickle.UnpicklingError("it makes an array in an unknown way")


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray[Any, Any]:
    """_reconstruct(numpy.ndarray, (0,), b"b"), which numpy begins each array with."""
    if kind is not _array_type or shape != (0,):
        raise pickle.UnpicklingError("it makes an array in an unknown way")
    return np.empty(0, dtype=np.int8)


def _scalar(kind: Any, data: Any) -> Any:
    """A numpy number as a plain one."""
    return _numbers(kind, (), data)[()].item()


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    """_codecs.encode, by which Python 3 writes bytes in protocol 2."""
    if _text(encoding).lower().replace("-", "").replace("_", "") not in ("latin1", "iso88591"):
        raise pickle.UnpicklingError(f"it encodes in {_text(encoding)[:40]!r}")
    return _text(text).encode("latin1")


def _no_bytes() -> bytes:
    """bytes(), by which Python 3 writes none in protocol 2."""
    return b""


def _dict(items: Any = ()) -> dict[Any, Any]:
    return dict(items)


_MEANT: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _array_type,
    ("numpy", "dtype"): _kind,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): _encoded,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
    ("collections", "OrderedDict"): _dict,
}


def _text(value: Any) -> str:
    """A text of a file, which Python 2 wrote as bytes."""
    if isinstance(value, bytes):
        return value.decode("latin1")
    if not isinstance(value, str):
        raise pickle.UnpicklingError(f"it has a {type(value).__name__} where a text belongs")
    return value


def _numbers(kind: Any, shape: Any, data: Any, is_fortran: bool = False) -> np.ndarray[Any, Any]:
    if not isinstance(kind, _Kind) or not isinstance(shape, tuple):
        raise pickle.UnpicklingError("it has an array in an unknown form")
    raw = data if isinstance(data, bytes) else _text(data).encode("latin1")
    dtype = kind.dtype
    # frombuffer and reshape refuse numbers that do not fill the shape, before room is made for it.
    flat = np.frombuffer(raw, dtype) if raw else np.empty(0, dtype)
    return flat.astype(dtype.newbyteorder("=")).reshape(shape, order="F" if is_fortran else "C")


# The standard library's reader in Python: that in C makes room for as many objects as a damaged file numbers.
class _ArraysOnly(pickle._Unpickler):
    """An unpickler whose every step is one of `dispatch`: what names classes in other ways than by `find_class`, asks
    for objects from outside or sets attributes is not among them."""

    def __init__(self, stream: _Exactly) -> None:
        super().__init__(stream, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (meant := _MEANT.get((module, name))) is None:
            raise InputError(f"it names {f'{module}.{name}'[:100]!r}, which no file of arrays does")
        return meant

    def _build(self) -> None:
        """Gives the array or type on the stack its state. Of anything else this would set attributes."""
        stack: list[Any] = self.stack  # type: ignore[attr-defined]
        state = stack.pop()
        target = stack[-1]
        if isinstance(target, np.ndarray) and isinstance(state, tuple) and len(state) == 5:
            _, shape, kind, is_fortran, data = state
            array = _numbers(kind, shape, data, bool(is_fortran))
            # The array itself, not another one: the file may name it again.
            target.__setstate__((1, array.shape, array.dtype, bool(is_fortran), array.tobytes("A")))  # type: ignore[arg-type]
        elif isinstance(target, _Kind) and isinstance(state, tuple) and len(state) > 1:
            if _text(state[1]) not in tuple("<>|="):
                raise pickle.UnpicklingError(f"it has numbers of byte order {_text(state[1])[:40]!r}")
            target.order = _text(state[1])
        else:
            raise pickle.UnpicklingError("it sets something that is no array")

    def _shallow_tuple(self, opcode: int) -> None:
        """Files of arrays have tuples in tuples, not deeper. Python hashes a tuple by its parts' parts without end,
        which ends the process where a file has them a hundred thousand deep."""
        pickle._Unpickler.dispatch[opcode](self)  # type: ignore[arg-type]
        made = self.stack[-1]  # type: ignore[attr-defined]
        for part in made:
            if isinstance(part, tuple) and any(isinstance(each, tuple) and each for each in part):
                raise pickle.UnpicklingError("it has tuples in tuples in tuples")


_REFUSED = (
    pickle.PERSID,
    pickle.BINPERSID,
    pickle.EXT1,
    pickle.EXT2,
    pickle.EXT4,
    pickle.NEWOBJ,
    pickle.NEWOBJ_EX,
    pickle.EMPTY_SET,
    pickle.FROZENSET,
    pickle.ADDITEMS,
    pickle.BYTEARRAY8,
    pickle.NEXT_BUFFER,
    pickle.READONLY_BUFFER,
)


def _steps() -> dict[int, Callable[..., None]]:
    def refuse(reader: Any) -> None:
        raise pickle.UnpicklingError("it has what no file of arrays has")

    def shallow(opcode: int) -> Callable[..., None]:
        return lambda reader: reader._shallow_tuple(opcode)

    steps: dict[int, Callable[..., None]] = dict(pickle._Unpickler.dispatch)
    steps |= {opcode[0]: refuse for opcode in _REFUSED}
    steps |= {opcode[0]: shallow(opcode[0]) for opcode in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)}
    return steps | {pickle.BUILD[0]: _ArraysOnly._build}


_ArraysOnly.dispatch = _steps()
