"""main.py doctor: what it makes of a machine."""

import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement
from rich.console import Console

import main
from ssd.cli import doctor
from ssd.cli.doctor import OK, STOP, WARN, Finding

DALI = ("nvidia-dali-cuda120", "2.4.0")


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
        (doctor.judge_shared_memory(64 * 2**20, 1), WARN, "--shm-size"),  # docker's default
        (doctor.judge_shared_memory(8e9, 8), OK, ""),
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
    free_bytes = iter((1e8, 2e9, 1e11))

    def disk_usage(path: Path) -> Any:
        looked_at.append(path)
        return SimpleNamespace(free=next(free_bytes))

    monkeypatch.setattr(doctor.shutil, "disk_usage", disk_usage)
    assert [doctor.judge_disk(tmp_path / "not" / "yet").state for _ in range(3)] == [STOP, WARN, OK]
    assert set(looked_at) == {tmp_path}


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
    answers = {doctor._TRY_TORCH: torch(None), doctor._TRY_DALI: {"error": "cannot load libcuda"}}
    monkeypatch.setattr(doctor, "_try", lambda code, *_: answers[code])
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
