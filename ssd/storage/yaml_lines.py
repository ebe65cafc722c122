"""YAML read by the safe loader, with the line of everything in it, so that a complaint can name its place."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ssd.errors import InputError

# Such a file has a few hundred values. An alias can repeat what it names, and a chain of aliases without end.
_MOST_NODES, _MOST_DEEP = 100_000, 20
_PLAIN_TAGS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map"))
_EXPRESSION_TAG = "tag:yaml.org,2002:python/object/apply:eval"


class Node(NamedTuple):
    """A value with its place.

    value: a dict of str to Node, a list of Node, or a plain str, int, float, bool or None.
    line: from 1; of a dict's value, that of its key.
    """

    value: Any
    line: int


class Place(NamedTuple):
    """Where something stands in a file, as the beginning of a complaint: "prune.yaml:12"."""

    file: Path
    line: int

    def error(self, text: str) -> InputError:
        return InputError(f"{self.file}:{self.line}: {text}")


def nearest_to(name: str, names: Iterable[str]) -> str:
    """ "; did you mean NAME?" with the name most like it, or nothing where none is like it."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


def in_a_line(text: str) -> str:
    """A text of a file as a complaint shows it: quoted where it has line breaks or other marks that are not seen."""
    return text if text.isprintable() else repr(text)


def read_yaml(text: str, file: Path, remedy: str, expressions: Mapping[str, Any] | None = None) -> Node:
    """The document of a YAML text. file: that it comes from, for complaints. remedy: for an empty text. expressions:
    Python's text without spaces -> the plain value that stands for it: no text is run, and these alone are taken.
    Raises InputError for what is not YAML, has more than plain values, or a key twice."""
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            raise InputError(f"{file}: has nothing in it; {remedy}")
        return _Walk(loader, file, expressions or {}).node(root, root.start_mark.line + 1, 0)
    except yaml.reader.ReaderError as error:  # a character that YAML does not allow
        line = text.count("\n", 0, error.position) + 1
        raise InputError(f"{file}:{line}: not valid YAML ({str(error).splitlines()[0]}); correct it") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark is not None else f"{file}"
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(f"{place}: not valid YAML ({problem}); correct it") from None
    except RecursionError:
        raise InputError(f"{file}: not valid YAML (its values lie too deep); correct it") from None


class _Walk:
    def __init__(self, loader: yaml.SafeLoader, file: Path, expressions: Mapping[str, Any]) -> None:
        self.loader, self.file, self.expressions, self.count = loader, file, expressions, 0

    def node(self, node: yaml.Node, line: int, depth: int) -> Node:
        self.count += 1
        if self.count > _MOST_NODES or depth > _MOST_DEEP:
            raise Place(self.file, line).error("has too many values, or they lie too deep; write it out plainly")
        if node.tag == _EXPRESSION_TAG and (known := self.expressions.get(_text_of(node))) is not None:
            return _node_of(known, line)
        if not node.tag.startswith(_PLAIN_TAGS):
            tag = in_a_line(node.tag)
            raise Place(self.file, line).error(f"has the tag {tag}, which names no plain value; take it out")
        if isinstance(node, yaml.SequenceNode):
            return Node([self.node(item, item.start_mark.line + 1, depth + 1) for item in node.value], line)
        if isinstance(node, yaml.MappingNode):
            return Node(self._mapping(node, depth), line)
        try:
            return Node(self.loader.construct_object(node), line)
        except (ValueError, KeyError, IndexError):  # such as "!!int abc", and a number of thousands of digits
            problem = f"{node.value!r:.40} is no {node.tag.rpartition(':')[2]}"
            raise Place(self.file, line).error(f"not valid YAML ({problem}); correct it") from None

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Node]:
        written: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                name = str(key.value)
                if name in written:
                    place = Place(self.file, key.start_mark.line + 1)
                    raise place.error(f"{in_a_line(name)} stands here twice; take one out")
                written.add(name)
        self.loader.flatten_mapping(node)  # what "<<" takes in comes first, and own keys overrule it
        return {str(key.value): self.node(value, key.start_mark.line + 1, depth + 1) for key, value in node.value}


def _text_of(node: yaml.Node) -> str:
    """Of an expression in a list of its own, without spaces."""
    texts = [item.value for item in node.value if isinstance(item, yaml.ScalarNode)]
    return "".join(texts[0].split()) if len(texts) == len(node.value) == 1 else ""


def _node_of(value: Any, line: int) -> Node:
    return Node([_node_of(item, line) for item in value] if isinstance(value, list) else value, line)


def plain(node: Node) -> Any:
    """A node's value without the lines."""
    if isinstance(node.value, dict):
        return {key: plain(value) for key, value in node.value.items()}
    if isinstance(node.value, list):
        return [plain(item) for item in node.value]
    return node.value
