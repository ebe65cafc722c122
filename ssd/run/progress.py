"""The bar that a terminal shows while a run trains."""

from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text


class TrainingProgress(Progress):
    """A bar with a line under it, so that neither is cut short in 80 columns."""

    state = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.state, no_wrap=True, overflow="ellipsis")


def start_progress(console: Console, total_steps: int, first_step: int) -> TrainingProgress:
    """A bar that has begun, at first_step of total_steps."""
    progress = TrainingProgress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=console,
        transient=True,
    )
    progress.start()
    progress.add_task("training", total=total_steps, completed=first_step)
    return progress
