"""A JSON object of long lists, read without ever holding all of its text.

COCO's annotations are 450 MB of text, most of it masks that the reader drops as soon as they are parsed. Python's own
parser needs the whole text beside all that it makes of it; here it is given one row of a list after the other.
"""

import codecs
import gc
import json
import re
from collections.abc import Callable
from typing import Any, BinaryIO

_CHUNK_BYTES = 2**23
_WHITE_SPACE = re.compile(r"[ \t\n\r]*")


def load_object(stream: BinaryIO, object_hook: Callable[[dict[str, Any]], Any]) -> Any:
    """As json.load of a UTF-8 file, with its results and its exceptions.

    object_hook: see there; it may see an object twice.
    """
    searches = gc.isenabled()
    gc.disable()  # millions of new objects without a cycle: to search them for some takes a quarter of the time
    try:
        return _load(stream, object_hook)
    finally:
        if searches:
            gc.enable()


def _load(stream: BinaryIO, object_hook: Callable[[dict[str, Any]], Any]) -> Any:
    text = _Text(stream, json.JSONDecoder(object_hook=object_hook))
    if text.next_mark() != "{":
        return text.value_to_the_end()
    content: dict[str, Any] = {}
    mark = text.take("{")
    while mark != "}":
        if mark != '"':
            raise text.error("Expecting property name enclosed in double quotes")
        key = text.value()
        text.take(":")
        content[key] = _rows(text) if text.next_mark() == "[" else text.value()
        mark = text.next_mark()
        if mark != "}" and text.take(",") == "}":
            raise text.error("Illegal trailing comma before end of object")
        mark = text.next_mark()
    text.take("}")
    if text.next_mark():
        raise text.error("Extra data")
    return object_hook(content)


def _rows(text: "_Text") -> list[Any]:
    rows: list[Any] = []
    if text.take("[") == "]":
        text.take("]")
        return rows
    while True:
        rows.append(text.value())
        if text.next_mark() == "]":
            text.take("]")
            return rows
        text.take(",")


class _Text:
    """The text from the present place on, as much of it as is needed."""

    def __init__(self, stream: BinaryIO, decoder: json.JSONDecoder) -> None:
        self._stream, self._to_text = stream, codecs.getincrementaldecoder("utf-8")()
        self._scan = decoder.raw_decode
        self._text, self._at, self._ended = "", 0, False
        self._bytes_read = 0
        self._lines_dropped, self._columns_dropped = 0, 0

    def next_mark(self) -> str:
        """The next character that is no white space, '' at the end."""
        while True:
            found = _WHITE_SPACE.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._read_on()

    def take(self, mark: str) -> str:
        """Goes past this mark; returns the next."""
        if self.next_mark() != mark:
            raise self.error(f"Expecting '{mark}' delimiter")
        self._at += 1
        return self.next_mark()

    def value(self) -> Any:
        self.next_mark()
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended:
                    raise self.error(error.msg, error.pos) from None
            else:
                if end + 2 < len(self._text) or self._ended:  # a number may have been cut at the 1 of 1e+5
                    self._at = end
                    return value
            self._read_on()

    def value_to_the_end(self) -> Any:
        while not self._ended:
            self._read_on()
        value = self.value()
        if self.next_mark():
            raise self.error("Extra data")
        return value

    def error(self, problem: str, at: int | None = None) -> json.JSONDecodeError:
        error = json.JSONDecodeError(problem, self._text, self._at if at is None else at)
        if error.lineno == 1:
            error.colno += self._columns_dropped
        error.lineno += self._lines_dropped
        return error

    def _read_on(self) -> None:
        """Drops the text up to the present place, and doubles the rest: so long values are not begun too often."""
        last_line = self._text.rfind("\n", 0, self._at) + 1
        self._lines_dropped += self._text.count("\n", 0, self._at)
        self._columns_dropped = self._at - last_line + (0 if last_line else self._columns_dropped)
        rest = self._text[self._at :]
        content = self._stream.read(max(_CHUNK_BYTES, len(rest)))
        self._ended = not content
        try:
            self._text, self._at = rest + self._to_text.decode(content, final=self._ended), 0
        except UnicodeDecodeError as error:
            error.start += self._bytes_read - (len(error.object) - len(content))
            raise
        self._bytes_read += len(content)
