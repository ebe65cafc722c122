"""Files that a user names."""

from pathlib import Path

from ssd.errors import InputError


def require_file(file: Path, what: str) -> None:
    """Raises InputError where there is no file; what: it should be. Of a run's folder it says where checkpoints are."""
    if file.is_dir():
        checkpoints = file / "checkpoints"
        where = f"; this run's checkpoints are in {checkpoints}" if checkpoints.is_dir() else ""
        raise InputError(f"{file}: is a folder; pass the path of {what}{where}")
    if not file.is_file():
        raise InputError(f"{file}: no such file; pass the path of {what}")
