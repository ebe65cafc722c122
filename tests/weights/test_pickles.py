"""Pickles of arrays: what Detectron's and detectron2's tools write is read, and nothing in a file is ever run."""

import collections
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssd.errors import InputError
from ssd.storage.pickles import pickled, read_pickle


def written(folder: Path, data: bytes) -> Path:
    file = folder / "some.pkl"
    file.write_bytes(data)
    return file


def read(folder: Path, data: bytes) -> Any:
    return read_pickle(written(folder, data), "a model")


NUMBERS = np.arange(6, dtype=np.float32).reshape(2, 3) - 2.5
# How Python 2's numpy begins an array, and what its dtype is; texts are its bytes.
_BEGIN = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
_RAW = NUMBERS.astype("<f4").tobytes()
_OF_PYTHON_2 = {
    # repr() of the bytes, backslashes for what is no ASCII.
    0: _BEGIN
    + b"(I0\ntS'b'\ntR(I1\n(I2\nI3\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS"
    + ascii(_RAW)[1:].encode()
    + b"\ntb.",
    1: _BEGIN
    + b"(K\x00tU\x01btR(K\x01(K\x02K\x03tcnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNN"
    + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbI00\nT\x18\x00\x00\x00"
    + _RAW
    + b"tb.",
    2: b"\x80\x02"
    + _BEGIN
    + b"K\x00\x85U\x01btR(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNN"
    + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x18\x00\x00\x00"
    + _RAW
    + b"tb.",
}


@pytest.mark.parametrize("protocol", _OF_PYTHON_2)
def test_arrays_of_python_2_are_read(protocol: int, tmp_path: Path) -> None:
    data = _OF_PYTHON_2[protocol]
    # The bytes above are right: numpy reads them, too.
    np.testing.assert_array_equal(pickle.loads(data.replace(b"numpy.core", b"numpy._core"), encoding="latin1"), NUMBERS)
    found = read(tmp_path, data)
    assert type(found) is np.ndarray and found.dtype == np.float32
    np.testing.assert_array_equal(found, NUMBERS)


def test_texts_of_python_2_are_latin_1(tmp_path: Path) -> None:
    assert read(tmp_path, b"\x80\x02U\x05caf\xe9!.") == "café!"


@pytest.mark.parametrize("protocol", range(5))
def test_what_python_3_writes_is_read(protocol: int, tmp_path: Path) -> None:
    content = {
        "model": collections.OrderedDict(
            weight=NUMBERS,
            column=np.asfortranarray(NUMBERS),
            foreign_order=NUMBERS.astype(">f4"),
            half=NUMBERS.astype(np.float16),
            counts=np.arange(3),
            flags=np.array([True, False]),
            none=np.empty((0, 4), np.float32),
            point=np.array(0.5, np.float32),
        ),
        "number": np.float64(0.25),
        "rest": [1, -1, 2**40, 0.5, None, True, "text", (1, 2)],
    }
    content["again"] = content["model"]["weight"]
    found = read(tmp_path, pickle.dumps(content, protocol))
    assert type(found["model"]) is dict and list(found["model"]) == list(content["model"])
    for name, expected in content["model"].items():
        assert found["model"][name].dtype == expected.dtype.newbyteorder("="), name
        np.testing.assert_array_equal(found["model"][name], expected)
    assert found["again"] is found["model"]["weight"]
    assert found["number"] == 0.25 and type(found["number"]) is float
    assert found["rest"] == content["rest"]


def test_what_is_written_is_read_by_older_numpy_and_by_this(tmp_path: Path) -> None:
    content = {"model": {"weight": NUMBERS, "bias": NUMBERS[0]}, "__author__": "someone"}
    data = pickled(content)
    names = [line for line in data.splitlines() if b"numpy" in line]
    assert data[:2] == b"\x80\x02" and b"numpy._core" not in data and any(b"numpy.core" in name for name in names)
    found = read(tmp_path, data)
    np.testing.assert_array_equal(found["model"]["weight"], NUMBERS)
    np.testing.assert_array_equal(found["model"]["bias"], NUMBERS[0])
    assert found["__author__"] == "someone"


