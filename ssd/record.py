"""A run's folder and what its user sees: settings, JSON lines, results, the checkpoints' places, console progress.

Only rank 0 writes; on other ranks every method does nothing.
"""

import itertools
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ssd.config import Config
from ssd.console import Console
from ssd.distributed import Ranks
from ssd.errors import InputError
from ssd.keep import FOLDER, LAST, kept
from ssd.trackers import Trackers

_PACKAGES = ("torch", "torchvision", "numpy", "pycocotools", "faster-coco-eval", "pillow", "simplejpeg")


def choose_folder(name: str, output: str | None, resume: str | None) -> tuple[Path, list[Path]]:
    """The run's folder and the checkpoints to resume from, the one to prefer first; none to start anew.

    name: of the data. output: the folder if given; otherwise runs/<name>-<time>. resume: None, "auto" (the checkpoints
    of the folder, or of the newest runs/<name>-<time> if no folder is given; none is no error) or a file.
    Raises InputError rather than write over another run.
    """
    if resume == "auto":
        for folder in [Path(output)] if output else _runs_of(name):
            if files := kept(folder):
                return folder, files
        return (Path(output) if output else _new_folder(name, None)), []
    if resume is None:
        return _new_folder(name, output), []
    file = Path(resume)
    own = file.parent.parent if file.parent.name == FOLDER else None
    if own is not None and (output is None or Path(output).resolve() == own.resolve()):
        return own, [file]
    return _new_folder(name, output), [file]


def _runs_of(name: str) -> list[Path]:
    """The folders that `_new_folder` has given to this data, newest first."""
    pattern = re.compile(re.escape(name) + r"-\d{8}-\d{6}(-\d+)?")
    folders = Path("runs").iterdir() if Path("runs").is_dir() else ()
    return sorted((folder for folder in folders if pattern.fullmatch(folder.name)), reverse=True)


def _new_folder(name: str, output: str | None) -> Path:
    if output is not None:
        folder = Path(output)
        if any((folder / file).exists() for file in (FOLDER, "config.json", "log.jsonl")):
            raise InputError(f"--output {folder}: holds a run; pass --resume auto to go on with it, or another folder")
        return folder
    first = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    numbered = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(folder for folder in itertools.chain([first], numbered) if not folder.exists())


