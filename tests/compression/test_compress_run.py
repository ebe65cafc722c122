"""SSD300 trains by a schedule from the command line, and an interrupted run ends as one that was not."""

import json
from pathlib import Path

import pytest
import torch
from runs import SETTINGS, assert_equal_runs, last_of, log_of, run_all, write_small_data
from schedules import SSD300_SCHEDULE

from ssd.checkpoints import checkpoint


@pytest.fixture
def schedule(tmp_path: Path) -> Path:
    file = tmp_path / "prune.yaml"
    file.write_text(SSD300_SCHEDULE)
    return file


@pytest.mark.slow
@pytest.mark.parametrize(("path", "ranks", "step", "last"), [("no_dali", 1, 4, 6), ("dali", 2, 3, 4)])
def test_an_interrupted_run_ends_with_the_same_weights(
    path: str, ranks: int, step: int, last: int, schedule: Path, tmp_path: Path
) -> None:
    data = write_small_data(tmp_path / "demo")
    command: list[object] = ["--data", data, "--data_pipeline", path, *SETTINGS, "--epochs", 2, "--compress", schedule]
    undisturbed, resumed = tmp_path / "undisturbed", tmp_path / "resumed"
    file = undisturbed / "checkpoints" / f"step-{step:08}.pt"
    every = ["--checkpoint-every", "1 step", "--keep-checkpoints", "99", "--output", undisturbed]
    said = run_all([[*command, *every], [*command, "--output", resumed, "--resume", file]], ranks)
    assert "its lr_schedulers take the place of --schedule and --multistep" in said
    end = last_of(undisturbed)
    assert end["step"] == last
    assert_equal_runs(last_of(resumed), end)

    model, masks = end["model"], end["companions"]["compression"]["masks"]
    assert int((model["trunk.6.1.conv2.weight"] == 0).sum()) == int(0.8 * 256 * 256 * 9)
    for name in ("extra_blocks.0.0.weight", "extra_blocks.1.0.weight"):
        assert int((model[name] == 0).flatten(1).all(dim=1).sum()) == 128
    assert all(torch.equal(model[name] * mask, model[name]) for name, mask in masks.items())
    lines = log_of(undisturbed, "train")
    assert all(line["regularization_loss"] > 0 for line in lines)
    assert lines[-1]["learning_rate"] == pytest.approx(lines[0]["learning_rate"] / 2)
    assert json.loads((undisturbed / "config.json").read_text())["settings"]["compress"] == str(schedule)
    assert checkpoint.load(file)["data"]["compress"] is not None


@pytest.mark.slow
def test_a_thinned_model_trains_on_and_resumes(demo_checkpoint: Path, tmp_path: Path) -> None:
    content = checkpoint.load(demo_checkpoint)
    content["model"]["extra_blocks.0.0.weight"][:128] = 0
    checkpoint.save(tmp_path / "sparse.pt", content)
    thin, run = tmp_path / "thin.pt", tmp_path / "run"
    data = write_small_data(tmp_path / "demo")
    command: list[object] = ["--data", data, "--data_pipeline", "no_dali", *SETTINGS, "--output", run]
    run_all(
        [
            ["thin", "--checkpoint", tmp_path / "sparse.pt", "--output", thin],
            [*command, "--checkpoint", thin, "--epochs", 1],
            [*command, "--checkpoint", thin, "--epochs", 2, "--resume", "auto"],
        ],
        1,
    )
    last = last_of(run)
    before, after = checkpoint.load(thin), checkpoint.build_model(last, run).state_dict()
    assert last["step"] == 6 and last["channels"] == before["channels"] != {}
    assert len(after["extra_blocks.0.0.weight"]) < 256
    assert all((after[name] != value).any() for name, value in before["model"].items() if name.endswith("weight"))


def test_a_schedule_that_does_not_fit_is_refused_before_training(
    demo_data: Path, schedule: Path, tmp_path: Path, refusal
) -> None:
    command = [
        "--data",
        demo_data,
        *SETTINGS,
        "--data_pipeline",
        "no_dali",
        "--epochs",
        "2",
        "--output",
        tmp_path / "run",
    ]
    schedule.write_text(SSD300_SCHEDULE.replace("trunk.6.1.conv2", "trunk.6.1.conv3"))
    complaint = refusal(*command, "--compress", schedule)
    assert f"{schedule}:7: the model has no tensor 'trunk.6.1.conv3.weight'; did you mean trunk.6." in complaint
    schedule.write_text(SSD300_SCHEDULE.replace("policies", "policy"))
    assert "has no section 'policies'" in refusal(*command, "--compress", schedule)
    assert "cannot be read" in refusal(*command, "--compress", tmp_path / "none.yaml")
