"""The detector on a CPU from uint8 images to detections: eager, compiled, and exported to ONNX, in one run.

    python benchmarks/export.py --checkpoint runs/demo/checkpoints/best.pt --images data/demo/val2017 \
        --json benchmarks/results/export-cpu.json

Each round runs every form once on the same batch, in turns; the figures are the medians over the rounds. Reading and
resizing of files is not in them. Compiled is the model by torch.compile with the eager post-processing; the exported
graph is measured in onnxruntime and in torch. All must find what eager finds, but for 2 % of the detections: sums in
another order move a score or an overlap across its threshold now and then.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py has it, before torch is imported

import onnxruntime  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))

from ssd.batch import Detections  # noqa: E402
from ssd.checkpoints import (
    checkpoint,  # noqa: E402
    conversion,  # noqa: E402
)
from ssd.config import Config  # noqa: E402
from ssd.detectors.ssd300.detector import view  # noqa: E402
from ssd.detectors.ssd300.export import exportable  # noqa: E402
from ssd.detectors.ssd300.postprocess import detect  # noqa: E402
from ssd.detectors.ssd300.settings import SSD300Settings  # noqa: E402
from ssd.environment import git_revision, hardware, versions  # noqa: E402
from ssd.images import normalise  # noqa: E402
from ssd.inference import export  # noqa: E402
from ssd.inference.predict import find_images  # noqa: E402
from ssd.inference.predictor import model_input  # noqa: E402

SETTINGS = {"score_threshold": 0.05, "nms_iou": 0.5, "max_per_class": 200, "max_per_image": 200}


def forms(file: Path, threads: int) -> dict[str, Callable[[Tensor], Detections]]:
    """By name: B x 3 x 300 x 300 uint8 -> Detections."""
    config = Config(**SETTINGS)
    content = conversion.load(file)
    model = checkpoint.build_model(content, file).eval()
    program = export.to_program(exportable(model, checkpoint.settings_of(content), config.thresholds))
    with tempfile.TemporaryDirectory() as folder:
        export.export(file, Path(folder, "ssd.onnx"), "onnx", config)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(Path(folder, "ssd.onnx"), options, providers=["CPUExecutionProvider"])
    exported = program.module()
    model = model.to(memory_format=torch.channels_last)
    compiled = torch.compile(model)

    def in_onnx(images: Tensor) -> Detections:
        return Detections(*map(torch.from_numpy, session.run(None, {"images": images.numpy()})))

    def with_model(run: Callable[[Tensor], Detections]) -> Callable[[Tensor], Detections]:
        return lambda images: detect(run(normalise(images.contiguous(memory_format=torch.channels_last))), **SETTINGS)

    return {
        "eager": with_model(model),
        "compiled": with_model(compiled),
        "onnx": in_onnx,
        "torch.export": lambda images: Detections(**exported(images)),
    }


def unmatched(found: Detections, expected: Detections) -> int:
    """Detections of either that have no counterpart in the other: of its label, with score and box within 1e-3."""
    count = 0
    for image, numbers in enumerate(zip(found.counts.tolist(), expected.counts.tolist(), strict=True)):
        a, b = (
            torch.cat([each.boxes_ltrb[image, :n], each.scores[image, :n, None], each.labels[image, :n, None]], dim=1)
            for each, n in zip((found, expected), numbers, strict=True)
        )
        equal = ((a[:, None] - b[None]).abs() < 1e-3).all(dim=2)
        count += int((~equal.any(dim=1)).sum() + (~equal.any(dim=0)).sum())
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--images", required=True, help="a folder of images")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    files = find_images([options.images], Path("nowhere"))[: max(options.batch_sizes)]
    pixels = torch.stack(
        [torch.from_numpy(model_input(file, view(SSD300Settings())).pixels) for file in files]
    ).permute(0, 3, 1, 2)
    found: dict[str, dict[str, float]] = {}
    differing: dict[str, int] = {}
    runs = forms(options.checkpoint, options.threads)
    with torch.no_grad():
        for size in options.batch_sizes:
            images = pixels[:size].contiguous()
            expected = runs["eager"](images)
            for name, run in runs.items():  # warms up, and compiles
                differing[f"{name}, batch {size}"] = unmatched(run(images), expected)
            times_s: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(options.rounds):
                for name, run in runs.items():
                    start = time.perf_counter()
                    run(images)
                    times_s[name].append(time.perf_counter() - start)
            found[str(size)] = {name: 1e3 * statistics.median(times) / size for name, times in times_s.items()}
            figures = ", ".join(f"{name} {each:.1f}" for name, each in found[str(size)].items())
            print(f"batch {size}, ms an image: {figures}")
    print(f"detections without a counterpart among eager's {int(expected.counts.sum())}: {differing}")
    if max(differing.values()) > 0.02 * int(expected.counts.sum()):
        sys.exit("these are not the same detections")
    if options.json:
        content = {
            "milliseconds_per_image": found,
            "detections_per_image": expected.counts.float().mean().item(),
            "detections_without_counterpart": differing,
            "rounds": options.rounds,
            "threads": options.threads,
            "settings": SETTINGS,
            "hardware": hardware(torch.device("cpu")),
            "versions": {**versions(), "onnxruntime": onnxruntime.__version__},
            "git_revision": git_revision(),
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
