"""A run over its steps: its length, when it is judged, and the learning rate as a pure function of the step."""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ssd.config import Config
from ssd.errors import InputError

DECAY = 0.1
REFERENCE_BATCH = 32


def peak_lr(base_lr: float, global_batch_size: int) -> float:
    """base_lr x global batch / 32: linear scaling (Goyal et al. 2017)."""
    return base_lr * global_batch_size / REFERENCE_BATCH


class Plan(NamedTuple):
    """When things happen in a run, all after so many steps.

    total_steps: it ends. falls: (steps, factor), the rate is multiplied by it. judged: the model is evaluated;
    total_steps is among them.
    """

    total_steps: int
    falls: tuple[tuple[int, float], ...]
    judged: frozenset[int]


def plan_of(config: Config, steps_per_epoch: int) -> Plan:
    """Of settings that count in epochs, or in steps where config.steps is given."""
    unit, length = (1, config.steps) if config.steps else (steps_per_epoch, config.epochs)
    factors = config.multistep_factors or (DECAY,) * len(config.multistep)
    falls = tuple((unit * after, factor) for after, factor in zip(config.multistep, factors, strict=True))
    judged = frozenset(unit * after for after in (*config.evaluation, length) if after <= length)
    return Plan(unit * length, falls, judged)


def reaches_target(config: Config, ap: float, masks_ap: float | None) -> bool:
    """Whether an evaluation ends the run. masks_ap: of masks; None where it has none."""
    if config.target is None or ap < config.target:
        return False
    return config.target_masks is None or (masks_ap is not None and masks_ap >= config.target_masks)


def reached_target(config: Config, best_ap: float, reached_by: Sequence[float] | None) -> bool:
    """Whether an evaluation of a run's past has ended it. best_ap: the highest of all. reached_by: of the evaluation
    that ended the run, if one with masks did, its two APs."""
    if config.target_masks is None:
        return reaches_target(config, best_ap, None)
    return reached_by is not None and reaches_target(config, *reached_by)


class Pace(NamedTuple):
    """What a run takes its time for. evaluation_s: seconds of one evaluation."""

    step_s: float
    evaluation_s: float


_OF_MINUTES = ("steps", "multistep", "evaluation")
_MOST_OF_EVALUATIONS = 1 / 3


