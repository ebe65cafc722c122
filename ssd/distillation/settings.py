"""What can be chosen of each method. Light: the command line reads it before it imports torch.

On the command line and in config.json a setting is a word, "pkd.weight=5"; a recipe file has a table for each method.
Where no source is named, the number is that of the method's paper.
"""

import difflib
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from ssd.errors import InputError


@dataclass(frozen=True)
class PKD:
    """Pearson correlation of feature maps (Cao et al. 2022)."""

    weight: float | None = None
    """None is 10, or 6 where student or teacher has two stages."""
    levels: tuple[str, ...] = ()
    """The student's maps by name; () for the first four."""


@dataclass(frozen=True)
class CWD:
    """Where each channel of a map looks (Shu et al. 2021)."""

    weight: float = 10.0
    temperature: float = 1.0
    levels: tuple[str, ...] = ()
    """The student's maps by name; () for all."""


@dataclass(frozen=True)
class MGD:
    """The teacher's map out of a part of the student's (Yang et al. 2022)."""

    weight: float = 2e-5
    dropped: float = 0.65
    """The share of a map's positions that the generator does not see."""
    levels: tuple[str, ...] = ()
    """The student's maps by name; () for all."""


GID_VARIANTS = ("paper", "seed")
GID_INSTANCES = ("all", "pos", "semi_pos", "neg")
GID_POSITIVES = ("share", "anchor")


@dataclass(frozen=True)
class GID:
    """General instances (Dai et al. 2021). What is None follows the variant: the paper's form, or that of the
    reimplementation of Distill_GID_detectron2, whose weights both have."""

    variant: str = "paper"
    """One of GID_VARIANTS."""
    count: int = 10
    """Instances an image."""
    nms_iou: float = 0.3
    score: str | None = None
    """paper: the largest difference of a class's probability; seed: the difference of the largest probabilities."""
    least_side_px: float | None = None
    """Both sides of a box are longer: paper 0, seed 10, and there boxes are cut to the image before."""
    before_nms: int | None = None
    """So many of an image take part in the choice: paper all, which 0 stands for, seed 3000."""
    instances: str = "all"
    """One of GID_INSTANCES. pos: boxes of which a share from `shares[1]` on lies within an object; neg: less than
    `shares[0]`; semi_pos: between."""
    positives: str | None = None
    """One of GID_POSITIVES. anchor, the seed's: pos are boxes whose anchor learns an object. Of the others, semi_pos
    has a share from `shares[1]` on, neg less than `shares[0]`, and what lies between is of no kind."""
    shares: tuple[float, float] = (0.4, 0.5)
    adapter: bool | None = None
    """Whether a convolution maps the student's features: paper yes; seed no, as its own was never applied."""
    adapter_kernel: int = 3
    shares_adapter: bool = True
    """Whether all maps have one, where their channels are the same."""
    feature: str | None = None
    """paper: the mean of the distances; seed: that of their squares in a cell."""
    feature_weight: float = 5e-4
    relation_weight: float = 40.0
    relation_beta: float = 1.0
    """Of smooth L1 between the distances of pairs."""
    class_weight: float = 0.1
    box_weight: float = 1.0
    box_beta: float = 0.0
    """Of smooth L1; 0 is L1."""
    cells: int = 10
    """Of a box, in either direction."""
    samples: int = 2
    """Of a cell of it, in either direction; 0 for as many as it has cells of the map."""

    def of_variant(self, name: str) -> Any:
        own = getattr(self, name)
        return own if own is not None else _OF_VARIANT[name][GID_VARIANTS.index(self.variant)]


_OF_VARIANT: dict[str, tuple[Any, Any]] = {
    "score": ("paper", "seed"),
    "least_side_px": (0.0, 10.0),
    "before_nms": (0, 3000),
    "adapter": (True, False),
    "feature": ("paper", "seed"),
    "positives": ("share", "anchor"),
}


@dataclass(frozen=True)
class CrossKD:
    """The student's head features through the teacher's head (Wang et al. 2024)."""

    class_weight: float = 1.0
    box_weight: float = 1.0


