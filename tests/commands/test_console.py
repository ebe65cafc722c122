"""What a user reads: names are shown as they are, and nobody has to read on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forked import ROOT
from runs import small_checkpoint

import main
from ssd.detectors.names import FAMILIES
from ssd.distributed import Ranks
from ssd.run.files import Run
from ssd.run.printed_metrics import show_metrics

HERE = Ranks(0, 0, 1, torch.device("cpu"))


def test_a_run_outlives_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        run = Run(tmp_path / "run", HERE)
        for _ in range(2):
            run.say("nobody reads this")
        print("nor this")
        run.log("train", step=1)
    assert (tmp_path / "run" / "log.jsonl").read_text().count("\n") == 1


def exit_code_without_readers(words: str, unbuffered: str, stderr: int) -> tuple[int, str]:
    """Of a command whose stdout nobody reads, and what it said on stderr; stderr: as of `subprocess`."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(ROOT / "main.py"), *words.split()]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=writer, stderr=stderr, text=True, env=environment)
    os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["summary", "--version", "thin --checkpoint IN --output OUT --flops 0.9"])
def test_a_command_keeps_its_exit_code_when_nobody_reads_on(words: str, unbuffered: str, tmp_path: Path) -> None:
    words = words.replace("IN", str(small_checkpoint())).replace("OUT", str(tmp_path / "out.pt"))
    assert exit_code_without_readers(words, unbuffered, subprocess.PIPE) == (0, "")


@pytest.mark.parametrize("words, expected", [("summary", 0), ("summary --detector yolov3", 2), ("no-such-command", 2)])
def test_nor_does_anybody_have_to_read_what_goes_wrong(words: str, expected: int) -> None:
    """As behind `2>&1 | head`."""
    assert exit_code_without_readers(words, "", subprocess.STDOUT)[0] == expected


def test_a_closed_stdout_harms_nothing() -> None:
    """As by `>&-` in a shell."""
    command = f"exec {sys.executable} {ROOT / 'main.py'} summary >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_its_packages_it_says_what_to_do() -> None:
    """As after `make demo` in a shell that does not know of .venv."""
    command = [sys.executable, "-S", str(ROOT / "main.py"), "evaluate"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {sys.executable} has no ") and "'. .venv/bin/activate'" in done.stderr


def test_summary_lists_the_names_of_all_detectors(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["summary"]) == 0
    said = capsys.readouterr().out.split()
    assert {name for family in FAMILIES.values() for name in family.names} <= set(said)


def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["[bold]", "[/bold]", ":car:", "a name that is so long that no table and no terminal has a line for it"]
    metrics = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100"), 0.5)
    show_metrics({**metrics, "per_class": dict.fromkeys(names, 0.5)}, ":car: [/bold]")
    shown = capsys.readouterr().out
    assert "more" not in shown and "without objects" not in shown
    assert shown.startswith(":car: [/bold]\n") and ", ".join(f"{name} 0.500" for name in names) in shown


def test_a_metric_of_any_name_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """As `train` hands them over: with figures of the run that are no metrics."""
    show_metrics({"shapeliness": 0.625, "APs": 0.25, "shapeliness_per_class": {"a": 0.5}, "train_seconds": 7.0}, "coco")
    shown = capsys.readouterr().out
    assert "others: shapeliness 0.625\n" in shown and "0.250" in shown
    assert not any(word in shown for word in ("AP50", "7.0", "by class", "without"))


def test_of_many_classes_the_best_and_the_worst_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100"), 0.5)
    per_class = {f"c{number}": 0.01 * number for number in range(30)} | {"none": None}
    show_metrics({**metrics, "per_class": per_class}, "coco")
    best, lacking = capsys.readouterr().out.splitlines()[-2:]
    assert best.startswith("AP by class: c29 0.290, c28 0.280,") and best.endswith("c1 0.010, c0 0.000")
    assert "c22 0.220, ... 14 more ..., c7 0.070" in best
    assert lacking == "without objects in the split: none"
