"""Commands of main.py that build upon each other; what has ended is not done again, and what was stopped goes on."""

import contextlib
import hashlib
import io
import json
import os
import re
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py has it, before torch is imported
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402

from ssd.cli.commands import main  # noqa: E402
from ssd.environment import git_revision, hardware, versions  # noqa: E402


def run(*arguments: object, may_fail: bool = False) -> int:
    """The exit code. Ends the program where it is none of success, unless it may fail."""
    command = [str(argument) for argument in arguments]
    print(f"$ main.py {shlex.join(command)}", flush=True)
    code = main(command)
    if code and not may_fail:
        sys.exit(code)
    return code


def train(folder: Path, *arguments: object) -> Path:
    """The folder of a run that has ended, now or before; ends the program where it was begun by other arguments."""
    begun, ended, command = folder / "begun", folder / "ended", shlex.join(map(str, arguments))
    if begun.exists() and begun.read_text() != command:
        sys.exit(f"{folder}: was begun as {begun.read_text()}; move it away, or pass the same flags")
    if not ended.exists():
        folder.mkdir(parents=True, exist_ok=True)
        begun.write_text(command)
        run(*arguments, "--output", folder, "--resume", "auto")
        ended.touch()
    return folder


def last_of(folder: Path) -> Path:
    return folder / "checkpoints" / "last.pt"


def build_upon(folder: Path, source: Path, **settings: object) -> None:
    """Ends the program where the stages in a folder were built upon another file than this one, or by other
    settings."""
    note, digest = folder / "built-upon.json", hashlib.sha256(source.read_bytes()).hexdigest()
    upon = json.dumps({"file": source.name, "sha256": digest, **settings}) + "\n"
    if note.exists() and note.read_text() != upon:
        sys.exit(f"{folder}: what is there was built upon {note.read_text().strip()}; move all of it away")
    note.write_text(upon)


def judged(file: Path, data: Sequence[object]) -> dict[str, Any]:
    """Its metrics. A model that detects nothing, which `evaluate` takes for a mistake, has an AP of 0 here."""
    metrics = file.with_suffix(".json")
    if not metrics.exists():
        command = ["evaluate", "--checkpoint", file, *data, "--score-threshold", 0.005, "--json", metrics]
        with contextlib.redirect_stderr(io.StringIO()) as said:
            code = run(*command, may_fail=True)
        print(said.getvalue(), end="", file=sys.stderr)
        if code:
            if "detects nothing" not in said.getvalue():
                sys.exit(code)
            metrics.write_text(json.dumps(dict.fromkeys(("AP", "AP50"), 0.0)) + "\n")
    found: dict[str, Any] = json.loads(metrics.read_text())
    return found


def figures_of(folder: Path) -> dict[str, float]:
    """Of a run that has ended: AP and AP50 of its last checkpoint, and the minutes that it trained."""
    results = json.loads((folder / "results.json").read_text())
    return {"AP": results["AP"], "AP50": results["AP50"], "minutes": results["train_seconds"] / 60}


def name_of(words: str) -> str:
    """For a folder."""
    return re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-")


def gains_over_seeds(by_seed: list[dict[str, dict[str, float]]], base: str) -> list[dict[str, Any]]:
    """A row for each name: means, and the standard deviation of the gains over the run of that seed named base."""
    rows = []
    for name in by_seed[0]:
        runs = [of_seed[name] for of_seed in by_seed]
        gains = [of_seed[name]["AP"] - of_seed[base]["AP"] for of_seed in by_seed]
        compared = name != base
        rows.append(
            {
                "name": name,
                **{key: statistics.mean(run[key] for run in runs) for key in ("AP", "AP50")},
                "minutes": statistics.mean(run["minutes"] for run in runs) if "minutes" in runs[0] else None,
                "gain": statistics.mean(gains) if compared else None,
                "sd of it": statistics.stdev(gains) if compared and len(gains) > 1 else None,
            }
        )
    return rows


def write_result(file: Path, content: dict[str, Any]) -> None:
    """With the machine, the versions and the revision that it was made with."""
    about = {
        "hardware": hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "versions": versions(),
        "git_revision": git_revision(),
    }
    file.write_text(json.dumps({**content, **about}, indent=2) + "\n")


def table_of(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """Rows with a "name" and the columns' values, right-aligned."""

    def text(value: Any) -> str:
        if value is None:
            return ""
        return f"{value:,}" if isinstance(value, int) else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"

    lines = [["", *columns], *([row["name"], *(text(row[column]) for column in columns)] for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
