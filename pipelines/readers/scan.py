"""Which images of a split can be used: every file decoded once, and the verdicts kept until a file changes.

`main.py check` and `--on-bad-image skip` look at images through this module, so they agree on what is bad.
"""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipelines.annotations import Annotations
from pipelines.readers.headers import Header
from pipelines.readers.image_files import (
    MAX_PIXELS,
    RULES,
    BadImage,
    Flaw,
    decode_rgb,
    open_image,
    orientation_of,
    read_rgb,
    require_size,
    unreadable,
)
from pipelines.readers.layouts.source import Source
from pipelines.readers.once_a_host import read_once_a_host
from pipelines.readers.reading import read_document, read_tolerantly
from pipelines.readers.rows import BadRows, Defect
from ssd.console import say_on_stderr
from ssd.distributed import Ranks, broadcast_object
from ssd.errors import InputError
from ssd.views import BOXES, ObjectParts

_FILE_THREADS = 8  # waiting for a disk or a network, mostly


class Inspection(NamedTuple):
    """What reading and decoding one image file showed; of a bad one less."""

    flaw: Flaw | None
    reason: str
    """Of the flaw, to be read after the file's name and a colon."""
    bytes: int = -1
    modified_ns: int = -1
    """Size and time of the file as it was read; -1 where it could not be."""
    size_px: tuple[int, int] = (0, 0)
    """(width, height), as stored."""
    mode: str = ""
    """Pillow's name of what the values are: "RGB", "L" (gray), "CMYK", ..."""
    orientation: int = 1
    """EXIF's, 1..8; 1 is upright, and from 5 on width and height are exchanged."""
    digest: str = ""
    """Of the bytes."""


def inspect(path: Path) -> Inspection:
    try:
        with path.open("rb") as stream:
            state = os.fstat(stream.fileno())
            content = stream.read()
    except FileNotFoundError:
        return Inspection(Flaw.MISSING, "is not there")
    except OSError as error:
        return Inspection(Flaw.UNREADABLE, error.strerror or str(error))
    try:
        height, width, _ = decode_rgb(content).shape
        mode, orientation = _mode_and_orientation(content)
    except BadImage as error:
        return Inspection(error.flaw, str(error), state.st_size, state.st_mtime_ns)
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    return Inspection(None, "", state.st_size, state.st_mtime_ns, (width, height), mode, orientation, digest)


def _mode_and_orientation(content: bytes) -> tuple[str, int]:
    with open_image(content) as image:
        return image.mode, orientation_of(image)


