"""Streaming a JSON object equals parsing all of its text at once, in results and in complaints."""

import io
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.readers import json_stream
from pipelines.readers.json_stream import load_object


def outcome(content: bytes, read: Any) -> Any:
    """What read(content) returns, or what it complains of and where."""
    try:
        return repr(read(content))  # NaN is not equal to itself
    except UnicodeDecodeError as error:
        return "Unicode", error.start
    except json.JSONDecodeError as error:
        return "JSON", error.lineno, error.colno
    except ValueError as error:
        return str(error)


def hook(row: dict[str, Any]) -> Any:
    return "object", *row.items()


def at_once(content: bytes) -> Any:
    return json.loads(content.decode(), object_hook=hook)


def streamed(content: bytes) -> Any:
    return load_object(io.BytesIO(content), hook)


@pytest.fixture(scope="module", autouse=True, params=[1, 7, 2**23])
def chunk(request: pytest.FixtureRequest) -> Any:
    """However the text is cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_CHUNK_BYTES", request.param)
        yield


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "{}", " { } ", "[]", "[1, 2]", "1", "12", "null", '"text"', "nope", "\ufeff{}"),
        *('{"a": []}', '{"a": [ ] }', '{"a": [1]}', '{"a": [1, {"b": [2.5, null]}], "c": "d"}', '{"a": 1, "a": [2]}'),
        *('{"a": 123456, "b": [1234567, -1e5, NaN, -Infinity]}', '{"a": ["\\u00e9\\ud83d\\ude00\\ud800", "é😀"]}'),
        *("{", "}", '{"a"', '{"a":', '{"a": [', '{"a": [1', '{"a": [1,', '{"a": [1 2]}', '{"a": [1]', '{"a": 1,'),
        *('{"a" 1}', "{1: 2}", "{,}", '{"a": }', '{"a": nope}', '{"a": [nope]}', '{"a": [1]} x', '{"a": 1}{}'),
        *('{\n"a": [1,\n\n 2 3]}', '{"a": [1,\n2],\n "b": [{"c"\n: 1},\n {"c" 2}]}', '{"a": "\n"}', '{"a": [01]}'),
        '{"a": [' + "9" * 5000 + "]}",
    ],
)
def test_it_is_as_json_has_it(text: str) -> None:
    assert outcome(text.encode(), streamed) == outcome(text.encode(), at_once)


@pytest.mark.parametrize("at", range(0, 30, 3))
def test_bytes_that_are_no_text(at: int) -> None:
    content = bytearray('{"a": [1, "é"], "b": {"c": 1}}'.encode())
    content[at] = 0xFF
    assert outcome(content, streamed) == outcome(content, at_once)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(deadline=None)
@given(
    st.dictionaries(st.text(), JSON), st.sampled_from([None, 1]), st.integers(0, 10_000), st.sampled_from('{}[],:"1x')
)
def test_any_object_whole_and_damaged(content: Any, indent: int | None, place: int, mark: str) -> None:
    text = json.dumps(content, indent=indent)
    place %= len(text)
    for each in (text, text[:place], text[:place] + mark + text[place + 1 :]):
        assert outcome(each.encode(), streamed) == outcome(each.encode(), at_once)


def test_only_few_rows_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 30 MB in rows of 100 kB."""
    monkeypatch.setattr(json_stream, "_CHUNK_BYTES", 2**16)
    row = b'{"mask": "' + b"0" * 100_000 + b'"}'
    stream = io.BytesIO(b'{"a": [' + b", ".join([row] * 300) + b"]}")
    tracemalloc.start()
    try:
        assert load_object(stream, lambda row: None if "mask" in row else row) == {"a": [None] * 300}
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()
