"""Schedules in the YAML language of Intel's Distiller, read and checked without looking at a model.

Sections define pruners, regularizers and lr_schedulers by class and arguments; `policies` says in which epochs each of
them acts. Anything that is not known is an error that names its line and what it is most like.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd.compression.schedules.arguments import (
    EXTENSIONS,
    PRUNER_POLICY_ARGUMENTS,
    PRUNERS,
    REFUSED,
    REGULARIZER_POLICY_ARGUMENTS,
    REGULARIZERS,
    Argument,
)
from ssd.compression.schedules.lr_rates import LR_SCHEDULERS, scheduler_class
from ssd.errors import InputError
from ssd.storage.yaml_lines import Node, Place, nearest_to, plain, read_yaml

# Key in a policy -> section that it takes its instance from.
SECTIONS = {
    "pruner": "pruners",
    "regularizer": "regularizers",
    "quantizer": "quantizers",
    "extension": "extensions",
    "lr_scheduler": "lr_schedulers",
}
_EPOCHS = ("starting_epoch", "ending_epoch", "frequency")
_NO_QUANTIZERS = "quantizers do not train here: quantise the trained model by export --int8, and take this out"


@dataclass(frozen=True)
class Instance:
    """A pruner, regularizer or lr_scheduler of a schedule.

    arguments: as its class in `classes` reads them. lines: of the tensors that it names, as the file writes them.
    """

    name: str
    class_name: str
    arguments: dict[str, Any]
    lines: dict[str, int]
    line: int


@dataclass(frozen=True)
class Policy:
    """When an instance acts, and how.

    kind: a key of SECTIONS. args: of `classes`. epochs: all in which it acts, in order, from 0. start, end: the first,
    and one more than the last that it was given; frequency: None where `epochs` lists them.
    """

    kind: str
    instance: Instance
    args: dict[str, Any]
    epochs: tuple[int, ...]
    start: int
    end: int
    frequency: int | None
    line: int


@dataclass(frozen=True)
class Schedule:
    """A file's policies, in its order."""

    file: Path
    text: str
    policies: tuple[Policy, ...]

    @property
    def digest(self) -> str:
        """Of its text, to tell whether a run goes on by the schedule that it began with."""
        return hashlib.blake2b(self.text.encode(), digest_size=8).hexdigest()


