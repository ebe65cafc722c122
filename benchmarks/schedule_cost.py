"""What a schedule of --compress costs: a training step whose weights are held to masks beside a plain one, in one run.

    python benchmarks/schedule_cost.py --rounds 15 --json benchmarks/results/schedule-cost-cpu.json

A step is the whole of it: losses, gradients, optimiser, of a batch out of nothing with fresh weights, and what the
schedule does before and after it. All convolutions are pruned gradually (AGP), so that each has a mask. Each round
takes a plain step and one under the schedule, in turns; the ratio is the median of the rounds' own. New masks are made
once an epoch: what that takes is beside it.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py has it, before torch is imported

import torch
from frontier import write_gradual
from steps import NUM_CLASSES, in_turns, seconds, settings_of, small, training_of, write_report

from ssd.compression.attach import compress, read_for_all
from ssd.detectors.table import detector_of
from ssd.distributed import Ranks, runs_on_gpu
from ssd.training.step import build_step

STEPS_PER_EPOCH = 1000


def measure(name: str, ranks: Ranks, arguments: argparse.Namespace) -> dict[str, Any]:
    settings, size = settings_of(name), arguments.batch_size
    batch = small(detector_of(settings).synthetic(settings, NUM_CLASSES, ranks.device, size), arguments.side)
    flags = {"batch_size": size, "bf16": arguments.bf16, "epochs": 100}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "schedule.yaml"
        plain = training_of(settings, ranks, **flags)
        write_gradual(file, dict(plain.model.named_parameters()), 0, 50)
        held = training_of(settings, ranks, **flags, compress=str(file))
        schedule = read_for_all(held.config, ranks)
        assert schedule is not None
        compress(held, schedule, STEPS_PER_EPOCH)
    (companion,) = held.companions
    plain_step, held_step = build_step(plain), build_step(held)
    place = iter(range(STEPS_PER_EPOCH))

    def under_schedule() -> None:
        step = next(place)
        lr = companion.before_step(step, 1e-5)
        held_step(batch, lr)
        companion.after_step(step)

    runs = {"plain": lambda: plain_step(batch, 1e-5), "held": under_schedule}
    rounds = in_turns(runs, arguments.rounds, ranks.device)
    new_masks_s, _ = seconds(lambda: companion.before_step(STEPS_PER_EPOCH, 1e-5), ranks.device)  # the next epoch's
    return {
        "detector": name,
        "images_px": list(batch.images.shape[2:]),
        "masked_weights": sum(mask.numel() for mask in companion.masks.values()),
        "new_masks_s": new_masks_s,
        "rounds": rounds,
        "ratio": statistics.median(each["held_s"] / each["plain_s"] for each in rounds),
        "ratio_processor": statistics.median(each["held_processor_s"] / each["plain_processor_s"] for each in rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detectors", nargs="+", default=["ssd300/resnet18", "maskrcnn_resnet18_fpn"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--side", type=int, default=256, help="images of detectors that take any are cut to it; 0: not")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.batch_size < 2:
        parser.error(
            "--batch-size: at least 2, because the last maps of SSD300 are of one cell, which batch norm averages"
        )
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda", 0) if runs_on_gpu(arguments.device) else torch.device("cpu")
    results = [measure(name, Ranks(0, 0, 1, device), arguments) for name in arguments.detectors]
    for each in results:
        print(
            f"{each['detector']}: a step under a schedule takes {each['ratio']:.3f} of a plain one "
            f"({each['ratio_processor']:.3f} of the processor), new masks {each['new_masks_s']:.2f} s"
        )
    about = {"batch_size": arguments.batch_size, "bf16": arguments.bf16, "threads": arguments.threads}
    write_report(arguments.json, results, device, **about)


if __name__ == "__main__":
    main()
