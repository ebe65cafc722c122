"""A run whose length is told in minutes: what it becomes, and how it goes on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from runs import SETTINGS, assert_equal, log_of, run_here, settings, small_checkpoint, write_small_data

from ssd.checkpoints import checkpoint
from ssd.detectors.names import settings_named
from ssd.speed import steps

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("path", ["dali", "no_dali"])
def test_minutes_become_steps_once(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_LONG_ENOUGH_S", 0.1)
    data = write_small_data(tmp_path / "data")
    flags = ["--data", data, *settings(), "--data_pipeline", path, "--schedule", "cosine", "--warmup", 100]
    in_minutes = [*flags, "--minutes", 0.03, "--output", tmp_path / "run"]
    done = run_here(*in_minutes)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert config["minutes"] == 0.03 and config["warmup"] == config["steps"] // 10
    assert f"note: 0.03 minutes are about {config['steps']} steps of " in done.stdout
    last = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")
    assert last["step"] == config["steps"] and len(log_of(tmp_path / "run", "train")) == config["steps"]
    # What was measured has left no trace: the weights are those of a run that was told the steps.
    same = [*flags[:-1], config["warmup"], "--steps", config["steps"], "--output", tmp_path / "same"]
    assert run_here(*same).returncode == 0
    assert_equal(last["model"], checkpoint.load(tmp_path / "same" / "checkpoints" / "last.pt")["model"])

    again = run_here(*in_minutes, "--resume", "auto")
    assert again.returncode == 0 and f"this run is over after step {config['steps']}" in again.stdout
    other = run_here(*in_minutes, "--minutes", 5, "--resume", "auto")
    assert other.returncode == 2 and "not one of 5 minutes; pass --minutes 0.03" in other.stderr


def test_a_recipes_minutes_and_a_detector_that_the_checkpoint_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_LONG_ENOUGH_S", 0.1)
    data, recipe, output = write_small_data(tmp_path / "data"), tmp_path / "own.toml", tmp_path / "run"
    small = replace(settings_named("retinanet_resnet18_fpn"), short_sides_px=(64,), long_side_px=96)
    recipe.write_text("minutes = 0.05\nepochs = 8\nevaluation = [4]\nwarmup = 100\n")
    flags = ["--data", data, "--checkpoint", small_checkpoint(small), "--recipe", recipe, *SETTINGS]
    # At a low rate: a fast machine makes many steps of the minutes, and at 0.05 this untrained net diverges in 24.
    flags += ["--lr", 0.001, "--data_pipeline", "no_dali", "--output", output]
    done = run_here(*flags)
    assert done.returncode == 0, done.stderr
    config = json.loads((output / "config.json").read_text())["settings"]
    assert config["detector"] == "retinanet_resnet18_fpn" and config["weight_decay"] == 1e-4
    assert config["evaluation"] == [max(1, round(config["steps"] / 2))]
    # The command names no detector: that is the checkpoint's, with the steps that the minutes became.
    again = run_here(*flags, "--resume", "auto")
    assert again.returncode == 0 and f"this run is over after step {config['steps']}" in again.stdout, again.stderr
    longer = run_here(*flags, "--steps", config["steps"] + 1, "--resume", "auto")
    assert longer.returncode == 0, longer.stderr
    assert len(log_of(output, "train")) == config["steps"] + 1
