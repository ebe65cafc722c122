"""What a teacher costs: a training step with PKD beside a plain one and the teacher's body and neck, in one run.

    python benchmarks/distillation.py --rounds 11 --json benchmarks/results/distillation-cpu.json

A step is the whole of it: losses, gradients, optimiser, of a batch out of nothing with fresh weights. Each round takes
a plain step, a step with PKD and a pass of the teacher up to its maps, in turns; the ratio is the median of the rounds'
own step with PKD / (plain step + pass). The processor's seconds are beside those of the clock, as they do not count
what else the machine does.
"""

import argparse
import os
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py has it, before torch is imported

import torch
from steps import NUM_CLASSES, in_turns, settings_of, small, training_of, write_report

from ssd.compression.summary import flops_by_weight
from ssd.detectors.table import detector_of
from ssd.distillation.attach import distill
from ssd.distillation.teacher import Teacher
from ssd.distributed import Ranks, runs_on_gpu
from ssd.training.step import build_step


def teacher_of(settings: Any, ranks: Ranks) -> Teacher:
    detector = detector_of(settings)
    parts = detector.distillation_parts(settings)
    assert parts is not None
    torch.manual_seed(1)
    model = detector.build(settings, NUM_CLASSES).to(ranks.device).to(memory_format=torch.channels_last)
    categories = [(number, str(number)) for number in range(1, NUM_CLASSES)]
    return Teacher(Path("teacher"), "", settings, categories, model.requires_grad_(False).eval(), parts)


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
    rounds = in_turns(runs, arguments.rounds, ranks.device)
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
    about = {"batch_size": arguments.batch_size, "threads": arguments.threads}
    write_report(arguments.json, results, device, **about)


if __name__ == "__main__":
    main()