def load_schedule(file: Path) -> Schedule:
    """Raises InputError for a file that cannot be read, or is no schedule."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"--compress {file}: cannot be read ({error.strerror}); pass a schedule in YAML") from None
    except ValueError:
        raise InputError(f"--compress {file}: is no text; pass a schedule in YAML") from None
    return read_schedule(text, file)


def read_schedule(text: str, file: Path) -> Schedule:
    """text: of the file. Raises InputError that names the line of what is wrong."""
    root = read_yaml(text, file, "pass a schedule")
    known = ("version", "policies", *SECTIONS.values())
    if not isinstance(root.value, dict) or "policies" not in root.value:
        raise InputError(f"{file}: not a schedule, it has no section 'policies'; see docs/compression.rst")
    for name, node in root.value.items():
        if name not in known:
            raise Place(file, node.line).error(f"unknown section {name!r}{nearest_to(name, known)}")
    if root.value.get("quantizers", Node(None, 0)).value:
        raise Place(file, root.value["quantizers"].line).error(_NO_QUANTIZERS)
    reader = _Reader(file)
    sections = {
        section: reader.section(section, root.value[section]) if section in root.value else {}
        for section in SECTIONS.values()
    }
    policies = root.value["policies"]
    if not isinstance(policies.value, list) or not policies.value:
        raise Place(file, policies.line).error("policies must be a list, with an item for each instance that acts")
    return Schedule(file, text, tuple(reader.policy(node, sections) for node in policies.value))


class _Reader:
    def __init__(self, file: Path) -> None:
        self.file = file

    def error(self, line: int, text: str) -> InputError:
        return Place(self.file, line).error(text)

    def section(self, section: str, node: Node) -> dict[str, Instance]:
        if node.value is None:
            return {}
        if not isinstance(node.value, dict):
            raise self.error(node.line, f"{section} must be {{name: {{class: ..., arguments}}}}")
        return {name: self.instance(section, name, definition) for name, definition in node.value.items()}

    def instance(self, section: str, name: str, node: Node) -> Instance:
        if not isinstance(node.value, dict) or "class" not in node.value:
            raise self.error(node.line, f"{name} has no class; write {name}: {{class: ..., arguments}}")
        written, line = node.value["class"].value, node.value["class"].line
        if isinstance(written, dict | list):
            raise self.error(line, f"{name}: class must be a name of a class")
        class_name = str(written)
        given = {key: value for key, value in node.value.items() if key != "class"}
        if class_name in REFUSED:
            raise self.error(line, f"{class_name} {REFUSED[class_name]}")
        if section == "lr_schedulers":
            arguments = {key: _number_or(plain(value)) for key, value in given.items()}
            if class_name not in LR_SCHEDULERS:
                raise self.error(
                    line, f"unknown class {class_name!r} in {section}{nearest_to(class_name, LR_SCHEDULERS)}"
                )
            try:
                scheduler_class(class_name, arguments)
            except ValueError as error:
                raise self.error(line, f"{name}: {error}") from None
            return Instance(name, class_name, arguments, {}, line)
        classes = {"pruners": PRUNERS, "regularizers": REGULARIZERS, "extensions": EXTENSIONS}.get(section, {})
        if class_name not in classes:
            raise self.error(line, f"unknown class {class_name!r} in {section}{nearest_to(class_name, classes)}")
        arguments, lines = self.arguments(name, class_name, given, classes[class_name], line)
        self._check(name, class_name, arguments, line)
        return Instance(name, class_name, arguments, lines, line)

    def _check(self, name: str, class_name: str, arguments: dict[str, Any], line: int) -> None:
        """What two arguments together must be."""
        if "final_sparsity" in arguments and arguments["initial_sparsity"] >= arguments["final_sparsity"]:
            raise self.error(line, f"{name}: final_sparsity must be more than initial_sparsity")
        if class_name == "SplicingPruner" and arguments["low_thresh_mult"] > arguments["hi_thresh_mult"]:
            raise self.error(line, f"{name}: low_thresh_mult must not be more than hi_thresh_mult")
        if (arguments.get("group_type") == "Blocks") != ("kwargs" in arguments):
            raise self.error(line, f"{name}: group_type Blocks and kwargs {{block_shape: ...}} go together; pass both")
        if class_name == "L1Regularizer" or "Rows+Cols" not in str(arguments) and "4D" not in str(arguments):
            return
        if arguments.get("threshold_criteria"):
            raise self.error(line, f"{name}: threshold_criteria needs groups that do not overlap, not Rows+Cols or 4D")

    def arguments(
        self, name: str, class_name: str, given: dict[str, Node], known: dict[str, Argument], line: int
    ) -> tuple[dict[str, Any], dict[str, int]]:
        found: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, node in given.items():
            if key not in known:
                raise self.error(node.line, f"{name}: {class_name} takes no argument {key!r}{nearest_to(key, known)}")
            if node.value is None and not known[key].required:
                continue
            try:
                found[key] = known[key].read(plain(node))
            except ValueError as error:
                raise self.error(node.line, f"{name}: {key} {error}") from None
            if known[key].names_tensors:
                lines |= _lines_of(node)
        missing = [key for key, argument in known.items() if argument.required and key not in found]
        if missing:
            raise self.error(line, f"{name}: {class_name} needs {', '.join(missing)}; add it")
        return found, lines

    def policy(self, node: Node, sections: dict[str, dict[str, Instance]]) -> Policy:
        if not isinstance(node.value, dict):
            raise self.error(node.line, "a policy must be {pruner: {instance_name: ...}, starting_epoch: ..., ...}")
        known = (*SECTIONS, "epochs", *_EPOCHS)
        for key, value in node.value.items():
            if key not in known:
                raise self.error(value.line, f"a policy has no key {key!r}{nearest_to(key, known)}")
        kinds = [key for key in node.value if key in SECTIONS]
        if len(kinds) != 1:
            raise self.error(node.line, f"a policy needs one of {', '.join(SECTIONS)}, not {len(kinds)} of them")
        (kind,) = kinds
        if kind == "quantizer":
            raise self.error(node.value[kind].line, _NO_QUANTIZERS)
        instance, given = self._instance_of(kind, node.value[kind], sections[SECTIONS[kind]])
        epochs, start, end, frequency = self._epochs(node)
        gradual = instance.class_name.endswith("_AGP") or instance.class_name == "AutomatedGradualPruner"
        if gradual or instance.class_name == "BaiduRNNPruner":
            if frequency is None:
                wants = "starting_epoch, ending_epoch and frequency"
                raise self.error(node.line, f"{instance.class_name} goes by {wants}; pass them in the place of epochs")
            if gradual and (end - start - 1) // frequency == 0:
                raise self.error(
                    node.line, f"{instance.name} acts once only, in epoch {start}; it needs two epochs or more"
                )
        args = self._policy_args(kind, instance, given, node.line)
        return Policy(kind, instance, args, epochs, start, end, frequency, node.line)

    def _instance_of(self, kind: str, node: Node, instances: dict[str, Instance]) -> tuple[Instance, Node]:
        if not isinstance(node.value, dict) or "instance_name" not in node.value:
            raise self.error(node.line, f"a policy's {kind} must be {{instance_name: ..., args: ...}}")
        for key, value in node.value.items():
            if key not in ("instance_name", "args"):
                raise self.error(value.line, f"a policy's {kind} has no key {key!r}{nearest_to(key, ('args',))}")
        written, line = node.value["instance_name"].value, node.value["instance_name"].line
        if isinstance(written, dict | list):
            raise self.error(line, "instance_name must be a name of an instance")
        name = str(written)
        if name not in instances:
            near = nearest_to(name, instances)
            raise self.error(line, f"{name!r} is not defined in {SECTIONS[kind]}{near or '; define it there'}")
        return instances[name], node.value.get("args", Node(None, line))

    def _policy_args(self, kind: str, instance: Instance, node: Node, line: int) -> dict[str, Any]:
        known = {"pruner": PRUNER_POLICY_ARGUMENTS, "regularizer": REGULARIZER_POLICY_ARGUMENTS}.get(kind, {})
        if node.value is not None and not isinstance(node.value, dict):
            raise self.error(node.line, f"args of a policy must be {{argument: value}}, of {', '.join(known)}")
        args, lines = self.arguments(instance.name, f"a policy of a {kind}", node.value or {}, known, line)
        if args.get("mask_gradients") and not args.get("mask_on_forward_only"):
            raise self.error(node.line, "mask_gradients needs mask_on_forward_only; pass both or neither")
        if "levels" in args:
            if instance.class_name != "SparsityLevelParameterPruner":
                raise self.error(node.line, "levels in a policy are for a SparsityLevelParameterPruner; take them out")
            instance.lines.update({name: line for name, line in lines.items() if name not in instance.lines})
        keeps_dense = args.get("mask_on_forward_only") and args.get("use_double_copies")
        if instance.class_name.startswith("BernoulliFilterPruner") and not keeps_dense:
            raise self.error(
                line, f"{instance.name} scales what it keeps, each time it masks; pass mask_on_forward_only and "
                "use_double_copies, so that it scales the dense weights"
            )  # fmt: skip
        return args

    def _epochs(self, node: Node) -> tuple[tuple[int, ...], int, int, int | None]:
        if "epochs" in node.value:
            line, epochs = node.value["epochs"].line, plain(node.value["epochs"])
            is_list = isinstance(epochs, list) and bool(epochs)
            if not is_list or any(isinstance(e, bool) or not isinstance(e, int) or e < 0 for e in epochs):
                raise self.error(line, "epochs must be a list of whole numbers, from 0")
            ordered = sorted(set(epochs))
            return tuple(ordered), ordered[0], ordered[-1] + 1, None
        numbers = []
        for key in _EPOCHS:
            if key not in node.value:
                raise self.error(node.line, f"a policy needs {', '.join(_EPOCHS)}, or epochs; {key} is missing")
            value = node.value[key].value
            if isinstance(value, bool) or not isinstance(value, int):
                raise self.error(node.value[key].line, f"{key} must be a whole number")
            numbers.append(value)
        start, end, frequency = numbers
        if not 0 <= start < end:
            raise self.error(node.value["ending_epoch"].line, "ending_epoch must be more than starting_epoch, from 0")
        if not 0 < frequency <= end - start:
            raise self.error(
                node.value["frequency"].line,
                f"frequency must be in 1..{end - start}, which is how many epochs there are",
            )
        return tuple(range(start, end, frequency)), start, end, frequency


def _lines_of(node: Node) -> dict[str, int]:
    """The line of each tensor's name in a list of names, in one name, or in {name: value}."""
    if isinstance(node.value, dict):
        return {name: value.line for name, value in node.value.items() if name != "*"}
    items = node.value if isinstance(node.value, list) else [node]
    return {str(item.value): item.line for item in items}


def _number_or(value: Any) -> Any:
    """A word that is a number as one: YAML 1.1 takes 1e-4, without a point, for a word."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
