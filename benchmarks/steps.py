"""Whole training steps of a batch out of nothing, with fresh weights, taken in turns."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py has it, before torch is imported

import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))

from ssd.config import Config  # noqa: E402
from ssd.detectors.names import family_of, settings_named  # noqa: E402
from ssd.detectors.table import detector_of  # noqa: E402
from ssd.distributed import Ranks  # noqa: E402
from ssd.environment import git_revision, hardware, versions  # noqa: E402
from ssd.training.optimizer import build_optimizer  # noqa: E402
from ssd.training.state import Training  # noqa: E402

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


def seconds(run: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Of the clock and of the processor."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    clock, processor = time.perf_counter(), time.process_time()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - clock, time.process_time() - processor


def in_turns(runs: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> list[dict[str, float]]:
    """Of each round the `seconds` of each run as "NAME_s" and "NAME_processor_s", after one that does not count."""
    for run in runs.values():
        run()
    found = []
    for _ in range(rounds):
        taken = {name: seconds(run, device) for name, run in runs.items()}
        found.append(
            {f"{name}_s": clock for name, (clock, _) in taken.items()}
            | {f"{name}_processor_s": processor for name, (_, processor) in taken.items()}
        )
    return found


def write_report(file: Path | None, results: list[dict[str, Any]], device: torch.device, **settings: Any) -> None:
    """The results with their settings, and what they were measured on. Without a file, nothing."""
    about = {"hardware": hardware(device), "versions": versions(), "git_revision": git_revision()}
    if file:
        file.write_text(json.dumps({**settings, "results": results, **about}, indent=1) + "\n")
