"""Post-processing beside NVIDIA's published loop, on the predictions of a trained model, in one run.

    python benchmarks/postprocess.py --checkpoint runs/demo/checkpoints/best.pt --data data/demo \
        --dle DeepLearningExamples/PyTorch/Detection/SSD --json benchmarks/results/postprocess-demo.json

The model predicts one batch of the validation split. Each round gives these predictions to `ssd300.postprocess.detect`
and to `Encoder.decode_batch` of DLE's ssd/utils.py, in turns, both with the settings of DLE's evaluation; the ratio is
the median of the rounds' own ratios. The detections must be the same: as many, with equal labels in equal order but for
ties, and boxes within 1e-4, DLE's cut to the image as ours are.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py has it, before torch is imported

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))

import dle  # noqa: E402

import pipelines  # noqa: E402
from pipelines.readers.coco import read_annotations  # noqa: E402
from ssd.batch import Detections, Predictions  # noqa: E402
from ssd.checkpoints import (
    checkpoint,  # noqa: E402
    conversion,  # noqa: E402
)
from ssd.detectors.ssd300.postprocess import detect  # noqa: E402
from ssd.detectors.ssd300.settings import SSD300Settings  # noqa: E402
from ssd.detectors.table import view_of  # noqa: E402
from ssd.distributed import Ranks  # noqa: E402
from ssd.environment import git_revision, hardware, versions  # noqa: E402

# Of DLE's evaluation; its decode_batch has the others as defaults or written out.
NMS_IOU, MAX_PER_IMAGE = 0.5, 200
SETTINGS = {"score_threshold": 0.05, "nms_iou": NMS_IOU, "max_per_class": 200, "max_per_image": MAX_PER_IMAGE}
TIE = 1e-5  # scores that differ by less may come in either order: exp and sums round differently

Image = tuple[Tensor, Tensor, Tensor]  # D x 4 boxes_ltrb, D labels, D scores, best first


def predict(file: Path, data: Path, split: str, batch_size: int) -> Predictions:
    """The checkpoint's predictions for the first images of a split."""
    content = conversion.load(file)
    model = checkpoint.build_model(content, file).eval()
    annotations, alone = read_annotations(data, split), Ranks(0, 0, 1, torch.device("cpu"))
    checkpoint.require_categories(content, file, list(annotations.categories), str(data))
    loader = pipelines.build_eval(
        "no_dali", annotations, batch_size=batch_size, num_workers=0, ranks=alone, view=view_of(SSD300Settings())
    )
    with torch.no_grad():
        return model(next(iter(loader)).images)


def crowded(predictions: Predictions, images: int) -> Predictions:
    """As many images as before, each as full as `images` of them: each default box says what it says in that one of
    them in which it is least sure of background."""
    offsets, logits = (part.clone() for part in predictions)
    for shift in range(1, images):
        other_offsets, other_logits = predictions.offsets.roll(shift, 0), predictions.logits.roll(shift, 0)
        surer = other_logits.softmax(dim=2)[..., 0] < logits.softmax(dim=2)[..., 0]
        offsets[surer], logits[surer] = other_offsets[surer], other_logits[surer]
    return Predictions(offsets, logits)


def ours(detections: Detections) -> list[Image]:
    counts = detections.counts.tolist()
    rows = zip(counts, detections.boxes_ltrb, detections.labels, detections.scores, strict=True)
    return [(boxes[:count], labels[:count], scores[:count]) for count, boxes, labels, scores in rows]


def dles(decoded: list[list[Tensor]]) -> list[Image]:
    """DLE has the worst first, and three empty tensors where it finds nothing."""
    return [(b.flip(0).reshape(-1, 4).clamp(0, 1), labels.flip(0), scores.flip(0)) for b, labels, scores in decoded]


def differences(found: Image, expected: Image) -> list[str]:
    """What an image's detections differ in, but for the order of ties."""
    if len(found[2]) != len(expected[2]):
        return [f"{len(found[2])} detections instead of {len(expected[2])}"]
    if not torch.allclose(found[2], expected[2], rtol=0, atol=TIE):
        return ["other scores"]
    by_box = []
    for boxes, labels, scores in (found, expected):
        # A tie is a run of scores that each differ by less than TIE from the next: within it, by label and place.
        tie = torch.cat([torch.zeros(1), (scores[:-1] - scores[1:] >= TIE).float()]).cumsum(0)[: len(scores)]
        columns = [tie, labels, *(boxes / 1e-3).round().unbind(1)]
        order = sorted(range(len(scores)), key=lambda row, columns=columns: [c[row].item() for c in columns])
        by_box.append((boxes[order], labels[order]))
    (boxes, labels), (expected_boxes, expected_labels) = by_box
    wrong = (labels != expected_labels) | ((boxes - expected_boxes).abs() > 1e-4).any(dim=1)
    return [f"{int(wrong.sum())} of {len(labels)} detections"] if wrong.any() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="val2017")
    parser.add_argument("--dle", type=Path, required=True, help=dle.HELP)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--crowded", type=int, default=1, metavar="N", help="make each image as full as N of them")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    utils = dle.module(options.dle, "utils")
    encoder = utils.Encoder(utils.dboxes300_coco())
    predictions = crowded(predict(options.checkpoint, options.data, options.split, options.batch_size), options.crowded)
    batch, _, num_classes = predictions.logits.shape

    def ours_s() -> tuple[float, list[Image]]:
        start = time.perf_counter()
        detections = detect(predictions, **SETTINGS)
        return time.perf_counter() - start, ours(detections)

    def dle_s() -> tuple[float, list[Image]]:
        # DLE's model says B x 4 x A and B x K x A, and its decoder writes to what it is given.
        offsets, logits = (part.transpose(1, 2).contiguous() for part in predictions)
        start = time.perf_counter()
        decoded = encoder.decode_batch(offsets, logits, NMS_IOU, MAX_PER_IMAGE)
        return time.perf_counter() - start, dles(decoded)

    ours_s()  # warm up
    rounds = []
    for number in range(options.rounds):
        (ours_elapsed_s, found), (dle_elapsed_s, expected) = ours_s(), dle_s()
        rounds.append({"ours_s": ours_elapsed_s, "dle_s": dle_elapsed_s})
        print(f"round {number + 1}: {1e3 * ours_elapsed_s:.1f} ms, DLE {1e3 * dle_elapsed_s:.0f} ms", file=sys.stderr)
    ratio = statistics.median(once["dle_s"] / once["ours_s"] for once in rounds)
    candidates = int((predictions.logits.softmax(dim=2)[..., 1:] > SETTINGS["score_threshold"]).sum())
    detections = sum(len(scores) for _, _, scores in expected)
    print(
        f"{ratio:.1f}x as fast as DLE (median of {options.rounds} pairs) on {batch} images, {candidates / batch:.0f} "
        f"candidates and {detections / batch:.1f} detections an image, of {num_classes - 1} classes"
    )
    complaints = [
        f"image {index}: {text}"
        for index, (a, b) in enumerate(zip(found, expected, strict=True))
        for text in differences(a, b)
    ]
    if complaints:
        sys.exit("\n".join(complaints))
    print("the detections are the same")
    if options.json:
        content = {
            "batch_size": batch,
            "crowded": options.crowded,
            "classes": num_classes - 1,
            "candidates_per_image": candidates / batch,
            "detections_per_image": detections / batch,
            "rounds": rounds,
            "dle / ours": ratio,
            "hardware": hardware(torch.device("cpu")),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "git_revision": git_revision(),
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
