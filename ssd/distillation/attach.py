"""A teacher put beside a training."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ssd.config import Config
from ssd.detectors.contract import LossesOf
from ssd.distillation.build import Method, build_method
from ssd.distillation.distilled import TAIL, distilled, input_of, watched_modules
from ssd.distillation.methods.instances import Instances
from ssd.distillation.methods.mgd import Generators
from ssd.distillation.pair import Pair, pair_of
from ssd.distillation.settings import settings_of
from ssd.distillation.teacher import Teacher, knows
from ssd.distillation.watched import Distilling, Recorder, Watched
from ssd.distributed import Ranks, gather_tensors
from ssd.errors import InputError
from ssd.training.state import Training

LARGE = 10
"""A term that is so many times the plain losses has the student forget what it is trained for."""


class Distillation:
    """A `training.state.Companion`, and what else a training has of its teacher.

    settings: the student's. weight: of all terms.
    """

    name = "distillation"

    def __init__(
        self, teacher: Teacher, pair: Pair, methods: Sequence[Method], weight: float, settings: Any, ranks: Ranks
    ) -> None:
        self.teacher, self.pair, self.methods, self.weight = teacher, pair, methods, weight
        self.settings, self.ranks = settings, ranks
        self.parts = pair.student.parts
        self.adapters = nn.ModuleDict({method.name: method.adapter for method in methods})
        self._generators = [each.generator for each in self.adapters.modules() if isinstance(each, Generators)]
        self._recorder: Recorder | None = None
        self._warned: set[str] = set()

    def wrapped(self, model: nn.Module, compiled: Callable[[nn.Module], Any]) -> nn.Module:
        """The student as `losses_of` calls it. Raises InputError if its maps are no more what they were."""
        if self._recorder is not None:  # its layers are others than at the start
            self._recorder.unhook()
            self.require_maps(model)
        self._recorder = Recorder(watched_modules(self.parts, model, self.methods), frozenset(TAIL))
        inputs = {method.name: input_of(method, self.parts) for method in self.methods}
        return Distilling(compiled(Watched(model, self._recorder)), self.adapters, inputs)

    def require_maps(self, model: nn.Module) -> None:
        """Raises InputError if the maps of a student whose filters were taken out are no more what they were."""
        now, was = pair_of(self.teacher, model, self.settings).student, self.pair.student
        changed = [name for name, channels in was.maps.items() if now.maps.get(name) != channels]
        if any(method.needs_tail for method in self.methods):
            changed += [name for name, channels in was.branches.items() if now.branches.get(name) != channels]
        if changed:
            raise InputError(
                f"--compress: takes filters out of what makes the maps {', '.join(changed)} of {now.title}, whose "
                "channels --distill compares with the teacher's; keep these layers out of it, or leave removers out"
            )

    def losses_of(self, plain: LossesOf) -> LossesOf:
        return distilled(plain, self.teacher, self.parts, self.methods, self.weight)

    def warning(self, means: dict[str, float]) -> str:
        """What the user should know of losses by name, once of each; "" for nothing."""
        of_methods = {name: value for name, value in means.items() if name.partition("_")[0] in self.adapters}
        plain = sum(value for name, value in means.items() if name not in of_methods)
        large = [name for name, value in of_methods.items() if value > LARGE * plain and name not in self._warned]
        self._warned.update(large)
        if not large:
            return ""
        told = ", ".join(f"{name} {of_methods[name]:.3g}" for name in large)
        return (
            f"{told}: more than {LARGE} times the other losses, {plain:.3g}, so that the student learns little else; "
            "lower --distill-weight or the method's weight"
        )

    # What the training calls

    def before_step(self, step: int, lr: float) -> float:
        return lr

    def after_step(self, step: int) -> None:
        """Nothing changes but by the optimiser."""

    def state(self) -> dict[str, Any]:
        """Nothing of the teacher."""
        generators = [gather_tensors(each.get_state(), self.ranks) for each in self._generators]
        return {"adapters": self.adapters.state_dict(), "generators": generators}

    def restore(self, state: dict[str, Any]) -> None:
        """On another number of ranks what is drawn begins anew."""
        self.adapters.load_state_dict(state["adapters"])
        for generator, of_ranks in zip(self._generators, state["generators"], strict=True):
            if len(of_ranks) == self.ranks.world_size:
                generator.set_state(of_ranks[self.ranks.rank])


def identity_of(config: Config, teacher: Teacher | None) -> dict[str, Any]:
    """What a checkpoint says of its run's teacher, which has to be the same to go on; {} without."""
    if teacher is None:
        return {}
    return {
        "teacher": teacher.title,
        "sha256": teacher.digest,
        "methods": sorted(config.distill),
        "weight": config.distill_weight,
        "settings": {name: asdict(settings_of(name, config.distill_settings)) for name in sorted(config.distill)},
    }