def within_minutes(config: Config, pace: Pace) -> Config:
    """With as many steps as fit into config.minutes beside the evaluations.

    What is told in epochs or steps keeps its share of the run. Of evaluations some are left out where they would take
    more than a third of the time. The warm-up, and the steps that a moving average remembers, are a tenth of the run at
    most. Raises InputError where not one step and one evaluation fit.
    """
    assert config.minutes is not None
    length, seconds = config.steps or config.epochs, 60 * config.minutes
    evaluation = [after for after in config.evaluation if after < length]
    most = max(1, int(_MOST_OF_EVALUATIONS * seconds / max(pace.evaluation_s, 1e-9))) - 1  # beside the last one
    if len(evaluation) > most:
        evaluation = [evaluation[len(evaluation) * (place + 1) // (most + 1) - 1] for place in range(most)]
    steps = int((seconds - (1 + len(evaluation)) * pace.evaluation_s) / pace.step_s)
    if steps < 1:
        least = (pace.step_s + pace.evaluation_s) / 60
        raise InputError(
            f"--minutes {config.minutes:g}: a step takes about {pace.step_s:.2g} s and an evaluation "
            f"{pace.evaluation_s:.2g} s; pass {math.ceil(100 * least) / 100:g} or more"
        )

    def share(after: int) -> int:
        return max(1, round(steps * after / length))

    return replace(
        config,
        steps=steps,
        multistep=tuple(map(share, config.multistep)),
        evaluation=tuple(dict.fromkeys(map(share, evaluation))),
        warmup=min(config.warmup, steps // 10),
        ema=None if config.ema is None else max(0.0, min(config.ema, 1 - 10 / steps)),
    )


def as_begun(config: Config, saved: dict[str, Any], scale: float, given: Collection[str]) -> Config:
    """The config of a run that goes on, with what its minutes became when it began.

    saved: a checkpoint's settings. scale: steps now for each of then, where a step has another number of images. given:
    the settings of the command line, which count. Raises InputError where it did not begin with these minutes.
    """
    began = saved.get("minutes")
    if config.minutes is not None and config.minutes != began:
        remedy = f"pass --minutes {began:g}, or --steps" if began else "leave --minutes out, or pass --steps"
        raise InputError(f"--resume: the run is not one of {config.minutes:g} minutes; {remedy} for another length")
    if began is None:
        return config

    def scaled(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return tuple(map(scaled, value))
        return max(1, round(value * scale)) if value else value

    # A run that goes on with another length keeps its warm-up, which is over, and what its average remembers.
    names = (*_OF_MINUTES, "warmup") if config.minutes is not None else ("warmup",)
    settings = {name: scaled(saved[name]) for name in names} | {"ema": saved["ema"]}
    return replace(config, **{name: value for name, value in settings.items() if name not in given})


def notes_on_rate(config: Config, steps_per_epoch: int) -> list[str]:
    """What a run that is shorter than its recipe's has of the rate's course in vain."""
    return [*filter(None, (_long_warmup(config, steps_per_epoch), _falls_that_never_come(config)))]


def _long_warmup(config: Config, steps_per_epoch: int) -> str | None:
    """Names a warm-up that takes half of the run or more."""
    total_steps = plan_of(config, steps_per_epoch).total_steps
    if 2 * config.warmup < total_steps or not config.warmup:
        return None
    return (
        f"{config.warmup} steps of warm-up are much of the run's {total_steps}; pass a smaller --warmup, such as "
        f"{total_steps // 10}"
    )


def _falls_that_never_come(config: Config) -> str | None:
    """Names what of multistep lies at or beyond the end of the run, where no step is left that it could change."""
    unit, length = ("steps", config.steps) if config.steps else ("epochs", config.epochs)
    never = sorted({after for after in config.multistep if after >= length})
    if config.schedule != "multistep" or not never:
        return None
    after = " and ".join(map(str, never))
    return (
        f"the rate will not fall after {unit if len(never) > 1 else unit[:-1]} {after}, because the run ends with "
        f"{length}; pass --multistep with less, or --schedule cosine"
    )


def epochs_at(step: int, steps_per_epoch: int) -> int | float:
    """How many epochs so many steps are: a whole number where it is one, else with four digits."""
    epochs, into_epoch = divmod(step, steps_per_epoch)
    return round(step / steps_per_epoch, 4) if into_epoch else epochs


class Warmup(NamedTuple):
    """How the rate rises: over so many steps, by this power of them, or from factor x peak on."""

    steps: int = 0
    power: float = 1.0
    factor: float | None = None


NO_WARMUP = Warmup()


def warmup_of(config: Config) -> Warmup:
    return Warmup(config.warmup, config.warmup_power, config.warmup_factor)


def warmth_at(step: int, warmup: Warmup) -> float:
    """The share in [0, 1] that the warm-up leaves of the rate of a step (from 0).

    ((step + 1) / steps) ** power: darknet's burn-in has power 4. With a factor, the share rises from it at step 0 to 1
    at step `steps`, as Detectron and torch's LinearLR do it.
    """
    if step >= warmup.steps:
        return 1.0
    if warmup.factor is None:
        return float(((step + 1) / warmup.steps) ** warmup.power)
    way = step / warmup.steps
    return warmup.factor * (1 - way) + way


def lr_at(
    step: int,
    *,
    base_lr: float,
    global_batch_size: int,
    warmup: Warmup = NO_WARMUP,
    falls: Sequence[tuple[int, float]] = (),
    cosine_steps: int | None = None,
) -> float:
    """The rate of step (from 0): that of `peak_lr`, risen to by the warm-up, and multiplied after the steps of falls by
    their factors.

    Step 0 has the first rung of the warm-up, not 0 as in the ancestors, where it trains nothing; `warmth_at` has the
    other ways to rise. cosine_steps: if given, the rate falls by half a cosine instead (Loshchilov and Hutter 2017),
    from the warm-up's end to 0 at this step, which is the first that a run has no more.
    """
    peak = peak_lr(base_lr, global_batch_size)
    warmth = warmth_at(step, warmup)
    if cosine_steps is not None:
        way = max(0, step - warmup.steps) / max(1, cosine_steps - warmup.steps)
        return peak * warmth * (1 + math.cos(math.pi * min(1.0, way))) / 2
    return peak * warmth * math.prod(factor for fall, factor in falls if step >= fall)


def step_after_change(
    step: int,
    *,
    steps_per_epoch: int,
    global_batch_size: int,
    new_steps_per_epoch: int,
    new_global_batch_size: int,
) -> int:
    """The step at which a run goes on that was at `step`, once its global batch is another (from 0, as all steps).

    Whole epochs stay whole. Of the epoch under way, as many new steps count as done as fit into the images it has had:
    rather a few images more than fewer.
    """
    epoch, into_epoch = divmod(step, steps_per_epoch)
    into_new = into_epoch * global_batch_size // new_global_batch_size
    return epoch * new_steps_per_epoch + min(into_new, new_steps_per_epoch - 1)
