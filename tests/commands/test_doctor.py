"""main.py doctor: what it makes of a machine."""

import json
import platform
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement
from rich.console import Console
from torch import device

import main
from pipelines.no_dali import ragged
from ssd.cli import doctor
from ssd.cli.doctor import OK, STOP, WARN, Finding
from ssd.config import Config
from ssd.detectors.names import family_of, settings_named
from ssd.run.needs import _image_bytes, needs_of
from ssd.views import ShortSideView

DALI = ("nvidia-dali-cuda120", "2.4.0")
SSD300_IMAGE = 3 * 300 * 300


def torch(cuda: str | None = "13.2", gpus: int = 0) -> dict[str, Any]:
    return {"cuda": cuda, "gpus": [["H200", 1e11, 1.4e11]] * gpus}


@pytest.mark.parametrize(
    ("finding", "state", "remedy"),
    [
        (doctor.judge_torch(torch(gpus=8), "580.65.06"), OK, ""),
        (doctor.judge_torch(torch(), None), OK, ""),
        (doctor.judge_torch(torch(None), "580.65.06"), STOP, "build of torch for CUDA"),
        (doctor.judge_torch(torch(), "535.183.01"), STOP, "update the driver to 580"),
        (doctor.judge_torch(torch("12.8"), "535.183.01"), STOP, "CUDA_VISIBLE_DEVICES"),
        (doctor.judge_torch({"error": "no nms"}, None), STOP, "of one release"),
        (doctor.judge_gpu(0, "H200", 1.3e11, 1.4e11), OK, ""),
        (doctor.judge_gpu(0, "H200", 1e10, 1.4e11), WARN, "another program"),
        (doctor.judge_dali([], dict), WARN, "pip install"),
        (doctor.judge_dali([DALI], dict), OK, ""),
        (doctor.judge_dali([DALI], lambda: {"error": "driver too old"}), STOP, "no_dali"),
        (doctor.judge_dali([DALI, ("nvidia-dali-cuda130", "2.4.0")], dict), STOP, "pip uninstall"),
        (doctor.judge_cores(16, 8), OK, ""),
        (doctor.judge_cores(8, 8), WARN, "fewer than two"),
        (doctor.judge_memory(40e9, 8), OK, ""),
        (doctor.judge_memory(20e9, 8), WARN, "fewer ranks"),
        (doctor.judge_memory(4e9, 8), STOP, "fewer ranks"),
        (doctor.judge_shared_memory(64 * 2**20, Config(), SSD300_IMAGE, 1), WARN, "--shm-size"),  # docker's default
        (doctor.judge_shared_memory(64 * 2**20, Config(num_workers=0), SSD300_IMAGE, 1), OK, ""),
        (doctor.judge_shared_memory(8e9, Config(), SSD300_IMAGE, 8), OK, ""),
        # Nine batches of 16 and of 2 images of 800 x 1333: 0.518 GB.
        (doctor.judge_shared_memory(5.1e8, Config(batch_size=16, eval_batch_size=2), 3 * 800 * 1333, 1), WARN, "0.52"),
        (doctor.judge_shared_memory(5.2e8, Config(batch_size=16, eval_batch_size=2), 3 * 800 * 1333, 1), OK, ""),
        (doctor.judge_open_files(-1, -1), OK, ""),
        (doctor.judge_open_files(1024, 4096), OK, ""),
        (doctor.judge_open_files(512, 4096), WARN, "ulimit -n 1024"),
        (doctor.judge_open_files(128, 512), STOP, "ulimit -n 512"),
        (doctor.judge_open_files(128, 128), STOP, "administrator"),
    ],
)
def test_what_is_made_of_a_machine(finding: Finding, state: str, remedy: str) -> None:
    assert finding.state == state and remedy in finding.remedy
    assert (finding.remedy == "") == (state == OK)


def test_a_disk_is_judged_where_the_runs_will_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[Path] = []
    free_bytes = iter((1.9e9, 2.1e9, 1e10))

    def disk_usage(path: Path) -> Any:
        looked_at.append(path)
        return SimpleNamespace(free=next(free_bytes))

    monkeypatch.setattr(doctor.shutil, "disk_usage", disk_usage)
    assert [doctor.judge_disk(tmp_path / "not" / "yet", 2e9).state for _ in range(3)] == [STOP, WARN, OK]
    assert set(looked_at) == {tmp_path}


@pytest.mark.parametrize(
    ("name", "image_bytes", "parameters"),  # all learned without --backbone-weights; COCO's, as their makers state them
    [("ssd300", SSD300_IMAGE, 22.9e6), ("retinanet_resnet50_fpn", 3 * 800 * 1333, 34.0e6),
     ("yolov2-voc", 3 * 608 * 608, 51.0e6)],
)  # fmt: skip
def test_needs_are_the_detector_s(name: str, image_bytes: int, parameters: float) -> None:
    settings = family_of(settings_named(name)).settled(settings_named(name), "none")
    needs = needs_of(settings)
    assert needs.image == image_bytes
    assert needs.checkpoint == pytest.approx(2 * 4 * parameters, rel=0.02)  # weights and momentum, float32


