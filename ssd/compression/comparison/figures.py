"""A comparison as a table, a JSON file, a plot and a page."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from ssd.compression.comparison.subjects import Size
from ssd.compression.comparison.timing import Speed
from ssd.evaluation.analysis import SHOWN_SCORE
from ssd.evaluation.coco import METRIC_NAMES
from ssd.report.html import page, picture, table
from ssd.storage.files import written_whole

PLOT, PICTURES, PAGE, FIGURES = "frontier.png", "detections.jpg", "comparison.html", "comparison.json"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
_MARKERS = {"eager": "o", "compiled": "s", "onnxruntime": "^", "openvino": "D"}


class Compared(NamedTuple):
    """A file and what it came to.

    metrics: of `metrics.metrics_of`. speeds: by runtime and batch size. peak_memory_bytes: by runtime, at the largest
    batch size; None where it could not be measured.
    """

    name: str
    title: str
    size: Size
    metrics: dict[str, Any]
    speeds: dict[tuple[str, int], Speed]
    peak_memory_bytes: dict[str, int | None]

    def to_dict(self) -> dict[str, Any]:
        speeds: dict[str, dict[str, Any]] = {}
        for (runtime, batch_size), speed in self.speeds.items():
            speeds.setdefault(runtime, {})[f"batch_{batch_size}"] = speed._asdict()
        return {**self._asdict(), "size": self.size._asdict(), "speeds": speeds}


def write_json(file: Path, found: Sequence[Compared], about: dict[str, Any]) -> None:
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps({"files": [each.to_dict() for each in found], **about}, indent=2) + "\n")


def _score(value: float | None) -> str:
    return "–" if value is None or value < 0 else f"{value:.3f}"


def accuracy_rows(found: Sequence[Compared]) -> tuple[list[str], list[list[str]]]:
    """(heading, a row each)."""
    more = (name for each in found for name, value in each.metrics.items() if isinstance(value, float))
    names = list(dict.fromkeys((*METRIC_NAMES, *more)))  # VOC's, or masks', which not every file has
    return ["", *names], [[each.name, *(_score(each.metrics.get(name)) for name in names)] for each in found]


def size_rows(found: Sequence[Compared]) -> tuple[list[str], list[list[str]]]:
    runtimes = list(dict.fromkeys(runtime for each in found for runtime in each.peak_memory_bytes))
    heading = ["", "parameters", "not 0", "GFLOP", "GFLOP not 0", "MB", "MB zipped"]
    heading += [f"MB peak, {runtime}" for runtime in runtimes]
    rows = []
    for each in found:
        size = each.size
        numbers = [f"{size.parameters:,}", f"{size.nonzeros:,}"]
        numbers += [f"{flops / 1e9:.3f}" for flops in (size.flops, size.nonzero_flops)]
        numbers += [f"{count / 1e6:.1f}" for count in (size.bytes_raw, size.bytes_zipped)]
        for runtime in runtimes:
            peak = each.peak_memory_bytes.get(runtime)
            numbers.append("–" if peak is None else f"{peak / 1e6:.0f}")
        rows.append([each.name, *numbers])
    return heading, rows


def speed_rows(found: Sequence[Compared]) -> tuple[list[str], list[list[str]]]:
    """Milliseconds an image, and how many times as fast as the first file that has a speed there."""
    columns = list(dict.fromkeys(key for each in found for key in each.speeds))
    rows = []
    for each in found:
        speeds = [each.speeds.get(key) for key in columns]
        cells = ["–" if s is None else f"{s.milliseconds_per_image:.1f} ({s.times_as_fast:.2f}x)" for s in speeds]
        rows.append([each.name, *cells])
    return ["", *(f"{runtime}, batch {batch_size}" for runtime, batch_size in columns)], rows


def show_tables(found: Sequence[Compared]) -> None:
    from rich import box
    from rich.table import Table

    from ssd.console import Console

    console = Console(soft_wrap=True)
    shown = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in ("", *(each.name for each in found)):
        shown.add_column(name, justify="right" if name else "left", overflow="fold")
    parts = (("", accuracy_rows(found)), ("", size_rows(found)), ("ms an image, ", speed_rows(found)))
    for prefix, (heading, rows) in parts:
        # A column a file: there are fewer of these than of figures.
        for figure, *values in zip(heading, *rows, strict=True):
            if figure:
                shown.add_row(prefix + figure, *values)
        shown.add_section()
    console.print(shown)


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (milliseconds, AP) those that no other is both faster and at least as good as, from fast to slow."""
    best: list[tuple[float, float]] = []
    for milliseconds, ap in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or ap > best[-1][1]:
            best.append((milliseconds, ap))
    return best