METHODS: dict[str, type] = {"pkd": PKD, "gid": GID, "crosskd": CrossKD, "mgd": MGD, "cwd": CWD}
"""By the name that --distill takes."""
_CHOICES = {
    "variant": GID_VARIANTS,
    "score": GID_VARIANTS,
    "feature": GID_VARIANTS,
    "instances": GID_INSTANCES,
    "positives": GID_POSITIVES,
}
_KINDS = {"least_side_px": float, "before_nms": int, "adapter": bool, "score": str, "feature": str, "positives": str}
"""Of settings whose default is None; others are numbers."""
_LARGEST = {"nms_iou": 1.0, "dropped": 0.99, "shares": 1.0, "adapter_kernel": 99}
_FROM_1 = ("count", "cells", "adapter_kernel")
_ABOVE_0 = ("temperature",)


def read_word(word: str) -> str:
    """A setting as a word, "pkd.levels=p3,p4", in the one form that equal settings have. Raises InputError that names
    what is not known or makes no sense."""
    name, equals, text = word.partition("=")
    method, dot, key = name.strip().partition(".")
    if not equals or not dot:
        raise InputError(f"{word!r} is not like pkd.weight=5")
    if method not in METHODS:
        raise InputError(f"{word!r}: there is no method {method!r}{_nearest(method, METHODS)}")
    _value_of(method, key, text.strip())
    return f"{method}.{key}={','.join(part.strip() for part in text.split(','))}"


def words_of(tables: dict[str, Any]) -> list[str]:
    """The tables of a recipe file, {"pkd": {"weight": 5}}, as words. Raises InputError as `read_word`."""
    words = []
    for method, table in tables.items():
        if method not in METHODS:
            raise InputError(f"there is no method {method!r}{_nearest(method, METHODS)}")
        if not isinstance(table, dict):
            raise InputError(f"{method} must be a table of its settings")
        for key, value in table.items():
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words.append(read_word(f"{method}.{key}={text.lower() if isinstance(value, bool) else text}"))
    return words


def settings_of(method: str, words: Sequence[str]) -> Any:
    """A method's settings with what these words say of it; of the same the last counts."""
    parted = (word.partition("=")[::2] for word in words)
    own = {name.partition(".")[2]: text for name, text in parted if name.startswith(f"{method}.")}
    return METHODS[method](**{key: _value_of(method, key, text) for key, text in own.items()})


def _value_of(method: str, key: str, text: str) -> Any:
    defaults = {field.name: field.default for field in fields(METHODS[method])}
    if key not in defaults:
        raise InputError(f"{method} has no setting {key!r}{_nearest(key, defaults)}")
    default = defaults[key]
    assert default is not MISSING
    kind = _KINDS.get(key, float) if default is None else type(default)
    try:
        value = _of_kind(kind, text)
    except ValueError:
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "numbers with commas")
        raise InputError(f"{method}.{key}={text}: is not {wanted}") from None
    if key == "shares":
        value = _shares(method, value)
    elif key in _CHOICES and value not in _CHOICES[key]:
        raise InputError(f"{method}.{key}={text}: is none of {', '.join(_CHOICES[key])}")
    elif key == "adapter_kernel" and value % 2 == 0:
        raise InputError(f"{method}.{key}={text}: is even, which would move a map by half a cell; pass an odd one")
    elif isinstance(value, int | float) and not _is_possible(key, value):
        raise InputError(f"{method}.{key}={text}: is out of range")
    return value


def _of_kind(kind: type, text: str) -> Any:
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower()) if text.lower() in ("true", "false") else int("no")
    if kind is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return kind(text)


def _shares(method: str, value: tuple[str, ...]) -> tuple[float, float]:
    try:
        low, high = map(float, value)
    except ValueError:
        raise InputError(f"{method}.shares={','.join(value)}: is not two numbers with a comma") from None
    if not 0 <= low <= high <= 1:
        raise InputError(f"{method}.shares={','.join(value)}: must rise, from 0 to 1 at most")
    return low, high


def _is_possible(key: str, value: float) -> bool:
    low = 1 if key in _FROM_1 else 0
    return low <= value <= _LARGEST.get(key, 1e9) and not (key in _ABOVE_0 and value == 0)


def _nearest(name: str, known: Any) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else f"; there are {', '.join(known)}"
