"""What an analysis of sensitivity keeps in its folder: each point as soon as it is measured, and what came of them."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssd.compression.analysis.sensitivity import DENSE, Point
from ssd.errors import InputError
from ssd.storage.files import written_whole

TABLE, ABOUT, PLOT, SCHEDULE = "sensitivity.csv", "sensitivity.json", "sensitivity.png", "schedule.yaml"


def open_records(folder: Path, about: dict[str, Any]) -> dict[tuple[str, float], Point]:
    """Begins an analysis in a folder, or goes on with the one that is there; returns what it has measured already.

    about: what must be equal for its points to mean the same, as JSON has it. Raises InputError where it is not, and
    for files that this did not write.
    """
    file = folder / ABOUT
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as temporary:
            temporary.write_text(json.dumps(about, indent=1) + "\n")
        (folder / TABLE).write_text(",".join(Point._fields) + "\n")
        return {}
    broken = InputError(f"--output {folder}: what {ABOUT} or {TABLE} holds is damaged; pass another folder")
    try:
        before = json.loads(file.read_text())
    except ValueError:
        raise broken from None
    if not isinstance(before, dict):
        raise broken
    changed = [name for name in about if before.get(name) != about[name]]
    if changed:
        raise InputError(
            f"--output {folder}: holds an analysis with other {', '.join(changed)}; pass another folder, or what it "
            "was begun with"
        )
    # A line that was not written to its end is measured again.
    try:
        lines = (folder / TABLE).read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        rows = csv.DictReader(whole)
        points = [Point(row["tensor"], *(float(row[name]) for name in Point._fields[1:])) for row in rows]
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        raise broken from None
    (folder / TABLE).write_text("".join(whole))
    return {(point.tensor, point.level): point for point in points}


def add_record(folder: Path, point: Point) -> None:
    with (folder / TABLE).open("a", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerow(point)


def write_plot(file: Path, points: Sequence[Point]) -> None:
    """A row for each tensor and a column for each level: what it costs in AP, and in loss."""
    import numpy as np
    from matplotlib.figure import Figure

    dense = next(point for point in points if point.tensor == DENSE)
    names = list(dict.fromkeys(point.tensor for point in points if point.tensor != DENSE))
    levels = sorted({point.level for point in points if point.tensor != DENSE})
    ap, loss = np.full((2, len(names), len(levels)), np.nan)
    for point in points:
        if point.tensor != DENSE:
            place = names.index(point.tensor), levels.index(point.level)
            ap[place], loss[place] = point.ap - dense.ap, point.loss - dense.loss
    figure = Figure(figsize=(4.5 + 1.1 * len(levels), 1.6 + 0.22 * len(names)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = (f"change of AP, dense {dense.ap:.3f}", f"change of loss, dense {dense.loss:.3f}")
    for panel, values, title, colours in zip(panels, (ap, loss), titles, ("Reds_r", "Reds"), strict=True):
        finite = values[np.isfinite(values)]
        worst = max(1e-3, float(np.abs(finite).max())) if finite.size else 1.0
        low, high = (-worst, 0.0) if colours.endswith("_r") else (0.0, worst)
        image = panel.imshow(values, aspect="auto", cmap=colours, vmin=low, vmax=high)
        panel.set_xticks(range(len(levels)), [f"{100 * level:g} %" for level in levels], fontsize=8)
        panel.set_yticks(range(len(names)), names, fontsize=7)
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("pruned", fontsize=8)
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                is_dark = abs(value) > 0.6 * worst
                panel.text(
                    column, row, f"{value:+.3f}" if abs(value) < 10 else f"{value:+.0f}", fontsize=6, ha="center",
                    va="center", color="white" if is_dark else "black",
                )  # fmt: skip
        figure.colorbar(image, ax=panel, fraction=0.05).ax.tick_params(labelsize=7)
    with written_whole(file) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
