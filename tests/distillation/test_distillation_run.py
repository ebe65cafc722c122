"""Distillation through the commands: what a run says, saves and refuses, and what its checkpoints are good for."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import assert_equal_runs, killed_and_not, last_of, log_of, small_checkpoint, write_small_data
from schedules import SSD300_SCHEDULE

import main
import ssd
from pipelines.readers.coco import read_annotations
from ssd.checkpoints import checkpoint
from ssd.compression.comparison.subjects import load_subjects
from ssd.detectors.ssd300.settings import SSD300Settings
from ssd.detectors.table import detector_of, to_dict
from ssd.detectors.torchvision.names import settings_of
from ssd.distillation.methods.instances import Instances
from ssd.distillation.mosaic import InstancesPicture
from ssd.pictures.drawing import class_colour
from ssd.views import ShortSideView

# Images of 64 x 96 pixels at most, and no more than a few steps: the smallest runs there are.
FLAGS = (
    "--detector retinanet_resnet18_fpn --backbone-weights none --min-size 48 64 --max-size 96 --bs 2 --lr 0.05 "
    "--warmup 0 --clip-norm 10 --seed 3 --device cpu --num-workers 0 --data_pipeline no_dali --log-interval 1 "
    "--evaluation"
).split()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_data(tmp_path_factory.mktemp("data") / "demo")


def written(settings: Any, data: Path, file: Path) -> Path:
    """A checkpoint with random weights for the data's categories."""
    split = read_annotations(data, "train2017")
    torch.manual_seed(5)
    model = detector_of(settings).build(settings, split.num_classes)
    content = {
        "format": checkpoint.FORMAT,
        "detector": to_dict(settings),
        "categories": [tuple(category) for category in split.categories],
        "model": model.state_dict(),
    }
    checkpoint.save(file, content)
    return file


@pytest.fixture(scope="module")
def teacher(data: Path) -> Path:
    return written(settings_of("retinanet_resnet18_fpn", "none"), data, data.with_name("teacher.pt"))


def run(*arguments: object) -> None:
    assert main.main([str(argument) for argument in arguments]) == 0


