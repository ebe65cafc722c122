"""The loop on a model of a few weights: when it saves, what it keeps, that interruptions change nothing, and what may
not change between."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from toy_training import (
    CPU,
    DESCRIBE,
    GOOD,
    UNOFFICIAL,
    Loader,
    batch_of,
    equal,
    interrupt_at,
    lines_of,
    log_of,
    names,
    new_training,
    resumed,
    run_training,
    weights_of,
)

from ssd.checkpoints import checkpoint
from ssd.checkpoints.retention import kept
from ssd.config import Config
from ssd.detectors.names import settings_named
from ssd.errors import InputError
from ssd.run.files import Run
from ssd.training import resume
from ssd.training.evaluations import Judge
from ssd.training.interruption import Preempted
from ssd.training.loop import train

# --- when it saves, and what it keeps ---


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        ((1, "steps"), range(1, 13)),
        ((5, "steps"), [5, 10, 12]),
        ((1, "epochs"), [3, 6, 9, 12]),
        ((3, "epochs"), [9, 12]),
    ],
)
def test_checkpoints_are_written_when_they_are_due(every: tuple[int, str], steps: list[int], tmp_path: Path) -> None:
    run_training(new_training(checkpoint_every=every, evaluation=(), keep_checkpoints=99), tmp_path)
    assert names(tmp_path) == ["best.pt", "last.pt", *(f"step-{step:08}.pt" for step in steps)]


def test_checkpoints_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of this clock is 25 seconds: two minutes are over after steps 5 and 10."""
    training = new_training(checkpoint_every=(2, "minutes"), evaluation=(), keep_checkpoints=99)
    monkeypatch.setattr("ssd.checkpoints.retention.time.monotonic", lambda: 25.0 * training.step)
    run_training(training, tmp_path)
    assert names(tmp_path) == ["best.pt", "last.pt", "step-00000005.pt", "step-00000010.pt", "step-00000012.pt"]


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    training = new_training(evaluation=(1, 2, 3), keep_checkpoints=2)
    run_training(training, tmp_path, aps=[0.1, 0.3, 0.2, 0.1])
    assert names(tmp_path) == ["best.pt", "last.pt", "step-00000009.pt", "step-00000012.pt"]
    last, best = (checkpoint.load_run(tmp_path / "checkpoints" / name) for name in ("last.pt", "best.pt"))
    assert (last["step"], last["best_ap"], best["step"], best["best_ap"]) == (12, 0.3, 6, 0.3)
    assert equal(last["model"], training.model.state_dict())


def test_the_first_metric_decides_what_is_best_and_whether_the_target_is_reached(tmp_path: Path) -> None:
    """VOC's, in spite of COCO's AP, which goes the other way here."""
    aps = iter([(0.9, 0.3), (0.8, 0.6), (0.7, 0.2)])

    def metrics(detections: np.ndarray) -> dict[str, Any]:
        ap, voc = next(aps)
        return {"AP": ap, "AP50": ap, "VOC07": voc}

    training = new_training(metrics=("voc07", "coco"), target=0.5, evaluation=(1, 2, 3))
    judge = Judge(lambda _: np.zeros((0, 7)), metrics)
    results, reached = train(training, Loader(), judge, Run(tmp_path, CPU), UNOFFICIAL, DESCRIBE)
    assert reached and training.step == 2 * Loader.steps_per_epoch and results["VOC07"] == 0.6
    best = checkpoint.load_run(tmp_path / "checkpoints" / "best.pt")
    assert (best["step"], best["best_ap"]) == (training.step, 0.6)

    content = {"data": {}, "settings": {"metrics": ["voc07", "coco"]}}
    config = replace(training.config, metrics=("coco", "voc07"))
    with pytest.raises(InputError, match="the best checkpoint was chosen by voc07; name it first in --metrics"):
        resume.resume(training, Loader(), content, {"data": {}}, config)


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    run_training(new_training(keep_checkpoints=1), tmp_path)
    assert names(tmp_path) == ["best.pt", "last.pt", "step-00000012.pt"]
    assert checkpoint.load_run(tmp_path / "checkpoints" / "last.pt")["step"] == 12


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    run_training(new_training(keep_checkpoints=3), tmp_path)
    files = kept(tmp_path)
    assert [file.name for file in files] == ["last.pt", "step-00000009.pt", "step-00000006.pt"]
    assert checkpoint.load_newest(files)[0].name == "last.pt"
    for damaged, next_name in ((files[0], "step-00000009.pt"), (files[1], "step-00000006.pt")):
        damaged.write_bytes(damaged.read_bytes()[:-100])
        file, content, complaints = checkpoint.load_newest(kept(tmp_path))
        assert file.name == next_name and content["step"] == int(next_name[5:13])
        assert str(damaged) in complaints[-1]
    files[2].write_bytes(b"")
    with pytest.raises(checkpoint.InputError, match="none of these checkpoints"):
        checkpoint.load_newest(kept(tmp_path))


