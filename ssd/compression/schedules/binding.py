"""A schedule laid on a model: which tensors its policies act on, and what does not fit."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from ssd.compression import structures
from ssd.compression.schedules.distiller_yaml import Policy, Schedule
from ssd.storage.yaml_lines import Place, nearest_to

# What torchvision called parts of its R-CNNs until 0.12 -> what it calls them now.
_RENAMED = (
    (re.compile(r"(.*\bfpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)"), r"\1.0.\2"),
    (re.compile(r"(.*\brpn\.head\.conv)\.(weight|bias)"), r"\1.0.0.\2"),
)
_MASK_FCN = re.compile(r"(.*\bmask_head)\.mask_fcn(\d+)\.(weight|bias)")
_FOR_ALL = ("thresholds", "levels", "sensitivities")
"""In which "*" stands for all other tensors, as in Distiller."""
_TABLES = (*_FOR_ALL, "reg_regims")


class Bound(NamedTuple):
    """A policy with the model's own names.

    arguments: of its instance, or of the policy where that has its own. tensors: those that it acts on, in its order.
    """

    policy: Policy
    arguments: dict[str, Any]
    tensors: list[str]

    @property
    def last_epoch(self) -> int:
        """At whose end its flags are over, whether it acts in it or not."""
        return self.policy.end - 1


def bind(schedule: Schedule, model: nn.Module, num_epochs: int) -> tuple[list[Bound], list[str]]:
    """The policies in the file's order, and what the user should know of them.

    num_epochs: of the run. Raises InputError for a name that no tensor of the model has, or groups that a tensor does
    not have.
    """
    parameters = dict(model.named_parameters())
    bound = [_bound(schedule, policy, parameters) for policy in schedule.policies]
    return bound, _notes(schedule, bound, parameters, num_epochs)


def _bound(schedule: Schedule, policy: Policy, parameters: Mapping[str, Tensor]) -> Bound:
    instance, file = policy.instance, schedule.file
    arguments = dict(instance.arguments)
    if "levels" in policy.args:
        arguments["levels"] = policy.args["levels"]
    if policy.kind in ("lr_scheduler", "extension"):
        return Bound(policy, arguments, [])

    def name_of(written: str) -> str:
        place = Place(file, instance.lines.get(written, instance.line))
        if written == "*":
            raise place.error(f"'*' stands for all tensors in {', '.join(_FOR_ALL)} alone; name the tensors")
        return resolve(written, parameters, place)

    for table in _TABLES:
        if table in arguments:
            stays = "*" if table in _FOR_ALL else None
            arguments[table] = {
                name if name == stays else name_of(name): value for name, value in arguments[table].items()
            }
    if "weights" in arguments:
        arguments["weights"] = tensors = [name_of(name) for name in arguments["weights"]]
    else:
        (table,) = (arguments[table] for table in _TABLES if table in arguments)
        tensors = list(parameters) if "*" in table else list(table)
    line_of = {name_of(written): line for written, line in instance.lines.items()}
    bound = Bound(policy, arguments, list(dict.fromkeys(tensors)))
    _require_groups(bound, parameters, {name: Place(file, line_of.get(name, instance.line)) for name in tensors})
    return bound


def _require_groups(bound: Bound, parameters: Mapping[str, Tensor], places: dict[str, Place]) -> None:
    given = bound.arguments
    block_shape = given.get("kwargs", {}).get("block_shape")
    for name in bound.tensors:
        if bound.policy.instance.class_name.startswith("GlobalFilterPruner"):
            group_type = "Filters"
        elif "group_type" in given:
            group_type = "Cols" if given["group_type"] == "Rows" else given["group_type"]
        elif isinstance(given.get("reg_regims", {}).get(name), tuple):
            group_type = given["reg_regims"][name][1]
        else:
            continue
        if reason := structures.misfit(parameters[name].shape, group_type, block_shape):
            raise places[name].error(f"{name} {reason}; take it out, or use another group type")
    if given.get("group_dependency") == "Leader":
        leader, *others = bound.tensors
        for name in others:
            if _num_groups(given, parameters[name]) != _num_groups(given, parameters[leader]):
                raise places[name].error(f"{name} has not as many {given['group_type']} as its leader {leader} has")


def _num_groups(given: dict[str, Any], weight: Tensor) -> tuple[int, ...]:
    if given["group_type"] == "Blocks":
        return tuple(weight.shape)
    return (weight.shape[0 if given["group_type"] in ("Filters", "3D") else 1],)


def _notes(schedule: Schedule, bound: list[Bound], parameters: Mapping[str, Tensor], num_epochs: int) -> list[str]:
    notes, pruners = [], [each for each in bound if each.policy.kind == "pruner"]
    frozen = dict.fromkeys(
        name for each in pruners for name in each.tensors if not parameters[name].requires_grad
    )  # fmt: skip
    if frozen:
        notes.append(
            f"{schedule.file}: prunes {len(frozen)} tensors that do not train, so nothing makes up for what they lose: "
            f"{_some(list(frozen))}"
        )
    for each in bound:
        policy = each.policy
        if policy.end > num_epochs:
            notes.append(
                f"{schedule.file}:{policy.line}: the policy of {policy.instance.name} ends with epoch {policy.end}, "
                f"and this run has {num_epochs}: it ends unfinished"
            )
        if policy.kind == "pruner" and set(each.tensors) == set(parameters):
            notes.append(f"{schedule.file}:{policy.instance.line}: '*' prunes biases and batch norm too")
        if policy.instance.class_name.startswith("Activation") and policy.start == 0:
            notes.append(
                f"{schedule.file}:{policy.line}: {policy.instance.name} ranks by what filters said in the epoch "
                "before, so it prunes nothing in epoch 0"
            )
    for i, one in enumerate(pruners):
        for other in pruners[i + 1 :]:
            both = [name for name in one.tensors if name in set(other.tensors)]
            if both and one.policy.start < other.policy.end and other.policy.start < one.policy.end:
                notes.append(
                    f"{schedule.file}:{other.policy.line}: prunes what the policy of line {one.policy.line} prunes in "
                    f"the same epochs, and overrules it: {_some(both)}"
                )
    removers = [each for each in bound if each.policy.instance.class_name.endswith("Remover")]
    for pruner in pruners:
        if not pruner.policy.instance.class_name.endswith(("_AGP", "AutomatedGradualPruner")):
            continue
        for remover in removers:
            if remover.policy.epochs[0] < (ends := pruner.policy.epochs[-1]):
                notes.append(
                    f"{schedule.file}:{remover.policy.line}: takes filters out before the gradual pruning of line "
                    f"{pruner.policy.line} has ended, whose later shares are of those that are left: more go than "
                    f"final_sparsity says; let it act in epoch {ends} alone"
                )
    if any(each.policy.kind == "lr_scheduler" for each in bound):
        notes.append(f"{schedule.file}: its lr_schedulers take the place of --schedule and --multistep")
    return notes


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def norms_after(model: nn.Module) -> dict[str, nn.Module]:
    """The batch norm that follows each convolution, by the name of the convolution's weight: the next module in its
    parent that has as many channels, as in every ResNet and every Sequential."""
    return {name: norm for name, norm in _norms_behind(model) if hasattr(norm, "running_var")}


def _norms_behind(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for parent_name, parent in model.named_modules():
        children = list(parent.named_children())
        for (name, module), (_, following) in zip(children, children[1:], strict=False):
            if isinstance(module, nn.Conv2d) and _is_norm_of(following, module.out_channels):
                yield f"{parent_name}.{name}.weight".lstrip("."), following


def affines_after(model: nn.Module) -> dict[str, list[str]]:
    """The names of the scale and shift of the norm that follows each convolution, a group norm too, as far as they are
    parameters; by the name of the convolution's weight."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for weight, norm in _norms_behind(model):
        own = [names[id(each)] for each in (norm.weight, norm.bias) if id(each) in names]
        if own:
            found[weight] = own
    return found


