"""A run over its steps: its length, when it is judged, and the learning rate as a pure function of the step."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from ssd.config import Config

DECAY = 0.1
REFERENCE_BATCH = 32


def peak_lr(base_lr: float, global_batch_size: int) -> float:
    """base_lr x global batch / 32: linear scaling (Goyal et al. 2017)."""
    return base_lr * global_batch_size / REFERENCE_BATCH


class Plan(NamedTuple):
    """When things happen in a run, all after so many steps.

    total_steps: it ends. falls: the rate falls to a tenth. judged: the model is evaluated; total_steps is among them.
    """

    total_steps: int
    falls: tuple[int, ...]
    judged: frozenset[int]


def plan_of(config: Config, steps_per_epoch: int) -> Plan:
    """Of settings that count in epochs, or in steps where config.steps is given."""
    unit, length = (1, config.steps) if config.steps else (steps_per_epoch, config.epochs)
    judged = frozenset(unit * after for after in (*config.evaluation, length) if after <= length)
    return Plan(unit * length, tuple(unit * after for after in config.multistep), judged)


def epochs_at(step: int, steps_per_epoch: int) -> int | float:
    """How many epochs so many steps are: a whole number where it is one, else with four digits."""
    epochs, into_epoch = divmod(step, steps_per_epoch)
    return round(step / steps_per_epoch, 4) if into_epoch else epochs


def warmth_at(step: int, warmup_steps: int, warmup_factor: float | None = None) -> float:
    """The share in [0, 1] that the warm-up leaves of the rate of a step, as `lr_at` has it."""
    if step >= warmup_steps:
        return 1.0
    way = step / warmup_steps
    return (step + 1) / warmup_steps if warmup_factor is None else warmup_factor * (1 - way) + way


def lr_at(
    step: int,
    *,
    base_lr: float,
    global_batch_size: int,
    warmup_steps: int,
    warmup_factor: float | None = None,
    falls: Sequence[int],
    cosine_steps: int | None = None,
) -> float:
    """The rate of step (from 0): that of `peak_lr`, risen to linearly over warmup_steps, and a tenth after each of the
    steps of falls.

    Step 0 has the first rung of the warm-up, not 0 as in the ancestors, where it trains nothing; or warmup_factor x
    peak, from which the rate rises to its peak at step warmup_steps, as Detectron and torch's LinearLR do it.
    cosine_steps: if given, the rate falls by half a cosine instead (Loshchilov and Hutter 2017), from the warm-up's end
    to 0 at this step, which is the first that a run has no more.
    """
    peak = peak_lr(base_lr, global_batch_size)
    warmth = warmth_at(step, warmup_steps, warmup_factor)
    if cosine_steps is not None:
        way = max(0, step - warmup_steps) / max(1, cosine_steps - warmup_steps)
        return peak * warmth * (1 + math.cos(math.pi * min(1.0, way))) / 2
    return peak * warmth * DECAY ** sum(step >= fall for fall in falls)


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
