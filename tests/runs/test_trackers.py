"""Trackers are told what the log is; none is needed, and one that is not installed is named."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from report_folders import assert_self_contained
from runs import ENVIRONMENT, ROOT, SETTINGS, assert_equal_runs, last_of, write_small_data

import main
from ssd.distributed import Ranks
from ssd.errors import InputError
from ssd.run.files import Run
from ssd.run.trackers import _TRACKERS, Trackers

PIXELS = np.zeros((20, 30, 3), np.uint8)
CURVES = {"cat": np.linspace(1, 0, 101), "dog": np.ones(101)}


class Listener:
    """A tracker that remembers what it was told."""

    def __init__(self, folder: Path, settings: dict[str, object], step: int) -> None:
        self.told: list[tuple[str, int, object]] = []
        self.closed, self.settings = False, settings

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.told.append(("scalars", step, dict(values)))

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self.told.append((name, step, pixels.shape))

    def precision_recall(self, curves: Mapping[str, np.ndarray], step: int) -> None:
        self.told.append(("precision_recall", step, sorted(curves)))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> list[Listener]:
    """The listeners that `--track tensorboard` has opened, where the package need not be."""
    opened: list[Listener] = []

    def open_one(*arguments: object) -> Listener:
        opened.append(Listener(*arguments))  # type: ignore[arg-type]
        return opened[-1]

    monkeypatch.setitem(_TRACKERS, "tensorboard", open_one)  # type: ignore[arg-type]
    return opened


def test_trackers_are_told_the_numbers_of_the_log(listener: list[Listener], tmp_path: Path) -> None:
    with Trackers(["tensorboard"]) as trackers:
        run = Run(tmp_path / "run", Ranks(0, 0, 1, torch.device("cpu")), trackers)
        run.log("train", step=1, loss=2.0)  # before they are open
        trackers.open(tmp_path, {}, 0)
        run.log("train", step=7, loss=2.0, box_loss=None, learning_rate=0.1)
        run.log("evaluation", step=7, epoch=1, AP=0.5, per_class={"cat": 0.5, "dog": None})
        run.log("resumed", step=7, world_size=2)
    assert listener[0].closed
    assert listener[0].told == [
        ("scalars", 7, {"train/loss": 2.0, "train/learning_rate": 0.1}),
        ("scalars", 7, {"evaluation/epoch": 1, "evaluation/AP": 0.5, "evaluation/per_class/cat": 0.5}),
    ]


def test_trackers_close_when_a_run_fails(listener: list[Listener], tmp_path: Path) -> None:
    with pytest.raises(ValueError), Trackers(["tensorboard"]) as trackers:
        trackers.open(tmp_path, {}, 0)
        raise ValueError
    assert listener[0].closed


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_named_before_anything_is_read(
    name: str, tmp_path: Path, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == name else find_spec(wanted))
    line = refusal("--data", tmp_path / "none", "--track", name)
    assert f"--track {name}" in line and f"pip install -e '.[{name}]'" in line


@pytest.mark.slow
def test_a_run_that_is_shown_learns_the_same_and_leaves_all_there_is_to_see(
    listener: list[Listener], tmp_path: Path
) -> None:
    data, shown, plain = write_small_data(tmp_path / "data"), tmp_path / "shown", tmp_path / "plain"
    flags = ["--data", str(data), *SETTINGS, "--epochs", "1", "--data_pipeline", "no_dali"]
    assert main.main([*flags, "--output", str(plain)]) == 0 and not (plain / "plots").exists()
    flags.remove("--no-plots")
    assert main.main([*flags, "--output", str(shown), "--track", "tensorboard"]) == 0
    assert_equal_runs(last_of(plain), last_of(shown))

    told = listener[0].told
    assert [kind for kind, _, _ in told] == 3 * ["scalars"] + ["precision_recall", "predictions", "scalars"]
    assert [step for _, step, _ in told] == [1, 2, 3, 3, 3, 3] and listener[0].closed

    names = {"curves.png", "per_class.png", "precision_recall.png", "confusion.png", "box_sizes.png", "predictions.jpg"}
    assert {file.name for file in (shown / "plots").iterdir()} == names
    text = assert_self_contained((shown / "report.html").read_text())
    results, evaluation = (json.loads((shown / f"{name}.json").read_text()) for name in ("results", "evaluation"))
    assert f"{results['AP']:.3f}" in text.words
    assert evaluation["classes"] == list(results["per_class"]) and evaluation["images"] == 2
    assert (shown / "metrics.csv").read_text().count("\n") == 4  # three steps under a heading

    (shown / "plots" / "curves.png").unlink()
    shutil.rmtree(data)
    assert main.main(["plot", str(shown)]) == 0  # predictions.jpg is the run's
    assert {file.name for file in (shown / "plots").iterdir()} == names
    assert "image/jpeg" in (shown / "report.html").read_text()


@pytest.mark.slow
def test_no_run_waits_for_matplotlib_or_a_tracker_at_its_start() -> None:
    script = "import sys, main, ssd.report.examples, ssd.training.loop, ssd.run.files; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert "ssd.report.examples" in done.stdout.split(), done.stderr
    assert not {"matplotlib.figure", "tensorboard", "wandb", "mlflow"} & set(done.stdout.split())


# --- the trackers themselves, where they are installed ---


def feed(name: str, folder: Path, steps: tuple[int, ...] = (1, 2)) -> None:
    with Trackers([name]) as trackers:
        trackers.open(folder, {"epochs": 3, "multistep": (1, 2)}, steps[0] - 1)
        for step in steps:
            trackers.scalars({"train/loss": 1 / step, "evaluation/per_class/cat (7)": 0.5}, step)
        trackers.image("predictions", PIXELS, steps[-1])
        trackers.precision_recall(CURVES, steps[-1])


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    feed("tensorboard", tmp_path, (1, 2, 3))
    feed("tensorboard", tmp_path, (3, 4))  # went on from step 2
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert events.Scalars("train/loss")[1].value == 0.5
    picture = events.Images("predictions")[-1]
    assert (picture.width, picture.height) == (30, 20)
    assert {"precision_recall/cat", "precision_recall/dog"} <= set(events.Tags()["tensors"])


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    feed("wandb", tmp_path)
    own_id = (tmp_path / "wandb-id.txt").read_text()
    assert list(tmp_path.glob(f"wandb/offline-run-*-{own_id}/run-{own_id}.wandb"))
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/predictions*.png"))


@pytest.mark.slow
def test_mlflow_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    (tmp_path / "run").mkdir()
    feed("mlflow", tmp_path / "run")
    feed("mlflow", tmp_path / "run", (3,))  # a resumed run goes on in the same
    found = mlflow.get_run((tmp_path / "run" / "mlflow-id.txt").read_text())
    assert found.data.params["epochs"] == "3" and found.data.metrics["evaluation/per_class/cat _7_"] == 0.5
    history = mlflow.MlflowClient().get_metric_history(found.info.run_id, "train/loss")
    assert sorted(metric.step for metric in history) == [1, 2, 3]  # they are sent without waiting for each other
    assert found.info.run_name == "run"


def test_names_that_are_no_utf8(listener: list[Listener], tmp_path: Path) -> None:
    """Trackers encode what they are told: a folder they would write elsewhere, a setting is only shown."""
    with Trackers(["tensorboard"]) as trackers:
        with pytest.raises(InputError, match="--track tensorboard: takes no folder whose name is no UTF-8"):
            trackers.open(tmp_path / "caf\udce9", {}, 0)
        trackers.open(tmp_path, {"data": "caf\udce9", "epochs": 3}, 0)
    assert [each.settings for each in listener] == [{"data": "caf?", "epochs": 3}]