class Calls:
    """Pickled as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _fails(*_: Any) -> None:
    raise AssertionError("a pickle was run")


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"cos\nsystem\n(S'exit 1'\ntR.", "os.system"),
        (b"c__builtin__\neval\n(S'1/0'\ntR.", "__builtin__.eval"),
        (b"\x80\x02cbuiltins\ngetattr\nU\x01aU\x01b\x86R.", "builtins.getattr"),
        (b"(S'exit 1'\nios\nsystem\n.", "os.system"),
        (b"(cos\nsystem\nS'exit 1'\no.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x06exit 1\x85R.", "os.system"),
        (b"\x80\x02ccollections\nnamedtuple\nU\x01aU\x01b\x86R.", "collections.namedtuple"),
        (b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.", "numpy.ndarray.__init__"),
        (b"\x80\x04\x8c\x05numpy\x8c\x04load\x93\x8c\x01x\x85R.", "numpy.load"),
        (b"\x80\x02cnumpy.core.multiarray\nfromfile\n.", "numpy.core.multiarray.fromfile"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n.", "torch._utils._rebuild_tensor_v2"),
    ],
)
def test_a_forbidden_name_is_told(data: bytes, name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"some.pkl: it names '{name}'"):
        read(tmp_path, data)


def test_a_forbidden_name_deep_in_a_file_is_told(tmp_path: Path) -> None:
    content = {"model": {"weight": NUMBERS, "list": [1, ({"in": Calls(_fails, NUMBERS)},)]}}
    with pytest.raises(InputError, match="_fails"):
        read(tmp_path, pickle.dumps(content, 2))


@pytest.mark.parametrize(
    "data",
    [
        # numpy.ndarray and numpy.dtype are only named, not called with what a file likes
        b"\x80\x02cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85\x85R.",
        b"\x80\x02cnumpy\ndtype\nU\x01O\x85R.",
        b"\x80\x02cnumpy\ndtype\nU\x02f4\x85R}U\x05orderU\x01<sb.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nJ\xff\xff\xff\x7f\x85U\x01b\x87R.",
        # other codecs than latin-1 may take their time
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R.",
        # attributes of what is named, of a dict, of an ordered dict
        b"\x80\x02c_codecs\nencode\n}U\x0c__defaults__U\x01asb.",
        b"\x80\x02}}U\x01aU\x01bsb.",
        b"\x80\x02ccollections\nOrderedDict\n)R}U\x01aU\x01bsb.",
        # persistent ids, extensions, classes made without their own making, sets, buffers from outside
        b"P1\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",
        b"\x80\x04\x8f.",
        b"\x80\x05\x97.",
        # no pickle
        b"",
        b".",
        b"not a pickle",
        b"\x89PNG\r\n",
        b"\x80\xff.",
        b"\x80\x02\xff.",
    ],
)
def test_what_is_no_file_of_arrays_is_refused_in_one_line(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"some\.pkl: cannot be read as a model") as caught:
        read(tmp_path, data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", _OF_PYTHON_2)
def test_every_truncated_file_is_refused(protocol: int, tmp_path: Path) -> None:
    data = _OF_PYTHON_2[protocol]
    for length in range(len(data)):
        with pytest.raises(InputError, match="cannot be read as a model|it names"):
            read(tmp_path, data[:length])


_HUGE = 2**40


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", _HUGE) + b".",  # bytes
        b"\x80\x05\x96" + struct.pack("<Q", _HUGE) + b".",  # bytearray
        b"\x80\x04\x95" + struct.pack("<Q", _HUGE) + b".",  # a frame
        b"T\xff\xff\xff\x7f.",
        b"X\xff\xff\xff\xff.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        _OF_PYTHON_2[2].replace(b"K\x02K\x03\x86", b"\x8a\x06" + struct.pack("<Q", _HUGE)[:6] + b"K\x03\x86"),
        _OF_PYTHON_2[2].replace(b"K\x02K\x03\x86", b"J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86"),
    ],
)
def test_a_bad_length_takes_no_memory(data: bytes, tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="cannot be read as a model"):
            read(tmp_path, data)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_a_number_in_the_memo_takes_no_memory(tmp_path: Path) -> None:
    assert read(tmp_path, b"K\x07r\xff\xff\xff\x7f.") == 7


def test_tuples_without_end_are_refused(tmp_path: Path) -> None:
    """As a key of a dict they would end the process."""
    with pytest.raises(InputError, match="tuples in tuples"):
        read(tmp_path, b"\x80\x02})" + b"\x85" * 2_000_000 + b"K\x01s.")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.pkl: no such file; pass the path of a model"):
        read_pickle(tmp_path / "absent.pkl", "a model")
