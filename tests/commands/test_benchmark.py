"""The benchmarks of training and inference: what they count, what they write, and what they refuse."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import ROOT
from runs import ENVIRONMENT

import main
from ssd.detectors.ssd300.settings import SSD300Settings
from ssd.detectors.torchvision.names import settings_of
from ssd.precision import has_16_bit_units
from ssd.speed import comparison
from ssd.speed.steps import Measurement, Stopwatch, flops_per_image

SMALLEST = ["--synthetic", "--backbone", "resnet18", "--batch-sizes", "2", "--steps", "1", "--warmup-steps", "1"]


@pytest.mark.parametrize(("backbone", "gflop"), [("resnet18", 46.27), ("resnet50", 120.48)])
def test_the_work_of_an_image(backbone: str, gflop: float) -> None:
    """Three times the forward pass (SSD300-R50 on COCO: 40.3 GFLOP), but for the gradient of the images."""
    assert flops_per_image(SSD300Settings(backbone), 81, training=True) / 1e9 == pytest.approx(gflop, abs=0.01)
    forward = flops_per_image(SSD300Settings(backbone), 81, training=False)
    # The first convolution: 64 channels x 150 x 150 places x 3 x 7 x 7, two operations each.
    assert flops_per_image(SSD300Settings(backbone), 81, training=True) == 3 * forward - 2 * 64 * 150**2 * 3 * 7**2


def test_a_retinanets_steps_count_no_gaps_between_its_maps() -> None:
    """A backward pass is twice the forward one, but for the gradient of the images."""
    settings = replace(settings_of("retinanet_resnet18_fpn", "none"), short_sides_px=(64,))
    forward, step = (flops_per_image(settings, 4, training=training) for training in (False, True))
    first = 2 * 64 * (96 // 2) * (64 // 2) * 3 * 7**2  # 85 x 64, padded to 96 x 64
    assert step == 3 * forward - first


def test_training_measures_no_batch_of_one_image_where_batch_norm_needs_two(capsys: Any) -> None:
    assert main.main(["benchmark", "train", "--synthetic", "--batch-sizes", "1"]) == 2
    assert "--batch-sizes 1: ssd300 trains on 2 images or more" in capsys.readouterr().err


@pytest.mark.parametrize(("subject", "images"), [("train", "2"), ("inference", "1")])
def test_a_detector_whose_images_keep_their_shapes_is_measured(subject: str, images: str, tmp_path: Path) -> None:
    file = tmp_path / "steps.json"
    flags = "--detector retinanet_resnet18_fpn --min-size 64 --precisions fp32".split()
    small = "--synthetic --steps 1 --warmup-steps 1 --device cpu --batch-sizes".split()
    assert main.main(["benchmark", subject, *flags, *small, images, "--json", str(file)]) == 0
    (measured,) = json.loads(file.read_text())["configurations"]
    assert measured["images_per_second"] > 0


def test_the_stopwatch_parts_each_step() -> None:
    watch = Stopwatch(torch.device("cpu"))
    watch._marks = [("", 0.0), ("data", 1.0), ("step", 4.0), ("", 9.0), ("data", 11.0), ("step", 12.0)]
    assert watch.milliseconds() == {"data": 1500.0, "step": 2000.0}  # what is between two steps belongs to neither


@pytest.mark.slow
@pytest.mark.parametrize(
    ("subject", "parts"),
    [
        ("train", ["data", "forward", "loss", "backward", "optimiser"]),
        ("inference", ["data", "forward", "post-processing"]),
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
    said = capsys.readouterr()
    assert "bf16" in said.out
    has_units = has_16_bit_units(torch.device("cpu"))
    assert found["computed_in"] == {"bf16": "bfloat16" if has_units else "float32"}
    assert ("bf16 is computed in float32" in said.err) != has_units


WITHOUT = """
import sys
sys.modules["simplejpeg"] = sys.modules["mlperf_logging"] = None  # an import of either raises
import main
for subject in ("train", "inference"):
    assert main.main(["benchmark", subject, *sys.argv[1:]]) == 0
"""


@pytest.mark.slow
def test_benchmarks_in_memory_need_no_decoder_and_no_mlperf() -> None:
    """A machine that is lent for an hour has neither simplejpeg nor mlperf_logging, and no image is read."""
    done = subprocess.run([sys.executable, "-c", WITHOUT, *SMALLEST], cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode == 0


def _of_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has ...")


def _of_cpu() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def _within_a_capture() -> None:
    try:
        _of_gpu()
    finally:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


def _of_something_else() -> None:
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def compare_with(use_up: Any, sizes: tuple[str, ...], file: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Batches of 3 call use_up; others are measured, once all that came before them are in the file."""
    measured = []

    def measure(build: Any, training: Any, batches: Any, **about: Any) -> Measurement:
        written = json.loads(file.read_text())["configurations"] if measured else []
        assert [row["batch_size"] for row in written] == measured
        measured.append(training.config.batch_size)
        if measured[-1] == 3:
            use_up()
        return Measurement(10.0 * measured[-1], {"data": 1.0, "forward": 2.0}, 0.5, 2**30)

    monkeypatch.setattr(comparison, "measure", measure)
    monkeypatch.setattr(comparison, "matmul_flops", lambda dtype, device: 1e12)
    command = ["benchmark", "train", "--synthetic", "--backbone", "resnet18", "--device", "cpu", "--json", str(file)]
    return main.main([*command, "--plot", str(file.with_suffix(".png")), "--batch-sizes", *sizes])


@pytest.mark.parametrize("use_up", [_of_gpu, _of_cpu, _within_a_capture])
def test_a_configuration_out_of_memory_is_noted(
    use_up: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    assert compare_with(use_up, ("2", "3", "4"), file, monkeypatch) == 0
    found = json.loads(file.read_text())
    assert [row.get("images_per_second") for row in found["configurations"]] == [20.0, None, 40.0]
    assert "allocate" in found["configurations"][1]["out_of_memory"] and "--batch" not in str(found)
    assert found["batch_size"] == 4 and file.with_suffix(".png").exists()
    said = capsys.readouterr()
    assert [line for line in said.out.splitlines() if "no memory" in line and "3" in line and "-" in line]
    assert "bf16, batch 3: out of memory: " in said.err


def test_every_configuration_out_of_memory_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare_with(_of_gpu, ("3",), tmp_path / "out.json", monkeypatch) == 2
    assert "pass smaller --batch-sizes" in capsys.readouterr().err.splitlines()[-1]
    assert json.loads((tmp_path / "out.json").read_text())["configurations"][0]["out_of_memory"]


def test_another_error_is_not_noted_but_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        compare_with(_of_something_else, ("2", "3"), tmp_path / "out.json", monkeypatch)


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
