"""Plots of runs, as PNG: one look for all, in Okabe and Ito's colours, which colour-blind readers tell apart too.

To be imported where plots are drawn, for matplotlib takes a second to load.
"""

from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, ScalarFormatter

from ssd.evaluation.figures import chief
from ssd.pictures.drawing import PALETTE
from ssd.pictures.lettering import plot_families, shown_in_plot
from ssd.report.history import History, deciding

_INK, _FAINT = "#24292f", "#8c959f"
# The colours of a sum's parts, by contrast to each other and to the sum's ink.
_LOSS_COLOURS = (PALETTE[0], PALETTE[3], PALETTE[2], PALETTE[1])
# With more parts than colours, the next ones have another line: a teacher alone may add seven.
_LOSS_LOOKS = [(colour, line) for line in ("-", "--", ":", "-.") for colour in _LOSS_COLOURS]
_METRIC_LOOKS = [
    (PALETTE[number], line)
    for lines in (("-", "--", ":", "-.", "-."), ("--", ":", "-", ":", "--"))
    for number, line in zip((0, 2, 3, 4, 5), lines, strict=True)
]
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": _FAINT,
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "font.size": 11,
    "grid.color": "#e5e8eb",
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 2,
    "text.color": _INK,
    "text.parse_math": False,  # dollars in names are dollars
    "xtick.color": _INK,
    "ytick.color": _INK,
}
# More classes than this get no colour of their own, and no numbers in the confusion matrix.
_FEW_CLASSES, _FEW_ROWS = len(PALETTE), 20
# Letters that a name may have in a legend of three columns.
_SHORT_NAME = 11
_MARK = "\u200b"


