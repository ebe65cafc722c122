"""From a split's files to clean annotations: read in their form, mended where the strict reader refuses something.

The strict reader comes first, so that what needs no mending costs none. Where it refuses an entry, all is mended that
means one thing only, and the strict reader has the last word.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.annotations import Annotations
from pipelines.readers import coco, voc, yolo
from pipelines.readers.coco import annotations_of
from pipelines.readers.layouts.source import Form, Source
from pipelines.readers.repairs.file_names import repair_file_names
from pipelines.readers.repairs.sizes import repair_sizes
from pipelines.readers.repairs.values import repair_values
from pipelines.readers.rows import BadRows, Document
from ssd.errors import InputError
from ssd.views import BOXES, ObjectParts

_TABLES = ("categories", "images", "annotations")


def read_document(source: Source, parts: ObjectParts = BOXES) -> Document:
    """The split's tables as its files state them, with these parts of the objects. Raises InputError where they cannot
    be read, or state boxes alone."""
    if source.form is Form.COCO:
        tables, encoding = coco.read_document_of_any_encoding(source.file, parts)
        document = Document(tables, source.file, source.image_folder)
        document.note(f"{encoding} read", [source.file.name] if encoding else [])
        return document
    if parts != BOXES:
        what = "masks" if parts.masks else "keypoints"
        raise InputError(
            f"{source.file}: {what} are read from COCO's JSON, and this is {source.form}; convert it, or train a "
            "detector of boxes, such as --detector fasterrcnn_resnet50_fpn"
        )
    document = (voc if source.form is Form.VOC else yolo).read_document(source)
    document.form = source.form
    return document


def annotation_files(source: Source) -> list[Path]:
    """All that `read_document` reads."""
    if source.form is Form.COCO:
        return [source.file]
    return (voc if source.form is Form.VOC else yolo).annotation_files(source)


def read_source(source: Source, parts: ObjectParts = BOXES) -> Annotations:
    """Reads and checks one split; every image exists, every number is in range.

    parts: what is read of the objects beside their boxes. Raises InputError, one line that names the file, the entry
    and the remedy, for what cannot be mended.
    """

    def refuse(bad: BadRows) -> None:
        raise bad

    return read_tolerantly(read_document(source, parts), source, refuse, parts)


def read_tolerantly(
    document: Document, source: Source, notice: Callable[[BadRows], None], parts: ObjectParts = BOXES
) -> Annotations:
    """Checks what a document holds, which is mended in place where that is needed, without the rows that are refused
    then, and without the boxes of images or categories refused.

    notice: is told of them, in the numbers of the document's rows, and raises what it does not tolerate. Each call
    costs a new reading, so there are at most as many as there are checks. Raises InputError where no rows are left.
    """
    try:
        return _finished(_annotations_of(document, document.tables, parts), document, source)
    except BadRows:
        repair_file_names(document, source.image_folders, source.split)
        repair_values(document)
        repair_sizes(document)
    return _finished(_without_the_refused(document, notice, parts), document, source)


def _annotations_of(document: Document, tables: dict[str, Any], parts: ObjectParts) -> Annotations:
    return annotations_of(tables, document.file, document.image_folder, parts, document.form)


def _finished(annotations: Annotations, document: Document, source: Source) -> Annotations:
    mended = {what: len(places) for what, places in document.repairs.items()}
    annotations = replace(annotations, mended=mended, states_sizes=document.has_stated_sizes)
    return annotations.part(source.part) if source.part else annotations


def _without_the_refused(document: Document, notice: Callable[[BadRows], None], parts: ObjectParts) -> Annotations:
    tables: dict[str, Any] = document.tables
    numbers = {name: np.arange(len(rows)) for name in _TABLES if type(rows := tables.get(name)) is list}
    while True:
        try:
            annotations = _annotations_of(document, tables, parts)
        except BadRows as bad:
            problems = {int(numbers[bad.table][row]): problem for row, problem in bad.problems.items()}
            notice(BadRows(str(bad), bad.table, bad.defect, problems))
            tables = dict(tables)
            for name, kept in _rows_that_stay(tables, bad).items():
                tables[name] = [row for row, stays in zip(tables[name], kept, strict=True) if stays]
                numbers[name] = numbers[name][kept]
        else:
            repaired = {what: numbers["annotations"][rows] for what, rows in annotations.repaired_rows.items()}
            return replace(annotations, repaired_rows=repaired)


def _rows_that_stay(document: dict[str, Any], bad: BadRows) -> dict[str, np.ndarray]:
    """By table, a bool for every row: not among the bad, nor a box of an image or category that goes with them."""
    rows = document[bad.table]
    kept = np.ones(len(rows), dtype=bool)
    kept[list(bad.problems)] = False
    key = {"images": "image_id", "categories": "category_id"}.get(bad.table)
    boxes = document.get("annotations")
    if key is None or type(boxes) is not list:
        return {bad.table: kept}

    def ids(stay: bool) -> set[int]:
        chosen = (row.get("id") for row, stays in zip(rows, kept, strict=True) if stays == stay and type(row) is dict)
        return {id for id in chosen if type(id) is int}

    gone = ids(False) - ids(True)
    return {bad.table: kept, "annotations": np.array([_value(box, key) not in gone for box in boxes], dtype=bool)}


def _value(row: Any, key: str) -> int | None:
    value = row.get(key) if type(row) is dict else None
    return value if type(value) is int else None
