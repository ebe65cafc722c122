"""Detectron's configuration language: YAML over defaults, and words over that, every key known and of its type."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from ssd.detectors.detectron.config.key import ELSEWHERE, FIXED
from ssd.detectors.detectron.config.keys import DEPRECATED, KEYS, RENAMED, SECTIONS
from ssd.detectors.detectron.config.values import coerced, flattened, require_in_range
from ssd.errors import InputError
from ssd.storage.yaml_lines import Node, Place, nearest_to, plain, read_yaml

_WORDS = "--set"


@dataclass(frozen=True)
class Configuration:
    """One configuration, whole.

    name: what it is called. given: the keys that a file or --set names, in their order. places: of these, where they
    stand, such as "e2e.yaml:12". left_out: keys that Detectron passes over, or that came out of its own files and are
    not known.
    """

    name: str
    given: Mapping[str, Any]
    places: Mapping[str, str]
    left_out: tuple[str, ...] = ()

    def __getitem__(self, key: str) -> Any:
        """The value of a key of KEYS: the given one, or the default."""
        return self.given[key] if key in self.given else KEYS[key].default

    def is_on(self, switch: str) -> bool:
        """Whether a key's switch is as the key needs it; "" always is."""
        if not switch:
            return True
        key = switch.removeprefix("!")
        return (bool(self[key]) and self.is_on(KEYS[key].switch)) != switch.startswith("!")

    def error(self, key: str, text: str) -> InputError:
        return InputError(f"{self.places.get(key, self.name)}: {key}: {text}")


def read(text: str, file: Path) -> Configuration:
    """The configuration in the text of a YAML file. Raises InputError, with the line, for a key that is not known or
    was renamed, a value of another type, and a value that is not there."""
    root = read_yaml(text, file, "pass a configuration of Detectron")
    if not isinstance(root.value, dict):
        raise InputError(f"{file}: is no mapping of keys; pass a configuration of Detectron")
    found: list[tuple[str, Any, str]] = []
    _walk(root.value, "", file, found)
    return _merged(Configuration(file.stem, MappingProxyType({}), MappingProxyType({})), found)


def overlaid(config: Configuration, words: Sequence[str]) -> Configuration:
    """The configuration with the KEY VALUE pairs of --set over it. Raises InputError as `read` does."""
    if len(words) % 2:
        raise InputError(f"{_WORDS}: takes pairs of KEY and VALUE, and {words[-1]} has no value")
    return _merged(config, [(key, value, _WORDS) for key, value in zip(words[::2], words[1::2], strict=True)])


def of_values(name: str, values: Mapping[str, Any], *, leave_out_unknown: bool = False) -> Configuration:
    """A configuration out of values by dotted key. leave_out_unknown: with keys of older versions among them."""
    known = [(key, value, name) for key, value in values.items() if key in KEYS or not leave_out_unknown]
    config = _merged(Configuration(name, MappingProxyType({}), MappingProxyType({})), known)
    unknown = tuple(key for key in values if key not in KEYS) if leave_out_unknown else ()
    return Configuration(name, config.given, config.places, unknown)


def text_of(config: Configuration) -> str:
    """The YAML of what is given, which `read` reads as the same configuration."""
    tree: dict[str, Any] = {}
    for key, value in config.given.items():
        *sections, name = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = list(value) if isinstance(value, tuple) else value
    return str(yaml.safe_dump(tree, sort_keys=False, default_flow_style=None))


def notes_on(config: Configuration) -> list[str]:
    """What the user should know of the keys that are given and decide nothing."""
    notes = [f"{config.name}: {key} is not obeyed, as in Detectron's newer versions" for key in config.left_out]
    for key, value in config.given.items():
        about = KEYS[key]
        if value == about.default:
            continue
        if about.fate == ELSEWHERE:
            notes.append(f"{config.name}: {key} is not obeyed: {about.text}")
        elif not config.is_on(about.switch):
            notes.append(f"{config.name}: {key} says nothing: {_off(config, about.switch)}")
    return notes


def _off(config: Configuration, switch: str) -> str:
    """Of a switch that is not as a key needs it: what is wrong with it, or with the one that it needs itself."""
    key = switch.removeprefix("!")
    if switch == key and config[key]:
        return _off(config, KEYS[key].switch)
    return f"{key} is {'off' if switch == key else 'on'}"


def _walk(tree: dict[str, Node], above: str, file: Path, found: list[tuple[str, Any, str]]) -> None:
    """Puts (dotted key, value, place) of a YAML mapping's leaves into found."""
    for name, node in tree.items():
        key = f"{above}{name}"
        if key in SECTIONS:
            if not isinstance(node.value, dict):
                raise Place(file, node.line).error(f"{key}: takes keys of its own, not {plain(node)!r}")
            _walk(node.value, f"{key}.", file, found)
        else:
            found.append((key, plain(node), f"{file}:{node.line}"))


def _merged(config: Configuration, found: list[tuple[str, Any, str]]) -> Configuration:
    given, places, left_out = dict(config.given), dict(config.places), list(config.left_out)
    for key, value, place in found:
        if key in DEPRECATED:
            left_out.append(key)
            continue
        if key not in KEYS:
            raise InputError(f"{place}: {_unknown(key)}")
        try:
            given[key] = coerced(flattened(value) if key == "PIXEL_MEANS" else value, KEYS[key].default)
        except ValueError as error:
            raise InputError(f"{place}: {key}: {error}") from None
        places[key] = place
    merged = Configuration(config.name, MappingProxyType(given), MappingProxyType(places), tuple(left_out))
    # A feature that is not there before what only it would have.
    for key, value in sorted(given.items(), key=lambda item: KEYS[item[0]].fate != FIXED):
        if merged.is_on(KEYS[key].switch):
            try:
                require_in_range(value, KEYS[key])
            except ValueError as error:
                raise merged.error(key, str(error)) from None
    return merged


def _unknown(key: str) -> str:
    if key in RENAMED:
        return f"{key} was renamed to {RENAMED[key]}, which may take a value of another type; write that"
    if key in SECTIONS:
        return f"{key}: takes keys of its own, such as {next(each for each in KEYS if each.startswith(f'{key}.'))}"
    return f"there is no key {key}{nearest_to(key, KEYS)}"
