"""report.html: all there is to see of a run, in one file that needs no other. Of several runs, beside each other."""

import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ssd.config import Config
from ssd.errors import InputError
from ssd.evaluation.coco import METRIC_NAMES
from ssd.evaluation.figures import chief, figures
from ssd.pictures.lettering import note_on_numbers
from ssd.report.history import INSTANCES, PREDICTIONS, History, deciding, read_history, write_csv
from ssd.report.html import cards, page, picture, table
from ssd.report.plots import shown_names, write_plots

_CAPTIONS = {
    "curves": "Losses of long runs are running means, the log's lines faint behind. Metrics: of the validation split.",
    "per_class": "COCO's AP of each class, the mean over IoUs from 0.5 to 0.95.",
    "precision_recall": "AP50, the area under a curve, stands behind its name.",
    "confusion": "Detections paired with the ground truth they overlap most, whatever its class.",
    "box_sizes": "A box that no default box overlaps enough is learned by its nearest one only.",
    "predictions": "The first images of the validation split that have objects, as the network sees them.",
    "instances": "Boxes of a training batch that teacher and student thought most differently of, with the difference.",
}
_WIDE = ("curves", "predictions", "instances")


def write_plots_and_report(folders: Sequence[Path], output: Path) -> str:
    """Writes plots/ and report.html of runs' folders into output, and of a single run metrics.csv.

    Returns what the user should know of names that could not be drawn, '' if all could.
    Raises InputError for what is no run's folder, and where output cannot be written to.
    """
    histories = [read_history(folder) for folder in folders]
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {output}: cannot be a folder ({error.strerror}); pass another") from error
    pictures = write_plots(histories, output / "plots")
    if len(histories) == 1:
        write_csv(output / "metrics.csv", histories[0])
        own = [histories[0].folder / "plots" / name for name in (PREDICTIONS, INSTANCES)]  # which only the run can make
        pictures[1:1] = [file for file in own if file.exists()]
    note = note_on_numbers(shown_names(histories))
    # Names of folders may be no UTF-8.
    (output / "report.html").write_text(report(histories, pictures, note), encoding="utf-8", errors="replace")
    return note


def report(histories: Sequence[History], pictures: Sequence[Path], note: str = "") -> str:
    """The page. pictures: PNG or JPEG files, whose names without ending are keys of _CAPTIONS. note: on their names."""
    title = " · ".join(history.name for history in histories)
    subtitle = _about(histories[0]) if len(histories) == 1 else f"{len(histories)} runs compared"
    wide, narrow = (
        "".join(picture(file, _CAPTIONS[file.stem]) for file in pictures if (file.stem in _WIDE) == is_wide)
        for is_wide in (True, False)
    )
    about_names = f"<p>{escape(note)}</p>" if note else ""
    body = f"""{cards(_headline(histories[0]) if len(histories) == 1 else [])}
{wide}
<div class="columns">{narrow}</div>
<h2>COCO metrics of the last evaluation</h2>
{_results(histories)}
<h2>Classes</h2>
{about_names}{_classes(histories)}
<h2>Settings</h2>
<div class="list">{_settings(histories)}</div>
<h2>Machine</h2>
<div class="list">{_machine(histories)}</div>"""
    return page(title, subtitle, body)


def _about(history: History) -> str:
    settings = history.config["settings"]
    device = history.config["hardware"]["device"]
    # Until version 0.1 a run's config.json did not say which detector.
    title = history.config.get("detector") or f"SSD300-{settings['backbone']}"
    return (
        f"{title} on {Path(settings['data']).name}, {settings['data_pipeline']}, "
        f"{history.config['world_size']} × {device}, {_so_far(history)}"
    )


def _so_far(history: History) -> str:
    last, settings = history.steps[-1], history.config["settings"]
    if settings.get("steps"):
        return f"{last['step']} of {settings['steps']} steps"
    return f"{last['epoch']:.4g} of {settings['epochs']} epochs"


def _headline(history: History) -> list[tuple[str, str]]:
    """What it all came to: pairs of a figure and what it is."""
    last = history.steps[-1]
    cards: list[tuple[str, str]] = []
    if history.evaluations:
        judged, decides = history.evaluations[-1], deciding(history)
        names = dict.fromkeys((decides, *chief(judged)))
        cards += [(_score(judged[name]), name) for name in names if name in judged]
        best = max(history.evaluations, key=lambda line: float(line[decides]))
        if best[decides] > judged[decides]:
            cards.append((_score(best[decides]), f"best {decides}, epoch {best['epoch']:.4g}"))
    speed = (history.results or last)["images_per_second"]
    waited = sum(line["data_wait_s"] for line in history.steps)
    images = {"loss": last["loss"], "images a second": speed}
    cards += [(f"{value:.3g}", name) for name, value in images.items() if value is not None]
    cards.append((_duration(last["elapsed_s"]), "of training"))
    cards.append((f"{waited / max(last['elapsed_s'], 1e-9):.0%}", "of it waiting for data"))
    return cards


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 2 else f"{minutes:.0f} min" if minutes >= 10 else f"{minutes:.1f} min"


