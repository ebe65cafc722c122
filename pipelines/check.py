"""The data check: everything that is wrong with a data set at once, where the reader stops at the first.

It has no notion of its own of what is bad: the annotation reader says it of entries and boxes, `readers.scan` of
images. What is added here harms no data path, but may not be what the owner of the data thinks. Nothing is changed.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pipelines import plausibility
from pipelines.annotations import MIN_TRAINED_SIDE_PX, Annotations
from pipelines.categories import differences_of, relabelled
from pipelines.exif import Votes, count_votes, decide
from pipelines.readers.headers import Header
from pipelines.readers.image_files import Flaw
from pipelines.readers.layouts.source import Form, Source
from pipelines.readers.parts.findings import Trouble
from pipelines.readers.parts.findings import findings as parts_findings
from pipelines.readers.reading import read_document, read_tolerantly
from pipelines.readers.repairs.values import LOST_BOX
from pipelines.readers.rows import BadRows, Defect, place_of
from pipelines.readers.scan import Inspection, inspect_all, remember
from ssd.errors import InputError
from ssd.views import BOXES, ObjectParts, View, parts_of


class Effect(StrEnum):
    """What a finding does to a run."""

    STOPS = "stops it"
    CHANGES = "changes it"
    HARMLESS = "harmless"


class Kind(NamedTuple):
    """One kind of finding: its name, what it does to a run, and what to do about it."""

    what: str
    effect: Effect
    remedy: str


class Item(NamedTuple):
    """One finding. where: an image file, or an entry such as "annotations[12]"."""

    where: str
    problem: str


_ALL_PARTS = ObjectParts(masks=True, keypoints=True)
_AGAIN = "fetch or save them again, take them out, or train with --on-bad-image skip"
_LOOK = "look at their boxes with main.py show-data"

ANNOTATION_FILE = Kind("annotation file", Effect.STOPS, "correct it and check again: the rest could not be looked at")
CATEGORIES = Kind("other categories than the training split", Effect.STOPS, "make them equal by id and name")
NOTHING_TO_LEARN = Kind("no image with a box to learn from", Effect.STOPS, "annotate some, or name another split")
BOTH_SPLITS = Kind(
    "images that are also in the training split", Effect.CHANGES, "take them out of one: scores on them mean little"
)
SAME_BOX = Kind("boxes stated twice", Effect.CHANGES, "remove one: the second counts as never found")
SAME_IMAGE = Kind("images with the same content as another", Effect.HARMLESS, "remove one, or let it weigh twice")
TURNED = Kind(
    "EXIF orientation, boxes may be turned",
    Effect.CHANGES,
    f"images are used as they are stored; {_LOOK}, pass --exif upright",
)
AS_STORED = Kind("EXIF orientation, boxes as stored", Effect.HARMLESS, "used as they are stored")
UPRIGHT = Kind("EXIF orientation, boxes as EXIF turns the images", Effect.HARMLESS, "used upright")
BOTH_WAYS = Kind("EXIF orientation, sizes stated both ways", Effect.STOPS, "correct the ones, or pass --exif")
GRAY = Kind("gray images", Effect.HARMLESS, "they become RGB")
CMYK = Kind("CMYK images", Effect.HARMLESS, "they become RGB")
OTHER_MODE = Kind("palette, transparent or 1-bit images", Effect.HARMLESS, "they become RGB, and transparency goes")
CROWD = Kind("crowd regions", Effect.HARMLESS, "not learned, and ignored in evaluation, as COCO defines")
EMPTY = Kind("images without a box to learn from", Effect.HARMLESS, "not trained on, but evaluated on")
TINY = Kind(f"images under {MIN_TRAINED_SIDE_PX} pixels wide or high", Effect.HARMLESS, EMPTY.remedy)

_OF_DEFECT = {
    Defect.MALFORMED: "correct or remove them",
    Defect.REPEATED: "remove or number anew what repeats another",
    Defect.OUTSIDE: "move or copy the files into the image folder and name them relative to it",
    Defect.UNLISTABLE: "check the folder's name and permissions",
    Defect.MISSING: "correct their names or fetch what is not there, or train with --on-bad-image skip",
    Defect.UNKNOWN_IMAGE: "add the images or remove the boxes",
    Defect.UNKNOWN_CATEGORY: "add the categories or remove the boxes",
}
_OF_FLAW = {
    Flaw.MISSING: _AGAIN,
    Flaw.UNREADABLE: _AGAIN,
    Flaw.TRUNCATED: _AGAIN,
    Flaw.DAMAGED: _AGAIN,
    Flaw.UNSUPPORTED: "convert them to JPEG or PNG with 8 bits a channel",
    Flaw.OVERSIZED: "shrink them, with their boxes",
    Flaw.OTHER_SIZE: f"correct width and height, or the images; {_LOOK}",
}


@dataclass
class SplitReport:
    """What was found in one split."""

    split: str
    file: Path
    annotations: Annotations | None = None
    """Without the entries that the reader refuses; None if that leaves nothing."""
    inspections: list[Inspection] = field(default_factory=list)
    """At its images, in the order of their names."""
    digests: dict[str, str] = field(default_factory=dict)
    """File name -> digest of the images that can be read."""
    findings: dict[Kind, list[Item]] = field(default_factory=dict)

    def note(self, kind: Kind, where: str, problem: str = "") -> None:
        self.findings.setdefault(kind, []).append(Item(where, problem))


def check_split(source: Source, num_threads: int, parts: ObjectParts = BOXES) -> SplitReport:
    """Reads every annotation and decodes every image. parts: what a run will learn of the objects beside boxes."""
    report = SplitReport(source.name, source.file)
    refused: Counter[str] = Counter()  # rows of each table

    def notice(bad: BadRows) -> None:
        table = document.tables[bad.table]
        refused[bad.table] += len(bad.problems)
        is_no_row_left = refused[bad.table] == len(table) and bad.table != "annotations"
        # What is wrong with all of them has one cause, which the reader's message tells.
        remedy = _without_file(bad, source) if is_no_row_left else _OF_DEFECT[bad.defect]
        for row, problem in bad.problems.items():
            report.note(Kind(bad.defect, Effect.STOPS, remedy), place_of(bad.table, row, table[row]), problem)
        if is_no_row_left:
            raise bad

    try:
        document = read_document(source, _ALL_PARTS if source.form is Form.COCO else parts)
        annotations = read_tolerantly(document, source, notice)
    except BadRows:  # which `notice` has noted
        return report
    except InputError as error:
        report.note(ANNOTATION_FILE, source.file.name, _without_file(error, source))
        return report
    report.annotations = annotations
    for what, places in document.repairs.items():
        mended = Kind(what, Effect.HARMLESS, "meant one thing only")
        lost = Kind(what, Effect.CHANGES, "state their boxes, or remove them")
        for place in places:
            report.note(lost if what == LOST_BOX else mended, place)
    for what, rows in annotations.repaired_rows.items():
        for row in rows.tolist():
            entry = document.tables["annotations"][row]
            problem = f"has bbox {entry['bbox']} in the image of id {entry['image_id']}"
            place = place_of("annotations", row, entry)
            report.note(Kind(what, Effect.CHANGES, "correct or remove them"), place, problem)
    for trouble, place, problem in parts_findings(document):
        if (kind := _kind_of(trouble, parts)) is not None:
            report.note(kind, place, problem)
    _note_suspicions(report, plausibility.of_split(annotations))
    _note_boxes(report, annotations)
    inspections = inspect_all(annotations.image_folder, annotations.file_names, num_threads, f"checking {source.name}")
    remember(annotations.image_folder, dict(zip(annotations.file_names, inspections, strict=True)))
    report.inspections = inspections
    return report


def _without_file(error: InputError, source: Source) -> str:
    return str(error).removeprefix(f"{source.file}: ")


def _kind_of(trouble: Trouble, parts: ObjectParts) -> Kind | None:
    """None of what is nothing to complain of."""
    of_masks = trouble in (Trouble.BROKEN_MASK, Trouble.NO_MASK, Trouble.SHORT_POLYGON)
    is_learned, detector = (parts.masks, "Mask R-CNN") if of_masks else (parts.keypoints, "Keypoint R-CNN")
    if not is_learned:
        remedy = f"a detector of boxes does not look at them, for a {detector} correct them"
        return None if trouble is Trouble.NO_MASK else Kind(trouble, Effect.HARMLESS, remedy)
    stops = trouble in (Trouble.BROKEN_MASK, Trouble.NO_MASK, Trouble.BROKEN_POINTS)
    return Kind(trouble, Effect.STOPS if stops else Effect.CHANGES, "correct or remove them")


def _note_suspicions(report: SplitReport, suspicions: list[plausibility.Suspicion]) -> None:
    for what, where, remedy, stops, is_harmless in suspicions:
        effect = Effect.STOPS if stops else Effect.HARMLESS if is_harmless else Effect.CHANGES
        for each in where:
            report.note(Kind(what, effect, remedy), each)


def _note_boxes(report: SplitReport, annotations: Annotations) -> None:
    names = np.array(annotations.file_names, dtype=object)[annotations.image_of_box()]
    ids = annotations.annotation_ids.tolist()
    for row in np.flatnonzero(annotations.is_crowd).tolist():
        report.note(CROWD, names[row], f"annotation {ids[row]}")
    for index in np.setdiff1d(np.arange(len(annotations)), annotations.trainable_indices()).tolist():
        is_tiny = annotations.sizes_px[index].min() < MIN_TRAINED_SIDE_PX
        report.note(TINY if is_tiny else EMPTY, annotations.file_names[index])
    first_of: dict[tuple[object, ...], int] = {}
    columns = (names.tolist(), annotations.labels.tolist(), map(tuple, annotations.boxes_xywh_px.tolist()))
    for row, key in enumerate(zip(*columns, strict=True)):
        first = first_of.setdefault(key, row)
        if first != row:
            report.note(SAME_BOX, names[row], f"annotation {ids[row]} is that of {ids[first]}")


def _note_images(reports: list[SplitReport], exif: str) -> None:
    """exif: what `exif.decide` takes for a choice. The splits of a run are used alike."""
    read = [(report, report.annotations) for report in reports if report.annotations]
    votes = Votes()
    for report, split in read:
        usable = [
            (found, size)
            for found, size in zip(report.inspections, split.sizes_px.tolist(), strict=True)
            if not found.flaw
        ]
        headers = [Header(found.size_px, found.orientation) for found, _ in usable]
        votes = Votes(*np.add(votes, count_votes(headers, [size for _, size in usable])).tolist())
    upright = exif == "upright"
    try:
        states_sizes = not read or any(split.states_sizes for _, split in read)
        upright, _ = decide(votes, exif, states_sizes, "")
    except InputError as error:
        reports[0].note(BOTH_WAYS, reports[0].file.name, str(error).removeprefix(": "))
    for report, split in read:
        for name, stated_px, found in zip(split.file_names, split.sizes_px.tolist(), report.inspections, strict=True):
            _note_image(report, name, (stated_px[0], stated_px[1]), found, upright)
        _note_same_images(report)


def _note_image(report: SplitReport, name: str, stated_px: tuple[int, int], found: Inspection, upright: bool) -> None:
    """stated_px: (width, height) of the annotations."""
    if found.flaw:
        report.note(Kind(f"{found.flaw} images", Effect.STOPS, _OF_FLAW[found.flaw]), name, found.reason)
        return
    report.digests[name] = found.digest
    turns = found.orientation >= 5
    width, height = found.size_px[::-1] if upright and turns else found.size_px
    if (width, height) != stated_px:
        problem = f"is {width} x {height} pixels, stated are {stated_px[0]} x {stated_px[1]}"
        if turns and stated_px == (height, width):
            problem += f", its size {'as it is stored' if upright else 'when EXIF has turned it'}"
        kind = Kind(f"{Flaw.OTHER_SIZE} images", Effect.STOPS, _OF_FLAW[Flaw.OTHER_SIZE])
        report.note(kind, name, problem)
    elif found.orientation != 1:
        # The stated size tells that the boxes are those of the stored image, unless turning leaves it as it is.
        as_stored = AS_STORED if turns and width != height else TURNED
        report.note(UPRIGHT if upright else as_stored, name, f"orientation {found.orientation}")
    if found.mode != "RGB":
        report.note({"L": GRAY, "CMYK": CMYK}.get(found.mode, OTHER_MODE), name, f"mode {found.mode}")


def _note_same_images(report: SplitReport) -> None:
    first_of: dict[str, str] = {}
    for name, digest in report.digests.items():
        if (first := first_of.setdefault(digest, name)) != name:
            report.note(SAME_IMAGE, name, f"is {first}")


def check(
    train_source: Source, val_source: Source, num_threads: int, exif: str = "", view: View | None = None
) -> list[SplitReport]:
    """Of both splits, or of the one if they are the same. exif: "upright", "stored" or '' for what the sizes say.
    view: of a run's detector, which decides what of the objects is learned; without it, their boxes are."""
    parts = BOXES if view is None else parts_of(view)
    train = check_split(train_source, num_threads, parts)
    if train.annotations and view is not None:
        _note_suspicions(train, plausibility.of_view(train.annotations, view))
    if train.annotations and len(train.annotations.trainable_indices()) == 0:
        train.note(NOTHING_TO_LEARN, train.file.name, plausibility.why_nothing(train.annotations))
    if val_source == train_source:
        _note_images([train], exif)
        return [train]
    val = check_split(val_source, num_threads, parts)
    if val_source.file == train_source.file:  # held out of it
        _leave_out(val, train)
    _note_images([train, val], exif)
    if train.annotations and val.annotations:
        differences = differences_of(train.annotations.categories, val.annotations, train.file.name)
        for difference in differences:
            val.note(CATEGORIES, val.file.name, difference)
        if not differences:
            val.annotations = relabelled(val.annotations, train.annotations.categories)
            _note_suspicions(val, plausibility.of_pair(train.annotations, val.annotations))
    name_of = {digest: name for name, digest in train.digests.items()}
    for name, digest in val.digests.items():
        if digest in name_of:
            val.note(BOTH_SPLITS, name, f"is {name_of[digest]} of {train_source.name}")
    return [train, val]


