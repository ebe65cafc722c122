"""Measures how the reading of annotations grows, on generated data of COCO's shape, without the pixels.

    python benchmarks/scale.py --json benchmarks/results/scale.json

Each figure comes from a process of its own; its peak memory is the kernel's (VmHWM), with Python, torch and all. Beside
COCO's own size, and one with 1.2 million boxes, the sizes grow with as many boxes an image as COCO has.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import psutil
import torch

from pipelines.annotations import Annotations
from pipelines.readers.coco import read_annotations
from pipelines.readers.once_a_host import read_once_a_host
from ssd.distributed import process_group
from ssd.environment import git_revision, hardware, versions

SIZES = ((118_287, 860_001), (118_287, 1_200_000), (236_574, 1_720_002))
RANKS = 2
SPLIT = "train2017"
_CATEGORIES = 80
_MASKS = 1000  # as many different ones, over and over
_MASK_NUMBERS = 44  # makes a file as long as COCO's, 470 MB


def write_data(folder: Path, num_images: int, num_boxes: int) -> Path:
    """A split 'train2017' with empty image files; returns the annotation file."""
    rng = np.random.default_rng(0)
    images = folder / SPLIT
    images.mkdir(parents=True)
    for i in range(num_images):
        os.close(os.open(images / f"{i:012d}.jpg", os.O_CREAT | os.O_WRONLY))
    masks = [json.dumps([row.tolist()]) for row in rng.uniform(0, 480, (_MASKS, _MASK_NUMBERS)).round(2)]
    file = folder / "annotations" / f"instances_{SPLIT}.json"
    file.parent.mkdir()
    with file.open("w") as stream:
        categories = [{"id": i, "name": f"category {i}", "supercategory": "any"} for i in range(1, _CATEGORIES + 1)]
        stream.write(f'{{"info": {{}}, "licenses": [], "categories": {json.dumps(categories)}, "images": [')
        stream.writelines(
            f'{", " * (i > 0)}{{"license": 3, "file_name": "{i:012d}.jpg", "coco_url": '
            f'"http://images.cocodataset.org/train2017/{i:012d}.jpg", "height": 480, "width": 640, "date_captured": '
            f'"2013-11-14 11:18:45", "flickr_url": "http://farm9.staticflickr.com/8186/{i:010d}_z.jpg", "id": {i}}}'
            for i in range(num_images)
        )
        stream.write('], "annotations": [')
        columns = (
            rng.integers(0, num_images, num_boxes).tolist(),
            rng.integers(1, _CATEGORIES + 1, num_boxes).tolist(),
            *(rng.uniform(1, limit, num_boxes).round(2).tolist() for limit in (500, 400, 130, 75)),
        )
        stream.writelines(
            f'{", " * (i > 0)}{{"segmentation": {masks[i % _MASKS]}, "area": {w * h / 2}, "iscrowd": 0, '
            f'"image_id": {image}, "bbox": [{x}, {y}, {w}, {h}], "category_id": {category}, "id": {i + 1}}}'
            for i, (image, category, x, y, w, h) in enumerate(zip(*columns, strict=True))
        )
        stream.write("]}")
    return file


def peak_mb() -> float:
    """The most memory that this process has had, 10^6 bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6


def resident_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


class Measured:
    """Time and memory of the block."""

    def __enter__(self) -> "Measured":
        self.before_mb, self._began, self._cpu_s = resident_mb(), time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.figures = {
            "seconds": round(time.perf_counter() - self._began, 2),
            "cpu_seconds": round(time.process_time() - self._cpu_s, 2),
            "before_mb": round(self.before_mb),
            "peak_mb": round(peak_mb()),
            "after_mb": round(resident_mb()),
        }


def read_alone(folder: Path) -> dict[str, Any]:
    with Measured() as measured:
        split = read_annotations(folder, SPLIT)
    return {**measured.figures, "images": len(split), "boxes": len(split.labels)}


def read_as_rank(folder: Path, rank: int, port: int) -> dict[str, Any]:
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in own.items()}
    with process_group("cpu") as ranks, Measured() as measured:
        read_once_a_host(lambda: read_annotations(folder, SPLIT), ranks)
    return measured.figures


def feed_dali(split: Annotations, folder: Path) -> dict[str, Any]:
    """What a rank does besides: the clean file for DALI, and DALI's reading of it."""
    from nvidia.dali import fn, pipeline_def

    from pipelines.dali.clean_file import write_clean_file

    @pipeline_def
    def reader(file: Path) -> Any:
        images, boxes, labels = fn.readers.coco(
            file_root=str(split.image_folder), annotations_file=str(file), ratio=True, ltrb=True, name="reader"
        )
        return images, boxes, labels

    file = folder / "clean.json"
    with Measured() as writing:
        write_clean_file(split, file, with_boxes=True)
    with Measured() as parsing:
        pipeline = reader(file, batch_size=1, num_threads=1, device_id=None)
        pipeline.build()
        pipeline.reader_meta("reader")
    return {"file_mb": round(file.stat().st_size / 1e6), "write": writing.figures, "parse": parsing.figures}


def read_and_feed_dali(folder: Path) -> dict[str, Any]:
    """In a process that gets the annotations from another, so that the peak is not that of parsing them."""
    (split,) = in_processes(read_annotations, (folder, SPLIT))
    return feed_dali(split, folder)


def in_processes(task: Callable[..., Any], *arguments: tuple[Any, ...]) -> list[Any]:
    """task(*arguments) in a new process for each of the arguments, at once."""
    with ProcessPoolExecutor(len(arguments), multiprocessing.get_context("spawn")) as pool:
        return [future.result() for future in [pool.submit(task, *each) for each in arguments]]


def measure(num_images: int, num_boxes: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="ssd-scale-") as place:
        folder = Path(place)
        file = write_data(folder, num_images, num_boxes)
        port = 29500 + os.getpid() % 1000
        (alone,) = in_processes(read_alone, (folder,))
        as_ranks = in_processes(read_as_rank, *((folder, rank, port) for rank in range(RANKS)))
        (of_dali,) = in_processes(read_and_feed_dali, (folder,))
        size_mb = round(file.stat().st_size / 1e6)
    return {
        "images": num_images,
        "boxes": num_boxes,
        "file_mb": size_mb,
        "alone": alone,
        "local_rank_0": as_ranks[0],
        "other_rank": as_ranks[1],
        "dali": of_dali,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--sizes", type=int, nargs=2, action="append", metavar=("IMAGES", "BOXES"))
    options = parser.parse_args()
    found = []
    for num_images, num_boxes in options.sizes or SIZES:
        found.append(measure(num_images, num_boxes))
        print(json.dumps(found[-1], indent=2), flush=True)
    if options.json:
        about = {"hardware": hardware(torch.device("cpu")), "versions": versions(), "git_revision": git_revision()}
        options.json.write_text(json.dumps({**about, "sizes": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
