"""torchvision's detectors through the commands: training, resuming, evaluation, prediction."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import MORTAL, assert_equal_runs, last_of, log_of, run_all, run_ranks, small_checkpoint, write_small_data

import main
import ssd
from ssd.checkpoints import checkpoint
from ssd.detectors.torchvision.names import settings_of

# Images of 64 x 96 pixels at most: the smallest runs there are.
FLAGS = (
    "--min-size 48 64 --max-size 96 --bs 2 --lr 0.05 --warmup 0 --clip-norm 10 --seed 3 "
    "--device cpu --num-workers 1 --log-interval 1 --no-plots --evaluation"
).split()
RETINANET = ["--detector", "retinanet_resnet18_fpn"]
FASTER = ["--detector", "fasterrcnn_resnet18_fpn"]
FCOS = ["--detector", "fcos_resnet18_fpn"]
MASK = ["--detector", "maskrcnn_resnet18_fpn"]


def small(detector: list[str]) -> list[object]:
    """The flags of a detector, with a thinned one to start from."""
    return [*detector, "--checkpoint", small_checkpoint(settings_of(detector[1], "none"))]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_data(tmp_path_factory.mktemp("data") / "demo")


def run(*arguments: object) -> None:
    assert main.main([str(argument) for argument in arguments]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("detector", "name"),
    [(RETINANET, "dali"), (FCOS, "no_dali"), (FASTER, "dali"), (FASTER, "no_dali")],
    ids=lambda words: words if isinstance(words, str) else words[1],
)
def test_a_run_goes_on_bit_for_bit(detector: list[str], name: str, data: Path, tmp_path: Path) -> None:
    """In the middle of an epoch of two steps, with a moving average and batches in two parts."""
    flags = [*small(detector), *FLAGS, "--data", data, "--data_pipeline", name, "--epochs", 2]
    flags += ["--ema", 0.9, "--bs", 4, "--accumulate", 2]
    run(*flags, "--output", tmp_path / "whole", "--checkpoint-every", "3 steps")
    run(*flags, "--output", tmp_path / "again", "--resume", tmp_path / "whole" / "checkpoints" / "step-00000003.pt")
    assert_equal_runs(last_of(tmp_path / "whole"), last_of(tmp_path / "again"))
    whole, again = (
        [
            {key: value for key, value in line.items() if key.endswith("loss")}
            for line in log_of(tmp_path / one, "train")
        ]
        for one in ("whole", "again")
    )
    assert len(whole) == 4 and whole[3:] == again
    assert all(line["loss"] is not None for line in whole)


# Epochs of two steps on two ranks, so that a checkpoint after the third is within the second.
ON_TWO_RANKS = {"retinanet": ("dali", RETINANET), "maskrcnn": ("no_dali", MASK)}


@pytest.fixture(scope="module")
def on_two_ranks(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with an undisturbed run on two ranks of each of `ON_TWO_RANKS`, and one that was killed in the middle
    of its second epoch and went on."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, (path, flags) in ON_TWO_RANKS.items():
        common = [*small(flags), *FLAGS, "--data", data, "--data_pipeline", path, "--epochs", 2]
        common += ["--checkpoint-every", "3 steps"]
        run_all([[*common, "--output", folder / f"{name}-whole"]], 2)
        killed = [*common, "--output", folder / f"{name}-killed"]
        # On rank 0, before the fourth step; the other rank then ends by itself.
        dead, other = run_ranks([folder / f"{name}-died", 3, 0, "itself", 9, *killed], 2, program=MORTAL)
        assert dead.code == -9 and other.code not in (0, -9), other.said
        run_all([[*killed, "--resume", "auto"]], 2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_TWO_RANKS)
def test_a_killed_run_on_two_ranks_goes_on_bit_for_bit(name: str, on_two_ranks: Path) -> None:
    whole, killed = (on_two_ranks / f"{name}-{kind}" for kind in ("whole", "killed"))
    expected = last_of(whole)
    assert expected["step"] == 4 and expected["data"]["world_size"] == len(expected["data_states"]) == 2
    assert [line["step"] for line in log_of(killed, "resumed")] == [3]
    assert_equal_runs(last_of(killed), expected)
    losses = [
        {
            line["step"]: {key: value for key, value in line.items() if key.endswith("loss")}
            for line in log_of(run, "train")
        }
        for run in (whole, killed)
    ]
    assert losses[0] == losses[1] and losses[0].keys() == {1, 2, 3, 4}
    # The step after the kill mattered.
    before = checkpoint.load_run(whole / "checkpoints" / "step-00000003.pt")["model"]
    assert not torch.equal(before["backbone.body.conv1.weight"], expected["model"]["backbone.body.conv1.weight"])


@pytest.fixture(scope="module")
def retinanet(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, with plots and report."""
    folder = tmp_path_factory.mktemp("runs") / "retinanet"
    flags = [flag for flag in FLAGS if flag != "--no-plots"]
    run(*small(RETINANET), *flags, "--data", data, "--data_pipeline", "no_dali", "--epochs", 1, "--output", folder)
    return folder