def write_plots(histories: Sequence[History], folder: Path) -> list[Path]:
    """Draws what the runs have data for; several are overlaid. Returns the files, in the order in which to show them.

    Files of earlier plots stay where there is nothing to draw instead.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    names = [history.name for history in histories]
    families = plot_families([*names, *shown_names(histories)])
    with matplotlib.rc_context({**_STYLE, "font.family": families}):
        for name, draw in _PLOTS.items():
            figure = draw(histories)
            if figure is not None:
                files.append(folder / f"{name}.png")
                figure.savefig(files[-1])
    return files


def curves(histories: Sequence[History]) -> Figure:
    """Loss and learning rate over epochs, metrics over epochs and over hours: of several runs AP alone."""
    figure = Figure(figsize=(10, 6.6))
    loss, ap, rate, ap_in_time = figure.subplots(2, 2).flat
    loss.set(title="Loss", xlabel="epoch")
    rate.set(title="Learning rate", xlabel="epoch")
    chosen = {deciding(history) for history in histories if history.evaluations}
    title = " and ".join(sorted(chosen)) if len(histories) > 1 and chosen else "AP"
    ap.set(title=title, xlabel="epoch")
    longest_h = max(history.steps[-1]["elapsed_s"] for history in histories) / 3600
    unit, per_hour = ("hours", 1) if longest_h >= 2 else ("minutes", 60)
    ap_in_time.set(title=f"{title} over time", xlabel=f"{unit}, evaluations included")
    for history, colour in zip(histories, _colours(len(histories)), strict=True):
        parts = {"loss": (_INK, "-"), **dict(zip(history.loss_names, cycle(_LOSS_LOOKS), strict=False))}
        for name, look_of_part in parts.items() if len(histories) == 1 else [("loss", (colour, "-"))]:
            own = {"loss": "sum"}.get(name, name.removesuffix("_loss"))
            label = _run_label(history, histories) if len(histories) > 1 else own
            _draw_loss(loss, history, name, look_of_part, label)
        epochs, rates = _series(history.steps, "epoch", "learning_rate")
        rate.plot(epochs, rates, color=colour, marker=_marker(epochs))
        metrics = chief(history.evaluations[-1]) if history.evaluations else ["AP"]
        hours = [history.hours_at(line["step"]) * per_hour for line in history.evaluations]
        shown = metrics if len(histories) == 1 or not history.evaluations else [deciding(history)]
        for metric, (metric_colour, line_style) in zip(shown, cycle(_METRIC_LOOKS), strict=False):
            epochs, values = _series(history.evaluations, "epoch", metric)
            name = metric if len(histories) == 1 else _run_label(history, histories)
            look: dict[str, Any] = {"linestyle": line_style, "marker": "o", "markersize": 5}
            look["color"] = metric_colour if len(histories) == 1 else colour
            look["label"] = _named(f"{name}  {values[-1]:.3f}" if values else name)
            ap.plot(epochs, values, **look)
            ap_in_time.plot(hours, values, **look)
    _limit_loss(loss, histories)
    rate.set_ylim(bottom=0)
    rate.yaxis.set_major_formatter("{x:g}")
    for axes in (ap, ap_in_time):
        axes.margins(x=0.04, y=0.22)  # room for the legend
        axes.autoscale_view()
        axes.set_ylim(bottom=0, top=max(0.01, axes.get_ylim()[1]))
        if any(history.evaluations for history in histories):
            axes.set_xlim(0, 1.04 * axes.dataLim.x1)  # the margin of a few points close to each other is too narrow
        else:
            axes.set_xlim(left=0)
            axes.text(0.5, 0.5, "not evaluated yet", transform=axes.transAxes, ha="center", color=_FAINT)
    for axes in (loss, ap):
        _legend(axes, ncols=_columns(axes) if len(histories) == 1 else 1, loc="best")
    last_epoch = max(history.steps[-1]["epoch"] for history in histories)
    for axes in (loss, rate):
        axes.set_xlim(left=0)
    for axes in (loss, rate, ap):
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=last_epoch >= 2))
    return figure


def shown_names(histories: Sequence[History]) -> dict[str, str]:
    """Class name -> what is drawn for it; of several runs, they are counted as they come."""
    names: dict[str, None] = {}
    for history in histories:
        if history.evaluation:
            names |= dict.fromkeys(history.evaluation["classes"])
        elif history.evaluations:
            names |= dict.fromkeys(history.evaluations[-1].get("per_class", {}))
    return {name: shown_in_plot(name, f"class {number}") for number, name in enumerate(names, start=1)}


def _run_label(history: History, histories: Sequence[History]) -> str:
    return shown_in_plot(history.name, f"run {1 + histories.index(history)}")


def _named(text: str) -> str:
    """A label for `_legend`: matplotlib leaves out those that begin with an underscore."""
    return f"{_MARK}{text}"


def _legend(axes: Axes, **look: Any) -> None:
    """A legend with the labels that `_named` has marked, letter by letter."""
    for text in axes.legend(**look).get_texts():
        text.set_parse_math(False)
        text.set_text(text.get_text().removeprefix(_MARK))


def _columns(axes: Axes) -> int:
    """Of a legend inside axes of a quarter of a figure: three, or two if their names are too long for that."""
    longest = max((len(name) for name in axes.get_legend_handles_labels()[1]), default=0)
    return 3 if longest <= _SHORT_NAME else 2


def _without_none(values: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _colours(count: int) -> list[str]:
    return [PALETTE[number % len(PALETTE)] for number in range(count)]


def _series(lines: Sequence[dict[str, Any]], x: str, y: str) -> tuple[list[float], list[float]]:
    """Without lines that have no such value: all their steps' losses were infinite."""
    kept = [line for line in lines if line.get(y) is not None]
    return [line[x] for line in kept], [line[y] for line in kept]


def _draw_loss(axes: Axes, history: History, name: str, look: tuple[str, str], label: str) -> None:
    """Every line of the log faintly, and their running mean."""
    epochs, values = _series(history.steps, "epoch", name)
    colour, line = look
    axes.plot(epochs, values, color=colour, alpha=0.25, linewidth=1)
    smooth = _running_mean(values)
    axes.plot(epochs, smooth, color=colour, linestyle=line, label=_named(label), marker=_marker(epochs))


def _marker(values: Sequence[float]) -> str | None:
    """One value alone makes no line."""
    return "o" if len(values) == 1 else None


