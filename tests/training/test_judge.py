"""Evaluations whose metrics another process computes: the run is the same as one that waits for each."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_up_metrics
import numpy as np
import psutil
import pytest
from runs import ENVIRONMENT, ROOT, log_of
from torch import Tensor
from toy_training import (
    CPU,
    DESCRIBE,
    UNOFFICIAL,
    Loader,
    equal,
    interrupt_at,
    lines_of,
    new_training,
    resumed,
    weights_of,
)

from ssd.checkpoints import checkpoint
from ssd.evaluation.metrics import DECIDING
from ssd.run.files import Run
from ssd.training.evaluations import Judge
from ssd.training.interruption import Preempted
from ssd.training.loop import train
from ssd.training.state import Training

SETTINGS: dict[str, Any] = {"evaluation": (1, 2), "epochs": 3, "checkpoint_every": (3, "epochs")}
EVALUATIONS = [(1, 3, 0.1), (2, 6, 0.3), (3, 9, 0.2)]  # epoch, step, AP

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("overlapping")]


@pytest.fixture
def overlapping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssd.training.evaluations.OVERLAP_FROM", 1)


def run_training(
    training: Training,
    folder: Path,
    loader: Loader | None = None,
    *,
    seconds: float = 0,
    metrics: Callable[[np.ndarray], dict[str, Any]] = made_up_metrics.metrics_of,
) -> dict[str, Any]:
    judge = Judge(lambda _: np.array([[seconds, training.step, os.getpid()]]), metrics)
    return train(training, loader or Loader(), judge, Run(folder, CPU), UNOFFICIAL, DESCRIBE)[0]


def evaluations(folder: Path) -> list[tuple[int, int, float]]:
    return [(line["epoch"], line["step"], line["AP"]) for line in log_of(folder, "evaluation")]


def assert_no_children() -> None:
    """But for the process by which Python's multiprocessing cleans up."""
    commands = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert [command for command in commands if "spawn_main" in command] == []


