"""Detections of many image files: drawn on pictures, and as COCO results and a table."""

import csv
import glob
import json
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ssd.boxes import ltrb_to_xywh
from ssd.console import Console, say_on_stderr
from ssd.errors import InputError
from ssd.images import SUFFIXES, read_picture
from ssd.inference.drawn import draw_detections
from ssd.inference.pdf import write_pdf
from ssd.inference.predictor import ImageDetections, ModelInput, Predictor, model_input
from ssd.keypoints import Skeleton
from ssd.pictures.lettering import note_on_numbers, shown_in_picture
from ssd.views import View

RESULTS_JSON, RESULTS_CSV = "detections.json", "detections.csv"
_SUFFIXES = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes}
_JPEG_QUALITY = 90
_JPEG_LARGEST_PX = 65500  # of libjpeg's jmorecfg.h


def find_images(sources: Sequence[str], output: Path) -> list[Path]:
    """The files that are named, of folders all below them with an image's suffix, and what globs match; none twice.

    Leaves out what lies in output, and of folders and globs the ._ files, in which macOS keeps what other file systems
    cannot say of a file. Raises InputError for a source that gives nothing.
    """
    files: dict[Path, None] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and _is_file(file))
        elif path.exists():
            found = [path]
        else:
            found = [Path(name) for name in sorted(glob.glob(source, recursive=True)) if _is_file(Path(name))]
        not_ours = [file for file in found if output.resolve() not in file.resolve().parents]
        if not not_ours:
            why = "is of --output" if found else _why_none(path, source)
            raise InputError(f"{source}: {why}; pass a file, a folder or a pattern of names")
        files |= dict.fromkeys(not_ours)
    return list(files)


def _why_none(path: Path, pattern: str) -> str:
    if path.exists():
        return "no image is there"
    return "no file has such a name" if glob.has_magic(pattern) else "no such file or folder"


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.name.startswith("._")


class Found(NamedTuple):
    """An image file that was read, its detections, and the name of its picture."""

    file: Path
    image_id: int
    detections: ImageDetections
    picture: str