def _leave_out(report: SplitReport, told: SplitReport) -> None:
    """What another report has told of the same file."""
    for kind, items in list(report.findings.items()):
        known = set(told.findings.get(kind, ()))
        if left := [item for item in items if item not in known]:
            report.findings[kind] = left
        else:
            del report.findings[kind]


def exit_code(reports: list[SplitReport]) -> int:
    """1 if anything would stop or change a run, else 0."""
    return int(any(kind.effect is not Effect.HARMLESS for report in reports for kind in report.findings))


def write_json(file: Path, reports: list[SplitReport]) -> None:
    """Every finding."""
    splits = {
        report.split: {
            "annotations": str(report.file),
            "images": len(report.annotations) if report.annotations else None,
            "boxes": len(report.annotations.labels) if report.annotations else None,
            "findings": [
                {**kind._asdict(), "count": len(items), "items": [item._asdict() for item in items]}
                for kind, items in _worst_first(report)
            ],
        }
        for report in reports
    }
    content = {"exit_code": exit_code(reports), "splits": splits, "boxes_by_class": _boxes_by_class(reports)}
    file.write_text(json.dumps(content, indent=2) + "\n")


_COLOURS = {Effect.STOPS: "red", Effect.CHANGES: "yellow", Effect.HARMLESS: "green"}
_VERDICTS = {
    Effect.STOPS: "would stop a run",
    Effect.CHANGES: "would change what it learns or scores",
    Effect.HARMLESS: "harmless",
}
_EXAMPLES = 3
_MOST_CLASSES = 30
"""That the console shows."""


