"""Training steps of torchvision's detectors here beside torchvision's own classes, in one run.

    python benchmarks/torchvision_steps.py --rounds 5 --json benchmarks/results/torchvision-steps-cpu.json

All have the same weights and objects, and take losses and gradients; there is no optimiser. Pixels are random.
`reference` is a step as torchvision's references/detection takes it: images of 640 x 480 floats with their masks as
bitmaps of that size, which the model resizes, normalises and pads, in planes. `finished` is torchvision's class too,
but has the batch that ours has, in channels_last. Each round takes a step of each, in turns; a ratio is the median of
the rounds' own ratios. The processor's seconds are beside those of the clock, as they do not count what else the
machine does. With --bf16 all run under autocast. With --device cuda the clock waits for the GPU, before and after.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py has it, before torch is imported

import torch  # noqa: E402
from torch import nn  # noqa: E402

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests" / "helpers")]

from torchvision.models.detection.transform import GeneralizedRCNNTransform  # noqa: E402
from torchvision_models import NUM_CLASSES, their_model, their_targets  # noqa: E402

from ssd.batch import RaggedBatch  # noqa: E402
from ssd.detectors.torchvision.builders import build  # noqa: E402
from ssd.detectors.torchvision.detector import TORCHVISION  # noqa: E402
from ssd.detectors.torchvision.names import settings_of  # noqa: E402
from ssd.detectors.torchvision.synthetic import synthetic_batch  # noqa: E402
from ssd.environment import git_revision, hardware, versions  # noqa: E402
from ssd.views import ObjectParts, ShortSideView  # noqa: E402

FAMILIES = ("retinanet", "fasterrcnn", "maskrcnn")
BATCH_SIZE = 2
# Of the image as most of COCO's files have it.
WIDTH_PX, HEIGHT_PX = 640, 480


def step_of(
    model: nn.Module, losses: Callable[[], dict[str, Any]], dtype: torch.dtype, device: torch.device
) -> Callable[[], None]:
    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            found = losses()
        sum(found.values()).backward()
        model.zero_grad()

    return step


def with_bitmaps(targets: list[dict[str, Any]], width_px: int, height_px: int) -> list[dict[str, Any]]:
    """Each object's mask, a bitmap of the whole image: here it fills its box, as `synthetic_batch`'s do."""
    for target in targets:
        target["masks"] = torch.zeros(
            len(target["boxes"]), height_px, width_px, dtype=torch.uint8, device=target["boxes"].device
        )
        for mask, (left, top, right, bottom) in zip(target["masks"], target["boxes"].long().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
    return targets


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def as_files(batch: RaggedBatch) -> tuple[list[Any], list[dict[str, Any]]]:
    """The batch's images and objects as they come from files, before torchvision's model resizes them."""
    width_px, height_px = batch.sizes_px[0].tolist()
    device = batch.images.device
    factors = torch.tensor([WIDTH_PX / width_px, HEIGHT_PX / height_px] * 2, device=device)
    targets = [{**target, "boxes": target["boxes"] * factors} for target in their_targets(batch)]
    images = [torch.rand(3, HEIGHT_PX, WIDTH_PX, device=device) for _ in range(BATCH_SIZE)]
    return images, targets


def measure(family: str, side_px: int, rounds: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    has_masks = family == "maskrcnn"
    view = ShortSideView((side_px,), parts=ObjectParts(masks=has_masks))
    batch = synthetic_batch(view, NUM_CLASSES, device, BATCH_SIZE)
    settings = settings_of(f"{family}_resnet18_fpn", "none")
    torch.manual_seed(0)
    ours = build(settings, NUM_CLASSES).to(device).to(memory_format=torch.channels_last).train()
    reference, finished = (their_model(family, batch, norm=nn.BatchNorm2d).to(device).train() for _ in range(2))
    for each in (reference, finished):
        each.load_state_dict(ours.state_dict())
    finished = finished.to(memory_format=torch.channels_last)
    reference.transform = GeneralizedRCNNTransform(side_px, view.long_side_px, list(view.mean), list(view.std))
    losses_of = TORCHVISION.losses_of(settings, False)
    images, targets = as_files(batch)
    finished_targets = their_targets(batch)
    if has_masks:
        targets = with_bitmaps(targets, WIDTH_PX, HEIGHT_PX)
        finished_targets = with_bitmaps(finished_targets, *batch.sizes_px[0].tolist())
    steps = {
        "ours": step_of(ours, lambda: losses_of(ours, batch), dtype, device),
        "reference": step_of(reference, lambda: reference(images, targets), dtype, device),
        "finished": step_of(finished, lambda: finished(list(batch.images), finished_targets), dtype, device),
    }
    for step in steps.values():  # warm-up
        step()
    taken = []
    for _ in range(rounds):
        one = {}
        for name, step in steps.items():
            synchronise(device)
            clock, processor = time.perf_counter(), time.process_time()
            step()
            synchronise(device)
            one[f"{name}_s"] = time.perf_counter() - clock
            one[f"{name}_processor_s"] = time.process_time() - processor
        taken.append(one)
    ratios = {
        f"{name}_{unit}": statistics.median(each[f"{name}_{unit}"] / each[f"ours_{unit}"] for each in taken)
        for name in ("reference", "finished")
        for unit in ("s", "processor_s")
    }
    return {"detector": settings.builder, "rounds": taken, "ratios": ratios}


def options_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=256, help="short side of the images of 4 to 3, pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path)
    return parser


def main() -> None:
    arguments = options_parser().parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(arguments.threads)
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    results = [measure(family, arguments.side, arguments.rounds, dtype, device) for family in FAMILIES]
    for each in results:
        print(
            f"{each['detector']:24} reference / ours {each['ratios']['reference_s']:.2f} by the clock, "
            f"{each['ratios']['reference_processor_s']:.2f} of the processor; finished / ours "
            f"{each['ratios']['finished_s']:.2f}, {each['ratios']['finished_processor_s']:.2f}"
        )
    report = {
        "batch_size": BATCH_SIZE,
        "short_side_px": arguments.side,
        "precision": "bf16" if arguments.bf16 else "float32",
        "threads": arguments.threads,
        "warm_up_steps": 1,
        "results": results,
        "hardware": hardware(device),
        "versions": versions(),
        "git_revision": git_revision(),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