_NAMES = {
    "sha256": "the file of --teacher",
    "methods": "--distill",
    "weight": "--distill-weight",
    "settings": "--distill-settings",
}


def require_same(was: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises InputError where a run that goes on would learn from another teacher, or otherwise."""
    if not was and not now:
        return
    if not was or not now:
        remedy = "leave --distill out" if now else "pass its --teacher, --distill and --distill-weight"
        raise InputError(
            f"--resume: the run had {'a' if was else 'no'} teacher; {remedy}, or start anew with --checkpoint"
        )
    if isinstance(was.get("settings"), dict):
        was = {**was, "settings": {name: _with_later(name, own) for name, own in was["settings"].items()}}
    for key in ("teacher", "sha256", "methods", "weight", "settings"):
        if _plain(was.get(key)) != _plain(now[key]):
            what = _NAMES.get(key, key)
            raise InputError(
                f"--resume: {what} was {was.get(key)} and is {now[key]}; change it back, or start anew with "
                "--checkpoint"
            )


def _with_later(method: str, own: dict[str, Any]) -> dict[str, Any]:
    """A method's settings with those that came after the run: these were what is the default now, but for one."""
    settings = {**asdict(settings_of(method, ())), **own}
    if method == "gid" and "positives" not in own and own["variant"] == "seed" and own["instances"] != "all":
        settings["positives"] = "share"
    return settings


def _plain(value: Any) -> Any:
    """Lists as tuples, which files do not tell apart."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def distill(
    training: Training,
    teacher: Teacher,
    categories: Sequence[tuple[int, str]],
    show: Callable[[Tensor, Instances], None],
) -> list[str]:
    """Has the training learn from the teacher too; returns what the user should know of it.

    Before `Training.restore`. categories: of the data. show: as of `build.build_method`. Raises InputError where
    teacher and student do not go together.
    """
    config, ranks, settings = training.config, training.ranks, training.config.detector
    pair = pair_of(teacher, training.model, settings)
    methods = []
    # So that the student's own draws are those of a plain run.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed((config.seed or 0) + 1)
        for name in config.distill:
            own = settings_of(name, config.distill_settings)
            methods.append(build_method(name, own, pair, (config.seed or 0) + 1 + ranks.rank, show))
    if any(method.needs_heads for method in methods) and not knows(teacher, categories):
        raise InputError(
            f"--teacher {teacher.file}: was trained on other categories than {config.data} has, so that its classes "
            "mean nothing here; pkd, cwd and mgd look at no class"
        )
    companion = Distillation(teacher, pair, methods, config.distill_weight, settings, ranks)
    training.losses_of = companion.losses_of(training.losses_of)
    training.wrap = companion.wrapped
    training.warnings.append(companion.warning)
    training.checks.append(companion.require_maps)
    training.learn_beside(companion.adapters)
    training.companions.append(companion)
    notes = [_told(teacher, methods)]
    if config.judge_teacher and not knows(teacher, categories):
        notes.append("the teacher is not judged: its categories are not those of the data")
    return notes


def _told(teacher: Teacher, methods: Sequence[Method]) -> str:
    weights = sum(p.numel() for method in methods for p in method.adapter.parameters())
    beside = f"; {weights:,} weights beside the student's are trained for it, and left out of what it becomes"
    return (
        f"learning from {teacher.file} ({teacher.title}, SHA-256 {teacher.digest[:16]}) by "
        f"{', '.join(method.name for method in methods)}{beside if weights else ''}"
    )
