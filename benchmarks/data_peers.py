"""The two data paths beside the published ones they descend from, in one run.

    python benchmarks/data_peers.py --data ../shared/data/coco256 --dle DeepLearningExamples/PyTorch/Detection/SSD \
        --json benchmarks/results/data-cpu.json

Peers: "dle" is NVIDIA's published torch path, run from a checkout of DeepLearningExamples (--dle; left out without
it): COCODetection and SSDTransformer of ssd/utils.py in a DataLoader. "dali_example" is the graph of DALI's
single-stage detector example, operator by operator, on CPU operators. Each makes finished training batches of one size
in memory; the subjects take turns, and medians and ratios are printed.
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

sys.path.insert(0, str(Path(__file__).parents[1]))

import dle  # noqa: E402

from pipelines import speed  # noqa: E402
from pipelines.annotations import Annotations  # noqa: E402
from pipelines.dali import loaders  # noqa: E402
from pipelines.readers.coco import read_annotations  # noqa: E402
from ssd.detectors.ssd300 import anchors  # noqa: E402
from ssd.detectors.ssd300.settings import SSD300Settings  # noqa: E402
from ssd.detectors.table import view_of  # noqa: E402
from ssd.distributed import Ranks  # noqa: E402
from ssd.environment import git_revision, hardware, versions  # noqa: E402
from ssd.host_memory import keep_freed_memory  # noqa: E402


def dle_batches(checkout: Path, data: Path, split: str, batch_size: int, workers: int) -> Iterator[Any]:
    utils = dle.module(checkout, "utils")
    dataset = utils.COCODetection(
        str(data / split),
        str(data / "annotations" / f"instances_{split}.json"),
        utils.SSDTransformer(utils.dboxes300_coco(), (300, 300), val=False),
    )
    # Endless, so that its workers too are started once and not every epoch.
    endless = ([(first + i) % len(dataset) for i in range(batch_size)] for first in range(0, 1 << 40, batch_size))
    return iter(DataLoader(dataset, batch_sampler=endless, num_workers=workers))  # type: ignore[arg-type]


def dali_example_batches(annotations: Annotations, batch_size: int, threads: int) -> Iterator[Any]:
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    @pipeline_def
    def graph(annotation_file: str, image_folder: str, ranks: Ranks) -> Any:
        encoded, boxes, labels = fn.readers.coco(
            file_root=image_folder,
            annotations_file=annotation_file,
            skip_empty=True,
            ratio=True,
            ltrb=True,
            shuffle_after_epoch=True,
            name="reader",
        )
        start, shape, boxes, labels = fn.random_bbox_crop(
            boxes,
            labels,
            bbox_layout="xyXY",
            aspect_ratio=[0.5, 2.0],
            thresholds=[0, 0.1, 0.3, 0.5, 0.7, 0.9],
            scaling=[0.3, 1.0],
            allow_no_crop=True,
            num_attempts=50,
        )
        images = fn.decoders.image_slice(encoded, start, shape, device="cpu", output_type=types.RGB)
        images = fn.resize(images, resize_x=300, resize_y=300, min_filter=types.INTERP_TRIANGULAR)
        images = fn.hsv(
            images,
            dtype=types.FLOAT,
            hue=fn.random.uniform(range=[-0.5, 0.5]),
            saturation=fn.random.uniform(range=[0.5, 1.5]),
        )
        images = fn.brightness_contrast(
            images,
            contrast_center=128,
            dtype=types.UINT8,
            brightness=fn.random.uniform(range=[0.875, 1.125]),
            contrast=fn.random.uniform(range=[0.5, 1.5]),
        )
        flip = fn.random.coin_flip(probability=0.5)
        boxes = fn.bb_flip(boxes, ltrb=True, horizontal=flip)
        images = fn.crop_mirror_normalize(
            images,
            crop=(300, 300),
            mean=[0.485 * 255, 0.456 * 255, 0.406 * 255],
            std=[0.229 * 255, 0.224 * 255, 0.225 * 255],
            mirror=flip,
            dtype=types.FLOAT,
            output_layout="CHW",
            pad_output=False,
        )
        boxes, labels = fn.box_encoder(
            boxes, labels, criteria=0.5, anchors=anchors.default_boxes_ltrb().flatten().tolist()
        )
        return images, boxes, labels

    pipeline = loaders.build_pipeline(
        graph,
        annotations,
        with_boxes=True,
        ranks=Ranks(0, 0, 1, torch.device("cpu")),
        batch_size=batch_size,
        num_threads=threads,
        seed=0,
    )
    return iter(DALIGenericIterator(pipeline, ["images", "boxes", "labels"], size=-1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="train2017")
    parser.add_argument("--dle", type=Path, help=dle.HELP)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=24, help="timed a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    keep_freed_memory()  # as main.py does on a CPU; the peers have it too
    annotations = read_annotations(options.data, options.split)
    ranks = Ranks(0, 0, 1, torch.device("cpu"))
    size, workers, view = options.batch_size, options.workers, view_of(SSD300Settings())
    sources = {
        "decode_only": lambda: speed.batches_of("decode_only", annotations, view, size, workers, ranks),
        "no_dali": lambda: speed.batches_of("no_dali", annotations, view, size, workers, ranks),
        "dali": lambda: speed.batches_of("dali", annotations, view, size, workers, ranks),
        "dali_example": lambda: dali_example_batches(annotations, size, workers),
    }
    if options.dle:
        sources["dle"] = lambda: dle_batches(options.dle, options.data, options.split, size, workers)
    rounds: dict[str, list[speed.Speed]] = {name: [] for name in sources}
    for number in range(options.rounds):
        for name, source in sources.items():
            batches = source()
            once = speed.measure_once(
                batches, batch_size=size, warmup_batches=4 + 2 * workers, timed_batches=options.batches
            )
            rounds[name].append(once)
            del batches
            print(f"round {number + 1}: {name} {once.images_per_second:.0f} img/s", file=sys.stderr)
    medians = {name: speed.Measurement(*speed.median(measured), workers) for name, measured in rounds.items()}
    ratios = {
        f"{ours} / {peer}": statistics.median(
            a.images_per_second / b.images_per_second for a, b in zip(rounds[ours], rounds[peer], strict=True)
        )
        for ours, peer in (
            ("no_dali", "dle"),
            ("dali", "dali_example"),
            ("dali", "decode_only"),
            ("no_dali", "decode_only"),
        )
        if peer in rounds
    }
    for name, median in medians.items():
        print(
            f"{name:13}{median.images_per_second:7.0f} img/s {1e3 * median.cpu_seconds_per_image:7.2f} CPU ms an image"
        )
    for name, ratio in ratios.items():
        print(f"{name:24} {ratio:.2f}x (median of {options.rounds} pairs)")
    if options.json:
        about = {"ratios": ratios, "batch_size": size, "rounds": options.rounds}
        about |= {"hardware": hardware(ranks.device), "versions": versions(), "git_revision": git_revision()}
        speed.write_json(options.json, {name: [median] for name, median in medians.items()}, about)


if __name__ == "__main__":
    main()
