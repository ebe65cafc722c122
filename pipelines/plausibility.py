"""What a look at a data set as a whole shows: what no entry could be refused for, and is most likely a mistake.

Of one split: boxes that are fractions, or another form's numbers, such as corners for sizes; nothing but crowd regions;
what a view leaves out. Of the two: a split to judge by without boxes, and classes that are unused, doubled, mistyped or
in one split only.
"""

import difflib
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipelines.annotations import MIN_TRAINED_SIDE_PX, Annotations
from pipelines.box_counts import YOLO, BoxCounts
from pipelines.categories import with_categories_of
from pipelines.ragged.learned import shown_indices, without_extent
from ssd.errors import InputError
from ssd.views import View, needs_points

_IMPOSSIBLE_SHARE, _FITTING_SHARE = 0.1, 0.9
"""Of good boxes few are impossible, and few sets have nine in ten that would also lie in the image if their numbers
were another form's. Not all: a set with this mistake may have others."""
_FEWEST_BOXES, _FEWEST_IMPOSSIBLE = 4, 2
"""So many boxes, or so many of fewer, tell something."""
_TINY_SHARE = 0.02
"""YOLO's boxes are fractions, and some of them less than a pixel."""
_FEWEST_PERCENT = 20
"""So many objects do not lie in the left upper corner of their images by chance."""
_STATED_AS = {
    "COCO": (
        "boxes that look like corners (left, top, right, bottom) where COCO has left, top, width, height",
        "leave the image, and {fitting} would fit in it as corners",
        "subtract left and top from the last two numbers",
    ),
    "VOC": (
        "boxes that look like left, top, width, height where VOC has corners",
        "have xmax left of xmin or ymax above ymin, and {fitting} would fit in the image as left, top, width, height",
        "add xmin to xmax and ymin to ymax, and subtract 1",
    ),
    "YOLO": (
        "boxes that look like corners (left, top, right, bottom) where YOLO has centre, width, height",
        "leave the image, and {fitting} would fit in it as corners",
        "write the centre, the width and the height of each box",
    ),
}
"""By the form: what it looks like, what tells it, and what to do."""
_ALIKE = 0.8
"""difflib's ratio of two names, from which on the rarer of them may be the other mistyped: "helmet" and "hemlet"."""
_RARE_SHARE, _FEW = 0.05, 2
_MOST_CLASSES = 1000
"""Names are compared in pairs."""
_MOST_NAMED = 8


class Suspicion(NamedTuple):
    """One thing that looks wrong."""

    what: str
    where: list[str]
    remedy: str
    stops: bool = False
    """Whether nothing sensible can be learned or judged."""
    is_harmless: bool = False

    def __str__(self) -> str:
        more = f" and {len(self.where) - _MOST_NAMED} more" if len(self.where) > _MOST_NAMED else ""
        named = f": {', '.join(self.where[:_MOST_NAMED])}{more}" if self.where else ""
        return f"{self.what}{named}; {self.remedy}"


def of_split(split: Annotations) -> list[Suspicion]:
    """What the boxes of a split look like, wherever it is used."""
    return of_counts(split.box_counts)


def of_counts(counts: BoxCounts) -> list[Suspicion]:
    found = []
    if counts.as_fractions > (_TINY_SHARE * counts.stated if counts.form == YOLO else 0):
        found.append(
            Suspicion(
                "boxes that look like fractions of the image, not pixels",
                [f"{counts.as_fractions} of {counts.stated} boxes have no number above 1"],
                "multiply them by the image's width and height",
                stops=counts.as_fractions == counts.stated,
            )
        )
    if counts.form != YOLO and counts.stated >= _FEWEST_PERCENT and counts.as_percent == counts.stated:
        found.append(
            Suspicion(
                "boxes that look like percent of the image, not pixels",
                [f"none of {counts.stated} boxes has an edge beyond 100, and the images are larger"],
                "multiply them by a hundredth of the image's width and height",
            )
        )
    is_enough = counts.stated >= _FEWEST_BOXES or counts.impossible >= _FEWEST_IMPOSSIBLE
    is_other = counts.fitting_otherwise >= _FITTING_SHARE * (counts.stated - counts.empty)
    if is_enough and is_other and counts.impossible > _IMPOSSIBLE_SHARE * counts.stated:
        what, tells, remedy = _STATED_AS[counts.form]
        fitting = "all" if counts.fitting_otherwise == counts.stated else str(counts.fitting_otherwise)
        where = f"{counts.impossible} of {counts.stated} {tells.format(fitting=fitting)}"
        found.append(Suspicion(what, [where], remedy))
    elif counts.stated >= _FEWEST_BOXES and counts.of_area_as_corners >= _FITTING_SHARE * counts.stated:
        what, _, remedy = _STATED_AS[counts.form]
        where = f"{counts.of_area_as_corners} of {counts.stated} state the area that they have as corners"
        found.append(Suspicion(what, [where], remedy))
    return found


def of_training(split: Annotations) -> list[Suspicion]:
    """What hinders that anything is learned of a split."""
    if len(split.trainable_indices()):
        return []
    return [
        Suspicion("nothing to learn from", [why_nothing(split)], "annotate some, or pass another --train-split", True)
    ]


