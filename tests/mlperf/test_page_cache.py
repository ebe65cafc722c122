"""The page cache is cleared before a run whose time counts."""

import os
import time
from pathlib import Path

import pytest

from ssd.mlperf.page_cache import clear_page_cache


def test_clearing_the_page_cache(tmp_path: Path) -> None:
    (tmp_path / "folder" / "below").mkdir(parents=True)
    files = [tmp_path / "file", tmp_path / "folder" / "below" / "file"]
    for file in files:
        file.write_bytes(bytes(100_000))

    def cached(file: Path) -> bool:
        with file.open("rb") as stream:
            try:
                return os.preadv(stream.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT) == 1
            except BlockingIOError:
                return False
            except OSError:
                pytest.skip("this file system does not tell what it caches")

    assert all(map(cached, files))
    for _ in range(50):  # what the system is writing to the disk at that moment stays
        assert clear_page_cache([files[0], tmp_path / "folder"])
        stays = any(map(cached, files))  # asked once: asking may have the system read ahead
        if not stays:
            break
        time.sleep(0.1)
    assert not stays
    assert files[0].read_bytes() == bytes(100_000) and cached(files[0])


def test_a_system_that_cannot_clear_its_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise")
    assert not clear_page_cache([tmp_path])


# --- beside what NVIDIA published ---
