"""MLPerf's compliance logs, judged by MLPerf's own checker.

No test here trains a detector to MLPerf's quality. Those of the closed division run the project's training loop with
the settings of --recipe mlperf on a toy model, and make up the APs that the evaluations find; one goes through the
command line, with made-up steps too. Those of the open division are whole runs of the command line.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import ENVIRONMENT, ROOT, run_all, small_checkpoint
from torch import Tensor, nn

import main
from ssd.batch import MatchedBatch
from ssd.config import Config
from ssd.detectors.names import family_of, settings_named
from ssd.detectors.ssd300.recipes import RECIPES
from ssd.distributed import Ranks
from ssd.errors import InputError
from ssd.evaluation.coco import METRIC_NAMES
from ssd.mlperf.checker import check
from ssd.mlperf.log import RETINANET, ComplianceLog, begin, read_events, run_seconds
from ssd.mlperf.page_cache import clear_page_cache
from ssd.run.files import Run
from ssd.run.metrics_table import published_band
from ssd.training.evaluations import Judge
from ssd.training.loop import train
from ssd.training.optimizer import build_optimizer
from ssd.training.state import Training

HERE = Ranks(0, 0, 1, torch.device("cpu"))
CLOSED = replace(RECIPES["mlperf"](114, 8), mlperf=True, mlperf_division="closed", seed=7)
BOUNDARIES = "--multistep must be 40 50 or both longer by the same tenths: 44 55, 48 60, ..."
REACHED = {40: 0.21, 45: 0.2299, 50: 0.2301}  # made up


# --- the training loop on a toy model, with made-up APs ---


class ToyLoader:
    """Two steps an epoch of one number."""

    steps_per_epoch = 2

    def batches(self, first_step: int) -> Iterator[MatchedBatch]:
        while True:
            yield MatchedBatch(*[torch.ones(1, 1)] * len(MatchedBatch._fields))

    def state(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None:
        pass


def toy_losses(model: nn.Module, batch: MatchedBatch) -> dict[str, Tensor]:
    return {"box": model(batch.images).square().mean(), "class": torch.zeros(())}


class Killed(BaseException):
    pass


def begun(log: Path, config: Config = CLOSED, epochs_done: int | None = None) -> ComplianceLog:
    """A log up to its first epoch, or gone on with after that many epochs."""
    compliance = ComplianceLog(log, config, epochs_done)
    compliance.submission("toy")
    if epochs_done is None:
        compliance.run_start(cache_cleared=True)
    compliance.hyper_parameters(world_size=8, train_samples=117266, eval_samples=5000, crop_attempts=1)
    return compliance


def toy_run(
    folder: Path, config: Config, aps: dict[int, float], *, resume: str | None = None, die_at: int | None = None
) -> Path:
    """The log of a run whose evaluation after each epoch of `aps` finds that AP.

    resume: a checkpoint's name. die_at: dies in the evaluation of that epoch, after its start was logged.
    """
    log = folder / "mlperf.log"
    resumed = torch.load(folder / "checkpoints" / resume, weights_only=True) if resume else None
    compliance = begun(log, config, resumed["epoch"] if resumed else None)
    model = nn.Linear(1, 1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    training = Training(model, build_optimizer(model, config), scaler, toy_losses, config, HERE)
    if resumed:
        training.restore(resumed)

    def metrics(detections: np.ndarray) -> dict[str, Any]:
        epoch = training.step // ToyLoader.steps_per_epoch
        if epoch == die_at:
            raise Killed
        return {"AP": aps[epoch], "AP50": 0.4}

    judge = Judge(lambda: np.zeros((0, 7)), metrics)
    _, reached = train(training, ToyLoader(), judge, Run(folder, HERE), compliance, {})
    compliance.run_stop(success=reached)
    return log


@pytest.fixture(scope="module")
def closed_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that reached its target at epoch 50. Not to be written to."""
    return toy_run(tmp_path_factory.mktemp("closed"), CLOSED, REACHED)


