"""MLPerf's logs of whole runs of the command line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mlperf_logs import REACHED, assert_passes, story, value_of
from runs import ENVIRONMENT, ROOT, run_all, small_checkpoint
from torch import Tensor, nn

import main
from ssd.batch import MatchedBatch
from ssd.config import Config
from ssd.detectors.ssd300.recipes import RECIPES
from ssd.evaluation.coco import METRIC_NAMES
from ssd.mlperf.log import ComplianceLog, read_events, run_seconds
from ssd.training.state import Training


def test_the_command_line_with_the_recipe_passes_as_closed(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it but for the steps of SGD and the APs, which are made up: they would take days here."""

    def step(training: Training, forward: nn.Module, batch: MatchedBatch, lr: float) -> Tensor:
        rates.append(lr)
        training.loss_names = ("box", "class")
        return torch.ones(2)

    def made_up(ground_truth: Any, results: Any, engine: str) -> dict[str, Any]:
        ap = REACHED[len(rates)]  # an epoch is a step
        return {**dict.fromkeys(METRIC_NAMES, ap), "per_class": {"balloon": ap}}

    rates: list[float] = []
    monkeypatch.setattr(Training, "train_step", step)
    monkeypatch.setattr("ssd.evaluation.parts.coco_metrics", made_up)
    flags = ["--recipe", "mlperf", "--mlperf", "--mlperf-division", "closed", "--bs", "4", "--seed", "7"]
    flags += ["--data", str(small_data), "--data_pipeline", "no_dali", "--num-workers", "0", "--device", "cpu"]
    flags += ["--backbone", "resnet18", "--backbone-weights", "none", "--checkpoint-every", "9 epochs", "--no-plots"]
    assert main.main([*flags, "--output", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "MLPerf's checker (ruleset 1.0.0, closed division) passes" in said and "MLPerf: AP 0.23 after" in said
    log = tmp_path / "run" / "mlperf.log"
    assert_passes(log)
    recipe = RECIPES["mlperf"](4)
    expected = {
        "global_batch_size": 4,
        "opt_base_learning_rate": pytest.approx(recipe.learning_rate * 4 / 32),
        "opt_weight_decay": recipe.weight_decay,
        "opt_learning_rate_warmup_steps": recipe.warmup,
        "opt_learning_rate_decay_boundary_epochs": [*recipe.multistep],
        "train_samples": 4,
        "eval_samples": 2,
        "seed": 7,
    }
    assert {key: value_of(log, key) for key in expected} == expected
    told = [(e["metadata"]["epoch_num"], e["value"]) for e in read_events(log) if e["key"] == "eval_accuracy"]
    assert told == [*REACHED.items()] and len(rates) == 50
    assert json.loads((tmp_path / "run" / "results.json").read_text())["epochs"] == 50


# --- whole runs ---

JUDGED = ["--score-threshold", "0", "--device", "cpu"]
OPEN = ["--mlperf", "--mlperf-division", "open"]


def trained() -> list[str]:
    return ["--checkpoint", str(small_checkpoint()), "--bs", "4", "--lr", "0.02", "--seed", "3", "--no-plots"]


@pytest.fixture(scope="module")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demo data of one step an epoch."""
    from pipelines.demo.data_set import write_demo_data

    return write_demo_data(tmp_path_factory.mktemp("small") / "demo", train_images=4, val_images=2)


@pytest.mark.slow
@pytest.mark.parametrize(("data_pipeline", "workers"), [("dali", 2), ("no_dali", 2), ("no_dali", 0)])
def test_an_open_run_passes_and_touches_no_data_before_run_start(
    data_pipeline: str,
    workers: int,
    small_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Until run_start is logged all files of the data are empty, which no reader would forgive."""
    data = tmp_path / "data"
    files = [file for file in small_data.rglob("*") if file.is_file()]
    for file in files:
        empty = data / file.relative_to(small_data)
        empty.parent.mkdir(parents=True, exist_ok=True)
        empty.touch()
    run_start = ComplianceLog.run_start

    def fill_after(log: ComplianceLog, *, cache_cleared: bool) -> None:
        run_start(log, cache_cleared=cache_cleared)
        for file in files:
            shutil.copy(file, data / file.relative_to(small_data))

    monkeypatch.setattr(ComplianceLog, "run_start", fill_after)
    output = tmp_path / "run"
    flags = ["--data_pipeline", data_pipeline, "--num-workers", workers, "--epochs", 3, "--evaluation", 2]
    assert main.main([*map(str, ["--data", data, "--output", output, *trained(), *JUDGED, *OPEN, *flags])]) == 0
    said = capsys.readouterr().out
    assert f"MLPerf's checker (ruleset 1.0.0, open division) passes {output / 'mlperf.log'}" in said
    log = output / "mlperf.log"
    assert_passes(log)
    evaluated = [event[1] for event in story(log) if event[0] == "eval_accuracy"]
    results = json.loads((output / "results.json").read_text())
    assert evaluated == [2, 3] and read_events(log)[-3]["value"] == results["AP"]
    assert results["time_to_target_s"] is None
    config = json.loads((output / "config.json").read_text())
    assert value_of(log, "submission_platform") == config["hardware"]["device"]
    assert (value_of(log, "train_samples"), value_of(log, "eval_samples"), value_of(log, "seed")) == (4, 2, 3)


@pytest.mark.slow
def test_a_killed_open_run_goes_on(demo_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    flags = ["--data", demo_data, "--output", output, "--num-workers", 0, "--data_pipeline", "no_dali"]
    program: list[object] = [sys.executable, "-u", ROOT / "main.py", *flags, "--epochs", 999]
    forever = [*map(str, [*program, *trained(), *JUDGED, *OPEN])]
    with subprocess.Popen(forever, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and any(line.startswith("epoch 3/") for line in process.stdout)
        process.kill()
    killed_after = torch.load(output / "checkpoints" / "last.pt")["epoch"]
    run_all([[*flags, "--epochs", killed_after + 2, "--resume", "auto", *trained(), *JUDGED, *OPEN]], 1)
    log = output / "mlperf.log"
    assert_passes(log)
    for what in ("start", "stop"):
        assert [event[1] for event in story(log) if event[0] == f"epoch_{what}"] == [*range(1, killed_after + 3)]
    assert story(log).count(("resumed",)) == 1 and story(log)[-1] == ("run_stop",)


@pytest.mark.slow
def test_two_ranks_have_one_log(demo_data: Path, tmp_path: Path) -> None:
    flags = ["--data", demo_data, "--output", tmp_path, "--num-workers", 0, "--data_pipeline", "no_dali", "--epochs", 1]
    said = run_all([[*flags, *trained(), *JUDGED, *OPEN]], 2)
    assert said.count("MLPerf's checker (ruleset 1.0.0, open division) passes") == 1
    log = tmp_path / "mlperf.log"
    assert_passes(log)
    assert value_of(log, "global_batch_size") == 8 and value_of(log, "model_bn_span") == 4
    assert value_of(log, "cache_clear") is True


@pytest.mark.slow
def test_a_closed_run_that_fails_says_why(small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data", small_data, "--output", tmp_path / "run", "--num-workers", 0, "--epochs", 1]
    closed = ["--data_pipeline", "no_dali", "--mlperf", "--mlperf-division", "closed"]
    assert main.main([*map(str, [*flags, *trained(), *JUDGED, *closed])]) == 1
    said = capsys.readouterr().out
    assert "(ruleset 1.0.0, closed division) objects to" in said
    for complaint in ("an evaluation must reach an AP of 0.23", "--warmup must be 1", "--multistep must be 40 50"):
        assert f"\n  - {complaint}" in said
    assert "CHECK for" in (tmp_path / "run" / "mlperf-check.log").read_text()


@pytest.mark.slow
def test_time_to_target(small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    flags = ["--data_pipeline", "no_dali", "--num-workers", 0, "--epochs", 3, "--evaluation", 1, "--target", 0]
    assert main.main([*map(str, ["--data", small_data, "--output", output, *trained(), *JUDGED, *OPEN, *flags])]) == 0
    results = json.loads((output / "results.json").read_text())
    assert results["epochs"] == 1 and results["time_to_target_s"] == run_seconds(output / "mlperf.log")
    assert results["time_to_target_s"] > results["train_seconds"]  # the data path and the model are built in it
    assert f"MLPerf: AP 0.0 after {results['time_to_target_s']:.1f} s" in capsys.readouterr().out


def test_without_the_flag_there_is_no_log(tmp_path: Path) -> None:
    log = ComplianceLog(None, Config())
    log.submission("toy")
    log.run_start(cache_cleared=False)
    log.before_step(0)
    log.eval_start(1)
    log.eval_stop(1, {"AP": 0.5})
    log.run_stop(success=True)
    assert list(tmp_path.iterdir()) == []


# --- the page cache ---
