"""How fast a model trains on the batches it is given, and how long it waits for them."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

from ssd.batch import Batch
from ssd.train import Training


class TrainingSpeed(NamedTuple):
    """images_per_second: of whole steps. data_wait_fraction: the part of the time, in [0, 1], without a batch."""

    images_per_second: float
    data_wait_fraction: float


def measure_training(
    training: Training, batches: Iterator[Batch], *, warmup_steps: int, timed_steps: int
) -> TrainingSpeed:
    """Takes warmup_steps + timed_steps training steps at a rate of 0, so that the weights stay as they are."""

    def step() -> float:
        began = time.perf_counter()
        batch = next(batches)
        waited_s = time.perf_counter() - began
        training.train_step(training.model, batch, lr=0.0)
        return waited_s

    for _ in range(warmup_steps):
        step()
    _synchronise(training.ranks.device)
    began = time.perf_counter()
    waited_s = sum(step() for _ in range(timed_steps))
    _synchronise(training.ranks.device)
    seconds = time.perf_counter() - began
    return TrainingSpeed(timed_steps * training.config.batch_size / seconds, waited_s / seconds)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
