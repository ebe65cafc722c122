"""Which checkpoints a run writes, and which of them it keeps."""

import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from ssd.checkpoints import checkpoint
from ssd.config import Config
from ssd.storage.files import sync

FOLDER = "checkpoints"
LAST, BEST = "last.pt", "best.pt"
_STEP_FILE = re.compile(r"step-\d+\.pt")


def kept(run_folder: Path) -> list[Path]:
    """The checkpoints to go on from, newest first: last.pt, then those that may be whole if it is damaged."""
    last, files = run_folder / FOLDER / LAST, _step_files(run_folder / FOLDER)
    if not last.exists():
        return files
    return [last, *(file for file in files if not file.samefile(last))]


def _step_files(folder: Path) -> list[Path]:
    """By their time, not by their step: a run that went back to an earlier one leaves newer steps that are older."""
    files = [file for file in folder.glob("step-*.pt") if _STEP_FILE.fullmatch(file.name)]
    return sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name), reverse=True)


class Keeper:
    """A run's checkpoints: step-00000012.pt and the like, the newest config.keep_checkpoints of them. last.pt and
    best.pt are other names of the newest and of the best one, whose file outlives its step's name."""

    def __init__(self, run_folder: Path, config: Config):
        self.folder = run_folder / FOLDER
        self._count, self._unit = config.checkpoint_every
        self._keep = config.keep_checkpoints
        self._saved_at = time.monotonic()

    def is_due(self, step: int, steps_per_epoch: int) -> bool:
        """Whether a checkpoint is due after this many steps, the same on every rank."""
        steps = {"steps": self._count, "epochs": self._count * steps_per_epoch}.get(self._unit)
        return steps is not None and step % steps == 0

    def asks(self) -> bool:
        """Whether a checkpoint is due by the clock of this process. It is True once for each that is due.

        Clocks of ranks differ, so the ranks must agree before one saves.
        """
        is_time = self._unit == "minutes" and time.monotonic() - self._saved_at >= 60 * self._count
        if is_time:
            self._saved_at = time.monotonic()
        return is_time

    def save(self, content: dict[str, Any], *, is_best: bool) -> None:
        file = self.folder / f"step-{content['step']:08}.pt"
        checkpoint.save(file, content)
        for name in (LAST, BEST) if is_best else (LAST,):
            _rename(file, self.folder / name)
        for old in _step_files(self.folder)[self._keep :]:
            old.unlink()
        self._saved_at = time.monotonic()

    def promote(self, step: int, **judgement: Any) -> None:
        """Makes the checkpoint of that step, if there is one, the best, now that it has been judged."""
        file = self.folder / f"step-{step:08}.pt"
        if file.exists():
            checkpoint.save(self.folder / BEST, {**checkpoint.load_run(file), **judgement})


def _rename(file: Path, name: Path) -> None:
    """Gives the file another name, which the file that had it loses; at once, as `checkpoint.save` does."""
    temporary = name.with_name(f".{name.name}.unfinished")
    temporary.unlink(missing_ok=True)
    try:
        os.link(file, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, temporary)
        sync(temporary)
    os.replace(temporary, name)
    sync(name.parent)
