"""Both data paths of images that keep their shapes beside torchvision's own training loader, in one run.

    python benchmarks/ragged_peers.py --data ../shared/data/coco256 --json benchmarks/results/data-ragged-cpu.json

The peer is what torchvision's references/detection/train.py feeds a detector with, by torchvision's public functions:
CocoDetection, PILToTensor, RandomHorizontalFlip and ToDtype in the workers of a DataLoader, GeneralizedRCNNTransform in
the training process. --masks adds the objects' masks, which the peer makes of polygons as bitmaps of the image's size.
An object without polygons gets its box as one there, as the peer fails without. All take the same images in the same
batches, to one short side, and make finished batches in memory. The subjects take turns; medians and ratios are
printed, and, without a GPU, the memory that one worker more needs. With --device cuda batches are finished on the GPU.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from itertools import islice
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py has it, before torch is imported

import psutil  # noqa: E402
import torch  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2  # noqa: E402
from torchvision.models.detection.transform import GeneralizedRCNNTransform  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelines import speed  # noqa: E402
from pipelines.annotations import Annotations  # noqa: E402
from pipelines.ragged.order import TrainingOrder  # noqa: E402
from pipelines.readers.coco import read_annotations  # noqa: E402
from ssd.distributed import Ranks  # noqa: E402
from ssd.environment import git_revision, hardware, versions  # noqa: E402
from ssd.host_memory import keep_freed_memory  # noqa: E402
from ssd.views import ObjectParts, ShortSideView  # noqa: E402

ON_CPU = Ranks(0, 0, 1, torch.device("cpu"))
MEMORY_BATCHES = 48


def torchvision_batches(
    annotations: Annotations, view: ShortSideView, batch_size: int, workers: int, ranks: Ranks
) -> Iterator[tuple[Any, Any]]:
    transforms = v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomHorizontalFlip(0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.ConvertBoundingBoxFormat("XYXY"),
            v2.SanitizeBoundingBoxes(),
            v2.ToPureTensor(),
        ]
    )
    images = CocoDetection(str(annotations.image_folder), str(annotations.file), transforms=transforms)
    keys = ("image_id", "boxes", "labels", *(["masks"] if view.parts.masks else []))
    dataset = wrap_dataset_for_transforms_v2(images, target_keys=keys)
    row_of = {id: row for row, id in enumerate(images.ids)}
    order = TrainingOrder(annotations, view, batch_size=batch_size, seed=0, ranks=ranks)
    rows = ([row_of[int(annotations.image_ids[s.image])] for s in step.samples] for step in order.steps((0, 0)))
    loader = DataLoader(
        dataset, batch_sampler=rows, num_workers=workers, collate_fn=lambda batch: tuple(zip(*batch, strict=True))
    )
    finish = GeneralizedRCNNTransform(
        list(view.short_sides_px), view.long_side_px, list(view.mean), list(view.std), size_divisible=view.divisor
    )
    for batch_images, targets in loader:
        on_device = [
            {key: value.to(ranks.device) if isinstance(value, torch.Tensor) else value for key, value in target.items()}
            for target in targets
        ]
        yield finish([image.to(ranks.device) for image in batch_images], on_device)


def batches_of(
    name: str, annotations: Annotations, view: ShortSideView, size: int, workers: int, ranks: Ranks = ON_CPU
) -> Iterator[Any]:
    if name == "torchvision":
        return torchvision_batches(annotations, view, size, workers, ranks)
    return speed.batches_of(name, annotations, view, size, workers, ranks)


def loading_mib() -> float:
    """What this process's workers have for themselves, and the shared memory through which images come from them: also
    that of batches in a queue, which is open files that no process has mapped."""
    this = psutil.Process()
    processes = (this, *this.children(recursive=True))
    files: dict[int, int] = {}
    for process in processes:
        for each in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(OSError):  # it has been closed
                if "/dev/shm/torch_" in os.readlink(each):
                    status = each.stat()
                    files[status.st_ino] = 512 * status.st_blocks
    own_bytes = sum(
        each.private_clean + each.private_dirty
        for process in processes[1:]
        for each in process.memory_maps()
        if "/dev/shm/torch_" not in each.path
    )
    return (own_bytes + sum(files.values())) / 2**20


def most_mib(name: str, annotations: Annotations, view: ShortSideView, size: int, workers: int) -> float:
    """The most of `loading_mib` at three times, as each look takes a while."""
    set_start_method(None, force=True)  # spawned itself, this process would spawn its workers, which a run forks
    keep_freed_memory()
    batches = enumerate(islice(batches_of(name, annotations, view, size, workers), MEMORY_BATCHES), 1)
    return max(loading_mib() for number, _ in batches if number % (MEMORY_BATCHES // 3) == 0)


def worker_mib(name: str, annotations: Annotations, view: ShortSideView, size: int) -> float:
    """What one worker more needs: of ten and two workers, in processes of their own."""
    needed = []
    for workers in (10, 2):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            needed.append(pool.submit(most_mib, name, annotations, view, size, workers).result())
    return (needed[0] - needed[1]) / 8


def with_polygons(data: Path, split: str, folder: Path) -> Path:
    """The data set with each object's outline: its own, or its box where it has none. Written to `folder`."""
    content = json.loads((data / "annotations" / f"instances_{split}.json").read_text())
    for each in content["annotations"]:
        left, top, width, height = each["bbox"]
        right, bottom = left + width, top + height
        each["segmentation"] = each["segmentation"] or [[left, top, right, top, right, bottom, left, bottom]]
    (folder / "annotations").mkdir()
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    (folder / split).symlink_to((data / split).resolve())
    return folder