def test_shared_memory_is_what_the_loader_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def shared_blocks(count: int, size_bytes: int) -> None:
        taken.append(count * size_bytes)
        raise InterruptedError

    monkeypatch.setattr(ragged, "_shared_blocks", shared_blocks)
    view = ShortSideView((320, 480), 640)
    for batch_size in (16, 2):
        with pytest.raises(InterruptedError):
            next(ragged._finished(None, view, [], batch_size=batch_size, num_workers=3, device=device("cpu")))  # type: ignore[arg-type]
    config = Config(batch_size=16, eval_batch_size=2, num_workers=3)
    assert taken == [19 * 480 * 640 * 3, 7 * 480 * 640 * 3]
    for free_bytes, state in ((sum(taken), OK), (sum(taken) - 1, WARN)):
        assert doctor.judge_shared_memory(free_bytes, config, _image_bytes(view), 1, one_by_one=True).state == state


def test_packages_that_are_missing_or_old_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ("numpy>=99", "no-such-package>=1", "rich>=1", "nvidia-dali-cuda120>=99")
    monkeypatch.setattr(doctor, "requirements", lambda: [Requirement(text) for text in texts])
    numpy, missing, fine = doctor.packages()
    assert (numpy.what, numpy.state, numpy.remedy) == ("numpy", STOP, "pip install 'numpy>=99'")
    assert (missing.value, missing.state) == ("not installed", STOP)
    assert fine.value.startswith("rich ") and fine.state == OK


def test_requirements_are_those_of_a_run() -> None:
    names = {required.name for required in doctor.requirements()}
    assert {"torch", "torchvision", "rich"} <= names and names.isdisjoint({"pytest", "onnx"})


def test_the_table_and_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [
        Finding("Python", "3.13 [main]"), Finding("memory", "2 GB", WARN, "free some"),
        Finding("DALI", "[libcuda]", STOP, "install it"),
    ]  # fmt: skip
    doctor.show(findings, Console(width=60, highlight=False))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:4] == ["ok    Python     3.13 [main]", "warn  memory     2 GB", "stop  DALI       [libcuda]"]
    assert lines[4:] == ["warn memory: free some", "stop DALI: install it", "1 would stop a run"]
    assert doctor.exit_code(findings) == 1 and doctor.exit_code(findings[:2]) == 0


def test_a_package_that_cannot_be_loaded_is_a_finding() -> None:
    assert doctor._try("import no_such_module") == {"error": "ModuleNotFoundError: No module named 'no_such_module'"}
    assert doctor._try("import os; os.abort()") == {"error": "ended by signal 6"}
    assert doctor._try("print('noise'); print('{\"a\": 1}')") == {"a": 1}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        doctor._TRY_TORCH: torch(None), doctor._TRY_DALI: {"error": "cannot load libcuda"},
        doctor._TRY_NEEDS: [10**12, 10, False],
    }  # fmt: skip
    asked: list[str] = []
    monkeypatch.setattr(doctor, "_try", lambda code, *words: asked.extend(words) or answers[code])
    monkeypatch.setattr(doctor, "driver_version", lambda: "580.65.06")
    monkeypatch.setattr(doctor, "dali_packages", lambda: [DALI])
    monkeypatch.setenv("COLUMNS", "240")
    assert main.main(["doctor", "--output", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "stop GPUs: install a build" in said and "cannot load libcuda" in said and platform.python_version() in said
    assert "2 would stop a run" in said and list(tmp_path.iterdir()) == []
    monkeypatch.setattr(doctor, "driver_version", lambda: None)
    monkeypatch.setattr(doctor, "dali_packages", list)
    assert main.main(["doctor", "--output", str(tmp_path)]) == 0
    assert '"family": "ssd300"' in asked[-1] and "warn /dev/shm: ssd300 by" in said
    arguments = ["--detector", "retinanet_resnet18_fpn", "--min-size", "256", "--bs", "6", "--num-workers", "1"]
    assert main.main(["doctor", "--output", str(tmp_path), *arguments]) == 0
    said = capsys.readouterr().out
    assert '"short_sides_px": [256]' in asked[-1]
    assert "retinanet_resnet18_fpn by --data_pipeline no_dali takes up to 24000.00 GB for 1 workers" in said  # 3 x 8


def test_another_interpreter_says_what_a_detector_needs() -> None:
    content = {"family": "yolov2", **asdict(settings_named("yolov2-voc"))}
    assert tuple(doctor._try(doctor._TRY_NEEDS, json.dumps(content))) == needs_of(settings_named("yolov2-voc"))
