"""Every kind of detector trains under a schedule: its weights are exactly as sparse as the schedule says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_detectors import SMALL_DETECTORS
from toy_training import CPU

from ssd.compression.attach import compress
from ssd.compression.schedules.distiller_yaml import read_schedule
from ssd.config import Config
from ssd.detectors.table import detector_of
from ssd.training.optimizer import build_optimizer
from ssd.training.state import Training
from ssd.training.step import build_step

NUM_CLASSES = 4


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_DETECTORS)
def test_weights_are_as_sparse_as_the_schedule_says(name: str) -> None:
    """AGP from 0.05 to 0.2 over two epochs of one step, on all convolutions, with momentum."""
    settings = SMALL_DETECTORS[name]()
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
