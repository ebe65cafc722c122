"""Whatever becomes of files that tools write, every reader gives clean annotations or InputError of one line."""

from pathlib import Path

import fuzz_tools
import pytest

from pipelines.readers import yolo


@pytest.mark.parametrize("form", fuzz_tools.TOOLS)
def test_any_damage_to_what_tools_write(form: str, tmp_path: Path) -> None:
    answers, found = fuzz_tools.fuzz(form, inputs=80, seed=7, first=0, folder=tmp_path)
    assert not found
    assert {"clean", "refused"} <= set(answers)


def test_the_fuzzer_tells_what_it_finds_and_how_to_repeat_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yolo, "_LARGEST_FRACTION", None)
    _, found = fuzz_tools.fuzz("yolo", inputs=3, seed=7, first=40, folder=tmp_path)
    ((place, first),) = found.items()
    assert place.startswith("TypeError at yolo.py:") and "--forms yolo --seed 7 --first 40 --inputs 1" in first