def _score(value: float | None) -> str:
    return "–" if value is None or value < 0 else f"{value:.3f}"


def _results(histories: Sequence[History]) -> str:
    last = [(history.name, line) for history in histories for line in history.evaluations[-1:]]
    if not last:
        return "<p>Not evaluated yet.</p>"
    names = [name for name in METRIC_NAMES if any(name in line for _, line in last)]
    rows = [[run, f"{line['epoch']:.4g}", *(_score(line.get(name)) for name in names)] for run, line in last]
    return table(["run", "epoch", *names], rows) + _others(histories)


def _others(histories: Sequence[History]) -> str:
    """A metric a row of those that are not COCO's of boxes; "" where there are none."""
    last = [history.evaluations[-1] if history.evaluations else {} for history in histories]
    names = dict.fromkeys(name for line in last for name in figures(line) if name not in METRIC_NAMES)
    if not names:
        return ""
    rows = [[name, *(_score(line.get(name)) for line in last)] for name in names]
    heading = ["metric", *(history.name for history in histories)]
    return f"<h2>Other metrics of the last evaluation</h2>\n{table(heading, rows)}"


def _classes(histories: Sequence[History]) -> str:
    judged = [history for history in histories if history.evaluations]
    if not judged:
        return "<p>Not evaluated yet.</p>"
    aps = [history.evaluations[-1].get("per_class", {}) for history in judged]
    names = sorted(aps[0], key=lambda name: -1.0 if aps[0][name] is None else -aps[0][name])
    columns = {
        f"AP {history.name}" if len(histories) > 1 else "AP": ap for history, ap in zip(judged, aps, strict=True)
    }
    for metric in ("VOC07", "VOC12"):
        for history in judged if all(f"{metric}_per_class" in each.evaluations[-1] for each in judged) else ():
            of_class = history.evaluations[-1][f"{metric}_per_class"]
            columns[f"{metric} {history.name}" if len(histories) > 1 else metric] = of_class
    rows = [[name, *(_score(ap.get(name)) for ap in columns.values())] for name in names]
    heading = ["class", *columns]
    if len(histories) == 1 and (evaluation := histories[0].evaluation):
        heading += ["AP50", "boxes"]
        boxes = dict(zip(evaluation["classes"], evaluation["boxes"], strict=True))
        curves = dict(zip(evaluation["classes"], evaluation["precision_at_iou50"], strict=True))
        for row in rows:
            curve = curves[row[0]]
            row += [_score(None if curve is None else sum(curve) / len(curve)), str(boxes[row[0]])]
    return table(heading, rows)


def _settings(histories: Sequence[History]) -> str:
    """Of one run those that are no defaults, of several those that they do not share; the others folded up."""
    every = [history.config["settings"] for history in histories]
    base = Config().to_dict() if len(every) == 1 else every[0]
    rows = {name: [_shown(settings.get(name)) for settings in every] for settings in every for name in settings}
    usual = {name for name, values in rows.items() if set(values) == {_shown(base.get(name))}}
    heading = ["setting", *(history.name for history in histories)]
    tables = [
        table(heading, [[name, *values] for name, values in rows.items() if (name in usual) == is_usual])
        for is_usual in (False, True)
    ]
    others = "left at their defaults" if len(every) == 1 else "equal in all runs"
    return f"{tables[0]}<details><summary>{len(usual)} {others}</summary>{tables[1]}</details>"


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "–"
    return "–" if value in (None, "") else str(value)


def _machine(histories: Sequence[History]) -> str:
    """Commands, hardware and versions."""
    columns = []
    for history in histories:
        config = history.config
        columns.append(
            {
                "command": shlex.join(config["command"]),
                "git revision": _shown(config["git_revision"]),
                "ranks": str(config["world_size"]),
                **{name.replace("_", " "): _shown(value) for name, value in config["hardware"].items()},
                **{name: _shown(value) for name, value in config["versions"].items()},
            }
        )
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(column.get(name, "–") for column in columns)] for name in names]
    return table(["", *(history.name for history in histories)], rows)
