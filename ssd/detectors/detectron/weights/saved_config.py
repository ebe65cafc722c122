"""The configuration that Detectron writes into a file of weights: YAML with tags of Python objects, of which none is
made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ssd.detectors.detectron.config.configuration import Configuration, of_values, text_of
from ssd.detectors.detectron.config.key import FIXED
from ssd.detectors.detectron.config.keys import KEYS, SECTIONS
from ssd.detectors.detectron.config.values import coerced, flattened
from ssd.errors import InputError

_TAG = "tag:yaml.org,2002:python/"
_OF_OTHERS = object()
"""In the place of a Python object that is no dict or tuple, such as numpy's arrays."""
# How a model was tested or looked at, on which its weights do not depend. A file should not be refused for it.
_OF_TESTS = ("TEST.BBOX_AUG.", "TEST.MASK_AUG.", "TEST.KPS_AUG.", "DEBUG")


class _Loader(yaml.SafeLoader):
    """The safe one, for which a tagged dict is a dict, a tuple a tuple, a text a text and any other object a sign."""


def _tagged(loader: yaml.SafeLoader, kind: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        row = loader.construct_sequence(node, deep=True)
        return tuple(row) if kind == "tuple" else _OF_OTHERS
    if isinstance(node, yaml.MappingNode):
        content = loader.construct_mapping(node, deep=True)
        # How PyYAML writes a class of dicts, such as Detectron's AttrDict.
        items = content.get("dictitems") if kind.endswith("AttrDict") else None
        return items if isinstance(items, dict) else _OF_OTHERS
    if kind in ("str", "unicode"):
        return loader.construct_scalar(node)
    plain = {"int": "int", "long": "int", "float": "float", "bool": "bool", "none": "null"}
    if kind not in plain:
        return _OF_OTHERS
    return loader.construct_object(yaml.ScalarNode(f"tag:yaml.org,2002:{plain[kind]}", node.value))


_Loader.add_multi_constructor(_TAG, _tagged)


class Saved(NamedTuple):
    """The configuration in a file of weights, and what the user should know of it."""

    config: Configuration
    notes: list[str]


def read_saved(text: str, name: str, file: Path) -> Saved:
    """The configuration of a file's text, without keys of older versions and values for tests that cannot be obeyed.

    name: of the configuration. A file from before box deltas had weights was trained with 1. Raises InputError for a
    text that is no configuration.
    """
    try:
        content = yaml.load(text, _Loader)  # noqa: S506 (a safe loader)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{file}: its configuration is not valid YAML ({reason}); use another file") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: its configuration is no mapping of keys; use another file")
    said = {key: value for key, value in _flat(content, "").items() if _is_said(key, value)}
    dropped = [key for key in said if key in KEYS and KEYS[key].fate == FIXED and key.startswith(_OF_TESTS)]
    notes = [f"{file}: {key} {said[key]!r} is not obeyed: {KEYS[key].text}" for key in dropped]
    values = {key: value for key, value in said.items() if key not in dropped}
    if "BBOX_REG_WEIGHTS" not in (content.get("MODEL") or {}):
        values["MODEL.BBOX_REG_WEIGHTS"] = (1.0, 1.0, 1.0, 1.0)
        notes.append(
            f"{file}: says no MODEL.BBOX_REG_WEIGHTS, which are taken as 1: it detects as it did, but training that "
            "goes on from it would hardly learn boxes; use its body (--backbone-weights) for that"
        )
    try:
        return Saved(of_values(name, values, leave_out_unknown=True), notes)
    except InputError as error:
        raise InputError(f"{file}: its configuration: {str(error).removeprefix(f'{name}: ')}") from None


def _is_said(key: str, value: Any) -> bool:
    """Whether a key is there for more than its default."""
    if value is _OF_OTHERS:
        return False
    if key not in KEYS:
        return True
    try:
        return bool(
            coerced(flattened(value) if key == "PIXEL_MEANS" else value, KEYS[key].default) != KEYS[key].default
        )
    except ValueError:
        return True  # which is complained of later


def _flat(tree: Mapping[Any, Any], above: str, depth: int = 0) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{above}{name}"
        if isinstance(value, dict) and key in SECTIONS and depth < 4:
            flat |= _flat(value, f"{key}.", depth + 1)
        else:
            flat[key] = value
    return flat


def saved_text(config: Configuration, num_classes: int, points: int) -> str:
    """The text that a file of Detectron's has: what its loader looks for is always written out. points: that the
    detector finds."""
    values: dict[str, Any] = {
        **config.given,
        "MODEL.NUM_CLASSES": num_classes,
        "MODEL.BBOX_REG_WEIGHTS": config["MODEL.BBOX_REG_WEIGHTS"],
    }
    if points:
        values["KRCNN.NUM_KEYPOINTS"] = points
    return text_of(of_values(config.name, values))
