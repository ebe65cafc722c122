"""Both data paths of images that keep their shapes beside torchvision's own training loader, in one run.

    python benchmarks/ragged_peers.py --data ../shared/data/coco256 --json benchmarks/results/data-ragged-cpu.json

The peer is what torchvision's references/detection/train.py feeds a detector with, by torchvision's public functions:
CocoDetection, PILToTensor, RandomHorizontalFlip and ToDtype in the workers of a DataLoader, GeneralizedRCNNTransform in
the training process. It is spared the masks, which the reference makes of polygons. All take the same images in the
same batches, to one short side, and make finished batches in memory. The subjects take turns; medians and ratios are
printed.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py has it, before torch is imported

import torch  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2  # noqa: E402
from torchvision.models.detection.transform import GeneralizedRCNNTransform  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))

import pipelines  # noqa: E402
from pipelines import speed  # noqa: E402
from pipelines.annotations import Annotations  # noqa: E402
from pipelines.ragged.order import TrainingOrder  # noqa: E402
from pipelines.readers.coco import read_annotations  # noqa: E402
from ssd.distributed import Ranks  # noqa: E402
from ssd.environment import git_revision, hardware, versions  # noqa: E402
from ssd.host_memory import keep_freed_memory  # noqa: E402
from ssd.views import ShortSideView  # noqa: E402

HERE = Ranks(0, 0, 1, torch.device("cpu"))


def torchvision_batches(
    annotations: Annotations, view: ShortSideView, batch_size: int, workers: int
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
    dataset = wrap_dataset_for_transforms_v2(images, target_keys=("image_id", "boxes", "labels"))
    row_of = {id: row for row, id in enumerate(images.ids)}
    order = TrainingOrder(annotations, view, batch_size=batch_size, seed=0, ranks=HERE)
    rows = ([row_of[int(annotations.image_ids[s.image])] for s in step.samples] for step in order.steps((0, 0)))
    loader = DataLoader(
        dataset, batch_sampler=rows, num_workers=workers, collate_fn=lambda batch: tuple(zip(*batch, strict=True))
    )
    finish = GeneralizedRCNNTransform(
        list(view.short_sides_px), view.long_side_px, list(view.mean), list(view.std), size_divisible=view.divisor
    )
    for batch_images, targets in loader:
        yield finish(list(batch_images), list(targets))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="train2017")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--short-side", type=int, default=800)
    parser.add_argument("--batches", type=int, default=12, help="timed a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    keep_freed_memory()  # as main.py does on a CPU; the peer has it too
    annotations = read_annotations(options.data, options.split)
    view = ShortSideView(short_sides_px=(options.short_side,))
    size, workers = options.batch_size, options.workers

    def ours(name: str) -> Iterator[Any]:
        return pipelines.build_train(
            name, annotations, batch_size=size, num_workers=workers, seed=0, ranks=HERE, view=view
        ).batches(0)

    sources = {
        "torchvision": lambda: torchvision_batches(annotations, view, size, workers),
        "no_dali": lambda: ours("no_dali"),
        "dali": lambda: ours("dali"),
        "decode_only": lambda: speed.batches_of("decode_only", annotations, view, size, workers, HERE),
    }
    rounds: dict[str, list[speed.Speed]] = {name: [] for name in sources}
    for number in range(options.rounds):
        for name, source in sources.items():
            batches = source()
            once = speed.measure_once(
                batches, batch_size=size, warmup_batches=4 + 2 * workers, timed_batches=options.batches
            )
            rounds[name].append(once)
            del batches
            print(f"round {number + 1}: {name} {once.images_per_second:.1f} img/s", file=sys.stderr)
    medians = {name: speed.Measurement(*speed.median(measured), workers) for name, measured in rounds.items()}
    pairs = [(subject, peer) for peer in ("torchvision", "decode_only") for subject in ("no_dali", "dali")]
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
    for name, ratio in ratios.items():
        print(f"{name:24} {ratio:.2f}x (median of {options.rounds} pairs)")
    for name, ratio in cpu_ratios.items():
        print(f"{name:24} {ratio:.2f}x the CPU time")
    if options.json:
        about: dict[str, Any] = {
            "ratios": ratios,
            "cpu_ratios": cpu_ratios,
            "batch_size": size,
            "short_side_px": options.short_side,
        }
        about |= {"rounds": options.rounds, "timed_batches": options.batches}
        about |= {"hardware": hardware(HERE.device), "versions": versions(), "git_revision": git_revision()}
        speed.write_json(options.json, {name: [median] for name, median in medians.items()}, about)


if __name__ == "__main__":
    main()
