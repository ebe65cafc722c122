"""A RetinaNet of a few weights and a teacher for it, for tests of distillation."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision_models import NUM_CLASSES, batch_of
from toy_training import CPU, UNOFFICIAL

from ssd.batch import RaggedBatch
from ssd.checkpoints import checkpoint
from ssd.config import Config
from ssd.detectors.table import detector_of, to_dict
from ssd.detectors.torchvision.dense.retinanet import ANCHORS_A_CELL, RetinaNet
from ssd.detectors.torchvision.names import settings_of
from ssd.distillation.attach import distill, identity_of
from ssd.distillation.teacher import Teacher
from ssd.distributed import Ranks
from ssd.run.files import Run
from ssd.training.evaluations import Judge
from ssd.training.loop import train
from ssd.training.optimizer import build_optimizer
from ssd.training.state import Training
from ssd.training.step import build_forward

SETTINGS = settings_of("retinanet_resnet18_fpn", "none")
CATEGORIES = [(number, f"class {number}") for number in range(1, NUM_CLASSES)]
METHODS = ("pkd", "cwd", "mgd", "gid", "crosskd")
STEPS_PER_EPOCH = 3


class Pyramid(nn.Module):
    """Five maps, of strides 8 to 128, of images' means: with batch norm, as bodies have it."""

    def __init__(self, channels: int):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 8, stride=8), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        self.coarser = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(4))

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = [self.stem(images)]
        for conv in self.coarser:
            maps.append(conv(maps[-1]))
        return OrderedDict(zip(("0", "1", "2", "p6", "p7"), maps, strict=True))


def tiny(channels: int = 4, seed: int = 0, num_classes: int = NUM_CLASSES) -> RetinaNet:
    torch.manual_seed(seed)
    model = RetinaNet(Pyramid(channels), RetinaNetHead(channels, ANCHORS_A_CELL, num_classes), "l1")
    with torch.no_grad():  # so that two of them say different things
        for parameter in model.head.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def teacher_of(model: nn.Module, settings: Any = SETTINGS) -> Teacher:
    parts = detector_of(settings).distillation_parts(settings)
    assert parts is not None
    return Teacher(Path("teacher.pt"), "0" * 64, settings, CATEGORIES, model.requires_grad_(False).eval(), parts)


def new_training(
    teacher: Teacher | None,
    *methods: str,
    model: nn.Module | None = None,
    ranks: Ranks = CPU,
    show: Callable[[Any, Any], None] = lambda images, instances: None,
    **settings: Any,
) -> Training:
    config = Config(
        **{
            "detector": SETTINGS, "learning_rate": 0.01, "batch_size": 2, "epochs": 2, "log_interval": 1, "seed": 7,
            "clip_norm": 10.0, "teacher": "teacher.pt", "distill": methods, **settings,
        }
    )  # fmt: skip
    model = model or tiny()
    losses_of = detector_of(config.detector).losses_of(config.detector, False)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    training = Training(model, build_optimizer(model, config), scaler, losses_of, config, ranks)
    if teacher is not None:
        distill(training, teacher, CATEGORIES, show)
    training.model.train()
    return training


def random_batch(seed: int) -> RaggedBatch:
    batch = batch_of()
    return batch._replace(images=torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(seed)))


class Loader:
    """A batch by the number of its step."""

    steps_per_epoch = STEPS_PER_EPOCH
    identity: dict[str, str] = {}
    ranks_share_state = True

    def batches(self, first_step: int) -> Iterator[RaggedBatch]:
        for step in range(first_step, 1000):
            yield random_batch(step)

    def state(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None:
        pass


def run(training: Training, folder: Path, teacher: Teacher | None = None) -> None:
    judge = Judge(lambda _: np.zeros((0, 7)), lambda detections: {"AP": 0.0, "AP50": 0.0, "per_class": {}})
    describe = {
        "detector": to_dict(SETTINGS),
        "categories": CATEGORIES,
        "seed": 7,
        "data": {},
        "settings": {},
        "distillation": identity_of(training.config, teacher),
    }
    train(training, Loader(), judge, Run(folder, CPU), UNOFFICIAL, describe)


def take_up(training: Training, file: Path) -> None:
    content = checkpoint.load_run(file)
    training.model.load_state_dict(content["model"])
    training.restore(content)
    torch.set_rng_state(content["rng_states"]["cpu"][0])


def hash_of(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def losses(training: Any, batch: Any = None) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = training.losses_of(build_forward(training), batch or random_batch(0))
    return found