def checker(log: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """MLPerf's own command."""
    command = [sys.executable, "-m", "mlperf_logging.compliance_checker", "--ruleset", "1.0.0", *flags]
    return subprocess.run([*command, log.name], cwd=log.parent, capture_output=True, text=True)


def assert_passes(log: Path) -> None:
    done = checker(log, "--werror")  # so that what stands there twice is an error, too
    assert done.returncode == 0 and "SUCCESS" in done.stderr, done.stderr
    assert check(log) == []


def story(log: Path) -> list[tuple[Any, ...]]:
    """(key, numbers of epochs) in order."""
    numbers = ("epoch_num", "first_epoch_num", "epoch_count")
    return [(e["key"], *(e["metadata"][n] for n in numbers if n in e["metadata"])) for e in read_events(log)]


def value_of(log: Path, key: str) -> Any:
    (value,) = [event["value"] for event in read_events(log) if event["key"] == key]
    return value


def rewritten(log: Path, to: Path, *, key: str, **changes: Any) -> Path:
    """A copy of the log with changed events of that key, or without them if there are no changes."""
    events = [event for event in read_events(log) if changes or event["key"] != key]
    changed = [{**event, **changes} if event["key"] == key else event for event in events]
    to.write_text("".join(f":::MLLOG {json.dumps(event)}\n" for event in changed))
    return to


# --- a closed run ---


def test_a_closed_run_that_reaches_the_quality_passes(closed_log: Path) -> None:
    assert_passes(closed_log)


def test_what_a_closed_log_tells(closed_log: Path) -> None:
    def epochs(first: int, last: int) -> list[tuple[Any, ...]]:
        told: list[tuple[Any, ...]] = [("block_start", first, last - first + 1)]
        for epoch in range(first, last + 1):
            told += [("epoch_start", epoch), ("epoch_stop", epoch)]
        told += [("block_stop", first, last - first + 1)]
        return told + [(f"eval_{what}", last) for what in ("start", "accuracy", "stop")]

    told = story(closed_log)
    before = [key for (key,) in told[: told.index(("block_start", 1, 40))]]
    assert before[0] == "init_start"
    touched = before.index("run_start")
    assert before[touched - 2 : touched] == ["cache_clear", "init_stop"]
    assert before.index("train_samples") > touched and before.index("submission_org") < touched
    assert told[len(before) :] == [*epochs(1, 40), *epochs(41, 45), *epochs(46, 50), ("run_stop",)]
    expected = {
        "submission_benchmark": "ssd",
        "submission_division": "closed",
        "submission_platform": "toy",
        "seed": 7,
        "global_batch_size": 912,
        "model_bn_span": 114,
        "gradient_accumulation_steps": 1,
        "opt_base_learning_rate": pytest.approx(3.2e-3 * 912 / 32),
        "opt_weight_decay": 1.3e-4,
        "opt_learning_rate_warmup_steps": 650,
        "opt_learning_rate_warmup_factor": 0,
        "opt_learning_rate_decay_boundary_epochs": [44, 55],
        "max_samples": 1,
        "train_samples": 117266,
        "eval_samples": 5000,
    }
    assert {key: value_of(closed_log, key) for key in expected} == expected
    accuracies = {
        e["metadata"]["epoch_num"]: e["value"] for e in read_events(closed_log) if e["key"] == "eval_accuracy"
    }
    assert accuracies == REACHED
    assert read_events(closed_log)[-1]["metadata"]["status"] == "success"
    assert str(ROOT) not in closed_log.read_text()


def test_the_quality_missed_by_a_hair(tmp_path: Path) -> None:
    log = toy_run(tmp_path, CLOSED, {epoch: 0.2299 for epoch in range(40, 66, 5)})
    assert checker(log).returncode == 1
    assert check(log) == ["an evaluation must reach an AP of 0.23; here: 0.2299"]
    assert read_events(log)[-1]["metadata"]["status"] == "aborted"
    assert story(log)[-2] == ("eval_stop", 65)


@pytest.mark.parametrize(
    ("settings", "objection"),
    [
        ({"multistep": (43, 54)}, f"{BOUNDARIES}; here: [43, 54]"),
        ({"multistep": (44,)}, f"{BOUNDARIES}; here: [44]"),
        ({"warmup": 0}, "--warmup must be 1 step or more; here: 0"),
        ({"mlperf_org": ""}, "--mlperf-org must not be empty; here: "),
    ],
    ids=["boundaries of the DALI example", "one boundary", "no warm-up", "no name"],
)  # fmt: skip
def test_settings_that_break_the_closed_rules(settings: dict[str, Any], objection: str, tmp_path: Path) -> None:
    log = toy_run(tmp_path, replace(CLOSED, **settings), REACHED)
    assert checker(log).returncode == 1
    assert check(log) == [objection]


def test_the_open_division_takes_any_settings(tmp_path: Path) -> None:
    config = replace(CLOSED, multistep=(43, 54), warmup=0, mlperf_division="open", epochs=2, target=0.5)
    assert_passes(toy_run(tmp_path, config, {2: 0.01}))


@pytest.mark.parametrize("name", ["retinanet_r50_fpn_1x", "retinanet_resnet50_fpn"])
def test_retinanets_have_a_benchmark_of_their_own(name: str, tmp_path: Path) -> None:
    """By its last ruleset, which wants Adam, so that the closed division has none of ours."""
    settings = settings_named(name)
    config = family_of(settings).defaults(settings)
    config = replace(config, mlperf=True, epochs=2, evaluation=(2,), seed=7, warmup=733)
    log = toy_run(tmp_path / "open", config, {2: 0.01})
    assert check(log, RETINANET) == []
    told = {event["key"]: event["value"] for event in read_events(log)}
    assert (told["ruleset"], told["submission_benchmark"], told["opt_name"]) == ("5.1.0", "retinanet", "sgd")
    # 117266 images by 8 ranks of 2 are 7330 steps an epoch.
    assert told["opt_learning_rate_warmup_epochs"] == pytest.approx(0.1, rel=1e-4)
    assert told["opt_base_learning_rate"] == pytest.approx(0.01) and told["gradient_accumulation_steps"] == 1
    closed = toy_run(tmp_path / "closed", replace(config, mlperf_division="closed"), {2: 0.33})
    objections = " ".join(check(closed, RETINANET))
    assert "trains with Adam" in objections and "must reach an AP of 0.34; here: 0.33" in objections
    assert "opt_weight_decay breaks a rule; here: 0.0001" in objections


@pytest.mark.parametrize(
    "key",
    [
        "submission_org", "submission_platform", "submission_division", "submission_status",
        "cache_clear", "init_stop", "run_start", "run_stop", "train_samples", "eval_samples",
        "gradient_accumulation_steps", "global_batch_size", "model_bn_span", "opt_base_learning_rate",
        "opt_weight_decay", "opt_learning_rate_warmup_steps", "opt_learning_rate_warmup_factor", "max_samples",
        "opt_learning_rate_decay_boundary_epochs", "eval_accuracy",
    ],
)  # fmt: skip
def test_a_missing_key(key: str, closed_log: Path, tmp_path: Path) -> None:
    assert f"{key} is missing" in check(rewritten(closed_log, tmp_path / "mlperf.log", key=key))


def test_the_checker_itself_misses_a_key(closed_log: Path, tmp_path: Path) -> None:
    log = rewritten(closed_log, tmp_path / "mlperf.log", key="max_samples")
    assert checker(log).returncode == 1


def test_other_breaches(closed_log: Path, tmp_path: Path) -> None:
    start = read_events(closed_log)[0]["time_ms"]
    log = rewritten(closed_log, tmp_path / "slow.log", key="init_start", time_ms=start - 31 * 60 * 1000)
    assert check(log) == ["what comes before run_start must take less than 30 minutes"]
    log = rewritten(closed_log, tmp_path / "crop.log", key="max_samples", value=3)
    assert check(log) == ["max_samples breaks a rule; here: 3"]
    log = tmp_path / "other.log"
    log.write_text(closed_log.read_text())
    with log.open("a") as stream:
        stream.write(log.read_text().splitlines()[-1].replace("run_stop", "global_batch_size") + "\n")
    assert check(log) == ["global_batch_size stands there 2 times, and not always the same"]


def test_time_to_target_is_from_run_start_to_run_stop(closed_log: Path, tmp_path: Path) -> None:
    (start_ms,) = [event["time_ms"] for event in read_events(closed_log) if event["key"] == "run_start"]
    log = rewritten(closed_log, tmp_path / "mlperf.log", key="run_stop", time_ms=start_ms + 654_321)
    assert run_seconds(log) == 654.321


# --- resuming ---


def test_a_killed_and_resumed_run_has_the_log_of_one_in_one_go(closed_log: Path, tmp_path: Path) -> None:
    """Killed twice: at epoch 40 in its evaluation, whose epoch has no checkpoint yet; and at epoch 50."""
    with pytest.raises(Killed):
        toy_run(tmp_path, CLOSED, REACHED, die_at=40)
    log = tmp_path / "mlperf.log"
    assert story(log)[-1] == ("eval_start", 40)
    assert "run_stop is missing" in check(log)
    with log.open("a") as stream:
        stream.write(':::MLLOG {"namespace": "", "time_')  # killed while it wrote
    with pytest.raises(Killed):
        toy_run(tmp_path, CLOSED, REACHED, resume="last.pt", die_at=50)
    shutil.copy(log, tmp_path / "before.log")
    toy_run(tmp_path, CLOSED, REACHED, resume="last.pt")
    assert_passes(log)
    told = story(log)
    assert told.count(("resumed",)) == 2
    assert [event for event in told if event != ("resumed",)] == story(closed_log)
    first, last = (next(e for e in read_events(f) if e["key"] == "run_start") for f in (tmp_path / "before.log", log))
    assert first == last  # the clock has run on


def test_going_back_to_an_older_checkpoint(closed_log: Path, tmp_path: Path) -> None:
    """And after the end: what a run did and lost is not in its log, but the time that it took is."""
    toy_run(tmp_path, CLOSED, REACHED)
    newest = torch.load(tmp_path / "checkpoints" / "best.pt")
    older = {**newest, "step": 2 * 43, "epoch": 43, "judged_step": 2 * 40, "best_ap": 0.21}
    torch.save(older, tmp_path / "checkpoints" / "older.pt")
    log = toy_run(tmp_path, CLOSED, REACHED, resume="older.pt")
    assert_passes(log)
    assert [event for event in story(log) if event != ("resumed",)] == story(closed_log)


def test_resuming_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    log = begun(tmp_path / "mlperf.log")
    for epoch in (1, 2):
        log.epoch_start(epoch)
        log.epoch_stop(epoch)
    log.epoch_start(3)
    again = begun(tmp_path / "mlperf.log", epochs_done=2)
    again.epoch_stop(3)
    again.epoch_start(4)
    assert story(tmp_path / "mlperf.log")[-4:] == [
        ("epoch_start", 3),
        ("resumed",),
        ("epoch_stop", 3),
        ("epoch_start", 4),
    ]


def test_resuming_from_before_an_evaluation_that_did_not_end(tmp_path: Path) -> None:
    """A checkpoint of its epoch may have been written before it began."""
    log = begun(tmp_path / "mlperf.log")
    for epoch in range(1, 41):
        log.epoch_start(epoch)
        log.epoch_stop(epoch)
    log.eval_start(40)
    again = begun(tmp_path / "mlperf.log", epochs_done=40)
    again.eval_start(40)
    again.eval_stop(40, 0.25)
    told = story(tmp_path / "mlperf.log")
    evaluation = [("eval_start", 40), ("eval_accuracy", 40), ("eval_stop", 40)]
    assert told[-6:] == [("epoch_stop", 40), ("block_stop", 1, 40), ("resumed",), *evaluation]
    assert told.count(("eval_start", 40)) == 1


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The folder of a run that was killed at epoch 45."""
    with pytest.raises(Killed):
        toy_run(tmp_path / "killed", CLOSED, REACHED, die_at=45)
    return tmp_path / "killed"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"batch_size": 64}, "global_batch_size 912, this one 512"),
        ({"multistep": (40, 50)}, r"boundary_epochs \[44, 55\], this one \[40, 50\]"),
        ({"seed": 8}, "seed 7, this one 8"),
        ({"mlperf_division": "open"}, "submission_division closed, this one open"),
    ],
)
def test_a_resumed_run_must_keep_its_settings(settings: dict[str, Any], named: str, killed: Path) -> None:
    before = (killed / "mlperf.log").read_text()
    with pytest.raises(InputError, match=f"mlperf.log: its run has .*{named}"):
        toy_run(killed, replace(CLOSED, **settings), REACHED, resume="last.pt")
    assert (killed / "mlperf.log").read_text() == before


def test_logs_that_cannot_be_gone_on_with(killed: Path) -> None:
    log = killed / "mlperf.log"
    text = log.read_text()

    def refused(content: str | None, reason: str) -> None:
        log.unlink() if content is None else log.write_text(content)
        with pytest.raises(InputError, match=f"mlperf.log: {reason}"):
            toy_run(killed, CLOSED, REACHED, resume="last.pt")

    refused(None, "no such log")
    refused("", "not a log of this program by MLPerf's ruleset 1.0.0")
    refused(text.replace('"ruleset", "value": "1.0.0"', '"ruleset", "value": "2.0.0"'), "not a log of this program")
    lines = text.splitlines(keepends=True)
    refused("".join([*lines[:9], ":::MLLOG {\n", *lines[10:]]), "event 10 is damaged")
    refused("".join(line for line in lines if '"epoch_num": 17}' not in line), "lacks some of the 45 epochs")


def test_an_attempt_before_the_first_checkpoint_is_told_of(closed_log: Path, tmp_path: Path) -> None:
    """Nothing of it is used, so the clock is the new attempt's; the first's beginning stays known."""
    log = tmp_path / "mlperf.log"
    assert begun(log).notes == []
    (first,) = [event["time_ms"] for event in read_events(log) if event["key"] == "run_start"]
    for _ in range(2):
        (note,) = begun(log).notes
        assert "an earlier attempt ended before its first checkpoint" in note
        assert value_of(log, "first_attempt_run_start_ms") == first
    toy_run(tmp_path, CLOSED, REACHED)
    assert_passes(log)
    assert value_of(log, "first_attempt_run_start_ms") == first
    told = [event for event in story(log) if event != ("first_attempt_run_start_ms",)]
    assert told == story(closed_log)


def test_a_log_that_a_run_does_not_go_on_with_is_told_of(closed_log: Path) -> None:
    (note,) = begin(Config(), closed_log.parent, [], "toy", None, HERE).notes
    assert str(closed_log) in note and "without --mlperf" in note
    assert begin(Config(), closed_log.parent / "checkpoints", [], "toy", None, HERE).notes == []


# --- the recipe ---


@pytest.mark.parametrize("world_size", [1, 2, 4, 8, 16, 64])
@pytest.mark.parametrize("batch_size", [None, 4, 32, 64, 114, 128])
def test_the_recipe_conforms_at_every_scale(batch_size: int | None, world_size: int) -> None:
    config = RECIPES["mlperf"](batch_size, world_size)
    first, second = config.multistep
    assert first / 40 == second / 50 and (10 * first / 40).is_integer()
    assert config.warmup >= 1 and config.target == 0.23 and config.detector.backbone == "resnet34"
    assert config.batch_size == (batch_size or 114)
    assert config.evaluation == tuple(range(40, config.epochs + 1, 5)) and config.epochs % 5 == 0
    assert config.epochs > second


def test_the_recipe_is_the_submission_of_the_nearest_batch() -> None:
    def of(batch_size: int, world_size: int) -> tuple[Any, ...]:
        config = RECIPES["mlperf"](batch_size, world_size)
        return config.learning_rate, config.warmup, config.weight_decay, config.multistep

    assert of(114, 8) == (3.2e-3, 650, 1.3e-4, (44, 55))
    assert of(24, 64) == (4e-3, 1155, 1.7e-4, (48, 60))
    assert of(4, 512) == (4.57e-3, 1508, 4e-5, (60, 75))
    assert of(114, 1) == (3.2e-3, 8 * 650, 1.3e-4, (44, 55))  # as much of an epoch


def test_the_command_lines_scale_reaches_the_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import ssd.distributed

    seen: list[Config] = []
    monkeypatch.setattr("ssd.cli.training_run.train_run", lambda config, *_: seen.append(config) or 0)
    monkeypatch.setattr(ssd.distributed, "process_group", lambda *_: nullcontext(HERE))
    monkeypatch.setenv("WORLD_SIZE", "64")
    assert main.main(["--recipe", "mlperf", "--data", "DIR", "--bs", "24", "--wd", "0.1"]) == 0
    assert seen == [replace(RECIPES["mlperf"](24, 64), data="DIR", weight_decay=0.1)]


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
    log.epoch_start(1)
    log.eval_start(1)
    log.eval_stop(1, 0.5)
    log.run_stop(success=True)
    assert list(tmp_path.iterdir()) == []


# --- the page cache ---


def test_clearing_the_page_cache(tmp_path: Path) -> None:
    (tmp_path / "folder" / "below").mkdir(parents=True)
    files = [tmp_path / "file", tmp_path / "folder" / "below" / "file"]
    for file in files:
        file.write_bytes(bytes(100_000))

    def cached(file: Path) -> bool:
        with file.open("rb") as stream:
            try:
                return os.preadv(stream.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT) == 1
            except BlockingIOError:
                return False
            except OSError:
                pytest.skip("this file system does not tell what it caches")

    assert all(map(cached, files))
    for _ in range(50):  # what the system is writing to the disk at that moment stays
        assert clear_page_cache([files[0], tmp_path / "folder"])
        stays = any(map(cached, files))  # asked once: asking may have the system read ahead
        if not stays:
            break
        time.sleep(0.1)
    assert not stays
    assert files[0].read_bytes() == bytes(100_000) and cached(files[0])


def test_a_system_that_cannot_clear_its_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise")
    assert not clear_page_cache([tmp_path])


# --- beside what NVIDIA published ---


def test_the_band_of_published_seeds() -> None:
    assert published_band(0.26795 + 2 * 0.00136).startswith("AP 0.2707 is 2.0 standard deviations above the mean")
    assert published_band(0.26795 - 0.00136).startswith("AP 0.2666 is 1.0 standard deviations below the mean")
    assert "15 published seeds, 0.26795 +- 0.00136" in published_band(0.1)
