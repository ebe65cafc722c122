"""The engines that compute the COCO metrics, side by side on a generated set of COCO val2017's size.

    python benchmarks/metrics.py --json benchmarks/results/metrics.json

5,000 images with 36,000 boxes of 80 categories, and 500,000 detections: a few about each box, the rest anywhere. Each
round gives both engines the same arrays, in turns; the ratio is the median of the rounds' own ratios. The metrics must
agree to 1e-12.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py has it, before torch is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))

from ssd.batch import GroundTruth  # noqa: E402
from ssd.config import EVAL_ENGINES  # noqa: E402
from ssd.environment import git_revision, hardware, versions  # noqa: E402
from ssd.evaluation.coco import METRIC_NAMES, coco_metrics  # noqa: E402

SIZE_PX = (640, 480)


def generate(images: int, boxes: int, detections: int, categories: int, seed: int) -> tuple[GroundTruth, np.ndarray]:
    """A split and results as `detect_split` returns them.

    Categories are as unequal as COCO's (the commonest has a third of all boxes), one box in a hundred is a crowd, sides
    are 4 to 400 pixels. Half of the detections lie about a box, most of them with its category, and score better.
    """
    rng = np.random.default_rng(seed)
    image_ids, category_ids = np.sort(rng.choice(600_000, images, replace=False)), list(range(1, categories + 1))
    frequency = 1 / np.arange(1, categories + 1) ** 1.2
    image_of_box = np.sort(rng.integers(images, size=boxes))
    category_of_box = rng.choice(category_ids, size=boxes, p=frequency / frequency.sum())
    boxes_xywh_px = _random_boxes(rng, boxes)

    about = rng.integers(boxes, size=detections // 2)
    near = boxes_xywh_px[about]
    near = near + rng.normal(scale=0.15, size=near.shape) * near[:, [2, 3, 2, 3]] * rng.uniform(size=(len(near), 1))
    near[:, 2:] = near[:, 2:].clip(1)
    elsewhere = detections - len(near)
    right = rng.uniform(size=len(near)) < 0.8
    guesses = rng.choice(category_ids, size=detections, p=frequency / frequency.sum())
    results = np.column_stack(
        [
            image_ids[np.concatenate([image_of_box[about], rng.integers(images, size=elsewhere)])],
            np.concatenate([near, _random_boxes(rng, elsewhere)]),
            np.concatenate([rng.beta(2, 2, len(near)), rng.beta(1, 8, elsewhere)]).clip(0.05),
            np.where(np.pad(right, (0, elsewhere)), np.pad(category_of_box[about], (0, elsewhere)), guesses),
        ]
    )
    results = results[np.lexsort((-results[:, 5], results[:, 0]))]  # image by image, best first
    columns = {
        "id": range(1, boxes + 1),
        "image_id": image_ids[image_of_box].tolist(),
        "category_id": category_of_box.tolist(),
        "bbox": boxes_xywh_px.tolist(),
        "area": boxes_xywh_px[:, 2:].prod(axis=1).tolist(),
        "iscrowd": (rng.uniform(size=boxes) < 0.01).astype(int).tolist(),
    }
    names = [f"category {id}" for id in category_ids]
    width, height = SIZE_PX
    dataset = {
        "images": [{"id": id, "width": width, "height": height} for id in image_ids.tolist()],
        "annotations": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
        "categories": [{"id": id, "name": name} for id, name in zip(category_ids, names, strict=True)],
    }
    sizes_px = np.tile(np.array(SIZE_PX, dtype=np.int32), (images, 1))
    return GroundTruth(image_ids, sizes_px, category_ids, names, dataset), results


def _random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """n x 4 xywh in pixels within an image of SIZE_PX; sides are log-uniform."""
    sides = np.exp(rng.uniform(np.log(4), np.log(400), (count, 2)))
    corners = rng.uniform(size=(count, 2)) * (np.array(SIZE_PX) - sides)
    return np.column_stack([corners, sides])


def greatest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Between any two metrics or AP of a class. Raises AssertionError where only one has a number."""
    pairs = [(one[name], other[name]) for name in METRIC_NAMES]
    pairs += [(one["per_class"][name], other["per_class"][name]) for name in one["per_class"]]
    assert all((a is None) == (b is None) for a, b in pairs)
    return max(abs(a - b) for a, b in pairs if a is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--boxes", type=int, default=36_000)
    parser.add_argument("--detections", type=int, default=500_000)
    parser.add_argument("--categories", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    sizes = {name: getattr(options, name) for name in ("images", "boxes", "detections", "categories", "seed")}
    ground_truth, results = generate(**sizes)
    rounds: list[dict[str, float]] = []
    metrics = {}
    for number in range(options.rounds):
        elapsed_s = {}
        for engine in EVAL_ENGINES:
            start = time.perf_counter()
            metrics[engine] = coco_metrics(ground_truth, results, engine)
            elapsed_s[engine] = time.perf_counter() - start
        rounds.append(elapsed_s)
        print(
            f"round {number + 1}: " + ", ".join(f"{name} {s:.2f} s" for name, s in elapsed_s.items()), file=sys.stderr
        )
    ratio = statistics.median(elapsed_s["faster"] / elapsed_s["pycocotools"] for elapsed_s in rounds)
    difference = greatest_difference(metrics["faster"], metrics["pycocotools"])
    print(f"faster / pycocotools: {ratio:.3f} (median of {options.rounds} pairs); metrics differ by {difference:.1e}")
    if difference > 1e-12:
        sys.exit("the engines do not agree")
    if options.json:
        content = {**sizes, "rounds_s": rounds, "faster / pycocotools": ratio, "greatest_difference": difference}
        content |= {
            "AP": metrics["faster"]["AP"],
            "hardware": hardware(torch.device("cpu")),
            "versions": versions(),
            "git_revision": git_revision(),
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