@pytest.mark.slow
def test_a_checkpoint_says_all_of_its_detector(
    retinanet: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = retinanet / "checkpoints" / "last.pt"
    settings = checkpoint.settings_of(checkpoint.load(file))
    assert settings.name == "retinanet_resnet18_fpn" and settings.short_sides_px == (48, 64)
    assert (settings.norm, settings.trainable_layers) == ("batch", 5)  # from scratch
    saved = json.loads((retinanet / "config.json").read_text())["settings"]
    assert saved["detector"] == "retinanet_resnet18_fpn" and saved["short_sides_px"] == [48, 64]
    assert {"classification_loss", "bbox_regression_loss"} <= log_of(retinanet, "train")[0].keys()
    assert (retinanet / "report.html").is_file() and (retinanet / "plots" / "curves.png").is_file()

    judged = ["--data", data, "--checkpoint", file, "--device", "cpu", "--data_pipeline", "no_dali", "--num-workers", 0]
    run("evaluate", *judged, "--score-threshold", 0, "--json", tmp_path / "metrics.json")
    assert 0 <= json.loads((tmp_path / "metrics.json").read_text())["AP"] <= 1
    run(
        "predict",
        data / "val2017",
        "--checkpoint",
        file,
        "--output",
        tmp_path / "found",
        "--device",
        "cpu",
        "--score",
        0,
    )
    assert json.loads((tmp_path / "found" / "detections.json").read_text())
    (found,) = ssd.load(file, device="cpu", score=0.0)(next((data / "val2017").glob("*.jpg")))
    assert len(found.boxes_ltrb_px) and set(found.names) <= {name for _, name in ssd.load(file).categories}
    run("convert", file, tmp_path / "weights.safetensors")
    assert "RetinaNet-resnet18-FPN" in capsys.readouterr().out
    assert checkpoint.settings_of(checkpoint.load(file)) == settings


@pytest.mark.slow
def test_fine_tuning_takes_the_checkpoints_detector_without_being_told(
    retinanet: Path, data: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    file = retinanet / "checkpoints" / "last.pt"
    common = "--bs 2 --epochs 1 --device cpu --num-workers 0 --no-plots --seed 1 --data_pipeline no_dali".split()
    run("--data", data, "--checkpoint", file, *common, "--output", tmp_path / "fine")
    config = json.loads((tmp_path / "fine" / "config.json").read_text())["settings"]
    assert config["detector"] == "retinanet_resnet18_fpn" and config["max_per_image"] == 300
    said = refusal("--data", data, "--checkpoint", file, "--backbone", "resnet34", *common)
    assert "--backbone: means nothing for retinanet_resnet18_fpn" in said
    said = refusal(*FASTER, "--data", data, "--checkpoint", file, *common)
    assert "holds a retinanet_resnet18_fpn" in said


def test_bad_names_and_settings_are_named(refusal: Callable[..., str]) -> None:
    assert "did you mean retinanet_resnet50_fpn?" in refusal("--data", "x", "--detector", "retinanet_resnet50_fnp")
    assert "there is no such detector" in refusal("--data", "x", "--detector", "yolo")
    said = refusal("--data", "x", *RETINANET, "--backbone", "resnet18")
    assert "name or file says the body" in said
    assert "that is an option of other detectors, such as --detector retinanet" in refusal(
        "--data", "x", "--min-size", "9"
    )
    said = refusal("--data", "x", *RETINANET, "--boxes-an-image", "512")  # which an R-CNN starts from
    assert "that is an option of other detectors, such as --detector fasterrcnn_resnet50_fpn" in said
    assert "images of many shapes" in refusal("--data", "x", *RETINANET, "--compile", "--device", "cpu")
    assert "--max-size" in refusal("--data", "x", *RETINANET, "--min-size", "600", "--max-size", "300")
    for name, most in (("fcos_resnet18_fpn", 5), ("fasterrcnn_mobilenet_v3_large_fpn", 6), ("retinanet_r18_fpn", 5)):
        said = refusal("--data", "x", "--detector", name, "--trainable-layers", str(most + 1))
        assert f"{name} has {most} parts; pass {most} at most" in said


def test_the_detectors_own_settings_follow_the_weights(tmp_path: Path) -> None:
    assert settings_of("retinanet_resnet18_fpn", "none").norm == "batch"
    assert settings_of("retinanet_resnet18_fpn", "imagenet").norm == "frozen"