def _running_mean(values: Sequence[float]) -> np.ndarray:
    """Of the last thirtieth of all values, so that the curve is as calm for a long run as for a short one."""
    width = max(1, len(values) // 30)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _limit_loss(axes: Axes, histories: Sequence[History]) -> None:
    """Leaves the first steps out of the scale, which are far above all others."""
    values = np.concatenate([_series(history.steps, "epoch", "loss")[1] for history in histories])
    if len(values):
        axes.set_ylim(0, 1.15 * np.quantile(values, 0.97))


def precision_recall(histories: Sequence[History]) -> Figure | None:
    """At an IoU of 0.5: of one run a curve a class, of several their means."""
    judged = [history for history in histories if history.evaluation]
    if not judged:
        return None
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    recall = np.linspace(0, 1, 101)
    shown = shown_names(histories)
    for history, colour in zip(judged, _colours(len(judged)), strict=True):
        of_class = _curves_of(history)
        if not of_class:
            continue
        mean = np.mean(list(of_class.values()), axis=0)
        if len(histories) > 1:
            axes.plot(recall, mean, color=colour, label=_named(f"{_run_label(history, histories)}  {mean.mean():.3f}"))
            continue
        best_first = sorted(of_class, key=lambda name: -of_class[name].mean())
        many = len(of_class) > _FEW_CLASSES
        named = [*best_first[:3], *best_first[-3:]] if many else best_first
        for name in best_first:
            if name not in named:
                axes.plot(recall, of_class[name], color="#c8cdd2", linewidth=1)
        for name, class_colour in zip(named, PALETTE, strict=False):
            label = _named(f"{shown[name]}  {of_class[name].mean():.3f}")
            axes.plot(recall, of_class[name], color=class_colour, label=label)
        axes.plot(recall, mean, color=_INK, linewidth=3, label=_named(f"mean  {mean.mean():.3f}"))
    axes.set(title="Precision and recall at IoU 0.5", xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    _legend(axes, title="AP50", loc="center left", bbox_to_anchor=(1, 0.5), alignment="left")
    return figure


def _curves_of(history: History) -> dict[str, np.ndarray]:
    """Of the classes that have ground truth."""
    evaluation = history.evaluation or {"classes": [], "precision_at_iou50": []}
    curves_by_class = zip(evaluation["classes"], evaluation["precision_at_iou50"], strict=True)
    return {name: np.array(curve) for name, curve in curves_by_class if curve is not None}


def confusion(histories: Sequence[History]) -> Figure | None:
    """Of one run: true classes against predicted ones."""
    if len(histories) > 1 or not histories[0].evaluation:
        return None
    about = histories[0].evaluation["confusion"]
    counts = np.array(about["matrix"])
    shown = shown_names(histories)
    names = [shown[name] for name in histories[0].evaluation["classes"]]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(12.0, 2.6 + 0.55 * len(counts))
    figure = Figure(figsize=(side + 1.2, side))
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    is_small = len(names) < _FEW_ROWS
    small = 11 if is_small else 6
    turned: dict[str, Any] = {"rotation": 45 if is_small else 90, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(counts)), [*names, "missed"], fontsize=small, **turned)
    axes.set_yticks(range(len(counts)), [*names, "no object"], fontsize=small)
    if is_small:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                shade = "white" if shares[row, column] > 0.5 else _INK
                axes.text(column, row, str(count), ha="center", va="center", color=shade)
    for edge in (axes.axhline, axes.axvline):  # what is no class stands apart
        edge(len(names) - 0.5, color=_INK, linewidth=1)
    axes.grid(False)
    axes.set(title=f"Confusion at score ≥ {about['score']}, IoU ≥ {about['iou']}", xlabel="detected as", ylabel="true")
    figure.colorbar(image, ax=axes, label="share of the row", shrink=0.8)
    return figure


def per_class(histories: Sequence[History]) -> Figure | None:
    """Each class's AP in the last evaluation, best first; of one run its AP50 behind it."""
    judged = [history for history in histories if history.evaluations]
    if not judged:
        return None
    # Without classes that the split has no objects of. Runs may be of other classes than each other.
    found = [_without_none(history.evaluations[-1].get("per_class", {})) for history in judged]
    names = list(dict.fromkeys(name for values in found for name in values))
    names.sort(key=lambda name: max(values.get(name, 0.0) for values in found))
    if not names:
        return None
    rows = np.arange(len(names))
    thickness = 0.75 / len(found)
    figure = Figure(
        figsize=(8, 1.4 + (0.36 if len(names) < _FEW_ROWS else 0.22) * len(names) * max(1, 0.75 * len(found)))
    )
    axes = figure.subplots()
    if len(histories) == 1 and histories[0].evaluation:
        of_class = _curves_of(histories[0])
        axes.barh(rows, [of_class[name].mean() for name in names], thickness, color="#bfdcee", label=_named("AP50"))
    for number, (history, values) in enumerate(zip(judged, found, strict=True)):
        places = rows + thickness * ((len(found) - 1) / 2 - number)
        label = _named(_run_label(history, histories) if len(histories) > 1 else "AP")
        aps = [values.get(name) for name in names]
        axes.barh(places, [ap or 0.0 for ap in aps], thickness, color=PALETTE[number % len(PALETTE)], label=label)
        for place, ap in zip(places, aps, strict=True):
            if len(found) < 3 and ap is not None:
                inside = ap > 0.12 and len(histories) == 1
                axes.text(ap + (-0.008 if inside else 0.008), place, f"{ap:.3f}", va="center", fontsize=9,
                          ha="right" if inside else "left", color="white" if inside else _INK)  # fmt: skip
    shown = shown_names(histories)
    axes.set_yticks(rows, [shown.get(name, name) for name in names], fontsize=11 if len(names) < _FEW_ROWS else 8)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set(title="AP by class", xlim=(0, 1))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    _legend(axes, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1, ncols=3)
    return figure


def box_sizes(histories: Sequence[History]) -> Figure | None:
    """Of one run's split: sizes of its boxes, which of them a default box matches, and the default boxes' own."""
    if len(histories) > 1 or not histories[0].evaluation:
        return None
    sizes = histories[0].evaluation.get("box_sizes")
    if sizes is None:
        return None
    covered, uncovered = np.array(sizes["covered"]), np.array(sizes["uncovered"])
    total = covered.sum() + uncovered.sum()
    if total == 0:
        return None
    figure = Figure(figsize=(8, 4.2))
    axes = figure.subplots()
    edges_px = np.array(sizes["edges_px"])
    axes.stairs(covered, edges_px, fill=True, color=PALETTE[0], label="a default box has IoU > 0.5 with it")
    axes.stairs(covered + uncovered, edges_px, baseline=covered, fill=True, color=PALETTE[3], label="none has")
    top = 1.3 * (covered + uncovered).max()
    for size, scale_px in sizes.get("levels", []):
        axes.axvline(scale_px, color=_INK, linewidth=1, linestyle=":", ymax=0.86)
        axes.text(scale_px, 0.88 * top, f"{size}×{size}", ha="center", fontsize=9)
    axes.set_xscale("log")
    ticks_px = (1, 2, 3, 5, 10, 20, 50, 100, 200, 300, 500, 1000)
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks_px if edges_px[0] <= tick <= edges_px[-1]]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set(ylim=(0, top), xlim=(edges_px[0], edges_px[-1] * 1.05), ylabel="boxes of the validation split",
             xlabel=f"√(width × height) in pixels of the {edges_px[-1]:.0f} × {edges_px[-1]:.0f} input; "
             "dotted: default boxes, by feature map",
             title=f"Default boxes cover {covered.sum() / total:.0%} of {total} boxes")  # fmt: skip
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


_PLOTS: dict[str, Callable[[Sequence[History]], Figure | None]] = {
    "curves": curves,
    "per_class": per_class,
    "precision_recall": precision_recall,
    "confusion": confusion,
    "box_sizes": box_sizes,
}
