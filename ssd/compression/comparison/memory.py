"""How much memory a detector needs, measured in a process of its own, which has nothing else in it."""

import gc
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from ssd.compression.comparison.runtimes import build_run
from ssd.compression.comparison.subjects import load_subjects
from ssd.config import Config
from ssd.detectors.table import detector_of
from ssd.speed.steps import peak_memory_bytes, reset_peak_memory


def peak_bytes(
    runtime: str, file: Path, onnx: Path | None, config: Config, device: torch.device, batch_size: int
) -> int | None:
    """What loading the detector and running it on a batch adds to a process at its peak: of a GPU the tensors on it.

    runtime, onnx: as of `runtimes.build_run`. None where the subject has no such form, where
    memory did not suffice, and where the system took pages of the process away.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(
                _measure, runtime, file, onnx, config, device, batch_size, torch.get_num_threads()
            ).result()
        except BrokenProcessPool:  # the system ended it
            return None


def _measure(
    runtime: str, file: Path, onnx: Path | None, config: Config, device: torch.device, batch_size: int, threads: int
) -> int | None:
    torch.set_num_threads(threads)
    (subject,) = load_subjects([file])
    before = 0 if device.type == "cuda" else _resident_bytes()
    run = build_run(runtime, subject, onnx, config, device)
    if run is None:
        return None
    del subject
    gc.collect()
    reset_peak_memory(device)
    width, height = detector_of(config.detector).input_size_px(config.detector)
    pixels = torch.randint(0, 256, (batch_size, 3, height, width), dtype=torch.uint8)
    for _ in range(2):
        run(pixels, torch.tensor([[0, 0, width, height]] * batch_size))
    added = peak_memory_bytes(device) - before
    return added if added > 0 else None  # where the system took pages away meanwhile, it says nothing


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)
