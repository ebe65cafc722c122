"""The training step beside NVIDIA's published one, in one run.

    python benchmarks/train_peers.py --dle DeepLearningExamples/PyTorch/Detection/SSD --backbone resnet18 \
        --batch-sizes 16 --json benchmarks/results/train-cpu-peers.json

The peer is the model and the loss of DLE's ssd/model.py and the step of its ssd/train.py (which cannot be imported
without apex), with the model in channels_last and the same autocast. Both start from the same weights, and must have
the same loss on the same batch. They take turns on one batch that lies in memory; the ratio is the median of the
rounds' own ratios. MFU is the model's floating-point operations a second (forward and backward, by torch's counter)
over those of a large matrix product in the same type, measured in the same run.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py has both, before torch is imported
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))

import dle  # noqa: E402

from ssd.batch import MatchedBatch  # noqa: E402
from ssd.boxes import ltrb_to_cxcywh  # noqa: E402
from ssd.coco_categories import coco_categories  # noqa: E402
from ssd.config import Config
from ssd.detectors.ssd300.anchors import default_boxes_cxcywh  # noqa: E402
from ssd.detectors.ssd300.settings import (
    BACKBONES,  # noqa: E402
    SSD300Settings,
)
from ssd.detectors.ssd300.synthetic import synthetic_batch  # noqa: E402
from ssd.distributed import Ranks, process_group  # noqa: E402
from ssd.environment import git_revision, hardware, versions  # noqa: E402
from ssd.matching import decode  # noqa: E402
from ssd.precision import autocast, compute_dtype, grad_scaler  # noqa: E402
from ssd.speed.steps import flops_per_image, matmul_flops  # noqa: E402
from ssd.training.build import build_training  # noqa: E402
from ssd.training.step import build_step  # noqa: E402

LEARNING_RATE = 1e-3
LOSS_TOLERANCE = 0.01  # relative: 16-bit types round in another order in another layout

Step = Callable[[], float]  # takes one step and returns its loss


def dle_step(
    checkout: Path, backbone: str, batch: MatchedBatch, config: Config, ranks: Ranks
) -> tuple[Step, dict[str, Any]]:
    """The step of DLE's ssd/train.py on one batch, and its model's state as it begins."""
    device = ranks.device
    published = dle.module(checkout, "model")
    model = published.SSD300(backbone=published.ResNet(backbone)).to(device).to(memory_format=torch.channels_last)
    loss_func = published.Loss(dle.module(checkout, "utils").dboxes300_coco()).to(device)
    optim = dle.optimizer(model, LEARNING_RATE, config.momentum, config.weight_decay)
    scaler = grad_scaler(config, device)
    bbox = ltrb_to_cxcywh(decode(batch.offsets, default_boxes_cxcywh().to(device)))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def step() -> float:
        with autocast(config, device):
            ploc, plabel = model(batch.images)
            ploc, plabel = ploc.float(), plabel.float()
            gloc = bbox.transpose(1, 2).contiguous()
            loss = loss_func(ploc, plabel, gloc, batch.labels)
        scaler.scale(loss).backward()
        scaler.step(optim)
        scaler.update()
        optim.zero_grad()
        return loss.item()  # as its logger has it, each step

    return step, before


def our_step(state: dict[str, Any], batch: MatchedBatch, config: Config, ranks: Ranks) -> Step:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "dle.pt"
        torch.save({"model": state}, file)
        training, _ = build_training(replace(config, checkpoint=str(file)), coco_categories(), ranks)
    training.model.train()
    take_step = build_step(training)
    return lambda: take_step(batch, LEARNING_RATE).sum().item()


def step_seconds(step: Step, steps: int) -> float:
    """Of one of so many steps. Each gives its loss back, after which nothing is left to wait for but the optimiser."""
    began = time.perf_counter()
    for _ in range(steps):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps


def compare(options: argparse.Namespace, batch_size: int, ranks: Ranks) -> dict[str, Any]:
    config = Config(
        detector=SSD300Settings(options.backbone), backbone_weights="none", batch_size=batch_size, seed=0,
        fp16=options.precision == "fp16", bf16=options.precision == "bf16",
        compile=options.compile, cuda_graphs=options.cuda_graphs,
    )  # fmt: skip
    num_classes = 1 + len(coco_categories())
    torch.manual_seed(0)
    batch = synthetic_batch(batch_size, num_classes, ranks.device)
    theirs, state = dle_step(options.dle, options.backbone, batch, config, ranks)
    ours = our_step(state, batch, config, ranks)
    first_losses = {"ours": ours(), "dle": theirs()}
    if abs(first_losses["ours"] / first_losses["dle"] - 1) > LOSS_TOLERANCE:
        sys.exit(f"the subjects do not compute the same: {first_losses}")
    for step in (ours, theirs):
        step_seconds(step, options.warmup_steps)
    rounds = []
    for number in range(options.rounds):
        once = {"ours_s": step_seconds(ours, options.steps), "dle_s": step_seconds(theirs, options.steps)}
        rounds.append(once)
        print(f"round {number + 1}: {1e3 * once['ours_s']:.0f} ms, DLE {1e3 * once['dle_s']:.0f} ms", file=sys.stderr)
    ratio = statistics.median(once["dle_s"] / once["ours_s"] for once in rounds)
    speeds = {name: batch_size / statistics.median(once[f"{name}_s"] for once in rounds) for name in ("ours", "dle")}
    ceiling = matmul_flops(compute_dtype(config, ranks.device) or torch.float32, ranks.device)
    flops = flops_per_image(SSD300Settings(options.backbone), num_classes, training=True)
    mfu = {name: speed * flops / ceiling for name, speed in speeds.items()}
    print(
        f"batch {batch_size}: {speeds['ours']:.1f} img/s ({mfu['ours']:.0%} of {ceiling / 1e12:.2f} TFLOP/s), "
        f"DLE {speeds['dle']:.1f} ({mfu['dle']:.0%}): {ratio:.2f}x (median of {options.rounds} pairs)"
    )
    return {
        "batch_size": batch_size,
        "ours / dle": ratio,
        "images_per_second": speeds,
        "mfu": mfu,
        "gflop_per_image": flops / 1e9,
        "matmul_tflops": ceiling / 1e12,
        "matched_default_boxes_per_image": float((batch.labels > 0).sum()) / batch_size,
        "first_losses": first_losses,
        "rounds": rounds,
    }


def options_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dle", type=Path, required=True, help=dle.HELP)
    parser.add_argument("--backbone", choices=BACKBONES, default="resnet50")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="bf16")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16])
    parser.add_argument("--compile", action="store_true", help="ours through torch.compile")
    parser.add_argument("--cuda-graphs", action="store_true", help="our step as one CUDA graph")
    parser.add_argument("--warmup-steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2, help="timed a round")
    parser.add_argument("--json", type=Path)
    return parser


def main() -> None:
    options = options_parser().parse_args()
    with process_group() as ranks:
        found = [compare(options, batch_size, ranks) for batch_size in options.batch_sizes]
        content = {
            "backbone": options.backbone,
            "precision": options.precision,
            "compile": options.compile,
            "cuda_graphs": options.cuda_graphs,
            "steps_a_round": options.steps,
            "by_batch_size": found,
            "hardware": hardware(ranks.device),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "git_revision": git_revision(),
        }
    if options.json:
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