class Run:
    """One run's folder: config.json, log.jsonl, results.json, evaluation.json, checkpoints/, and lost-batches.jsonl if
    there are any. What it logs of steps and evaluations, its trackers are told too."""

    def __init__(self, folder: Path, ranks: Ranks, trackers: Trackers | None = None):
        self.folder = folder
        self.trackers = Trackers(()) if trackers is None else trackers
        self.last_checkpoint = folder / FOLDER / LAST
        self.lost_batches = folder / "lost-batches.jsonl"
        self.is_main = ranks.is_main
        self.console = Console(quiet=not ranks.is_main, soft_wrap=True)
        self._progress: _TrainingProgress | None = None
        if self.is_main:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"--output {folder}: cannot be a folder ({error.strerror}); pass another") from error

    def write_config(self, config: Config, ranks: Ranks) -> None:
        content = {
            "settings": config.to_dict(),
            "command": sys.argv,
            "world_size": ranks.world_size,
            "hardware": hardware(ranks.device),
            "versions": versions(),
            "git_revision": git_revision(),
        }
        self._write_json("config.json", content)

    def write_results(self, results: dict[str, Any]) -> None:
        self._write_json("results.json", results)

    def write_evaluation(self, evaluation: dict[str, Any]) -> None:
        """evaluation: as `analysis.analyse` returns it."""
        self._write_json("evaluation.json", evaluation, indent=None)

    def _write_json(self, name: str, content: dict[str, Any], indent: int | None = 2) -> None:
        if self.is_main:
            temporary = self.folder / f".{name}"
            temporary.write_text(json.dumps(content, indent=indent) + "\n")
            os.replace(temporary, self.folder / name)

    def log(self, event: str, **values: Any) -> None:
        """Appends one line to log.jsonl."""
        self._append(self.folder / "log.jsonl", {"event": event, "time_s": round(time.time(), 3), **values})
        if event in ("train", "evaluation"):
            self.trackers.scalars(_scalars(values, f"{event}/"), values["step"])

    def write_lost_batches(self, image_ids: dict[int, list[int]]) -> None:
        """Appends a line a step: the images of the ranks whose loss was not finite."""
        for step, ids in image_ids.items():
            self._append(self.lost_batches, {"step": step, "image_ids": ids})

    def _append(self, file: Path, content: dict[str, Any]) -> None:
        if self.is_main:
            with file.open("a") as stream:
                stream.write(json.dumps(content) + "\n")

    def rewind(self, step: int, judged_epoch: int) -> None:
        """Takes out of log.jsonl the steps after this one and the evaluations after that epoch, to which a killed run
        had got that goes on from here, and a line that it did not end; and earlier results, which are those of a run
        that is over."""
        file = self.folder / "log.jsonl"
        if not self.is_main:
            return
        for name in ("results.json", "evaluation.json"):
            (self.folder / name).unlink(missing_ok=True)
        if not file.exists():
            return
        lines = file.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("}\n") and _happened_by(json.loads(line), step, judged_epoch)]
        temporary = self.folder / ".log.jsonl"
        temporary.write_text("".join(kept))
        os.replace(temporary, file)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def start_progress(self, total_steps: int, first_step: int) -> None:
        """Shows a bar in a terminal; elsewhere the lines of `say` are all."""
        if not (self.is_main and self.console.is_terminal):
            return
        self._progress = _TrainingProgress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            transient=True,
        )
        self._progress.start()
        self._progress.add_task("training", total=total_steps, completed=first_step)

    def advance(self) -> None:
        """Moves the bar by one step."""
        if self._progress is not None:
            self._progress.advance(self._progress.task_ids[0])

    def show_state(self, text: str) -> None:
        """Puts a line under the bar, in place of the last one."""
        if self._progress is not None:
            self._progress.state = text

    def stop_progress(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def show_metrics(self, metrics: dict[str, Any], title: str) -> None:
        show_metrics(metrics, title, self.console)


def _happened_by(line: dict[str, Any], step: int, judged_epoch: int) -> bool:
    return line.get("step", 0) <= step and (line["event"] != "evaluation" or line["epoch"] <= judged_epoch)


class _TrainingProgress(Progress):
    """A bar with a line under it, so that neither is cut short in 80 columns."""

    state = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.state, no_wrap=True, overflow="ellipsis")


def _scalars(values: dict[str, Any], prefix: str) -> dict[str, float]:
    """The numbers of a line of the log, by name; those of a dictionary by its name and theirs: per_class/cat."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            found[prefix + name] = value
    return found


def show_metrics(metrics: dict[str, Any], title: str, console: Console | None = None) -> None:
    """Prints the COCO table and each class's AP, best first."""
    console = console or Console(soft_wrap=True)
    table = Table(title=escape(title), title_justify="left")
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100"):
        table.add_column(name, justify="right")
    table.add_row(*(_score(metrics[str(column.header)]) for column in table.columns))
    console.print(table)
    per_class = metrics["per_class"]
    best_first = sorted(per_class, key=lambda name: -1 if per_class[name] is None else per_class[name], reverse=True)
    console.print("AP by class: " + ", ".join(f"{name} {_score(per_class[name])}" for name in best_first), markup=False)


def _score(value: float | None) -> str:
    return "-" if value is None or value < 0 else f"{value:.3f}"


# DeepLearningExamples' SSD300-R50 after 65 epochs of COCO 2017 on 8 A100 with AMP, batch 128 each: mean and standard
# deviation of 15 seeds.
PUBLISHED_AP, PUBLISHED_AP_DEVIATION = 0.26795, 0.00136


def published_band(ap: float) -> str:
    """One line: where an AP in [0, 1] falls among NVIDIA's published seeds."""
    deviations = (ap - PUBLISHED_AP) / PUBLISHED_AP_DEVIATION
    side = "above" if deviations > 0 else "below"
    return (
        f"AP {ap:.4f} is {abs(deviations):.1f} standard deviations {side} the mean of NVIDIA's 15 published seeds, "
        f"{PUBLISHED_AP} +- {PUBLISHED_AP_DEVIATION}"
    )


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that can change a result; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    # One package, built for one CUDA or another, under another name each.
    dali = [d for d in distributions() if (d.metadata["Name"] or "").lower().startswith("nvidia-dali")]
    found["dali"] = dali[0].version if dali else None
    return found


def hardware(device: torch.device) -> dict[str, Any]:
    """What the run ran on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_model": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def git_revision() -> str | None:
    """The checkout's commit, with "-dirty" if files differ from it; None outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
