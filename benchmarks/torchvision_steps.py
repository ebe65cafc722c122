"""Training steps of torchvision's detectors here beside torchvision's own classes, in one run on the CPU.

    python benchmarks/torchvision_steps.py --rounds 5 --json benchmarks/results/torchvision-steps-cpu.json

Both have the same weights and the same finished batch (float32, channels_last), and take losses and gradients; there is
no optimiser, and torchvision's own resizing and padding is left out. Each round takes a step of either, in turns; the
ratio is the median of the rounds' own ratios. The processor's seconds are beside those of the clock, as they do not
count what else the machine does.
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

from torchvision_models import NUM_CLASSES, batch_of, their_model, their_targets  # noqa: E402

from ssd.detectors.torchvision.builders import build  # noqa: E402
from ssd.detectors.torchvision.detector import TORCHVISION  # noqa: E402
from ssd.detectors.torchvision.names import settings_of  # noqa: E402
from ssd.environment import git_revision, hardware, versions  # noqa: E402

FAMILIES = ("retinanet", "fasterrcnn")


def step_of(model: nn.Module, losses: Callable[[], dict[str, Any]]) -> Callable[[], None]:
    def step() -> None:
        sum(losses().values()).backward()
        model.zero_grad()

    return step


def measure(family: str, side_px: int, rounds: int) -> dict[str, Any]:
    batch = batch_of((4, 4), side_px, side_px)
    settings = settings_of(f"{family}_resnet18_fpn", "none")
    torch.manual_seed(0)
    ours = build(settings, NUM_CLASSES).to(memory_format=torch.channels_last).train()
    theirs = their_model(family, batch, norm=nn.BatchNorm2d).to(memory_format=torch.channels_last).train()
    theirs.load_state_dict(ours.state_dict())
    losses_of, targets, images = TORCHVISION.losses_of(settings, False), their_targets(batch), list(batch.images)
    steps = {
        "ours": step_of(ours, lambda: losses_of(ours, batch)),
        "theirs": step_of(theirs, lambda: theirs(images, targets)),
    }
    for step in steps.values():  # warm-up
        step()
    taken = []
    for _ in range(rounds):
        one = {}
        for name, step in steps.items():
            clock, processor = time.perf_counter(), time.process_time()
            step()
            one[f"{name}_s"] = time.perf_counter() - clock
            one[f"{name}_processor_s"] = time.process_time() - processor
        taken.append(one)
    return {
        "detector": settings.builder,
        "rounds": taken,
        "ratio": statistics.median(each["theirs_s"] / each["ours_s"] for each in taken),
        "ratio_processor": statistics.median(each["theirs_processor_s"] / each["ours_processor_s"] for each in taken),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=256, help="of the square images, pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = [measure(family, arguments.side, arguments.rounds) for family in FAMILIES]
    for each in results:
        print(f"{each['detector']}: {each['ratio']:.2f} by the clock, {each['ratio_processor']:.2f} of the processor")
    report = {
        "batch_size": 2,
        "side_px": arguments.side,
        "threads": arguments.threads,
        "warm_up_steps": 1,
        "results": results,
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "git_revision": git_revision(),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