def test_going_back_makes_new_checkpoints_the_newest(tmp_path: Path) -> None:
    """From step 3 of a run that had got to 12, a checkpoint at step 6 is newer than that of step 12."""
    run_training(new_training(keep_checkpoints=9), tmp_path)
    training, loader = resumed(tmp_path / "checkpoints" / "step-00000003.pt", keep_checkpoints=2, epochs=2)
    run_training(training, tmp_path, loader)
    assert names(tmp_path)[-2:] == ["step-00000006.pt", "step-00000012.pt"]
    assert [checkpoint.load_run(file)["step"] for file in kept(tmp_path)] == [6, 12]


# --- interruptions ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("stop", [2, 3, 4, 6])
def test_a_signal_saves_at_the_steps_end_and_changes_nothing(stop: int, number: int, tmp_path: Path) -> None:
    """Within an epoch, and at its end with the evaluation yet to come: weights, log and results are equal."""
    settings: dict[str, Any] = {"epochs": 2, "evaluation": (1,), "checkpoint_every": (2, "epochs")}
    undisturbed = new_training(**settings)
    expected, _ = run_training(undisturbed, tmp_path / "undisturbed", aps=[0.2, 0.1])

    before = signal.getsignal(number)
    training = new_training(**settings)
    with pytest.raises(Preempted, match=f"ended after step {stop} of 6"):
        run_training(training, tmp_path / "run", interrupt_at(stop, training, number), aps=[0.2] * (stop > 3))
    assert signal.getsignal(number) == before
    last = checkpoint.load_run(tmp_path / "run" / "checkpoints" / "last.pt")
    assert last["step"] == stop and last["judged_step"] == 3 * (stop > 3)  # of step 6, the evaluation is yet to come

    training, loader = resumed(tmp_path / "run" / "checkpoints" / "last.pt", **settings)
    results, _ = run_training(training, tmp_path / "run", loader, aps=[0.2, 0.1][stop > 3 :])
    assert equal(weights_of(training), weights_of(undisturbed))
    groups, expected_groups = (t.optimizer.state_dict()["param_groups"] for t in (training, undisturbed))
    assert groups == expected_groups
    assert training.best_ap == undisturbed.best_ap == 0.2
    assert results["AP"] == expected["AP"]
    for event in ("train", "evaluation"):
        told, should_be = (log_of(tmp_path / name, event) for name in ("run", "undisturbed"))
        for key in ("step", "loss", "AP", "learning_rate"):
            assert [line.get(key) for line in told] == [line.get(key) for line in should_be]


def test_an_epochs_line_counts_the_steps_before_the_interruption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def epoch_lines() -> list[str]:
        said = capsys.readouterr().out.splitlines()
        return [line.partition("  lr")[0] for line in said if line.startswith("epoch 1/")]

    run_training(new_training(epochs=1), tmp_path / "undisturbed")
    expected = epoch_lines()
    training = new_training(epochs=1)
    with pytest.raises(Preempted):
        run_training(training, tmp_path / "run", interrupt_at(2, training))
    assert epoch_lines() == []
    training, loader = resumed(tmp_path / "run" / "checkpoints" / "last.pt", epochs=1)
    assert training.tally.elapsed_s > 0
    run_training(training, tmp_path / "run", loader)
    assert epoch_lines() == expected and len(expected) == 1