def of_view(split: Annotations, view: View) -> list[Suspicion]:
    """What a view leaves out of training that others learn."""
    shown, found = shown_indices(split, view), []
    rows = without_extent(split, view)
    if len(shown) == 0 and len(split.trainable_indices()):
        lack = "a stated point" if needs_points(view) else "a box that has extent"
        remedy = "annotate some, pass another --train-split, or another --detector"
        found.append(Suspicion("nothing to learn from", [f"no image has {lack}"], remedy, stops=True))
    if len(rows):
        names = np.array(split.file_names, dtype=object)[split.image_of_box()[rows]]
        ids = split.annotation_ids[rows].tolist()
        where = [f"annotation {id} of {name}" for id, name in zip(ids, names.tolist(), strict=True)]
        what = "boxes of one pixel, or of area 0, which Detectron does not learn"
        found.append(Suspicion(what, where, "correct or remove them"))
    left_out = np.setdiff1d(split.trainable_indices(), shown).tolist() if needs_points(view) else []
    if left_out:
        names = [split.file_names[image] for image in left_out]
        remedy = "not trained on, but evaluated on"
        found.append(Suspicion("images without a stated point", names, remedy, is_harmless=True))
    return found


def why_nothing(split: Annotations) -> str:
    """Why a split has no box to learn from."""
    stated, dropped = split.box_counts.stated, {w: n for w, n in split.repairs.items() if w.endswith(" dropped")}
    if stated == 0:
        return f"its {len(split)} images have no boxes at all"
    reasons = [f"{count} {what}" for what, count in dropped.items()]
    if crowds := int(split.is_crowd.sum()):
        reasons.append(f"{crowds} are crowd regions (iscrowd 1, or difficult), which are not learned")
    if small := int((~split.is_crowd & ~split.trains()).sum()):
        reasons.append(f"{small} are in images of less than {MIN_TRAINED_SIDE_PX} pixels a side")
    return f"of {stated} boxes {', '.join(reasons)}" if reasons else "its boxes are all in images left out"


def of_pair(train: Annotations, val: Annotations) -> list[Suspicion]:
    """What two splits together show. val: with the categories of train, see `categories.with_categories_of`."""
    learned, judged = boxes_of_classes(train), boxes_of_classes(val)
    named = [category.name for category in train.categories]
    found = []

    def note(what: str, where: list[str], remedy: str, is_harmless: bool = False) -> None:
        if where:
            found.append(Suspicion(what, where, remedy, is_harmless=is_harmless))

    if judged.sum() == 0:
        note("a split to judge by without boxes", [val.file.name], "all metrics will be without a value; annotate some")
    if learned.sum() == 0:
        return found
    only_judged = [name for name, a, b in zip(named, learned, judged, strict=True) if b and not a]
    note(
        "classes with boxes to judge by and none to learn from", only_judged, "they can never be found; add some", True
    )
    unused = [name for name, a, b in zip(named, learned, judged, strict=True) if not (a or b)]
    note("classes without boxes", unused, "harmless, or a name too many", is_harmless=True)
    with_boxes = [name for name, a, b in zip(named, learned, judged, strict=True) if a or b]
    note("classes whose names differ in case or spaces only", _doubled(with_boxes), "make one class of them")
    note("classes that may be others mistyped", _mistyped(named, learned + judged), "correct the names of their boxes")
    return found


def boxes_of_classes(split: Annotations) -> np.ndarray:
    """Of each category the number of boxes that are no crowd regions."""
    return np.bincount(split.labels[~split.is_crowd], minlength=split.num_classes)[1:]


def _plain(name: str) -> str:
    folded = unicodedata.normalize("NFKC", name).casefold()
    folded = "".join(letter for letter in folded if unicodedata.category(letter) != "Cf")  # such as marks of direction
    return "".join(folded.replace("_", " ").replace("-", " ").split())


def _doubled(names: Sequence[str]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_plain(name), []).append(name)
    return [" = ".join(map(repr, group)) for group in groups.values() if len(group) > 1]


def _mistyped(names: Sequence[str], counts: np.ndarray) -> list[str]:
    """Names of few boxes that are nearly another's of many."""
    found: list[str] = []
    if len(names) > _MOST_CLASSES:
        return found
    for name, count in zip(names, counts.tolist(), strict=True):
        for other, many in zip(names, counts.tolist(), strict=True):
            rare = 0 < count <= max(_FEW, _RARE_SHARE * many) and count < many
            if rare and min(len(name), len(other)) > 3 and _plain(name) != _plain(other):
                matcher = difflib.SequenceMatcher(None, _plain(name), _plain(other), autojunk=False)
                if matcher.quick_ratio() >= _ALIKE and matcher.ratio() >= _ALIKE and not _differ_by_number(name, other):
                    found.append(f"{name!r} ({count}, {other!r} has {many})")
                    break
    return found


def _differ_by_number(name: str, other: str) -> bool:
    """As 'lane 1' and 'lane 2' do, which are meant so."""
    digits = [[letter for letter in each if letter.isdigit()] for each in (name, other)]
    return digits[0] != digits[1]


def look_at_both(train: Annotations, val: Annotations, view: View) -> list[str]:
    """What to warn of before a training on what the view shows. Raises InputError for what makes it senseless."""
    of_train = [*of_split(train), *of_training(train), *(e for e in of_view(train, view) if not e.is_harmless)]
    found = [(train.file, each) for each in of_train]
    found += [(val.file, each) for each in of_split(val)]
    found += [(train.file, each) for each in of_pair(train, with_categories_of(train, val))]
    for file, each in found:
        if each.stops:
            raise InputError(f"{file}: {each}")
    return [f"{file}: {each}" for file, each in found]