def _is_norm_of(module: nn.Module, channels: int) -> bool:
    """Also of a frozen batch norm, which torchvision has as a module of its own."""
    if isinstance(module, nn.GroupNorm):
        return module.num_channels == channels and module.affine
    variance = getattr(module, "running_var", None)
    return isinstance(variance, Tensor) and len(variance) == channels and isinstance(module.weight, Tensor)


def folded(weight: Tensor, norm: Any) -> Tensor:
    """A convolution's weight times gamma / sqrt(var + eps) of its batch norm."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return weight * scale.view(-1, 1, 1, 1)


def resolve(name: str, known: Collection[str], place: Place) -> str:
    """The name in `known` that a schedule means: its own, without "module.", or what an old name has become.

    Raises InputError at its place for a name that means nothing.
    """
    bare = name.removeprefix("module.")
    if bare in known:
        return bare
    newer = [pattern.sub(to, bare) for pattern, to in _RENAMED if pattern.fullmatch(bare)]
    if found := _MASK_FCN.fullmatch(bare):
        newer.append(f"{found[1]}.{int(found[2]) - 1}.0.{found[3]}")
    for candidate in newer:
        if candidate in known:
            return candidate
    raise place.error(f"the model has no tensor {name!r}{nearest_to(bare, known)}; main.py summary lists its tensors")