def test_a_kill_in_an_evaluation_repeats_the_evaluation_only(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def die(is_asked_to_end: Callable[[], bool]) -> np.ndarray:
        raise Killed

    settings: dict[str, Any] = {"epochs": 2, "evaluation": (1,), "checkpoint_every": (2, "epochs")}
    with pytest.raises(Killed):
        train(new_training(**settings), Loader(), Judge(die, len), Run(tmp_path, CPU), UNOFFICIAL, DESCRIBE)
    training, loader = resumed(kept(tmp_path)[0], **settings)
    assert (training.step, training.judged_step) == (3, 0)
    run_training(training, tmp_path, loader, aps=[0.5, 0.4])
    assert [(line["epoch"], line["AP"]) for line in log_of(tmp_path, "evaluation")] == [(1, 0.5), (2, 0.4)]
    assert checkpoint.load_run(tmp_path / "checkpoints" / "best.pt")["step"] == 3


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_signal_in_an_evaluation_ends_it_there(epoch: int, tmp_path: Path) -> None:
    """In the last one too, after which no step comes."""
    judged = []

    def detect(is_asked_to_end: Callable[[], bool]) -> np.ndarray:
        judged.append(is_asked_to_end())
        if len(judged) == epoch:
            os.kill(os.getpid(), signal.SIGTERM)
            judged.append(is_asked_to_end())
        return np.zeros((0, 7))

    settings: dict[str, Any] = {"epochs": 2, "evaluation": (1,), "checkpoint_every": (2, "epochs")}
    judge = Judge(detect, lambda _: {"AP": 0.5, "AP50": 0.0})
    with pytest.raises(Preempted, match=f"ended after step {3 * epoch} of 6, before it was judged, as it was asked to"):
        train(new_training(**settings), Loader(), judge, Run(tmp_path, CPU), UNOFFICIAL, DESCRIBE)
    assert judged == [False] * epoch + [True]
    training, loader = resumed(tmp_path / "checkpoints" / "last.pt", **settings)
    run_training(training, tmp_path, loader, aps=[0.25] * (3 - epoch))
    found = [(line["epoch"], line["AP"]) for line in log_of(tmp_path, "evaluation")]
    assert found == [(1, 0.25), (2, 0.25)] if epoch == 1 else [(1, 0.5), (2, 0.25)]


def test_statistics_are_each_ranks_own_or_on_other_ranks_their_mean() -> None:
    """Within an epoch the ranks' statistics differ, and a rank that is alone goes on with all of them."""
    training, other = new_training(), new_training()
    training.train_step(training.model, batch_of(GOOD), lr=0.1)
    content = training.state()
    (own,) = content["statistics"]
    other.restore(content)
    assert torch.equal(torch.cat([other.model.norm.running_mean, other.model.norm.running_var]), own)
    other.restore({**content, "statistics": [own, 3 * own]})
    torch.testing.assert_close(torch.cat([other.model.norm.running_mean, other.model.norm.running_var]), 2 * own)


def test_rewinding_drops_what_a_checkpoint_does_not_know(tmp_path: Path) -> None:
    run = Run(tmp_path, CPU)
    run.rewind(3, 0)  # no log yet
    for step in (1, 2, 3, 4):
        run.log("train", step=step)
    run.log("evaluation", step=1, epoch=1)
    run.log("evaluation", step=2, epoch=2)
    run.log("other")
    run.write_results({"AP": 1.0})
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write('{"event": "train", "step": 2')  # killed while it wrote
    run.rewind(2, 1)
    run.log("train", step=3)
    told = [(line["event"], line.get("step")) for line in lines_of(tmp_path / "log.jsonl")]
    assert told == [("train", 1), ("train", 2), ("evaluation", 1), ("other", None), ("train", 3)]
    assert not (tmp_path / "results.json").exists()


def test_a_step_that_stalls_ends_the_process_and_says_where() -> None:
    """The watchdog alone, in a process of its own."""
    script = (
        "import time, ssd.training.interruption as i\n"
        "i._GRACE_S = 0.2\n"
        "dog = i.Watchdog(0.3)\n"
        "dog.is_alive()\n"
        "def stalls(): time.sleep(600)\n"
        "stalls()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "Timeout" in done.stderr and "in stalls" in done.stderr


def test_a_setting_that_goes_back_to_its_usual_value_is_a_change_too() -> None:
    """data_identity leaves it out then, as checkpoints from before it do."""
    usual = Config(detector=settings_named("fasterrcnn_resnet18_fpn"), seed=0)
    few = usual.overlaid({"boxes_an_image": 64})
    loader: Any = SimpleNamespace(identity={})
    of_few, of_usual = (resume.data_identity(config, "", loader, CPU) for config in (few, usual))
    assert "boxes_an_image" not in of_usual
    saved, training = {"settings": usual.to_dict()}, new_training()
    with pytest.raises(InputError, match="boxes_an_image was 64 and is 512"):
        resume.resume(training, loader, {**saved, "data": of_few}, {"data": of_usual}, usual)
    with pytest.raises(InputError, match="boxes_an_image was 512 and is 64"):
        resume.resume(training, loader, {**saved, "data": of_usual}, {"data": of_few}, few)