def test_nothing_but_the_time_is_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, what the log says of each evaluation, checkpoints; and the weights are those of no evaluation."""
    overlapping = new_training(**SETTINGS)
    results = run_training(overlapping, tmp_path / "overlapping")
    monkeypatch.setattr("ssd.training.evaluations.OVERLAP_FROM", 10)
    here = new_training(**SETTINGS)
    expected = run_training(here, tmp_path / "here")
    without = new_training(**{**SETTINGS, "evaluation": ()})
    run_training(without, tmp_path / "without")

    assert equal(weights_of(overlapping), weights_of(here)) and equal(weights_of(without), weights_of(here))
    assert results["AP"] == expected["AP"] == 0.2
    assert evaluations(tmp_path / "overlapping") == evaluations(tmp_path / "here") == EVALUATIONS
    best, expected_best, last = (
        checkpoint.load_run(tmp_path / name / "checkpoints" / file)
        for name, file in (("overlapping", "best.pt"), ("here", "best.pt"), ("overlapping", "last.pt"))
    )
    assert equal(best["model"], expected_best["model"])
    assert [best[key] for key in ("step", "best_ap", "judged_step")] == [6, 0.3, 6]
    assert [last[key] for key in ("step", "best_ap", "judged_step")] == [9, 0.3, 9]
    assert_no_children()


def test_a_run_is_judged_by_a_metric_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ssd.training.evaluations.OVERLAP_FROM", 10)
    monkeypatch.setitem(DECIDING, "shape", "shapeliness")
    training = new_training(**SETTINGS, metrics=("shape",))
    results = run_training(training, tmp_path, metrics=lambda found: {"shapeliness": made_up_metrics.APS[found[0, 1]]})
    assert results["shapeliness"] == 0.2 and training.best_ap == 0.3 and "AP" not in results
    assert [line["shapeliness"] for line in log_of(tmp_path, "evaluation")] == [0.1, 0.3, 0.2]
    assert "epoch 2: shapeliness 0.300" in capsys.readouterr().out
    assert checkpoint.load_run(tmp_path / "checkpoints" / "best.pt")["step"] == 6


def test_training_goes_on_meanwhile_and_a_checkpoint_waits(tmp_path: Path) -> None:
    run_training(new_training(**{**SETTINGS, "evaluation": (1,), "epochs": 2}), tmp_path, seconds=0.5)
    lines = [(line["event"], line["step"]) for line in lines_of(tmp_path / "log.jsonl")]
    assert lines == [*(("train", step) for step in range(1, 7)), ("evaluation", 3), ("evaluation", 6)]


def test_a_signal_waits_for_the_metrics_and_changes_nothing(tmp_path: Path) -> None:
    """All processes of a job get it, the one that computes the metrics too."""
    undisturbed = new_training(**SETTINGS)
    run_training(undisturbed, tmp_path / "undisturbed")
    training = new_training(**SETTINGS)
    with pytest.raises(Preempted, match="ended after step 4 of 9"):
        run_training(training, tmp_path / "run", interrupt_at(4, training), metrics=made_up_metrics.obstinate)
    assert evaluations(tmp_path / "run") == EVALUATIONS[:1]
    training, loader = resumed(tmp_path / "run" / "checkpoints" / "last.pt", **SETTINGS)
    assert (training.step, training.judged_step, training.best_ap) == (4, 3, 0.1)
    run_training(training, tmp_path / "run", loader)
    assert equal(weights_of(training), weights_of(undisturbed))
    assert evaluations(tmp_path / "run") == EVALUATIONS
    assert_no_children()


class Killed(BaseException):
    pass


def test_a_run_that_dies_with_metrics_to_come_leaves_no_process(tmp_path: Path) -> None:
    def images_of(step: int) -> Tensor:
        if step == 4:
            raise Killed
        return Loader.random_images(step)

    with pytest.raises(Killed):
        run_training(new_training(**SETTINGS), tmp_path, Loader(images_of), seconds=60)
    assert evaluations(tmp_path) == []
    assert_no_children()


def test_a_run_that_dies_after_the_metrics_and_before_a_checkpoint_judges_again(tmp_path: Path) -> None:
    """What it goes on from is of the epoch's end, so the log's line of the evaluation is taken back."""

    def images_of(step: int) -> Tensor:
        time.sleep(0.05)
        if evaluations(tmp_path):
            raise Killed
        return Loader.random_images(step)

    with pytest.raises(Killed):
        run_training(
            new_training(evaluation=(1,), epochs=99, checkpoint_every=(99, "epochs")), tmp_path, Loader(images_of)
        )
    best, last = (checkpoint.load_run(tmp_path / "checkpoints" / name) for name in ("best.pt", "last.pt"))
    assert (best["step"], best["judged_step"], last["step"], last["judged_step"]) == (3, 3, 3, 0)
    Run(tmp_path, CPU).rewind(last["step"], last["judged_step"])
    training, loader = resumed(tmp_path / "checkpoints" / "last.pt", **SETTINGS)
    run_training(training, tmp_path, loader)
    assert evaluations(tmp_path) == EVALUATIONS


def test_a_lost_process_is_told_and_its_work_done_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = made_up_metrics.die_where_nobody_trains
    run_training(new_training(**{**SETTINGS, "evaluation": (1,)}), tmp_path, metrics=metrics)
    warning = "warning: epoch 1: lost the process that judges it (it ended with exit code -9); judging it here\n"
    assert warning in capsys.readouterr().out
    assert evaluations(tmp_path) == [EVALUATIONS[0], EVALUATIONS[2]]


PARENT = """
import time
from made_up_metrics import metrics_of
from ssd.training.background import Background
if __name__ == "__main__":
    Background(metrics_of, [[600, 0, 0]])
    print("begun", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_process_ends_with_its_parent(number: int, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])}
    with subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "begun\n"
        children = psutil.Process(parent.pid).children()
        parent.send_signal(number)
    assert len(children) == 2  # one cleans up
    assert psutil.wait_procs(children, timeout=60)[1] == []
