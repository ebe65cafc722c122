"""A few seconds of each fuzzer; the fuzzers' own documentation says how to run them for long."""

import subprocess
import sys
from pathlib import Path

import fuzz_images
import pytest

from pipelines.readers import image_files

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
    assert fuzz_images.held_against_dali(tmp_path, {}) == []


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_dali_reads_what_we_read(tmp_path: Path) -> None:
    """Chunk orders, sizes and samplings that encoders do not write."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    kinds = fuzz_images.make_all(1000, seed=4, folder=tmp_path)
    assert {kind.split()[0] for kind in kinds.values()} == {"PNG", "WebP", "JPEG"} and len(kinds) > 500
    assert fuzz_images.held_against_dali(tmp_path, kinds) == []


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_the_fuzzer_notices_what_dali_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    monkeypatch.setattr(image_files, "_require_readable_by_dali", lambda stream: None)
    kinds = fuzz_images.make_all(100, seed=4, folder=tmp_path)
    wrong = fuzz_images.held_against_dali(tmp_path, kinds)
    assert any("refused" in line and "WebP" in line for line in wrong)
    assert any("other pixels" in line and "JPEG" in line for line in wrong)
