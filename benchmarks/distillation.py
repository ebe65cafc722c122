"""What a teacher costs: a training step with PKD beside a plain one and the teacher's body and neck, in one run.

    python benchmarks/distillation.py --rounds 11 --json benchmarks/results/distillation-cpu.json

A step is the whole of it: losses, gradients, optimiser, of a batch out of nothing with fresh weights. Each round takes
a plain step, a step with PKD and a pass of the teacher up to its maps, in turns; the ratio is the median of the rounds'
own step with PKD / (plain step + pass). The processor's seconds are beside those of the clock, as they do not count
what else the machine does.
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

sys.path.insert(0, str(Path(__file__).parents[1]))

from ssd.compression.summary import flops_by_weight  # noqa: E402
from ssd.config import Config  # noqa: E402
from ssd.detectors.names import family_of, settings_named  # noqa: E402
from ssd.detectors.table import detector_of  # noqa: E402
from ssd.distillation.attach import distill  # noqa: E402
from ssd.distillation.teacher import Teacher  # noqa: E402
from ssd.distributed import Ranks, runs_on_gpu  # noqa: E402
from ssd.environment import git_revision, hardware, versions  # noqa: E402
from ssd.training.optimizer import build_optimizer  # noqa: E402
from ssd.training.state import Training  # noqa: E402
from ssd.training.step import build_step  # noqa: E402

NUM_CLASSES = 7


def settings_of(words: str) -> Any:
    """Of such as "retinanet_resnet18_fpn", or "ssd300/resnet50" with a backbone."""
    name, _, backbone = words.partition("/")
    settings = family_of(settings_named(name)).settled(settings_named(name), "none")
    return type(settings)(backbone) if backbone else settings


def small(batch: Any, side: int) -> Any:
    """A batch with images cut to this side, its boxes and windows shrunk as much. Squares, and with 0 all, stay."""
    if not side or not hasattr(batch, "sizes_px"):
        return batch
    images = batch.images[..., :side, :side].contiguous(memory_format=torch.channels_last)
    factor = side / max(batch.images.shape[2:])
    of_objects = ("boxes_ltrb_px", "mask_windows_ltrb_px")
    shrunk = {name: getattr(batch, name) * factor for name in of_objects if getattr(batch, name) is not None}
    if batch.keypoints_px is not None:
        shrunk["keypoints_px"] = batch.keypoints_px * torch.tensor([factor, factor, 1.0], device=images.device)
    return batch._replace(images=images, sizes_px=batch.sizes_px.clamp(max=side), **shrunk)


def training_of(settings: Any, ranks: Ranks, **flags: Any) -> Training:
    torch.manual_seed(0)
    detector = detector_of(settings)
    config = Config(detector=settings, seed=0, **flags)
    model = detector.build(settings, NUM_CLASSES).to(ranks.device).to(memory_format=torch.channels_last).train()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    losses_of = detector.losses_of(settings, False)
    return Training(model, build_optimizer(model, config), scaler, losses_of, config, ranks)


def teacher_of(settings: Any, ranks: Ranks) -> Teacher:
    detector = detector_of(settings)
    parts = detector.distillation_parts(settings)
    assert parts is not None
    torch.manual_seed(1)
    model = detector.build(settings, NUM_CLASSES).to(ranks.device).to(memory_format=torch.channels_last)
    categories = [(number, str(number)) for number in range(1, NUM_CLASSES)]
    return Teacher(Path("teacher"), "", settings, categories, model.requires_grad_(False).eval(), parts)


def seconds(run: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Of the clock and of the processor."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    clock, processor = time.perf_counter(), time.process_time()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - clock, time.process_time() - processor


def measure(
    student: str, teacher_name: str, method: str, ranks: Ranks, arguments: argparse.Namespace
) -> dict[str, Any]:
    own, other = settings_of(student), settings_of(teacher_name)
    synthetic = detector_of(own).synthetic(own, NUM_CLASSES, ranks.device, arguments.batch_size)
    batch = small(synthetic, arguments.side)
    teacher = teacher_of(other, ranks)
    plain, taught = (
        training_of(own, ranks, batch_size=arguments.batch_size, teacher="teacher", distill=by)
        for by in ((), (method,))
    )
    distill(taught, teacher, teacher.categories, lambda images, instances: None)
    steps = [build_step(training) for training in (plain, taught)]
    runs = {
        "plain": lambda: steps[0](batch, 1e-5),
        "taught": lambda: steps[1](batch, 1e-5),
        "teacher": lambda: teacher.forward(batch.images, with_heads=False),
    }
    for run in runs.values():  # warm-up
        run()
    rounds = []
    for _ in range(arguments.rounds):
        taken = {name: seconds(run, ranks.device) for name, run in runs.items()}
        rounds.append(
            {f"{name}_s": clock for name, (clock, _) in taken.items()}
            | {f"{name}_processor_s": processor for name, (_, processor) in taken.items()}
        )
    flops = sum(flops_by_weight(teacher.model, lambda: teacher.forward(batch.images[:1], with_heads=False)).values())
    return {
        "student": student,
        "teacher": teacher_name,
        "method": method,
        "images_px": list(batch.images.shape[2:]),
        "teacher_flops_an_image": flops,
        "rounds": rounds,
        "ratio": ratio_of(rounds, "s"),
        "ratio_processor": ratio_of(rounds, "processor_s"),
    }


def ratio_of(rounds: list[dict[str, float]], unit: str) -> float:
    return statistics.median(
        each[f"taught_{unit}"] / (each[f"plain_{unit}"] + each[f"teacher_{unit}"]) for each in rounds
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", nargs=2, action="append", metavar=("STUDENT", "TEACHER"))
    parser.add_argument("--method", default="pkd")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--side", type=int, default=256, help="images of detectors that take any are cut to it; 0: not")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda", 0) if runs_on_gpu(arguments.device) else torch.device("cpu")
    ranks = Ranks(0, 0, 1, device)
    pairs = arguments.pair or [
        ("retinanet_resnet18_fpn", "retinanet_resnet50_fpn"),
        ("ssd300/resnet18", "ssd300/resnet50"),
    ]
    results = [measure(student, teacher, arguments.method, ranks, arguments) for student, teacher in pairs]
    for each in results:
        print(
            f"{each['student']} from {each['teacher']} by {each['method']}: {each['ratio']:.3f} of a plain step and "
            f"the teacher's {each['teacher_flops_an_image'] / 1e9:.1f} GFLOPs an image "
            f"({each['ratio_processor']:.3f} of the processor)"
        )
    report = {
        "batch_size": arguments.batch_size,
        "threads": arguments.threads,
        "results": results,
        "hardware": hardware(device),
        "versions": versions(),
        "git_revision": git_revision(),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
