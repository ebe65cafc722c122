"""A model of a few weights and all that trains it, for tests of the loop."""

import json
import math
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forked import Forked, temporary_folder
from runs import ENVIRONMENT, free_ports
from torch import Tensor, nn

from ssd.batch import MatchedBatch
from ssd.checkpoints import checkpoint
from ssd.config import Config
from ssd.distributed import Ranks
from ssd.mlperf.log import ComplianceLog
from ssd.run.files import Run
from ssd.training.evaluations import Judge
from ssd.training.loop import train
from ssd.training.optimizer import build_optimizer
from ssd.training.state import Training

CPU = Ranks(0, 0, 1, torch.device("cpu"))
STEPS_PER_EPOCH = 3


class Tiny(nn.Module):
    """MatchedBatch norm, dropout and a layer: all kinds of state that a detector can have."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout, self.layer = nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(self.dropout(self.norm(images)))


def losses_of(model: nn.Module, batch: MatchedBatch) -> dict[str, Tensor]:
    box, class_ = model(batch.images).square().mean(dim=0)
    return {"box": box, "class": class_}


class Loader:
    """Batches of two images by their step, the images of step s (from 0) being called 10 s and 10 s + 1."""

    steps_per_epoch = STEPS_PER_EPOCH
    identity: dict[str, str] = {}
    ranks_share_state = True

    def __init__(self, images_of: Callable[[int], Tensor] | None = None):
        self.taken = 0
        self.images_of = images_of or self.random_images

    @staticmethod
    def random_images(step: int) -> Tensor:
        return torch.randn(4, 3, generator=torch.Generator().manual_seed(step))

    def batches(self, first_step: int) -> Iterator[MatchedBatch]:
        for step in range(first_step, 1000):
            self.taken = step + 1
            yield MatchedBatch(
                self.images_of(step), torch.zeros(0), torch.zeros(0), torch.tensor([10 * step, 10 * step + 1])
            )

    def state(self) -> bytes:
        return bytes([self.taken])

    def restore(self, state: bytes) -> None:
        (self.taken,) = state


def new_training(scaler: torch.amp.GradScaler | None = None, ranks: Ranks = CPU, **settings: Any) -> Training:
    torch.manual_seed(0)
    config = Config(**{"learning_rate": 1.0, "batch_size": 2, "epochs": 4, "log_interval": 1, **settings})
    model = Tiny()
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    return Training(model, build_optimizer(model, config), scaler, losses_of, config, ranks)


UNOFFICIAL = ComplianceLog(None, Config())
DESCRIBE = {"detector": {"family": "ssd300", "backbone": "resnet18"}, "categories": [], "seed": 0, "data": {}}


def run_training(
    training: Training, folder: Path, loader: Loader | None = None, aps: list[float] | None = None
) -> tuple[dict[str, Any], bool]:
    """aps: what the evaluations find, one after the other; 0 after them."""
    found = iter(aps or [])

    def metrics(detections: np.ndarray) -> dict[str, Any]:
        return {"AP": next(found, 0.0), "AP50": 0.0}

    judge = Judge(lambda _: np.zeros((0, 7)), metrics)
    return train(training, loader or Loader(), judge, Run(folder, CPU), UNOFFICIAL, DESCRIBE)


def resumed(file: Path, **settings: Any) -> tuple[Training, Loader]:
    content = checkpoint.load_run(file)
    training, loader = new_training(**settings), Loader()
    training.model.load_state_dict(content["model"])
    training.restore(content)
    torch.set_rng_state(content["rng_states"]["cpu"][0])
    loader.restore(bytes(content["data_states"][0].tolist()))
    assert loader.taken == training.step
    return training, loader


def weights_of(training: Training) -> dict[str, Tensor]:
    """All that a step changes: parameters, batch norm's statistics, momentum."""
    momentum = {f"momentum {i}": s["momentum_buffer"] for i, s in training.optimizer.state_dict()["state"].items()}
    weights = {name: value for name, value in training.model.state_dict().items() if "num_batches" not in name}
    return {name: value.clone() for name, value in (weights | momentum).items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def log_of(folder: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in lines_of(folder / "log.jsonl") if line["event"] == event]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def batch_of(images: Tensor) -> MatchedBatch:
    return MatchedBatch(images, torch.zeros(0), torch.zeros(0), torch.zeros(len(images), dtype=torch.int64))


GOOD = Loader.random_images(0)
NAN, INFINITE = GOOD.clone(), GOOD.clone()
NAN[1, 1], INFINITE[1, 1] = math.nan, math.inf


def interrupt_at(step: int, training: Training, number: int = signal.SIGTERM) -> Loader:
    """A loader before whose batch for this step (from 1) the process gets a signal."""

    def images_of(index: int) -> Tensor:
        if index == step - 1:
            os.kill(os.getpid(), number)
        return Loader.random_images(index)

    return Loader(images_of)


def on_two_ranks(script: str, *arguments: object) -> list[Forked]:
    """The text of a program on each of two ranks."""
    (port,) = free_ports(1)
    program = Path(tempfile.mkstemp(dir=temporary_folder(), suffix=".py")[1])
    program.write_text(script)
    job = {**ENVIRONMENT, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ids = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    return [Forked(program, *arguments, environment={**job, **own}) for own in ids]
