"""Detectors train by a schedule from the command line, and a killed run ends as one that was not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import (
    SETTINGS,
    killed_and_not,
    last_of,
    log_of,
    run_all,
    settings,
    small_checkpoint,
    write_small_data,
)
from schedules import SSD300_SCHEDULE, mask_rcnn_schedule

from ssd.checkpoints import checkpoint
from ssd.detectors.torchvision.names import settings_of


@pytest.fixture
def schedule(tmp_path: Path) -> Path:
    file = tmp_path / "prune.yaml"
    file.write_text(SSD300_SCHEDULE)
    return file


ON_BOTH_PATHS = pytest.mark.parametrize(
    ("path", "ranks"), [("no_dali", 1), ("dali", 1), ("no_dali", 2), ("dali", 2)], ids=lambda each: str(each)
)
"""Epochs of three steps on one rank and of two on two; the kills are in the middle of the second epoch."""
LAST, DIES_AFTER = {1: 6, 2: 4}, {1: 4, 2: 3}


@pytest.mark.slow
@ON_BOTH_PATHS
def test_a_killed_run_of_ssd300_ends_with_the_same_weights(
    path: str, ranks: int, schedule: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    data = write_small_data(tmp_path / "demo")
    command: list[object] = ["--data", data, "--data_pipeline", path, *settings(), "--epochs", 2]
    undisturbed, killed = killed_and_not([*command, "--compress", schedule], ranks, tmp_path, DIES_AFTER[ranks])
    if (path, ranks) == ("no_dali", 1):
        schedule.write_text(SSD300_SCHEDULE.replace("0.8", "0.7"))
        complaint = refusal(
            *map(str, command), "--epochs", "3", "--compress", schedule, "--output", killed, "--resume", "auto"
        )
        assert "compress was" in complaint and "--resume-anyway" in complaint
    end = last_of(undisturbed)
    assert end["step"] == LAST[ranks]
    model, masks = end["model"], end["companions"]["compression"]["masks"]
    assert int((model["trunk.6.1.conv2.weight"] == 0).sum()) == int(0.8 * 32 * 32 * 9)
    for name in ("extra_blocks.0.0.weight", "extra_blocks.1.0.weight"):
        assert int((model[name] == 0).flatten(1).all(dim=1).sum()) == 16
    assert all(torch.equal(model[name] * mask, model[name]) for name, mask in masks.items())
    lines = log_of(undisturbed, "train")
    assert all(line["regularization_loss"] > 0 for line in lines)
    # Its lr_schedulers take the place of --schedule and --multistep.
    assert lines[-1]["learning_rate"] == pytest.approx(lines[0]["learning_rate"] / 2)
    assert json.loads((undisturbed / "config.json").read_text())["settings"]["compress"] == str(schedule)
    assert end["data"]["compress"] is not None


@pytest.mark.slow
@ON_BOTH_PATHS
def test_two_epochs_of_the_published_mask_rcnn_schedule(path: str, ranks: int, tmp_path: Path) -> None:
    """Of its 45, killed and gone on with. By section 3 of its own rule, AGP's levels are those of epochs 0 and 1."""
    schedule = tmp_path / "mask_rcnn.yaml"
    schedule.write_text(mask_rcnn_schedule())
    data = write_small_data(tmp_path / "demo")
    start = small_checkpoint(settings_of("maskrcnn_resnet50_fpn", "none"))
    command: list[object] = ["--data", data, "--data_pipeline", path, *SETTINGS, "--lr", 0.01, "--clip-norm", 10]
    command += ["--detector", "maskrcnn_resnet50_fpn", "--checkpoint", start, "--epochs", 2, "--compress", schedule]
    command += ["--min-size", 48, 64, "--max-size", 96, "--evaluation"]
    undisturbed, _ = killed_and_not(command, ranks, tmp_path, DIES_AFTER[ranks])
    end = last_of(undisturbed)
    assert end["step"] == LAST[ranks]
    model, masks = end["model"], end["companions"]["compression"]["masks"]
    assert len(masks) == 13 + 44 + 9 + 2
    shares = {name: float((model[name] == 0).float().mean()) for name in masks}
    for name, level, epoch in (
        ("backbone.body.layer1.0.conv2.weight", 0.75, 1),
        ("roi_heads.mask_head.3.0.weight", 0.85, 1),
        ("backbone.body.layer4.1.conv2.weight", 0.90, 1),
        ("roi_heads.box_head.fc6.weight", 0.85, 0),  # whose policy acts every third epoch
    ):
        of_epoch = level + (0.01 - level) * (1 - epoch / 44) ** 3
        assert shares[name] == pytest.approx(of_epoch, abs=1 / model[name].numel()), name


@pytest.mark.slow
def test_a_thinned_model_trains_on_and_resumes(tmp_path: Path) -> None:
    content = checkpoint.load(small_checkpoint())
    content["model"]["extra_blocks.0.0.weight"][:16] = 0
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
    assert len(after["extra_blocks.0.0.weight"]) == 16
    # Of a norm behind which nothing is alive, the weight stays.
    filters = {name: value for name, value in before["model"].items() if value.dim() == 4}
    assert not any(torch.equal(after[name], value) for name, value in filters.items())


def test_a_schedule_that_does_not_fit_is_refused_before_training(
    demo_data: Path, schedule: Path, tmp_path: Path, refusal
) -> None:
    command = [
        "--data",
        demo_data,
        *settings(),
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
