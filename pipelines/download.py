"""Fetching COCO 2017: resumable, checked, and in the data folder only when whole.

COCO states no checksums. The SHA-1 sums are those that GluonCV has checked its downloads by since 2018, the sizes those
that its server has stated; beyond that, unpacking checks the CRC-32 of every file.
"""

import errno
import fcntl
import hashlib
import io
import os
import re
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ssd.errors import InputError

COCO_URL = "http://images.cocodataset.org"
TIMEOUT_S = 60  # without a byte
_CHUNK_BYTES = 1 << 18


@dataclass(frozen=True)
class Archive:
    """A zip file and what is taken out of it."""

    path: str
    """After the server's address; its last part is the file's name."""
    size_bytes: int
    sha1: str
    unpacked_bytes: int
    """About; the room for it is checked before the download, and exactly before unpacking."""
    parts: tuple[str, ...]
    """The folders or files that are unpacked, as they are named in the archive and then in the data folder."""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


COCO_2017 = (
    Archive(
        "annotations/annotations_trainval2017.zip",
        252_907_541,
        "8551ee4bb5860311e79dace7e79cb91e432e78b3",
        490_000_000,
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
    ),
    Archive("zips/val2017.zip", 815_585_330, "4950dc9d00dbe1c933ee0170f5797584351d2a41", 820_000_000, ("val2017",)),
    Archive(
        "zips/train2017.zip", 19_336_861_798, "10ad623668ab00c62c096f0ed636d6aff41faca5", 19_400_000_000, ("train2017",)
    ),
)


def download(folder: Path, url: str = COCO_URL, archives: tuple[Archive, ...] = COCO_2017) -> list[str]:
    """Fetches and unpacks into folder what is not there yet; returns the names of the archives that were needed.

    Killed at any point, it goes on from there when called again: what is half there has a name that begins with a dot,
    and each part of an archive appears whole. Raises InputError if the disk is too small, the server does not give the
    expected file, or the connection is lost for good.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed = [archive for archive in archives if not all((folder / part).exists() for part in archive.parts)]
    _require_space(folder, _peak_bytes(folder, needed))
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for archive in needed:
            file = _partial(folder, archive)
            task = progress.add_task(archive.name, total=archive.size_bytes)
            with _locked(file) as stream:
                _fetch(stream, f"{url.rstrip('/')}/{archive.path}", archive, progress, task)
                _check(stream, file, archive)
                _unpack(stream, folder, archive, progress)
                file.unlink()
    return [archive.name for archive in needed]


def _partial(folder: Path, archive: Archive) -> Path:
    return folder / f".{archive.name}.part"


def _peak_bytes(folder: Path, archives: list[Archive]) -> int:
    """What the downloads still add to the disk at the most: each archive is removed before the next is fetched."""
    peak = kept = 0
    for archive in archives:
        file = _partial(folder, archive)
        present = file.stat().st_size if file.exists() else 0
        peak = max(peak, kept + archive.size_bytes - present + archive.unpacked_bytes)
        kept += archive.unpacked_bytes - present
    return peak


def _require_space(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise InputError(
            f"--data {folder}: {needed_bytes / 1e9:.1f} GB are needed and {free_bytes / 1e9:.1f} GB are free; make "
            "room, or pass a folder on another disk"
        )


@contextmanager
def _locked(file: Path) -> Iterator[io.FileIO]:
    """The file, open to read and to append. Raises InputError if another process has it."""
    with file.open("a+b", buffering=0) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{file}: another download is writing it; wait for that one to end") from None
        yield stream


def _fetch(stream: io.FileIO, url: str, archive: Archive, progress: Progress, task: TaskID) -> None:
    """Appends to the stream what it still lacks of the archive. Connects again as long as that brings it further."""
    while (present := stream.seek(0, os.SEEK_END)) < archive.size_bytes:
        progress.update(task, completed=present)
        reason = "the connection was closed"
        try:
            request = urllib.request.Request(url, headers={"Range": f"bytes={present}-"})
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                _require_size(response, url, archive)
                if response.status != 206:  # the server gives no parts, so this is the whole file again
                    stream.truncate(0)
                    progress.update(task, completed=0)
                while chunk := memoryview(response.read1(_CHUNK_BYTES)):  # as it comes, for little to be lost
                    progress.advance(task, len(chunk))
                    while chunk := chunk[stream.write(chunk) :]:
                        pass
        except urllib.error.HTTPError as error:
            raise InputError(f"{url}: the server says {error.code} {error.reason}; pass another --url") from None
        except (OSError, HTTPException) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise InputError(
                    f"{stream.name}: {error.strerror}; make room, and run the same command again to go on from there"
                ) from None
            reason = str(error) or type(error).__name__
        if stream.seek(0, os.SEEK_END) <= present:
            raise InputError(
                f"{url}: lost at {present} bytes ({reason}); run the same command again to go on from there"
            )
    progress.update(task, completed=archive.size_bytes)


def _require_size(response: object, url: str, archive: Archive) -> None:
    headers = response.headers  # type: ignore[attr-defined]
    whole = re.fullmatch(r"bytes \d+-\d+/(\d+)", headers.get("Content-Range", ""))
    stated = whole[1] if whole else headers.get("Content-Length")
    if stated is not None and int(stated) != archive.size_bytes:
        raise InputError(f"{url}: has {stated} bytes instead of {archive.size_bytes}; pass another --url")


def _check(stream: io.FileIO, file: Path, archive: Archive) -> None:
    stream.seek(0)
    found = hashlib.file_digest(stream, "sha1").hexdigest()
    if found != archive.sha1:
        file.unlink()  # else the next attempt would find it complete
        raise InputError(
            f"{archive.name}: damaged, its SHA-1 is {found} instead of {archive.sha1}; it was removed, so run the same "
            "command again to fetch it anew"
        )


def _unpack(stream: io.FileIO, folder: Path, archive: Archive, progress: Progress) -> None:
    unfinished = folder / f".{archive.name}.unpacked"
    shutil.rmtree(unfinished, ignore_errors=True)
    inside = tuple(f"{part}/" for part in archive.parts)
    with zipfile.ZipFile(stream) as opened:
        members = [m for m in opened.infolist() if m.filename in archive.parts or m.filename.startswith(inside)]
        total_bytes = sum(member.file_size for member in members)
        _require_space(folder, total_bytes)
        task = progress.add_task(f"unpacking {archive.name}", total=total_bytes)
        for member in members:
            opened.extract(member, unfinished)  # checks its CRC-32
            progress.advance(task, member.file_size)
    for part in archive.parts:
        if not (folder / part).exists():
            (folder / part).parent.mkdir(parents=True, exist_ok=True)
            os.replace(unfinished / part, folder / part)
    shutil.rmtree(unfinished)
