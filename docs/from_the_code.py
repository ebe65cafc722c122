"""Pages made from the code, so that they cannot lag behind it: five directives, and docstrings in a plain style.

`.. commands::` writes a section for each command's parser.
`.. modules:: PACKAGE` writes one for each of its modules.
`.. detectron-keys::` writes tables of the keys of Detectron's configuration.
`.. detectron-names::` writes a list of those that are known by name.
`.. distillation-keys:: ROLE` writes tables of the keys that one of the files of a distillation may state.
"""

import argparse
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator, Mapping
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ssd.cli.commands import every_parser
from ssd.config import Config
from ssd.detectors.detectron.config.key import ELSEWHERE, FIXED, OBEYED, Key
from ssd.detectors.detectron.config.keys import KEYS
from ssd.detectors.detectron.config.shipped import NAMES
from ssd.distillation.detectron2_config.keys import ROLES
from ssd.distillation.detectron2_config.run_keys import RUN

# At the end of a help text; it has a column of its own here.
DEFAULT = re.compile(r"\s*\(default: (.*)\)$")


def command_name(parser: argparse.ArgumentParser) -> str:
    return parser.prog if " " in parser.prog else f"{parser.prog} train"


class Commands(SphinxDirective):
    """Every flag of every command in tables, below the command's description and above its example."""

    def run(self) -> list[nodes.Node]:
        text = "\n".join(line for parser in every_parser() for line in _command(parser))
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def _command(parser: argparse.ArgumentParser) -> Iterator[str]:
    name = command_name(parser)
    yield from (name, "-" * len(name), "", _escaped(parser.description or ""), "")
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if actions:
            is_named = group.title not in ("options", "positional arguments")
            yield from (f"**{group.title}**" if is_named else "", *_table(actions))
    yield from ("::", "", *(f"   {line}" for line in (parser.epilog or "").splitlines()), "")


def _table(actions: list[argparse.Action]) -> Iterator[str]:
    yield from ("", ".. list-table::", "   :header-rows: 1", "   :widths: 35 17 48", "   :class: flags", "")
    yield from ("   * - flag", "     - default", "     - what it does")
    for action in actions:
        text = DEFAULT.sub("", action.help or "").replace("%%", "%")
        written = [*action.option_strings, *_values(action)]
        yield f"   * - {' '.join(f'``{part}``' for part in written)}"
        yield f"     - {_default(action)}"
        yield f"     - {_escaped(text)}"
    yield ""


def _values(action: argparse.Action) -> list[str]:
    """What is to be written after the flag: N, {a, b}, EPOCH ... or nothing."""
    if action.nargs == 0:
        return []
    choices = f"{{{', '.join(map(str, action.choices))}}}" if action.choices else ""
    value = action.metavar if isinstance(action.metavar, str) else choices or action.dest.upper()
    return [f"{value} ..." if action.nargs in ("*", "+") else value]


def _default(action: argparse.Action) -> str:
    said = DEFAULT.search(action.help or "")
    if said:
        value = said[1] % {"default": action.default}
        is_prose = re.search(r"[a-z] [a-z]", value)
        return value if is_prose or not value else f"``{value}``"
    if action.nargs == 0:
        return "on" if getattr(Config, action.dest, action.default) is True else "off"
    return "required" if action.required else ""


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_|])", r"\\\1", text)


class Modules(SphinxDirective):
    """What every module of a package has to say of itself."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        package = self.arguments[0]
        found = pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
        names = [each.name for each in found]
        text = "\n".join(f"{name}\n{'-' * len(name)}\n\n.. automodule:: {name}\n" for name in names)
        return self.parse_text_to_nodes(f".. automodule:: {package}\n\n{text}", allow_section_headings=True)


class DetectronKeys(SphinxDirective):
    """Every key of Detectron's configuration, with its default and what becomes of it, in a table for each fate."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes("\n".join(_tables_of_keys(KEYS)), allow_section_headings=True)


class DistillationKeys(SphinxDirective):
    """The keys of a run's or a student's file, in a table for each fate, without those that mean nothing there."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        role = self.arguments[0]
        own = "MODEL." if role == "student" else ("DISTILL.", *RUN)
        keys = {name: key for name, key in ROLES[role].items() if name.startswith(own) and key.default is not None}
        return self.parse_text_to_nodes("\n".join(_tables_of_keys(keys)), allow_section_headings=True)


def _tables_of_keys(keys: Mapping[str, Key]) -> Iterator[str]:
    titles = {
        OBEYED: ("Obeyed", "what it decides"),
        FIXED: ("Refused, unless it keeps this value", "why"),
        ELSEWHERE: ("Taken, and said to decide nothing", "why, or what does"),
    }
    for fate, (title, what) in titles.items():
        yield from (title, "~" * len(title), "", ".. list-table::", "   :header-rows: 1", "   :widths: 37 20 43")
        yield from ("   :class: flags", "", "   * - key", "     - default", f"     - {what}")
        for name, key in keys.items():
            if key.fate == fate:
                allowed = f" (also {', '.join(map(str, key.choices))})" if fate == FIXED and key.choices else ""
                yield f"   * - ``{name}``"
                yield f"     - ``{key.default!r}``" if key.default != "" else '     - ""'
                yield f"     - {_escaped(key.text + allowed)}"
        yield ""


class DetectronNames(SphinxDirective):
    """The configurations that have a name, a line each."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes("\n".join(f"- ``{name}``" for name in NAMES))


def lay_out(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Makes a list of a paragraph that says "parameter: text. another: text", and has Returns and Raises begin one."""
    text = _marked_up("\n".join(lines).strip())
    begins = _beginnings(thing)
    out: list[str] = []
    for paragraph in re.split(r"\n\n|\n(?=Returns\b|Raises\b)", text):
        first, *items = begins.split(paragraph) if begins else [paragraph]
        out += [first, ""]
        for parameter, said in zip(items[::2], items[1::2], strict=True):
            out.append(f"* **{parameter}**: " + said.replace("\n", "\n  "))
        out.append("")
    lines[:] = "\n".join(out).splitlines()


def _marked_up(plain: str) -> str:
    """Plain text with `ticks` as reStructuredText: the ticks mean code, and no other sign means anything."""
    parts = re.split(r"(`[^`]+`)", plain)
    return "".join(
        f"`{part}`\\ " if part.startswith("`") else re.sub(r"[*|](?=\S)|(?<=\w)_(?=\W|$)", r"\\\g<0>", part)
        for part in parts
    )


def _beginnings(thing: Any) -> re.Pattern[str] | None:
    """Where a docstring begins to tell of a parameter of thing, or None if it has none."""
    try:
        parameters = "|".join(inspect.signature(thing).parameters)
    except (TypeError, ValueError):  # a module, or a value
        return None
    return re.compile(rf"(?:^|\n|(?<=[.;] ))({parameters}): ") if parameters else None


def skip(app: Sphinx, what: str, name: str, thing: Any, skipped: bool, options: Any) -> bool | None:
    """Leaves out what NamedTuple writes of its fields, which says nothing."""
    return True if (inspect.getdoc(thing) or "").startswith("Alias for field number") else None


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("commands", Commands)
    app.add_directive("modules", Modules)
    app.add_directive("detectron-keys", DetectronKeys)
    app.add_directive("detectron-names", DetectronNames)
    app.add_directive("distillation-keys", DistillationKeys)
    app.connect("autodoc-process-docstring", lay_out)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