@pytest.mark.slow
def test_a_run_with_a_teacher_leaves_a_plain_student(
    data: Path, teacher: Path, tmp_path: Path, refusal: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    output, recipe = tmp_path / "run", tmp_path / "recipe.toml"
    recipe.write_text(f'teacher = "{teacher}"\ndistill = ["pkd", "gid"]\n[distill_settings.gid]\ncount = 4\n')
    run(*FLAGS, "--data", data, "--recipe", recipe, "--steps", 1, "--output", output)
    said = capfd.readouterr().out
    assert f"learning from {teacher} (RetinaNet-resnet18-FPN, SHA-256 " in said and "teacher RetinaNet-" in said
    (judged,) = log_of(output, "teacher")
    assert 0 <= judged["AP"] <= 1 and len(judged["sha256"]) == 64
    (line,) = log_of(output, "train")
    terms = [f"{name}_loss" for name in ("pkd", "gid_feature", "gid_relation", "gid_class", "gid_box")]
    assert all(line[name] > 0 for name in terms)
    assert (output / "plots" / "instances.jpg").is_file() and "general" not in line
    assert "pkd_loss" in (output / "metrics.csv").read_text() and "instances" in (output / "report.html").read_text()
    settings = json.loads((output / "config.json").read_text())["settings"]
    assert settings["distill"] == ["pkd", "gid"] and settings["distill_settings"] == ["gid.count=4"]

    last = output / "checkpoints" / "last.pt"
    content = checkpoint.load_run(last)
    assert content["distillation"]["sha256"] == judged["sha256"] and content["distillation"]["methods"] == [
        "gid",
        "pkd",
    ]
    assert content["model"].keys() == checkpoint.load(teacher)["model"].keys()
    more = [*FLAGS, "--data", data, "--recipe", recipe, "--steps", 2, "--output", output, "--resume", "auto"]
    assert "--distill-weight was 1.0 and is 2.0" in refusal(*map(str, more), "--distill-weight", "2")
    assert "--distill was" in refusal(*map(str, more), "--distill", "gid")
    plain = [*FLAGS, "--data", data, "--steps", 2, "--output", output, "--resume", "auto"]
    assert "the run had a teacher" in refusal(*map(str, plain))
    run(*more)
    assert len(log_of(output, "teacher")) == 1  # it is judged once
    assert last_of(output)["step"] == 2

    counts = [sum(p.numel() for p in each.model().parameters()) for each in load_subjects([teacher, last])]  # `compare`
    assert counts[0] == counts[1]

    judge = ["--data", data, "--checkpoint", last, "--device", "cpu", "--data_pipeline", "no_dali", "--num-workers", 0]
    run("evaluate", *judge, "--score-threshold", 0)
    run("convert", last, tmp_path / "weights.safetensors")
    (found,) = ssd.load(last, device="cpu", score=0.0)(next((data / "val2017").glob("*.jpg")))
    assert len(found.boxes_ltrb_px)
    tune = ["--bs", 2, "--steps", 1, "--device", "cpu", "--num-workers", 0, "--data_pipeline", "no_dali", "--no-plots"]
    run("--data", data, "--checkpoint", last, *tune, "--evaluation", "--output", tmp_path / "tuned")
    assert "companions" not in last_of(tmp_path / "tuned") and "distillation" not in last_of(tmp_path / "tuned")


@pytest.mark.slow
@pytest.mark.parametrize(("path", "ranks"), [("no_dali", 1), ("dali", 1), ("dali", 2)])
def test_a_killed_run_ends_with_the_same_weights(
    path: str, ranks: int, data: Path, teacher: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the middle of its second epoch, with GID, PKD and what MGD draws. What comes out is exported."""
    flags = [flag for flag in FLAGS if flag not in ("--backbone-weights", "none", "no_dali", "--data_pipeline")]
    command = [*flags, "--data_pipeline", path, "--data", data, "--no-plots", "--epochs", 2, "--no-judge-teacher"]
    command += ["--checkpoint", small_checkpoint(settings_of("retinanet_resnet18_fpn", "none"))]
    command += ["--teacher", teacher, "--distill", "gid", "pkd", "mgd"]
    undisturbed, _ = killed_and_not(command, ranks, tmp_path, {1: 4, 2: 3}[ranks])
    lines = log_of(undisturbed, "train")
    assert all(line["pkd_loss"] > 0 and line["gid_feature_loss"] > 0 and line["mgd_loss"] > 0 for line in lines)
    if ranks == 2:
        last = undisturbed / "checkpoints" / "last.pt"
        run("export", "--checkpoint", last, "--output", tmp_path / "plain.pt2", "--format", "torch")
        assert (tmp_path / "plain.pt2").stat().st_size > 100_000


@pytest.mark.slow
def test_a_weight_of_0_is_the_plain_run_and_a_pruned_student_has_its_dense_model_as_teacher(
    data: Path, tmp_path: Path
) -> None:
    small = replace(SSD300Settings(), backbone="resnet18")
    dense, schedule = written(small, data, tmp_path / "dense.pt"), tmp_path / "prune.yaml"
    schedule.write_text(SSD300_SCHEDULE)
    flags = [*FLAGS[2:4], *FLAGS[FLAGS.index("--bs") :], "--no-plots", "--backbone", "resnet18", "--data", data]
    taught = ["--teacher", dense, "--distill", "pkd", "--no-judge-teacher"]
    run(*flags, "--steps", 1, "--output", tmp_path / "plain")
    run(*flags, *taught, "--distill-weight", 0, "--steps", 1, "--output", tmp_path / "off")
    assert_equal_runs(last_of(tmp_path / "plain"), last_of(tmp_path / "off"))
    pruned = [*flags, *taught, "--checkpoint", dense, "--compress", schedule, "--steps", 2]
    run(*pruned, "--output", tmp_path / "pruned", "--checkpoint-every", "1 step")
    content = last_of(tmp_path / "pruned")
    assert content["companions"].keys() == {"distillation", "compression"}
    masks, model = content["companions"]["compression"]["masks"], content["model"]
    assert masks and all(torch.equal(model[name] * mask, model[name]) for name, mask in masks.items())
    lines = log_of(tmp_path / "pruned", "train")
    assert len(lines) == 2 and all(line["pkd_loss"] > 0 and line["regularization_loss"] > 0 for line in lines)
    assert content["companions"]["distillation"]["adapters"] == {}  # the maps have the same channels


def test_the_picture_shows_the_instances_where_they_were_chosen_and_is_drawn_anew_each_epoch(tmp_path: Path) -> None:
    """Tiles of 300 pixels, eight apart, below a title: an image of 150 x 300 is drawn as large as it is."""
    boxes_ltrb_px = torch.tensor([[[30.0, 20, 90, 80], [200, 100, 290, 140]], [[30, 20, 90, 80], [0, 0, 0, 0]]])
    real = torch.tensor([[True, True], [False, False]])
    instances = Instances(boxes_ltrb_px, real, torch.full((2, 2), 0.5), torch.zeros(2, 2, dtype=torch.int64))
    picture = InstancesPicture(tmp_path / "plots" / "instances.jpg", ShortSideView((300,), 300), every=3)

    def is_coloured(x: int, y: int) -> bool:
        shown = np.asarray(Image.open(picture.file), dtype=int)[26 + y, 8 + x]
        return bool(np.abs(shown - expected).max() < 60)

    expected = np.array([int(class_colour(1)[i : i + 2], 16) for i in (1, 3, 5)])
    picture.show(torch.zeros(2, 3, 150, 300), instances)
    picture.draw()
    assert is_coloured(31, 60) and is_coloured(89, 60) and is_coloured(250, 139) and is_coloured(201, 120)
    assert not is_coloured(60, 60) and not is_coloured(308 + 31, 60)  # within a box; one that was not chosen

    none = instances._replace(real=torch.zeros(2, 2, dtype=torch.bool))
    for _ in range(2):
        picture.show(torch.zeros(2, 3, 150, 300), none)
        picture.draw()
    assert is_coloured(31, 60)
    picture.show(torch.zeros(2, 3, 150, 300), none)  # the first of the next three
    assert is_coloured(31, 60)  # it is drawn where the host waits anyway
    picture.draw()
    assert not is_coloured(31, 60)