def _worst_first(report: SplitReport) -> list[tuple[Kind, list[Item]]]:
    return sorted(report.findings.items(), key=lambda finding: list(Effect).index(finding[0].effect))


def show(reports: list[SplitReport], console: Console) -> None:
    """A table for each split, with a few examples and the remedy of each kind, and the verdict."""
    for report in reports:
        size = "its annotations cannot be read"
        if (read := report.annotations) is not None:
            size = f"{len(read)} images, {len(read.labels)} boxes, {len(read.categories)} categories"
        console.print(f"\n[bold]{escape(report.split)}[/]  {size}")
        console.print(_table(report) if report.findings else "  nothing found")
    if (classes := _table_of_classes(reports)) is not None:
        console.print(classes)
    found = Counter(kind.effect for report in reports for kind in report.findings)
    told = [f"[{_COLOURS[effect]}]{found[effect]} {_VERDICTS[effect]}[/]" for effect in Effect if found[effect]]
    console.print(f"\nkinds of findings: {', '.join(told) or 'none'}; exit code {exit_code(reports)}", soft_wrap=True)


def _table_of_classes(reports: list[SplitReport]) -> Table | None:
    """The boxes of each class in each split, the most frequent first; crowd regions are not counted."""
    counts = _boxes_by_class(reports)
    if not counts:
        return None
    table = Table(box=box.SIMPLE_HEAD, header_style="dim")
    table.add_column("boxes of the class")
    for report in reports:
        table.add_column(Text(report.split), justify="right")
    for name, numbers in list(counts.items())[:_MOST_CLASSES]:
        table.add_row(Text(name, overflow="ellipsis", no_wrap=True), *(str(number) for number in numbers.values()))
    if len(counts) > _MOST_CLASSES:
        table.add_row(f"... and {len(counts) - _MOST_CLASSES} more, see --json")
    return table


