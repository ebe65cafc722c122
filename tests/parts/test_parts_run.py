"""Mask and Keypoint R-CNN through the commands: training, resuming, evaluation, prediction."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import assert_equal_runs, last_of, log_of, write_small_data

import main
from pipelines.demo.shapes import POINTS
from ssd.checkpoints import checkpoint

FLAGS = (
    "--backbone-weights none --min-size 48 --max-size 64 --bs 2 --lr 0.05 --warmup 0 --clip-norm 10 --seed 3 "
    "--device cpu --num-workers 0 --log-interval 1 --no-plots --evaluation --epochs 1 --data_pipeline no_dali "
    "--score-threshold 0.01 --max-per-image 5"
).split()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_data(tmp_path_factory.mktemp("data") / "demo")


def run(*arguments: object) -> None:
    assert main.main([str(argument) for argument in arguments]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("family", "part"), [("maskrcnn", "segm"), ("keypointrcnn", "keypoints")])
def test_a_run_goes_on_bit_for_bit_and_is_judged(family: str, part: str, data: Path, tmp_path: Path) -> None:
    """In the middle of an epoch of three steps."""
    flags = ["--detector", f"{family}_resnet18_fpn", *FLAGS, "--data", data]
    whole, again = tmp_path / "whole", tmp_path / "again"
    run(*flags, "--output", whole, "--checkpoint-every", "1 steps", "--keep-checkpoints", 9)
    run(*flags, "--output", again, "--resume", whole / "checkpoints" / "step-00000002.pt")
    assert_equal_runs(last_of(whole), last_of(again))
    loss = {"maskrcnn": "loss_mask_loss", "keypointrcnn": "loss_keypoint_loss"}[family]
    logged = [line for line in log_of(whole, "train") if loss in line]
    assert len(logged) == 3 and logged[0][loss] > 0 and min(line[loss] for line in logged) >= 0  # 0: no star in it
    results = json.loads((whole / "results.json").read_text())
    assert -1 <= results[f"{part}_AP"] <= 1 and results[f"{part}_AP"] == log_of(whole, "evaluation")[-1][f"{part}_AP"]
    file = whole / "checkpoints" / "last.pt"
    settings = checkpoint.settings_of(checkpoint.load(file))
    if family == "keypointrcnn":
        assert settings.keypoints == POINTS[4][0] and settings.keypoint_labels == (3,)
        assert settings.keypoint_links[0] == (0, 1)
    command = ["--checkpoint", file, "--device", "cpu", "--num-workers"]
    judged = ["--data_pipeline", "no_dali", "--score-threshold", 0.01, "--max-per-image", 5]
    run("evaluate", "--data", data, *command, 0, *judged, "--json", tmp_path / "judged.json")
    assert json.loads((tmp_path / "judged.json").read_text())[f"{part}_AP"] == pytest.approx(results[f"{part}_AP"])


def test_data_without_the_parts_are_refused_in_one_line(
    data_copy: Path, edit_annotations: Callable[..., Path], refusal: Callable[..., str]
) -> None:
    def boxes_alone(content: dict) -> None:  # type: ignore[type-arg]
        for row in content["annotations"]:
            del row["segmentation"]
        for category in content["categories"]:
            category.pop("keypoints", None)

    edit_annotations(data_copy, "train2017", boxes_alone)
    for family, said in (("maskrcnn", "boxes and no masks"), ("keypointrcnn", "no category has 'keypoints'")):
        assert said in refusal("--data", data_copy, "--detector", f"{family}_resnet18_fpn", *FLAGS)
