"""Runs whose length is told in steps: they end, are judged and go on within an epoch. An epoch is 3 steps here."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_training import Loader, equal, interrupt_at, log_of, new_training, resumed, run_training, weights_of

from ssd.cli.train import train_parser
from ssd.detectors.ssd300.settings import SSD300Settings
from ssd.errors import InputError
from ssd.options.flags import config_of
from ssd.training.interruption import Preempted
from ssd.training.resume import is_over

SETTINGS: dict[str, Any] = {"steps": 7, "evaluation": (2, 6), "multistep": (4,), "checkpoint_every": (1, "steps")}


def judged(folder: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["epoch"], line["AP"]) for line in log_of(folder, "evaluation")]


def test_it_is_judged_and_ends_after_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = new_training(**SETTINGS)
    results, _ = run_training(training, tmp_path, aps=[0.1, 0.3, 0.2])
    assert training.step == 7 and results["epochs"] == pytest.approx(7 / 3, abs=1e-4)
    assert judged(tmp_path) == [(2, 0.6667, 0.1), (6, 2, 0.3), (7, 2.3333, 0.2)]
    assert [line["learning_rate"] for line in log_of(tmp_path, "train")] == pytest.approx([1 / 16] * 4 + [0.1 / 16] * 3)
    said = capsys.readouterr().out
    assert "epoch 2/2.333 " in said and "step 2: AP 0.100" in said and "epoch 2: AP 0.300" in said


@pytest.mark.parametrize("stop", range(1, 7))
def test_a_run_stopped_at_any_step_goes_on_as_if_it_had_not(stop: int, tmp_path: Path) -> None:
    whole = new_training(**SETTINGS)
    run_training(whole, tmp_path / "whole", aps=[0.1, 0.3, 0.2])
    training = new_training(**SETTINGS)
    done = sum(step < stop for step in (2, 6))  # a signal comes before the evaluation of its step
    with pytest.raises(Preempted, match=f"ended after step {stop} of 7"):
        run_training(training, tmp_path / "run", interrupt_at(stop, training), aps=[0.1, 0.3][:done])
    training, loader = resumed(tmp_path / "run" / "checkpoints" / "last.pt", **SETTINGS)
    run_training(training, tmp_path / "run", loader, aps=[0.1, 0.3, 0.2][done:])
    assert equal(weights_of(training), weights_of(whole))
    assert judged(tmp_path / "run") == judged(tmp_path / "whole")


def test_it_is_over_by_its_steps() -> None:
    config = new_training(**SETTINGS).config
    content = {"epoch": 2, "steps_per_epoch": Loader.steps_per_epoch, "best_ap": 0.0}
    assert [is_over({**content, "step": step}, config) for step in (6, 7)] == [False, True]


def flags(*words: str) -> dict[str, Any]:
    options = vars(train_parser(SSD300Settings()).parse_args(["--data", "demo", *words]))
    return {name: value for name, value in options.items() if name not in ("recipe", "local_rank")}


def test_the_flags() -> None:
    config = config_of(
        flags("--steps", "90", "--multistep", "60", "80", "--warmup", "5", "--warmup-factor", "0.3"),
        new_training().config,
    )
    assert (config.steps, config.multistep, config.warmup_factor) == (90, (60, 80), 0.3)


def test_a_flag_overrules_a_recipes_minutes() -> None:
    recipe = replace(new_training().config, minutes=20.0)
    assert config_of(flags("--epochs", "3"), recipe).minutes is None
    assert config_of(flags("--steps", "90"), recipe).minutes is None
    assert config_of(flags("--minutes", "5"), recipe).minutes == 5


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--steps", "90", "--epochs", "3"), "--steps and --epochs: this run's length is 90 steps"),
        (("--steps", "90", "--mlperf"), "--steps and --mlperf"),
        (("--minutes", "20", "--epochs", "3"), "--minutes and --epochs: a run has one length"),
        (("--minutes", "20", "--steps", "3"), "--minutes and --steps: a run has one length"),
        (("--minutes", "20", "--mlperf"), "--minutes and --mlperf"),
        (("--minutes", "0"), "--minutes: 0 is less than"),
        (("--warmup-factor", "0.3"), "--warmup-factor says nothing without --warmup"),
        (("--steps", "0"), "--steps: 0 is less than 1"),
        (("--warmup", "5", "--warmup-factor", "1.5"), "1.5 is not in 0..1"),
    ],
)
def test_lengths_that_make_no_sense(words: tuple[str, ...], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        config_of(flags(*words), new_training().config)
