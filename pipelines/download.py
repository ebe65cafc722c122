"""Fetching COCO 2017 and PASCAL VOC: resumable, checked, and in the data folder only when whole.

COCO states no checksums. The SHA-1 sums are those that GluonCV has checked its downloads by since 2018, the sizes those
that its server has stated; beyond that, unpacking checks the CRC-32 of every file. VOC's MD5 sums are torchvision's.
"""

import errno
import fcntl
import hashlib
import io
import os
import re
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ssd.console import Console
from ssd.errors import InputError

VOC_URL = "http://host.robots.ox.ac.uk/pascal/VOC"
COCO_URL = "http://images.cocodataset.org"
TIMEOUT_S = 60  # without a byte
_CHUNK_BYTES = 1 << 18


@dataclass(frozen=True)
class Archive:
    """A zip or tar file and what is taken out of it."""

    path: str
    """After the server's address; its last part is the file's name."""
    size_bytes: int
    digest: str
    """In hexadecimal digits: an SHA-1 of 40 or an MD5 of 32."""
    unpacked_bytes: int
    """About; the room for it is checked before the download, and exactly before unpacking."""
    parts: tuple[str, ...]
    """The folders or files that are unpacked, as they are named in the archive and then in the data folder."""
    inside: str = ""
    """The folder in the archive that they lie in, with a slash behind it; the data folder has none."""
    last: str = ""
    """Of an archive that shares its folders with others: a file of it that is put there last, and says that all is."""

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

_VOC_PARTS = ("Annotations", "ImageSets", "JPEGImages")


def _of_voc(year: str, split: str, date: str, size_bytes: int, md5: str) -> Archive:
    folder = f"VOC{year}"
    parts = tuple(f"{folder}/{part}" for part in _VOC_PARTS)
    last = f"{folder}/ImageSets/Main/{split}.txt"
    path = f"voc{year}/VOC{split}_{date}.tar"
    return Archive(path, size_bytes, md5, size_bytes, parts, "VOCdevkit/", last)


VOC_2007_2012 = (
    _of_voc("2007", "trainval", "06-Nov-2007", 460_032_000, "c52e279531787c972589f7e41ab4ae64"),
    _of_voc("2007", "test", "06-Nov-2007", 451_020_800, "b6e924de25625d8de591ea690078ad9f"),
    _of_voc("2012", "trainval", "11-May-2012", 1_999_639_040, "6cd6e144f989b92b3379bac3b3de84fd"),
)


def download(folder: Path, url: str = COCO_URL, archives: tuple[Archive, ...] = COCO_2017) -> list[str]:
    """Fetches and unpacks into folder what is not there yet; returns the names of the archives that were needed.

    Killed at any point, it goes on from there when called again: what is half there has a name that begins with a dot,
    and each part of an archive appears whole. Raises InputError if the disk is too small, the server does not give the
    expected file, or the connection is lost for good.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed = [archive for archive in archives if not _is_there(folder, archive)]
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


def _is_there(folder: Path, archive: Archive) -> bool:
    return all((folder / part).exists() for part in ((archive.last,) if archive.last else archive.parts))


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
    kind = "SHA-1" if len(archive.digest) == 40 else "MD5"
    found = hashlib.file_digest(stream, kind.lower().replace("-", "")).hexdigest()
    if found != archive.digest:
        file.unlink()  # else the next attempt would find it complete
        raise InputError(
            f"{archive.name}: damaged, its {kind} is {found} instead of {archive.digest}; it was removed, so run the "
            "same command again to fetch it anew"
        )


def _unpack(stream: io.FileIO, folder: Path, archive: Archive, progress: Progress) -> None:
    unfinished = folder / f".{archive.name}.unpacked"
    shutil.rmtree(unfinished, ignore_errors=True)
    (_extract_tar if archive.name.endswith(".tar") else _extract_zip)(stream, folder, archive, unfinished, progress)
    root = unfinished / archive.inside
    if archive.last:
        files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
        moved = [path for path in files if path != Path(archive.last)] + [Path(archive.last)]
    else:
        moved = [Path(part) for part in archive.parts if not (folder / part).exists()]
    for path in moved:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(root / path, folder / path)
    shutil.rmtree(unfinished)


def _is_wanted(name: str, archive: Archive) -> bool:
    bare = name.removeprefix(archive.inside)
    return bare in archive.parts or bare.startswith(tuple(f"{part}/" for part in archive.parts))


def _extract_zip(stream: io.FileIO, folder: Path, archive: Archive, target: Path, progress: Progress) -> None:
    with zipfile.ZipFile(stream) as opened:
        members = [member for member in opened.infolist() if _is_wanted(member.filename, archive)]
        total_bytes = sum(member.file_size for member in members)
        _require_space(folder, total_bytes)
        task = progress.add_task(f"unpacking {archive.name}", total=total_bytes)
        for member in members:
            opened.extract(member, target)  # checks its CRC-32
            progress.advance(task, member.file_size)


def _extract_tar(stream: io.FileIO, folder: Path, archive: Archive, target: Path, progress: Progress) -> None:
    _require_space(folder, archive.size_bytes)
    task = progress.add_task(f"unpacking {archive.name}", total=archive.size_bytes)
    stream.seek(0)
    with tarfile.open(fileobj=stream, mode="r|") as opened:  # front to back, so that it is read once
        for member in opened:
            if _is_wanted(member.name, archive):
                opened.extract(member, target, filter="data")
            progress.update(task, completed=member.offset_data + member.size)
