"""A list of rows out of an annotation file, read by columns; rows are looked at one by one only to name a culprit."""

import reprlib
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.box_counts import COCO
from ssd.errors import InputError


@dataclass
class Document:
    """The tables of a split as a file states them, and what was mended in them since."""

    tables: dict[str, Any]
    """'images', 'categories' and 'annotations' as in COCO's files."""
    file: Path
    image_folder: Path
    repairs: dict[str, list[str]] = field(default_factory=dict)
    """What was mended -> where, each once: {"sizes read from the images": ["images[3]"]}."""
    has_stated_sizes: bool = True
    """False where all sizes are the images' own."""
    form: str = COCO
    """Of annotations, which says what the boxes were made of, see `pipelines.box_counts`."""

    def note(self, what: str, places: list[str]) -> None:
        if places:
            self.repairs.setdefault(what, []).extend(places)

    def rows(self, name: str) -> list[tuple[int, dict[str, Any]]]:
        """The rows of a table that are JSON objects, with their numbers."""
        table = self.tables.get(name)
        return [(i, row) for i, row in enumerate(table) if type(row) is dict] if type(table) is list else []


class Defect(StrEnum):
    """What can be wrong with an entry."""

    MALFORMED = "malformed entries"
    REPEATED = "repeated ids or file names"
    OUTSIDE = "paths out of the image folder"
    UNLISTABLE = "folders that cannot be listed"
    MISSING = "missing images"
    UNKNOWN_IMAGE = "boxes of unknown images"
    UNKNOWN_CATEGORY = "boxes of unknown categories"


class BadRows(InputError):
    """All the rows of one list that one check refuses; the message names the first.

    problems: by row, ascending, what is wrong, to be read after "images[3] ".
    """

    def __init__(self, message: str, table: str, defect: Defect, problems: dict[int, str]) -> None:
        super().__init__(message)
        self.table, self.defect, self.problems = table, defect, problems


class Table:
    """One list of the document, read by columns. That is quick when all is well; otherwise the first bad row is named.

    Types are compared exactly: JSON's `true` is no integer and 1.0 is no id. A reader of another format, such as VOC's,
    may add to a row its 'place' (the file to name in messages), and a 'problem' (why the row cannot be read at all).
    """

    def __init__(self, document: dict[str, Any], name: str, file: Path) -> None:
        self.name, self.file = name, file
        if type(document.get(name)) is not list:
            state = "is not a list" if name in document else "is missing"
            raise InputError(f"{file}: '{name}' {state}; give the file of an object detection (instances) task")
        self.rows: list[Any] = document[name]
        self.refuse({i: "is not a JSON object" for i, row in enumerate(self.rows) if type(row) is not dict})
        self.refuse({i: row["problem"] for i, row in enumerate(self.rows) if "problem" in row})

    def refuse(self, problems: dict[int, str], defect: Defect = Defect.MALFORMED, message: str | None = None) -> None:
        """Raises BadRows if a row has a problem. message: instead of the one about the first of them."""
        if problems:
            first = min(problems)
            place = place_of(self.name, first, self.rows[first])
            message = message or f"{place} {problems[first]}; correct or remove that entry"
            raise BadRows(f"{self.file}: {message}", self.name, defect, problems)

    def column(self, key: str, types: set[type], kind: str) -> list[Any]:
        """`key` of every row; None stands for absent where NoneType is among the types."""
        column = [row.get(key) for row in self.rows]
        if not set(map(type, column)) <= types:
            self.refuse(
                {
                    i: f"has '{key}' {shown(value)}, which is not {kind}" if key in self.rows[i] else f"has no '{key}'"
                    for i, value in enumerate(column)
                    if type(value) not in types
                }
            )
        return column

    def integers(self, key: str) -> np.ndarray:
        """`key` of every row, int64, of a size that float64 holds exactly: COCO results carry ids in it."""
        column = self.column(key, {int}, "an integer")
        self.refuse(
            {
                i: f"has '{key}' {shown(value)}, which is too large"
                for i, value in enumerate(column)
                if abs(value) > 2**53
            }
        )
        return np.array(column, dtype=np.int64)

    def refuse_repeated(self, key: str, column: list[Any]) -> None:
        if len(set(column)) == len(column):
            return
        problems: dict[int, str] = {}
        seen: set[Any] = set()
        for index, value in enumerate(column):
            if value in seen:
                problems[index] = f"repeats '{key}' {shown(value)}"
            seen.add(value)
        self.refuse(problems, Defect.REPEATED)


def states_no_box(value: object) -> bool:
    """Whether a 'bbox' is none: absent, [], null, or four nulls."""
    return value is None or value in ([], "", "[]", [None] * 4)


def place_of(table: str, index: int, row: Any) -> str:
    """Where a row comes from, to name it by: "annotations[12]", or a file where it has one of its own."""
    return row["place"] if type(row) is dict and "place" in row else f"{table}[{index}]"


def shown(value: object) -> str:
    """A value of the file for a message: short, and on one line."""
    short = reprlib.Repr()
    short.maxstring = 100
    return short.repr(value)
