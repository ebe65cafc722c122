"""Which folder a run gets: its own, made once, and gone again if the run has nothing to say."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from ssd.distributed import Ranks
from ssd.errors import InputError
from ssd.run.folder import run_folder

HERE = Ranks(0, 0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def _empty_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


def with_checkpoint(folder: Path) -> Path:
    file = folder / "checkpoints" / "last.pt"
    file.parent.mkdir(parents=True)
    file.touch()
    return file


def test_runs_that_begin_in_one_second_have_a_folder_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda form: "20261121-142031")
    with ExitStack() as stack:
        begun = [stack.enter_context(run_folder("coco", None, None, HERE)) for _ in range(3)]
        assert [str(folder) for folder, _ in begun] == [
            "runs/coco-20261121-142031", "runs/coco-20261121-142031-2", "runs/coco-20261121-142031-3",
        ]  # fmt: skip
        assert all(folder.is_dir() and files == [] for folder, files in begun)


def test_a_folder_stays_if_something_is_in_it() -> None:
    with pytest.raises(InputError, match="no data"), run_folder("coco", None, None, HERE) as (empty, _):
        raise InputError("no data")
    assert not empty.exists()
    with run_folder("coco", None, None, HERE) as (folder, _):
        assert re.fullmatch(r"runs/coco-\d{8}-\d{6}", str(folder))
        (folder / "config.json").touch()
    assert folder.exists()


def test_the_users_own_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with run_folder("coco", "mine", None, HERE) as (folder, files):
        assert (folder, files) == (Path("mine"), [])
    assert folder.is_dir()
    assert list(folder.iterdir()) == []
    with run_folder("coco", "none/at/all", None, HERE) as (folder, _):
        assert folder.is_dir()  # its lock is in it
    assert not Path("none").exists()


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with run_folder("coco", None, "mine/checkpoints/last.pt", HERE) as (folder, files):
        assert (folder, files) == (Path("mine"), [Path("mine/checkpoints/last.pt")])
    assert folder.is_dir()


@pytest.mark.parametrize("make_runs", [lambda runs: runs.symlink_to("gone"), lambda runs: runs.touch()])
def test_a_place_where_no_folder_can_be(make_runs: Callable[[Path], None], tmp_path: Path) -> None:
    make_runs(tmp_path / "runs")
    with pytest.raises(InputError, match="cannot be made .* --output"), run_folder("coco", None, None, HERE):
        pass


@pytest.mark.parametrize("make", [with_checkpoint, lambda run: run.mkdir() or (run / "log.jsonl").touch()])
def test_another_run_is_not_written_over(make: Callable[[Path], object]) -> None:
    make(Path("taken"))
    with pytest.raises(InputError, match="--output taken: holds a run"), run_folder("coco", "taken", None, HERE):
        pass


def test_what_is_resumed() -> None:
    older, newer = (with_checkpoint(Path(f"runs/coco-20261120-10000{second}")) for second in (1, 2))
    other = with_checkpoint(Path("runs/coco-large-20261120-100003"))  # of other data
    Path("runs/coco-20261120-100004").mkdir()  # killed before its first checkpoint
    with run_folder("coco", None, "auto", HERE) as (folder, files):
        assert (folder, files) == (newer.parents[1], [newer])
    with run_folder("coco", None, str(older), HERE) as (folder, files):
        assert (folder, files) == (older.parents[1], [older])
    with run_folder("coco", "elsewhere", str(older), HERE) as (folder, files):
        assert (folder, files) == (Path("elsewhere"), [older])
    with run_folder("voc", None, "auto", HERE) as (folder, files):
        assert folder.name.startswith("voc-") and files == []
    assert older.exists() and newer.exists() and other.exists()
