"""A few seconds of each fuzzer; the fuzzers' own documentation says how to run them for long."""

import subprocess
import sys
from pathlib import Path

import fuzz_images
import pytest

TESTS = Path(__file__).parent


def test_the_annotation_reader_survives() -> None:
    pytest.importorskip("atheris", reason="atheris is not installed: pip install -e '.[fuzz]'")
    command = [sys.executable, str(TESTS / "fuzz_annotations.py"), "--inputs", "2000"]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2000 inputs in" in done.stdout and "'clean'" in done.stdout


def test_the_decoder_survives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fuzz_images.read_all(inputs=1000, seed=2, keep=64, folder=tmp_path)
    assert "1000 files in" in capsys.readouterr().out and len(list(tmp_path.iterdir())) == 64
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    assert fuzz_images.read_by_dali(tmp_path) == 0, capsys.readouterr().out


def test_the_fuzzer_notices_what_dali_refuses(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    (tmp_path / "good").write_bytes(fuzz_images.seeds()[0])
    (tmp_path / "garbage").write_bytes(b"GIF89a and no more of it")
    assert fuzz_images.read_by_dali(tmp_path) == 1