def inspect_all(folder: Path, names: list[str], num_threads: int, what: str) -> list[Inspection]:
    """In the order of the names, with a progress bar on stderr if that is a terminal.

    Decoding leaves Python's lock alone, so that threads are enough.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with (
        warnings.catch_warnings(),
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
        ThreadPoolExecutor(max(1, num_threads)) as pool,
    ):
        warnings.simplefilter("ignore")  # Pillow's, of odd EXIF data
        inspections = pool.map(inspect, (folder / name for name in names))
        return list(progress.track(inspections, total=len(names), description=what))


class Verdict(NamedTuple):
    """What is kept of an `Inspection`."""

    flaw: str
    """"" for none."""
    bytes: int
    modified_ns: int
    width_px: int
    height_px: int
    """As stored."""
    orientation: int

    def fits(self, size_px: list[int]) -> bool:
        """Whether the image is of this size, stored or as EXIF turns it."""
        own = [self.width_px, self.height_px]
        return size_px == own or (self.orientation >= 5 and size_px == own[::-1])


def _verdict(found: Inspection) -> Verdict:
    return Verdict(found.flaw or "", found.bytes, found.modified_ns, *found.size_px, found.orientation)


def verdicts_file(image_folder: Path) -> Path:
    """Where the verdicts on this folder are kept: outside the data, in $XDG_CACHE_HOME (~/.cache) / ssd-dali; where
    there is no home, in $TMPDIR."""
    place = os.path.realpath(image_folder)
    name = hashlib.blake2b(os.fsencode(place), digest_size=8).hexdigest()
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home, as containers have them
        cache = Path(tempfile.gettempdir())
    return cache / "ssd-dali" / f"{Path(place).name}-{name}.json"


def _judge() -> dict[str, Any]:
    """What the verdicts depend on beside the files."""
    return {
        "rules": RULES,
        "max_pixels": MAX_PIXELS,
        **{package: version(package) for package in ("pillow", "simplejpeg")},
    }


def _read_verdicts(image_folder: Path) -> dict[str, Verdict]:
    """Those of the same judge. A file that is absent or broken holds none: that only costs another scan."""
    try:
        content = json.loads(verdicts_file(image_folder).read_bytes())
        if content["judge"] != _judge():
            return {}
        return {name: Verdict(*verdict) for name, verdict in content["verdicts"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def remember(image_folder: Path, inspections: dict[str, Inspection]) -> None:
    """Keeps the verdicts on these images for the next run that leaves bad ones out."""
    verdicts = _read_verdicts(image_folder)
    for name, inspection in inspections.items():
        verdicts[name] = _verdict(inspection)
    _write_verdicts(image_folder, verdicts)


def _write_verdicts(image_folder: Path, verdicts: dict[str, Verdict]) -> None:
    file = verdicts_file(image_folder)
    temporary = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"judge": _judge(), "verdicts": verdicts}))
        os.replace(temporary, file)
    except OSError as error:
        say_on_stderr(f"warning: {file}: cannot keep what was found ({error.strerror}); it will be scanned again")


def _bad_images(annotations: Annotations) -> dict[str, str]:
    """File name -> flaw. Decodes the images on which there is no verdict yet or that changed since it."""
    folder, names = annotations.image_folder, annotations.file_names
    verdicts = _read_verdicts(folder)

    def still_holds(name: str) -> bool:
        try:
            state = os.stat(folder / name)
        except OSError:
            return False
        return name in verdicts and verdicts[name][1:3] == (state.st_size, state.st_mtime_ns)

    with ThreadPoolExecutor(_FILE_THREADS) as pool:
        new = [name for name, holds in zip(names, pool.map(still_holds, names), strict=True) if not holds]
    if new:
        threads = os.cpu_count() or 1
        inspections = dict(zip(new, inspect_all(folder, new, threads, "reading every image once"), strict=True))
        remember(folder, inspections)
        verdicts |= {name: _verdict(found) for name, found in inspections.items()}
    bad = {}
    for name, size_px in zip(names, annotations.sizes_px.tolist(), strict=True):
        flaw = verdicts[name].flaw or ("" if verdicts[name].fits(size_px) else Flaw.OTHER_SIZE)
        if flaw:
            bad[name] = str(flaw)
    return bad


@contextmanager
def dropping_the_verdict(annotations: Annotations, index: int) -> Iterator[None]:
    """On an image that turns out to be bad: a run that is resumed has to look at it again, even if it has gone bad with
    its size and time as they were."""
    try:
        yield
    except InputError:
        verdicts = _read_verdicts(annotations.image_folder)
        if verdicts.pop(annotations.file_names[index], None) is not None:
            _write_verdicts(annotations.image_folder, verdicts)
        raise


def read_image(annotations: Annotations, index: int) -> np.ndarray:
    """H x W x 3 uint8 RGB, upright where the annotations are, of the size that they say.

    Raises InputError that names the file.
    """
    with dropping_the_verdict(annotations, index):
        pixels = read_rgb(annotations.image_folder / annotations.file_names[index], upright=annotations.is_upright)
        require_size(annotations, index, (pixels.shape[1], pixels.shape[0]))
    return pixels


def read_encoded(annotations: Annotations, index: int) -> np.ndarray:
    """The file's bytes, uint8, of whose header it is known that both data paths read it and that the size is the stated
    one. Raises InputError that names the file."""
    path = annotations.image_folder / annotations.file_names[index]
    with dropping_the_verdict(annotations, index):
        try:
            content = path.read_bytes()
            with open_image(content) as image:
                header = Header(image.size, orientation_of(image))
        except (OSError, BadImage) as error:
            raise unreadable(path, error) from error
        require_size(annotations, index, header.upright_size_px if annotations.is_upright else header.size_px)
    return np.frombuffer(content, dtype=np.uint8)


def read_usable(source: Source, ranks: Ranks, parts: ObjectParts = BOXES) -> Annotations:
    """As `read_source`, once a host, less the images that are missing, cannot be read or have another size than stated.

    Rank 0 looks at the images of its host, and all ranks leave out the same. Raises InputError where nothing is left.
    """
    present = read_once_a_host(lambda: _read_present(source, parts), ranks)
    missing = present.left_out.get(Flaw.MISSING, [])
    bad_images = dict.fromkeys(missing, str(Flaw.MISSING)) | _bad_images(present) if ranks.is_main else None
    bad_images = broadcast_object(bad_images, ranks)
    if strange := set(missing) - bad_images.keys():
        raise InputError(
            f"{present.image_folder / min(strange)}: missing on this host, but not on that of rank 0; copy it"
        )
    left = {name: flaw for name, flaw in bad_images.items() if name not in missing}
    usable = read_once_a_host(lambda: present.without(left), ranks) if left else present
    if len(usable) == 0:
        raise InputError(f"{source.file}: none of its images can be used; main.py check says what is wrong with each")
    return usable


def _read_present(source: Source, parts: ObjectParts) -> Annotations:
    """The split without the images that are not there."""
    document = read_document(source, parts)
    missing: dict[str, str] = {}

    def leave_out(bad: BadRows) -> None:
        if bad.defect is not Defect.MISSING or len(bad.problems) == len(document.tables["images"]):
            raise bad
        missing.update((document.tables["images"][row]["file_name"], str(Flaw.MISSING)) for row in bad.problems)

    present = read_tolerantly(document, source, leave_out, parts)
    return present.without(missing) if missing else present
