"""Files of detectron2's configuration language: YAML over the file of _BASE_, every key known and of its type."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ssd.detectors.detectron.config.key import ELSEWHERE, Key
from ssd.detectors.detectron.config.values import coerced, decoded, require_in_range
from ssd.distillation.detectron2_config.keys import ROLES, SECTIONS
from ssd.distillation.detectron2_config.model_keys import ANCHOR_SIZES_PX
from ssd.errors import InputError
from ssd.storage.yaml_lines import Node, in_a_line, nearest_to, plain, read_yaml

_BASE = "_BASE_"
_MOST_BASES = 10
# How all of detectron2's RetinaNets write their anchors.
_EXPRESSIONS = {"[[x,x*2**(1.0/3),x*2**(2.0/3)]forxin[32,64,128,256,512]]": ANCHOR_SIZES_PX}
_SHOWN = {"run": "the file of --distill", "student": "a student's file", "teacher": "a teacher's file"}


class _Stated(NamedTuple):
    value: Any
    place: str


@dataclass(frozen=True)
class Configuration:
    """One file with those that it is based on.

    name: what it is called. role: one of ROLES. given: the keys that it states. places: of these, where they stand,
    such as "student.yaml:12".
    """

    name: str
    role: str
    given: Mapping[str, Any]
    places: Mapping[str, str]

    def __getitem__(self, key: str) -> Any:
        """The stated value, or the default."""
        return self.given[key] if key in self.given else ROLES[self.role][key].default

    def error(self, key: str, text: str) -> InputError:
        return InputError(f"{self.places.get(key, self.name)}: {key}: {text}")

    def notes(self) -> list[str]:
        """What the user should know of stated keys that decide nothing here: a line for each reason."""
        by_reason: dict[str, list[str]] = {}
        for key, value in self.given.items():
            about = ROLES[self.role][key]
            if about.fate == ELSEWHERE and value != about.default:
                by_reason.setdefault(about.text, []).append(key)
        return [f"{self.name}: {', '.join(keys)}: not obeyed: {reason}" for reason, keys in by_reason.items()]


def read(file: Path, role: str) -> Configuration:
    """The configuration in a file. Raises InputError that names the line of a key that is not known, a value of another
    type, and a value that is not there."""
    return of_values(str(file), role, _stated_in(file, ()))


def of_values(name: str, role: str, stated: Mapping[str, Any]) -> Configuration:
    """stated: by dotted key, values or `_Stated`. Raises InputError as `read` does."""
    keys = ROLES[role]
    given, places = {}, {}
    for key, value in stated.items():
        value, place = value if isinstance(value, _Stated) else (value, name)
        if key not in keys:
            raise InputError(f"{place}: {_unknown(key, role)}")
        try:
            given[key] = _typed(value, keys[key])
            require_in_range(given[key], keys[key])
        except ValueError as error:
            raise InputError(f"{place}: {key}: {error}") from None
        places[key] = place
    return Configuration(name, role, MappingProxyType(given), MappingProxyType(places))


def _typed(value: Any, key: Key) -> Any:
    if key.default is None:  # of a detector that is not built here
        return value
    value = decoded(value)
    if value is None:
        raise ValueError("says nothing; take it out")
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if is_whole and isinstance(key.default, float):
        try:
            return float(value)
        except OverflowError:
            raise ValueError("takes a number, and that is too much") from None
    return coerced(value, key.default)


def _stated_in(file: Path, above: tuple[Path, ...]) -> dict[str, _Stated]:
    """above: the files that are based on it."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        file = Path(in_a_line(str(file)))
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        of = f"{_BASE} of {above[-1]}" if above else "a configuration of distillation"
        raise InputError(f"{file}: cannot be read ({reason}), {of}; correct the path") from None
    root = read_yaml(text, file, "pass a configuration of distillation", _EXPRESSIONS)
    if not isinstance(root.value, dict):
        raise InputError(f"{file}: is no mapping of keys; pass a configuration of distillation")
    tree = dict(root.value)
    base = tree.pop(_BASE, None)
    inherited = {} if base is None else _stated_in(_base_of(base, file, above), (*above, file))
    return inherited | dict(_leaves(tree, "", file))


def _base_of(node: Node, file: Path, above: tuple[Path, ...]) -> Path:
    name = node.value
    if not isinstance(name, str) or not name or "://" in name:
        raise InputError(f"{file}:{node.line}: {_BASE} takes the path of one file, not {plain(node)!r}")
    base = file.parent / path_of(name, f"{file}:{node.line}: {_BASE}")
    # realpath takes a link that leads to itself as it is; reading it says what is wrong.
    if os.path.realpath(base) in {os.path.realpath(each) for each in (*above, file)}:
        raise InputError(f"{file}:{node.line}: {_BASE} {in_a_line(name)} goes round in a circle; take one out")
    if len(above) >= _MOST_BASES:
        raise InputError(f"{file}:{node.line}: {_BASE}: more than {_MOST_BASES} files lie on another; join some")
    return base


def path_of(text: str, where: str) -> Path:
    """The path that a file states, "~" written out. where: the place and the key. Raises InputError for a text that no
    file can have as its path, and for the folder of a user who is not there."""
    try:
        path = Path(text).expanduser()
        if b"\0" in os.fsencode(path):
            raise ValueError
    except (RuntimeError, ValueError):
        raise InputError(f"{where}: {text!r} is no path on this machine; correct it") from None
    return path


def _leaves(tree: dict[str, Node], above: str, file: Path) -> Iterator[tuple[str, _Stated]]:
    for name, node in tree.items():
        key, place = f"{above}{name}", f"{file}:{node.line}"
        if key not in SECTIONS:
            yield key, _Stated(plain(node), place)
        elif isinstance(node.value, dict):
            yield from _leaves(node.value, f"{key}.", file)
        else:
            raise InputError(f"{place}: {in_a_line(key)}: takes keys of its own, not {plain(node)!r}")


def _unknown(key: str, role: str) -> str:
    """Of a key that this role does not have."""
    keys = ROLES[role]
    if key in ("DISTILL.TEACHER_CFG", "DISTILL.STUDENT_CFG"):
        return f"{key}: is made of the file of {key.removesuffix('CFG')}YAML; state it there"
    for other, known in ROLES.items():
        if key in known:
            return f"{key}: belongs in {_SHOWN[other]}, not in {_SHOWN[role]}; move it"
    return f"there is no key {in_a_line(key)}{nearest_to(key, [*keys, *SECTIONS])}"
