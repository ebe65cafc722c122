"""How long detectors take, measured in turns: whatever else the machine does meets all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Speed(NamedTuple):
    """milliseconds_per_image: the median over the rounds. times_as_fast: as the first one, the median of the ratios
    within each round."""

    milliseconds_per_image: float
    times_as_fast: float


def in_turns(
    runs: Mapping[str, Callable[[], object]],
    *,
    batch_size: int,
    warmup_rounds: int,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    after_each_round: Callable[[], None] = lambda: None,
) -> dict[str, Speed]:
    """Each run once a round, one after the other. runs: by name; one call detects a batch and has its result on the
    host. clock: seconds."""
    times_s: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(warmup_rounds + rounds):
        for name, run in runs.items():
            began = clock()
            run()
            if number >= warmup_rounds:
                times_s[name].append(clock() - began)
        after_each_round()
    first = next(iter(times_s.values()))
    return {
        name: Speed(
            1e3 * statistics.median(times) / batch_size,
            statistics.median(base / own for base, own in zip(first, times, strict=True)),
        )
        for name, times in times_s.items()
    }
