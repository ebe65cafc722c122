"""The benchmarks of training and inference: what they count, what they write, and what they refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import main
from ssd.speed.steps import Stopwatch, flops_per_image

SMALLEST = ["--synthetic", "--backbone", "resnet18", "--batch-sizes", "2", "--steps", "1", "--warmup-steps", "1"]


@pytest.mark.parametrize(("backbone", "gflop"), [("resnet18", 46.27), ("resnet50", 120.48)])
def test_the_work_of_an_image(backbone: str, gflop: float) -> None:
    """Three times the forward pass (SSD300-R50 on COCO: 40.3 GFLOP), but for the gradient of the images."""
    assert flops_per_image(backbone, 81, training=True) / 1e9 == pytest.approx(gflop, abs=0.01)
    forward = flops_per_image(backbone, 81, training=False)
    # The first convolution: 64 channels x 150 x 150 places x 3 x 7 x 7, two operations each.
    assert flops_per_image(backbone, 81, training=True) == 3 * forward - 2 * 64 * 150**2 * 3 * 7**2


def test_the_stopwatch_parts_each_step() -> None:
    watch = Stopwatch(torch.device("cpu"))
    watch._marks = [("", 0.0), ("data", 1.0), ("step", 4.0), ("", 9.0), ("data", 11.0), ("step", 12.0)]
    assert watch.milliseconds() == {"data": 1500.0, "step": 2000.0}  # what is between two steps belongs to neither


@pytest.mark.slow
@pytest.mark.parametrize(
    ("subject", "parts"),
    [
        ("train", ["data", "forward", "loss", "backward", "optimiser"]),
        ("inference", ["data", "forward", "decode", "nms"]),
    ],
)
def test_figures_are_written(subject: str, parts: list[str], tmp_path: Path, capsys: Any) -> None:
    files = {name: tmp_path / f"{name}.{end}" for name, end in (("json", "json"), ("plot", "png"), ("profile", "json"))}
    outputs = [str(word) for name, file in files.items() for word in (f"--{name}", file)]
    assert main.main(["benchmark", subject, *SMALLEST, *outputs]) == 0
    found = json.loads(files["json"].read_text())
    for row in (found, *found["configurations"]):
        assert row["images_per_second"] > 0 and 0 < row["mfu"] < 2 and row["peak_memory_bytes"] > 2**20
        assert list(row["milliseconds"]) == parts
        assert sum(row["milliseconds"].values()) == pytest.approx(2e3 / row["images_per_second"], rel=0.1)
    assert len(found["configurations"]) == 1 and found["hardware"]["device"] == "cpu" and "torch" in found["versions"]
    assert files["plot"].read_bytes().startswith(b"\x89PNG")
    assert any("conv" in event["name"] for event in json.loads(files["profile"].read_text())["traceEvents"])
    assert "bf16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["memory"], "invalid choice: 'memory'"),
        (["train"], "pass one of them"),
        (["train", "--synthetic", "--data", "demo"], "pass one of them"),
        (["train", "--synthetic", "--rounds", "3"], "unrecognized arguments: --rounds 3"),
        (["data", "--synthetic"], "unrecognized arguments: --synthetic"),
        (["inference", "--synthetic", "--cuda-graphs"], "unrecognized arguments: --cuda-graphs"),
        (["train", "--synthetic", "--cuda-graphs", "--device", "cpu"], "--cuda-graphs needs an NVIDIA GPU"),
        (["inference", "--synthetic", "--json", "/no/such/folder/a.json"], "--json /no/such/folder/a.json"),
    ],
)
def test_flags_of_another_subject_are_refused(arguments: list[str], says: str, refusal: Any) -> None:
    assert says in refusal("benchmark", *arguments)