def write_plot(file: Path, found: Sequence[Compared], accuracy: str) -> None:
    """A metric, by its name, over milliseconds, a panel for each batch size; a line joins each runtime's frontier."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    sizes = list(dict.fromkeys(size for each in found for _, size in each.speeds))
    runtimes = list(dict.fromkeys(runtime for each in found for runtime, _ in each.speeds))
    figure = Figure(figsize=(2.5 + 4 * len(sizes), 4.2), layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    looks = [_look(place) for place in range(len(found))]
    for panel, batch_size in zip(panels, sizes, strict=True):
        for runtime in runtimes:
            points = []
            for each, (colour, inside) in zip(found, looks, strict=True):
                if speed := each.speeds.get((runtime, batch_size)):
                    points.append((speed.milliseconds_per_image, max(0.0, each.metrics[accuracy])))
                    panel.scatter(
                        *points[-1], facecolors=inside, edgecolors=colour, marker=_MARKERS[runtime], s=60, zorder=3
                    )
            if best := frontier(points):
                panel.plot(*zip(*best, strict=True), color="0.7", linewidth=1, zorder=1)
        panel.set(xlabel="ms / image", title=f"batch {batch_size}")
        panel.set_xlim(0, 1.08 * panel.dataLim.x1)  # the slowest mark is whole
        panel.grid(color="0.92")
    aps = [max(0.0, each.metrics[accuracy]) for each in found]
    margin = max(0.02, 0.15 * (max(aps) - min(aps)))
    panels[0].set_ylim(max(0.0, min(aps) - margin), max(aps) + margin)
    panels[0].set_ylabel(accuracy)
    marks = [
        Line2D([], [], color=colour, markerfacecolor=inside, marker="o", linestyle="", label=each.name)
        for each, (colour, inside) in zip(found, looks, strict=True)
    ]
    marks += [Line2D([], [], color="0.4", marker=_MARKERS[name], linestyle="", label=name) for name in runtimes]
    panels[-1].legend(handles=marks, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    with written_whole(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _look(place: int) -> tuple[str, str]:
    """The colours of a file's marks: of their edge and of their inside, which is white once each colour is taken."""
    colour = _COLOURS[place % len(_COLOURS)]
    return colour, colour if place < len(_COLOURS) else "white"


def write_page(
    folder: Path, found: Sequence[Compared], subtitle: str, notes: Sequence[str], about: dict[str, Any], accuracy: str
) -> None:
    """The page of what lies in the folder already."""
    body = "".join(f"<p>{escape(note)}</p>" for note in notes)
    if any(each.speeds for each in found):
        body += picture(
            folder / PLOT, f"{accuracy} over milliseconds an image; a line joins what nothing else is better than."
        )
    body += f"<h2>Milliseconds an image, from pixels to detections</h2>{table(*speed_rows(found))}"
    body += f"<h2>Metrics</h2>{table(*accuracy_rows(found))}"
    body += f"<h2>Size, for one image</h2>{table(*size_rows(found))}"
    if (folder / PICTURES).exists():
        body += "<h2>The same images</h2>" + picture(
            folder / PICTURES,
            f"The first images of the split that have objects, and what scores {SHOWN_SCORE} or more.",
        )
    rows = [[name.replace("_", " "), _text(value)] for name, value in about.items() if value is not None]
    body += f'<h2>How it was measured</h2><div class="list">{table(["", ""], rows)}</div>'
    content = page(" · ".join(each.name for each in found), subtitle, body)
    (folder / PAGE).write_text(content, encoding="utf-8", errors="replace")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