def _boxes_by_class(reports: list[SplitReport]) -> dict[str, dict[str, int]]:
    """{name: {split: number}}"""
    counts: dict[str, dict[str, int]] = {}
    for report in reports:
        if report.annotations:
            numbers = plausibility.boxes_of_classes(report.annotations).tolist()
            for category, number in zip(report.annotations.categories, numbers, strict=True):
                counts.setdefault(category.name, {each.split: 0 for each in reports})[report.split] += number
    return dict(sorted(counts.items(), key=lambda item: -sum(item[1].values())))


def _table(report: SplitReport) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", expand=True)
    table.add_column("found", justify="right")
    table.add_column("what, what to do, and examples", ratio=1)
    table.add_column("to a run", min_width=10)
    for kind, items in _worst_first(report):
        lines = [f"{item.where}: {item.problem}" if item.problem else item.where for item in items[:_EXAMPLES]]
        if len(items) > _EXAMPLES:
            lines.append(f"... and {len(items) - _EXAMPLES} more")
        table.add_row(
            str(len(items)),
            Group(
                Text.assemble((kind.what, "bold"), ": ", kind.remedy),
                Text("\n".join(lines), style="dim", overflow="fold"),
            ),
            Text(kind.effect, style=_COLOURS[kind.effect]),
        )
    return table
