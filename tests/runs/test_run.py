"""Whole runs of the command line: what they write, and that resuming, repeating and dividing them changes nothing."""

import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked
from runs import (
    ENVIRONMENT,
    ROOT,
    WHOLE_DETECTOR,
    WITHIN_S,
    assert_equal,
    log_of,
    run_here,
    small_checkpoint,
)

from ssd.checkpoints import checkpoint
from ssd.detectors.ssd300.model import SSD300
from ssd.evaluation.coco import METRIC_NAMES

pytestmark = pytest.mark.slow

RUN_FILES = (".lock", "config.json", "log.jsonl", "results.json", "evaluation.json", "metrics.csv")
PATHS = ("dali", "no_dali")
# Every detection counts, so that a detector of a few steps has an AP above 0.
JUDGED = ["--score-threshold", "0", "--device", "cpu", "--num-workers", "1"]
TRAINED = ["--bs", "4", "--lr", "0.02", "--seed", "3", "--no-plots"]  # tests/report/test_report.py draws them


def run(program: list[object], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *program, *arguments]
    return subprocess.run([*map(str, command)], env=ENVIRONMENT, capture_output=True, text=True, timeout=WITHIN_S)


def trained(data: Path, output: Path, *flags: object) -> list[object]:
    fixed = ["--data", data, "--output", output, "--checkpoint", small_checkpoint(), *TRAINED, *JUDGED]
    return [*fixed, "--log-interval", 1, *flags]


