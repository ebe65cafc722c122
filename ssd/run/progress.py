"""What a user sees of a run while it trains: a bar in a terminal, a line now and then elsewhere, and the time left."""

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from ssd.batch import EvalBatch

# The first step is left out: it warms up caches, workers and compilers. On a GPU the host queues a few steps ahead, so
# the first ones seem to take no time; three seconds are longer than that. Where a step takes seconds, two are enough.
ESTIMATE_FROM = ((5, 3.0), (2, 10.0))
"""Steps and seconds after which the time left is said, whichever pair is reached first."""
FIRST_INTERVAL_S, INTERVAL_SHARE, LAST_INTERVAL_S = 15.0, 0.05, 300.0
"""Between two lines: 15 s at first, then a twentieth of the elapsed time, up to 5 minutes. So the log of a run of a day
has some 350 of them, not 5,800."""


class StepProgress:
    """The steps of one run on rank 0.

    state: losses, rate and speed in one line of text; it is shown under the bar, or in the next line.
    """

    def __init__(
        self, console: Console, total_steps: int, first_step: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """first_step: the steps that are done already. clock: seconds from anywhere, never falling."""
        self._console, self._total_steps, self._clock = console, total_steps, clock
        self._first_step = self._step = first_step
        self._bar = _start_bar(console, total_steps, first_step) if console.is_terminal else None
        self._warm_at: float | None = None  # when the first step was done; later by what is not counted
        self._is_estimated = False
        self._state = self._said = ""

    def show_state(self, text: str) -> None:
        self._state = text
        if self._bar is not None:
            self._bar.state = text

    def advance(self) -> None:
        """One step more is done."""
        self._step += 1
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0])
        now = self._clock()
        if self._warm_at is None:
            self._warm_at = self._line_at = now
            return
        elapsed_s, warm_steps = now - self._warm_at, self._step - self._first_step - 1
        remaining = self._total_steps - self._step
        left_s = elapsed_s / warm_steps * remaining
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], left=str(timedelta(seconds=round(left_s))))
        if not remaining:
            return
        if not self._is_estimated:
            if not any(warm_steps >= steps and elapsed_s >= seconds for steps, seconds in ESTIMATE_FROM):
                return
            self._is_estimated = True
            steps = "1 step" if remaining == 1 else f"{remaining} steps"
            self._say(
                f"training takes about {rough_time(left_s)} more: {steps} of {elapsed_s / warm_steps:.2g} s, "
                "evaluations not counted"
            )
        elif self._bar is None and now - self._line_at >= _interval_s(elapsed_s):
            self._line_at = now
            left = timedelta(seconds=round(left_s))
            news = self._state if self._state != self._said else ""  # the losses of earlier steps are not told twice
            self._said = self._state
            self._say("  ".join(filter(None, (f"step {self._step}/{self._total_steps}", f"{left} left", news))))

    def leave_out(self, seconds: float) -> None:
        """So long no step was taken, because the model was evaluated: that does not count in the time left."""
        if self._warm_at is not None:
            self._warm_at += seconds
        if self._bar is not None:
            self._bar.state = self._state  # in the place of what was told meanwhile

    def tell(self, text: str) -> None:
        """Under the bar, or in a line."""
        if self._bar is not None:
            self._bar.state = text
        else:
            self._say(text)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False)


def told(
    loader: Iterable[EvalBatch],
    images: int,
    tell: Callable[[str], object],
    *,
    images_each: float = 1,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[EvalBatch]:
    """An evaluation's batches; now and then `tell` gets a line that says how many of its images are done.

    images_each: how many images one of a batch stands for, where other ranks have batches too, or where a model looks
    at an image several times.
    """
    done, told_at = 0, clock()
    for batch in loader:
        yield batch
        done += len(batch.indices)
        if clock() - told_at >= FIRST_INTERVAL_S:
            told_at = clock()
            tell(f"evaluating: {min(round(done * images_each), images)} of {images} images")


def rough_time(seconds: float) -> str:
    """To two digits at most, such as "50 seconds", "7 minutes" or "6.5 hours"."""
    if seconds < 90:
        return f"{round(seconds)} seconds" if seconds >= 1.5 else "a second"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} minutes"
    hours = seconds / 3600
    return f"{hours:.1f} hours" if hours < 10 else f"{round(hours)} hours"


def _interval_s(elapsed_s: float) -> float:
    return min(max(FIRST_INTERVAL_S, INTERVAL_SHARE * elapsed_s), LAST_INTERVAL_S)


class _Bar(Progress):
    """A bar with a line under it, so that neither is cut short in 80 columns."""

    state = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.state, no_wrap=True, overflow="ellipsis")


def _start_bar(console: Console, total_steps: int, first_step: int) -> _Bar:
    bar = _Bar(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]} left"),  # rich's own would count evaluations
        console=console,
        transient=True,
    )
    bar.start()
    bar.add_task("training", total=total_steps, completed=first_step, left="-:--:--")
    return bar
