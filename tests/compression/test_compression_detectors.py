"""Every kind of detector trains under a schedule: its weights are exactly as sparse as the schedule says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron_models import small
from toy_training import CPU

from ssd.compression.attach import compress
from ssd.compression.schedules.distiller_yaml import read_schedule
from ssd.config import Config
from ssd.detectors.names import settings_named
from ssd.detectors.ssd300.settings import SSD300Settings
from ssd.detectors.table import detector_of
from ssd.detectors.torchvision.names import settings_of
from ssd.training.optimizer import build_optimizer
from ssd.training.state import Training
from ssd.training.step import build_step

NUM_CLASSES = 4


def torchvision(name: str) -> Any:
    return replace(settings_of(name, "none"), short_sides_px=(64,), long_side_px=96)


DETECTORS: dict[str, Callable[[], Any]] = {
    "SSD300": lambda: SSD300Settings("resnet18"),
    **{
        name: lambda name=name: torchvision(name)
        for name in (
            "retinanet_resnet18_fpn", "fcos_resnet18_fpn", "fasterrcnn_resnet18_fpn", "maskrcnn_resnet18_fpn",
        )
    },
    "ssdlite320_mobilenet_v3_large": lambda: settings_named("ssdlite320_mobilenet_v3_large"),
    "yolov2-tiny": lambda: settings_named("yolov2-tiny"),
    "retinanet_r18_fpn": lambda: replace(settings_named("retinanet_r18_fpn"), short_sides_px=(64,), long_side_px=96),
    "Detectron's Mask R-CNN": lambda: replace(small("mask"), norm="affine"),
    "Detectron's C4": lambda: replace(small("C4"), norm="affine"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_weights_are_as_sparse_as_the_schedule_says(name: str) -> None:
    """AGP from 0.05 to 0.2 over two epochs of one step, on all convolutions, with momentum."""
    settings = DETECTORS[name]()
    record = detector_of(settings)
    torch.manual_seed(0)
    model: Any = record.build(settings, NUM_CLASSES)
    names = [name for name, weight in model.named_parameters() if weight.dim() == 4 and weight.requires_grad]
    text = (
        "pruners:\n  gradual: {class: AutomatedGradualPruner, initial_sparsity: 0.05, final_sparsity: 0.2, "
        f"weights: [{', '.join(names)}]}}\n"
        "policies:\n  - {pruner: {instance_name: gradual}, starting_epoch: 0, ending_epoch: 2, frequency: 1}\n"
    )
    config = Config(detector=settings, learning_rate=0.001, batch_size=2, epochs=3, seed=5, clip_norm=10.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    losses_of = record.losses_of(settings, False)
    training = Training(model, build_optimizer(model, config), scaler, losses_of, config, CPU)
    compress(training, read_schedule(text, Path("s.yaml")), 1)
    (companion,) = training.companions
    take_step = build_step(training)
    model.train()
    batch = record.synthetic(settings, NUM_CLASSES, CPU.device, 2)
    for step, level in enumerate((0.2 + (0.05 - 0.2), 0.2, 0.2)):
        training.step = step
        rate = companion.before_step(step, 0.001)
        assert take_step(batch, rate).isfinite().all()
        companion.after_step(step)
        for each in names:
            weight = model.get_parameter(each)
            assert int((weight == 0).sum()) == int(level * weight.numel()), (each, step)