def train(data: Path, output: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    return run_here(*trained(data, output, *flags))


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    """What it said on stdout, after asserting that all went well."""
    assert done.returncode == 0, done.stderr
    return done.stdout


def load(file: Path) -> dict[str, Any]:
    content = torch.load(file, weights_only=True)
    assert isinstance(content, dict)
    return content


def assert_equal_checkpoints(a: dict[str, Any], b: dict[str, Any]) -> None:
    for key in ("model", "optimizer", "scaler", "step", "epoch", "best_ap", "seed", "categories"):
        assert_equal(a[key], b[key], key)


def losses_of(output: Path) -> list[tuple[float, float]]:
    return [(line["box_loss"], line["class_loss"]) for line in log_of(output, "train")]


@pytest.fixture(scope="module", params=PATHS)
def whole(request: pytest.FixtureRequest, demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of main.py's run of two epochs of three steps, evaluated after each, with the whole SSD300-R18; named
    for its data path. Not to be written to."""
    output = tmp_path_factory.mktemp("whole") / str(request.param)
    flags = ["--log-interval", 1, "--data_pipeline", request.param, "--epochs", 2, "--evaluation", 1]
    fixed = ["--data", demo_data, "--output", output, *WHOLE_DETECTOR, *TRAINED, *JUDGED]
    said = succeeded(run([ROOT / "main.py"], *fixed, *flags))
    assert "epoch 1/2" in said and "epoch 2/2" in said and f"wrote {output}" in said
    return output


@pytest.fixture(scope="module", params=PATHS)
def finished(request: pytest.FixtureRequest, demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `whole`, of the small detector, in this process."""
    output = tmp_path_factory.mktemp("finished") / str(request.param)
    flags = ["--data_pipeline", request.param, "--epochs", 2, "--evaluation", 1]
    succeeded(train(demo_data, output, *flags))
    return output


@pytest.fixture(scope="module")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demo data of one step an epoch."""
    from pipelines.demo.data_set import write_demo_data

    return write_demo_data(tmp_path_factory.mktemp("small") / "demo", train_images=4, val_images=2)


# --- what a run leaves behind ---


def test_files_of_a_run(whole: Path, demo_data: Path) -> None:
    files = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    names = {"last.pt", "best.pt", "step-00000003.pt", "step-00000006.pt"}
    assert files == {*RUN_FILES, *(f"checkpoints/{name}" for name in names)}

    config = json.loads((whole / "config.json").read_text())
    assert config["settings"]["data"] == str(demo_data) and config["settings"]["output"] == str(whole)
    assert config["settings"]["seed"] == 3 and config["settings"]["data_pipeline"] == whole.name
    assert config["world_size"] == 1 and config["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert config["hardware"]["device"] == "cpu" and config["hardware"]["cpu_cores"] >= 1
    assert "main.py" in config["command"][0]

    steps = log_of(whole, "train")
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    units = {"time_s", "skipped_steps", "images_per_second", "data_wait_s", "elapsed_s", "learning_rate"}
    assert steps[0].keys() == {"event", "step", "epoch", "loss", "box_loss", "class_loss", *units}
    assert all(line["loss"] == pytest.approx(line["box_loss"] + line["class_loss"]) for line in steps)
    assert all(line["learning_rate"] == pytest.approx(0.02 * 4 / 32) for line in steps)
    assert steps[-1]["loss"] < steps[0]["loss"]
    evaluations = log_of(whole, "evaluation")
    assert [line["epoch"] for line in evaluations] == [1, 2] and [line["step"] for line in evaluations] == [3, 6]
    assert all(line["evaluation_s"] > 0 for line in evaluations)

    results = json.loads((whole / "results.json").read_text())
    assert {name: results[name] for name in METRIC_NAMES} == {name: evaluations[-1][name] for name in METRIC_NAMES}
    assert 0 < results["AP"] < results["AP50"] < 1
    assert set(results["per_class"]) == {"balloon", "crate", "star", "donut", "leaf", "mushroom"}
    assert results["images_per_second"] > 0 and results["train_seconds"] > 0 and results["epochs"] == 2
    assert (results["seed"], results["data_pipeline"], results["backbone"]) == (3, whole.name, "resnet18")


def test_checkpoints_of_a_run(whole: Path) -> None:
    evaluations = {line["epoch"]: line["AP"] for line in log_of(whole, "evaluation")}
    last, best = (load(whole / "checkpoints" / name) for name in ("last.pt", "best.pt"))
    assert last["epoch"] == 2 and last["step"] == 6
    assert best["epoch"] == max(evaluations, key=lambda epoch: (evaluations[epoch], -epoch))
    assert last["best_ap"] == best["best_ap"] == max(evaluations.values())
    for content in (last, best):
        assert (
            content["detector"]["backbone"] == "resnet18"
            and content["seed"] == 3
            and content["settings"]["batch_size"] == 4
        )
        assert content["categories"][:2] == [(1, "balloon"), (3, "crate")]
        model = checkpoint.build_model(content, whole)
        assert isinstance(model, SSD300) and model.num_classes == len(content["categories"]) + 1


def test_evaluate_repeats_the_runs_metrics(whole: Path, demo_data: Path, tmp_path: Path) -> None:
    fixed = ["--data", demo_data, "--data_pipeline", whole.name, *JUDGED, "--json", tmp_path / "metrics.json"]
    epoch = load(whole / "checkpoints" / "best.pt")["epoch"]
    said = succeeded(run_here("evaluate", "--checkpoint", whole / "checkpoints" / "best.pt", *fixed))
    assert "AP50" in said and "balloon" in said
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    logged = log_of(whole, "evaluation")[epoch - 1]
    for name in METRIC_NAMES:
        assert metrics[name] == pytest.approx(logged[name], abs=1e-6), name
    assert metrics["per_class"] == pytest.approx(logged["per_class"], abs=1e-6)


# --- repeating and resuming ---


def test_equal_seeds_and_resuming_give_equal_weights(finished: Path, demo_data: Path, tmp_path: Path) -> None:
    """One epoch equals the first of two, and going on to the second equals two in one go."""
    output = tmp_path / "run"
    flags = ["--data_pipeline", finished.name, "--evaluation", 1]
    succeeded(train(demo_data, output, *flags, "--epochs", 1))
    first = load(output / "checkpoints" / "last.pt")
    assert losses_of(output) == losses_of(finished)[:3]
    if load(finished / "checkpoints" / "best.pt")["epoch"] == 1:
        assert_equal_checkpoints(first, load(finished / "checkpoints" / "best.pt"))

    said = succeeded(train(demo_data, output, *flags, "--epochs", 2, "--resume", "auto"))
    assert "resuming after epoch 1\n" in said and "new order" not in said
    assert losses_of(output) == losses_of(finished)
    assert_equal_checkpoints(load(output / "checkpoints" / "last.pt"), load(finished / "checkpoints" / "last.pt"))
    results, expected = (json.loads((folder / "results.json").read_text()) for folder in (output, finished))
    assert {name: results[name] for name in METRIC_NAMES} == {name: expected[name] for name in METRIC_NAMES}


def test_evaluating_changes_no_weights(finished: Path, demo_data: Path, tmp_path: Path) -> None:
    """The finished run was evaluated after its first epoch, this one is only after its last."""
    output = tmp_path / "run"
    succeeded(train(demo_data, output, "--data_pipeline", finished.name, "--epochs", 2, "--evaluation"))
    assert [line["epoch"] for line in log_of(finished, "evaluation")] == [1, 2]
    assert [line["epoch"] for line in log_of(output, "evaluation")] == [2]
    assert losses_of(output) == losses_of(finished)
    without, with_evaluation = (load(folder / "checkpoints" / "last.pt") for folder in (output, finished))
    for key in ("model", "optimizer", "scaler"):
        assert_equal(without[key], with_evaluation[key], key)


def test_resuming_a_finished_run_keeps_its_results(finished: Path, demo_data: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(finished, tmp_path / "run"))
    flags = ["--data_pipeline", finished.name, "--epochs", 2, "--resume", "auto"]
    done = train(demo_data, output, *flags)
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr, done.stderr
    results, expected = (json.loads((folder / "results.json").read_text()) for folder in (output, finished))
    assert {name: results.get(name) for name in METRIC_NAMES} == {name: expected[name] for name in METRIC_NAMES}
    assert_equal_checkpoints(load(output / "checkpoints" / "last.pt"), load(finished / "checkpoints" / "last.pt"))


def test_resuming_on_the_other_data_path_takes_a_flag(finished: Path, demo_data: Path, tmp_path: Path) -> None:
    other = PATHS[1 - PATHS.index(finished.name)]
    flags = ["--data_pipeline", other, "--epochs", 3, "--resume", finished / "checkpoints" / "last.pt"]
    refused = train(demo_data, tmp_path / "run", *flags)
    assert refused.returncode == 2 and not (tmp_path / "run").exists()
    change = f"data_pipeline was {finished.name} and is {other}"
    assert change in refused.stderr and "--resume-anyway" in refused.stderr and refused.stderr.count("\n") == 1

    said = succeeded(train(demo_data, tmp_path / "run", *flags, "--resume-anyway"))
    assert f"resuming after epoch 2: {change}" in said and "the images come in a new order" in said
    last = load(tmp_path / "run" / "checkpoints" / "last.pt")
    assert last["epoch"] == 3 and last["step"] == 9
    assert load(finished / "checkpoints" / "last.pt")["epoch"] == 2


def test_resuming_takes_the_optimizers_settings_from_the_flags(small_data: Path, tmp_path: Path) -> None:
    flags = ["--data_pipeline", "no_dali", "--resume", "auto"]
    succeeded(train(small_data, tmp_path / "run", *flags, "--epochs", 1))
    succeeded(train(small_data, tmp_path / "run", *flags, "--epochs", 2, "--momentum", 0.5, "--wd", 0.25))
    groups = load(tmp_path / "run" / "checkpoints" / "last.pt")["optimizer"]["param_groups"]
    assert [group["momentum"] for group in groups] == [0.5, 0.5]
    assert [group["weight_decay"] for group in groups] == [0.0, 0.25]


def test_ctrl_c_and_kill(small_data: Path, tmp_path: Path) -> None:
    """Whatever ends a run, its folder holds a whole checkpoint to go on from, and no half one."""
    output, epochs = tmp_path / "run", [0]
    flags = trained(small_data, output, "--data_pipeline", "no_dali", "--epochs", 999, "--resume", "auto")
    # A shell has what it starts in the background ignore Ctrl-C, and its children inherit that.
    obeys = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    for blow in (signal.SIGINT, signal.SIGKILL):
        process = Forked(ROOT / "main.py", *flags, environment=ENVIRONMENT, before=obeys)
        try:
            while len(log_of(output, "train")) < epochs[-1] + 2:  # a step each
                assert process.poll() is None, process.said()
                time.sleep(0.02)
            process.send_signal(blow)
            said, complaint = process.communicate(timeout=60)
        finally:
            process.kill()
        if blow == signal.SIGINT:
            assert process.returncode == 130, complaint
            assert complaint == "interrupted\n", complaint
            assert said.endswith(
                f"go on from the last checkpoint with the same flags and --resume auto --output {output}\n"
            ), said
        last = load(output / "checkpoints" / "last.pt")
        epochs.append(last["epoch"])
        assert last["step"] == last["epoch"]
    assert 1 <= epochs[1] < epochs[2] < 999
    assert [line["step"] for line in log_of(output, "train")][: epochs[1]] == [*range(1, epochs[1] + 1)]


# --- several ranks ---


def _document(data: Path, split: str) -> dict[str, Any]:
    content = json.loads((data / "annotations" / f"instances_{split}.json").read_text())
    assert isinstance(content, dict)
    return content


def test_fine_tuning_onto_other_categories(finished: Path, small_data: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(small_data, tmp_path / "data"))
    for split in ("train2017", "val2017"):
        document = _document(data, split)
        document["categories"] = [{"id": 5, "name": "round"}, {"id": 6, "name": "other"}]
        for row in document["annotations"]:
            row["category_id"] = 5 if row["category_id"] in (1, 7) else 6
        (data / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    best = finished / "checkpoints" / "best.pt"
    flags = ["--data", data, "--output", tmp_path / "run", "--data_pipeline", finished.name, "--epochs", 1, "--lr", 0]
    said = succeeded(run_here(*flags, "--bs", 4, "--no-plots", *JUDGED, "--checkpoint", best))  # of its own backbone
    assert f"starting from {best}, with new class heads" in said and "2 classes" in said
    assert set(json.loads((tmp_path / "run" / "results.json").read_text())["per_class"]) == {"round", "other"}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["backbone"] == "resnet18"
    before, after = load(best)["model"], load(tmp_path / "run" / "checkpoints" / "last.pt")
    assert after["epoch"] == 1 and after["categories"] == [(5, "round"), (6, "other")]
    for name, value in after["model"].items():
        if name.startswith("class_heads."):
            assert len(value) == len(before[name]) * 3 // 7, name
        elif "running" not in name and "num_batches" not in name:
            assert torch.equal(value, before[name]), name  # the rate is 0

    gone = ["--checkpoint", tmp_path / "gone.pt", "--resume", "auto"]  # which a run that goes on needs no more
    assert "over after epoch 1" in succeeded(run_here(*flags, "--bs", 4, "--no-plots", *JUDGED, *gone))
    longer = [*flags, "--epochs", 2]
    assert "epoch 2/2" in succeeded(run_here(*longer, "--bs", 4, "--no-plots", *JUDGED, *gone))


@pytest.mark.parametrize("data_pipeline", PATHS)
def test_targets(data_pipeline: str, small_data: Path, tmp_path: Path) -> None:
    flags = ["--data_pipeline", data_pipeline, "--local_rank", 0]
    done = train(small_data, tmp_path / "high", *flags, "--epochs", 1, "--target", 1)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "--target 1.0 was not reached" in done.stdout
    assert json.loads((tmp_path / "high" / "results.json").read_text())["epochs"] == 1
    assert (tmp_path / "high" / "checkpoints" / "best.pt").exists()
    again = train(small_data, tmp_path / "high", *flags, "--epochs", 1, "--target", 1, "--resume", "auto")
    assert again.returncode == 1 and "--target 1.0 was not reached; pass --epochs" in again.stdout

    succeeded(train(small_data, tmp_path / "low", *flags, "--epochs", 50, "--evaluation", 2, 3, "--target", 0))
    assert json.loads((tmp_path / "low" / "results.json").read_text())["epochs"] == 2
    assert load(tmp_path / "low" / "checkpoints" / "best.pt")["epoch"] == 2


def test_a_diverging_loss_ends_the_run_and_keeps_its_checkpoints(
    finished: Path, demo_data: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(finished, tmp_path / "run"))
    kept = {path: path.read_bytes() for path in (output / "checkpoints").iterdir()}
    # Weight decay alone multiplies the weights by 6e7 a step, whatever the gradients are.
    rates = ["--learning-rate", 1e9, "--weight-decay", 1]
    flags = ["--data_pipeline", finished.name, "--epochs", 9, *rates, "--bs", 2, "--resume-anyway"]
    done = train(demo_data, output, *flags, "--checkpoint-every", "9 epochs", "--resume", "auto")
    assert done.returncode == 1
    assert done.stderr.startswith("error: the loss became ") and done.stderr.count("\n") == 1, done.stderr
    lost = [json.loads(line) for line in (output / "lost-batches.jsonl").read_text().splitlines()]
    image_ids = {row["id"] for row in _document(demo_data, "train2017")["images"]}
    assert len(lost) >= 5 and all(len(line["image_ids"]) == 2 and set(line["image_ids"]) <= image_ids for line in lost)
    assert "--learning-rate" in done.stderr and str(output / "checkpoints" / "last.pt") in done.stderr
    assert {path: path.read_bytes() for path in (output / "checkpoints").iterdir()} == kept