def predict(
    detector: Predictor,
    files: Sequence[Path],
    output: Path,
    *,
    batch_size: int,
    threads: int,
    console: Console,
    upright: bool = True,
    pdf: Path | None = None,
) -> int:
    """Writes into output a picture of each file, RESULTS_JSON and RESULTS_CSV; names on stderr what it has to skip.

    All files are read before the first picture is drawn, so that no picture can cost the results of the others.
    Image ids are the files' names where these are numbers, as COCO's are, and 1, 2, ... in order otherwise.
    upright: turn pictures as their EXIF data say. threads: that read and draw. pdf: of all pictures, a page each.
    Returns the exit code: 0, 1 if a file was skipped or a picture not drawn, 2 if no file could be read.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {output}: cannot be a folder ({error.strerror}); pass another") from error
    pictures, image_ids = _picture_names(files), _image_ids(files)
    results: list[Found] = []
    skipped = turned = 0
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("images, ETA"),
        TimeRemainingColumn(),
        console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty(),
    )  # fmt: skip
    with ThreadPoolExecutor(threads) as pool, bar:
        task = bar.add_task("detecting", total=len(files))
        for batch in _read_ahead(files, detector.view, batch_size, pool, upright):
            read: dict[Path, ModelInput] = {}
            for file, future in batch.items():
                try:
                    read[file], is_turned = future.result()
                    turned += is_turned
                except InputError as error:
                    skipped += 1
                    bar.console.print(f"skipped: {error}", markup=False, highlight=False, soft_wrap=True)
            found = zip(read, detector.detect(list(read.values())) if read else [], strict=True)
            results += [Found(file, image_ids[file], detections, pictures[file]) for file, detections in found]
            bar.advance(task, len(batch))
        if not results:
            say_on_stderr(f"error: none of {len(files)} files could be read as an image")
            return 2
        _write_json(output / RESULTS_JSON, results, detector)
        _write_csv(output / RESULTS_CSV, results)
        not_drawn, drawn = 0, list[Path]()
        task = bar.add_task("drawing", total=len(results))
        problems = pool.map(lambda each: _draw(each, output, upright, detector.skeleton), results)
        for each, problem in zip(results, problems, strict=True):
            bar.advance(task)
            drawn += [] if problem else [output / each.picture]
            if problem:
                not_drawn += 1
                bar.console.print(f"not drawn: {problem}", markup=False, highlight=False, soft_wrap=True)
    if pdf is not None and drawn:
        write_pdf(pdf, drawn)
    shown = {name: shown_in_picture(name, label) for label, (_, name) in enumerate(detector.categories, start=1)}
    if note := note_on_numbers(shown):
        console.print(f"note: {note}", markup=False)
    if turned:
        used = "turned upright" if upright else "used as they are stored"
        other = "stored" if upright else "upright"
        console.print(f"note: {turned} of the pictures have an EXIF orientation; {used} (--exif {other} for the other)")
    names = Counter(name for each in results for name in each.detections.names)
    by_name = ", ".join(f"{name} {number}" for name, number in names.most_common())
    console.print(
        f"{len(results)} image{'s' * (len(results) > 1)}{f', {skipped} skipped' if skipped else ''}"
        f"{f', {not_drawn} not drawn' if not_drawn else ''}; "
        f"{names.total()} detection{'s' * (names.total() != 1)}"
        f"{f': {by_name}' if names else ''}{f'; {detector.tta_text}' if detector.tta_text else ''}\n"
        f"wrote {output}: pictures, {RESULTS_JSON}, {RESULTS_CSV}{f', and {pdf}' if pdf and drawn else ''}",
        markup=False,
    )
    return 1 if skipped or not_drawn else 0


def _read_ahead(
    files: Sequence[Path], view: View, batch_size: int, pool: ThreadPoolExecutor, upright: bool
) -> Iterator[dict[Path, Future[tuple[ModelInput, bool]]]]:
    """Batches of files being read: the next while the caller has one in its hands."""
    waiting: deque[dict[Path, Future[tuple[ModelInput, bool]]]] = deque()
    for first in range(0, len(files), batch_size):
        waiting.append({file: pool.submit(_read, file, view, upright) for file in files[first : first + batch_size]})
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


def _read(file: Path, view: View, upright: bool) -> tuple[ModelInput, bool]:
    """What the model takes of a file, and whether the file has an EXIF orientation."""
    picture, is_turned = read_picture(file, upright=upright)
    return model_input(picture if upright else np.array(picture), view), is_turned


def _draw(found: Found, output: Path, upright: bool, skeleton: Skeleton | None) -> str:
    """'', or why there is no picture of this file: too wide or high for JPEG, or changed since it was read.

    Raises OSError of a disk that cannot be written to, which no other picture could be either.
    """
    try:
        # Read once more: kept until now, the pictures would take gigabytes.
        drawn = draw_detections(read_picture(found.file, upright=upright)[0], found.detections, skeleton)
    except InputError as error:
        return str(error)
    if max(drawn.size) > _JPEG_LARGEST_PX:
        return f"{found.file}: {drawn.width} x {drawn.height} pixels; a JPEG has at most {_JPEG_LARGEST_PX} a side"
    picture = output / found.picture
    try:
        drawn.save(picture, quality=_JPEG_QUALITY)
    except OSError as error:
        if error.errno is not None:
            raise
        picture.unlink(missing_ok=True)
        return f"{found.file}: cannot be written as JPEG ({error})"
    return ""


def _picture_names(files: Sequence[Path]) -> dict[Path, str]:
    """<name>.jpg for each file; <name>-2.jpg and so on where a file before it has that."""
    taken: set[str] = set()
    names: dict[Path, str] = {}
    for file in files:
        candidates = (f"{file.stem}{'' if number == 1 else f'-{number}'}.jpg" for number in count(1))
        names[file] = next(name for name in candidates if name.lower() not in taken)
        taken.add(names[file].lower())
    return names


def _image_ids(files: Sequence[Path]) -> dict[Path, int]:
    stems = [file.stem for file in files]
    if all(stem.isdecimal() for stem in stems) and len({int(stem) for stem in stems}) == len(stems):
        return {file: int(file.stem) for file in files}
    return {file: position for position, file in enumerate(files, start=1)}


def _write_json(file: Path, results: Sequence[Found], detector: Predictor) -> None:
    rows = [
        {
            "image_id": found.image_id,
            "category_id": detector.categories[label - 1][0],
            "bbox": box_xywh_px,
            "score": score,
            "file_name": str(found.file),
            **_parts(found.detections, row),
        }
        for found in results
        for row, (box_xywh_px, score, label) in enumerate(
            zip(
                ltrb_to_xywh(found.detections.boxes_ltrb_px.double()).tolist(),
                found.detections.scores.tolist(),
                found.detections.labels.tolist(),
                strict=True,
            )
        )
    ]
    file.write_text(json.dumps(rows) + "\n")


def _parts(detections: ImageDetections, row: int) -> dict[str, Any]:
    """A detection's mask and keypoints as COCO's results have them, which call every point visible."""
    found: dict[str, Any] = {}
    if detections.masks is not None:
        found["segmentation"] = detections.masks[row]
    if detections.keypoints_px is not None and not detections.keypoints_px[row].isnan().any():
        points = detections.keypoints_px[row].double()
        found["keypoints"] = torch.cat([points[:, :2], torch.ones_like(points[:, 2:])], dim=1).flatten().tolist()
        found["keypoint_scores"] = points[:, 2].tolist()
    return found


def _write_csv(file: Path, results: Sequence[Found]) -> None:
    # A file's name is written as the bytes that it is, also where they are no UTF-8.
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["file", "name", "score", "left_px", "top_px", "right_px", "bottom_px"])
        for found in results:
            boxes_ltrb_px, scores, _, names = found.detections[:4]
            for box, score, name in zip(boxes_ltrb_px.tolist(), scores.tolist(), names, strict=True):
                writer.writerow([found.file, name, f"{score:.4f}", *(f"{side:.1f}" for side in box)])
