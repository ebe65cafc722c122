"""benchmarks/gpu.sh: every command of it is one that the programs take, and a part that fails keeps no other back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssd.cli.benchmark import benchmark_data_parser, benchmark_steps_parser
from ssd.options.detectors import detector_in

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import ragged_peers  # noqa: E402
import torchvision_steps  # noqa: E402
import train_peers  # noqa: E402

RAGGED = {"benchmarks/ragged_peers.py": ragged_peers, "benchmarks/torchvision_steps.py": torchvision_steps}

# In the place of Python: it notes a command in a line of its own, and says by "-c" whether torch sees a GPU.
PYTHON = """#!/bin/sh
[ "$1" != -c ] || exit "$NO_GPU"
{ printf '%s\\t' "$@"; echo; } >> "$CALLS"
exit "$CODE"
"""


def run_script(folder: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """How benchmarks/gpu.sh ended, and the commands that it gave to Python. Results are in folder/out."""
    python, calls = folder / "python", folder / "calls"
    python.write_text(PYTHON)
    python.chmod(0o755)
    calls.touch()
    command = [str(ROOT / "benchmarks" / "gpu.sh"), str(folder), str(folder), str(folder / "out")]
    told = {**os.environ, "PYTHON": str(python), "CALLS": str(calls), **environment}
    done = subprocess.run(command, env=told, capture_output=True, text=True)
    return done, [line.split("\t")[:-1] for line in calls.read_text().splitlines()]


def parts(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The parts that were run, in turn."""
    return [line.split()[1].rstrip(":") for line in done.stdout.splitlines() if line.startswith("== ")]


@pytest.mark.parametrize("checkpoint", [False, True], ids=["random", "trained"])
@pytest.mark.parametrize("gpu", [True, False], ids=["gpu", "tried"])
def test_its_commands_are_taken(gpu: bool, checkpoint: bool, tmp_path: Path) -> None:
    """With a GPU as it is, and without one with TRY=1."""
    (tmp_path / "last.pt").touch()
    environment = {} if gpu else {"TRY": "1"}
    if checkpoint:
        environment["CHECKPOINT"] = str(tmp_path / "last.pt")
    done, calls = run_script(tmp_path, NO_GPU=str(int(not gpu)), CODE="0", **environment)
    assert done.returncode == 0, done.stderr
    assert len(calls) == len(set(parts(done))) == 16 and not (tmp_path / "out" / "failed.txt").exists()
    for program, *words in calls:
        if program == "-m":
            assert words[0] == "pytest" and all((ROOT / word).is_file() for word in words[1:3])
        elif program == "benchmarks/train_peers.py":
            options = train_peers.options_parser().parse_args(words)
            assert options.rounds == (9 if gpu else 1)
        elif program in RAGGED:
            assert RAGGED[program].options_parser().parse_args(words).device == ("cuda" if gpu else "cpu")
        else:
            assert [program, words[0]] == ["main.py", "benchmark"]
            subject, flags = words[1], words[2:]
            settings = detector_in(flags)
            of_data = subject == "data"
            parser = benchmark_data_parser(settings) if of_data else benchmark_steps_parser(subject, settings)
            parser.parse_args(flags)
    assert any("--cuda-graphs" in words for words in calls) == gpu


def test_a_part_that_fails_is_noted_and_the_others_run(tmp_path: Path) -> None:
    done, calls = run_script(tmp_path, NO_GPU="1", CODE="3", TRY="1")
    assert done.returncode == 1 and len(calls) == 16
    noted = (tmp_path / "out" / "failed.txt").read_text().splitlines()
    assert noted == [f"failed: {part} (3)" for part in parts(done)]


def test_without_a_gpu_only_a_try_is_made(tmp_path: Path) -> None:
    done, calls = run_script(tmp_path, NO_GPU="1", CODE="0")
    assert (done.returncode, calls) == (2, []) and "TRY=1" in done.stderr
