"""The learning rate as a pure function of the step."""

import itertools
import math
from collections.abc import Sequence

DECAY = 0.1
REFERENCE_BATCH = 32


def peak_lr(base_lr: float, global_batch_size: int) -> float:
    """base_lr x global batch / 32: linear scaling (Goyal et al. 2017)."""
    return base_lr * global_batch_size / REFERENCE_BATCH


def lr_at(
    step: int,
    *,
    base_lr: float,
    global_batch_size: int,
    steps_per_epoch: int,
    warmup_steps: int,
    multistep: Sequence[int],
    cosine_steps: int | None = None,
    warmup_power: float = 1.0,
    rate_scales: Sequence[tuple[int, float]] | None = None,
) -> float:
    """The rate of step (from 0): that of `peak_lr`, risen to linearly over warmup_steps, and a tenth after each epoch
    of multistep.

    Step 0 has the first rung of the warm-up, not 0 as in the ancestors, where it trains nothing. cosine_steps: if
    given, the rate falls by half a cosine instead (Loshchilov and Hutter 2017), from the warm-up's end to 0 at this
    step, which is the first that a run has no more. warmup_power: the rate rises by this power of the steps.
    rate_scales: if given, the rate is multiplied instead as darknet has it: (n, factor) from the n-th step (from 1) on,
    in the order given, and not before the warm-up has ended.
    """
    peak = peak_lr(base_lr, global_batch_size)
    warmth = min(1.0, ((step + 1) / warmup_steps) ** warmup_power) if warmup_steps else 1.0
    if rate_scales is not None:
        if step + 1 < warmup_steps:
            return peak * warmth
        passed = itertools.takewhile(lambda scale: scale[0] <= step + 1, rate_scales)
        return peak * math.prod(factor for _, factor in passed)
    if cosine_steps is not None:
        way = max(0, step - warmup_steps) / max(1, cosine_steps - warmup_steps)
        return peak * warmth * (1 + math.cos(math.pi * min(1.0, way))) / 2
    decays = sum(step >= epoch * steps_per_epoch for epoch in multistep)
    return peak * warmth * DECAY**decays


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
