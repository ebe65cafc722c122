"""The learning rate as a pure function of the step."""

from collections.abc import Sequence

DECAY = 0.1
REFERENCE_BATCH = 32


def lr_at(
    step: int,
    *,
    base_lr: float,
    global_batch_size: int,
    steps_per_epoch: int,
    warmup_steps: int,
    multistep: Sequence[int],
) -> float:
    """The rate of step (from 0): base_lr x global batch / 32 (linear scaling, Goyal et al. 2017), risen to linearly
    over warmup_steps, and a tenth after each epoch of multistep.

    Step 0 has the first rung of the warm-up, not 0 as in the ancestors, where it trains nothing.
    """
    peak = base_lr * global_batch_size / REFERENCE_BATCH
    warmth = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    decays = sum(step >= epoch * steps_per_epoch for epoch in multistep)
    return peak * warmth * DECAY**decays