def options_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="train2017")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--masks", action="store_true", help="with the objects' masks")
    parser.add_argument("--short-side", type=int, default=800)
    parser.add_argument("--batches", type=int, default=96, help="timed a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path)
    return parser


def main() -> None:
    options = options_parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(options, with_polygons(options.data, options.split, Path(folder)) if options.masks else options.data)


def compare(options: argparse.Namespace, data: Path) -> None:
    ranks = Ranks(0, 0, 1, torch.device(options.device))
    on_cpu = ranks.device.type == "cpu"
    if on_cpu:
        keep_freed_memory()  # as main.py does; the peer has it too
    annotations = read_annotations(data, options.split, ObjectParts(masks=options.masks))
    view = ShortSideView(short_sides_px=(options.short_side,), parts=ObjectParts(masks=options.masks))
    size, workers = options.batch_size, options.workers

    paths = ("no_dali", "dali") if find_spec("nvidia.dali") else ("no_dali",)
    names = ("torchvision", *paths, speed.DECODE_ONLY)
    rounds: dict[str, list[speed.Speed]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names:
            batches = batches_of(name, annotations, view, size, workers, ranks)
            once = speed.measure_once(
                batches, batch_size=size, warmup_batches=4 + 2 * workers, timed_batches=options.batches
            )
            rounds[name].append(once)
            del batches
            print(f"round {number + 1}: {name} {once.images_per_second:.1f} img/s", file=sys.stderr)
    of_memory = ("torchvision", "no_dali") if on_cpu else ()
    memory_mib = {name: worker_mib(name, annotations, view, size) for name in of_memory}
    medians = {name: speed.Measurement(*speed.median(measured), workers) for name, measured in rounds.items()}
    pairs = [(subject, peer) for peer in ("torchvision", speed.DECODE_ONLY) for subject in paths]
    ratios = {
        f"{subject} / {peer}": statistics.median(
            a.images_per_second / b.images_per_second for a, b in zip(rounds[subject], rounds[peer], strict=True)
        )
        for subject, peer in pairs
    }
    # Of a machine that others use too, this says more than the clock.
    cpu_ratios = {
        f"{peer} / {subject}": medians[peer].cpu_seconds_per_image / medians[subject].cpu_seconds_per_image
        for subject, peer in pairs
    }
    for name, median in medians.items():
        print(
            f"{name:13}{median.images_per_second:7.1f} img/s {1e3 * median.cpu_seconds_per_image:7.2f} CPU ms an image"
        )
    for name, mib in memory_mib.items():
        print(f"{name:13}{mib:7.0f} MiB for a worker more")
    for name, ratio in ratios.items():
        print(f"{name:24} {ratio:.2f}x (median of {options.rounds} pairs)")
    for name, ratio in cpu_ratios.items():
        print(f"{name:24} {ratio:.2f}x the CPU time")
    if options.json:
        about: dict[str, Any] = {
            "ratios": ratios,
            "cpu_ratios": cpu_ratios,
            "worker_mib": memory_mib,
            "masks": options.masks,
            "batch_size": size,
            "short_side_px": options.short_side,
        }
        about |= {"rounds": options.rounds, "timed_batches": options.batches}
        about["images_per_second_by_round"] = {
            name: [round(once.images_per_second, 1) for once in measured] for name, measured in rounds.items()
        }
        about |= {"hardware": hardware(ranks.device), "versions": versions(), "git_revision": git_revision()}
        speed.write_json(options.json, {name: [median] for name, median in medians.items()}, about)


if __name__ == "__main__":
    main()
