"""A model on its device, with ImageNet's weights, another run's, or those of the checkpoint that a run goes on from."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ssd.checkpoints import checkpoint, conversion
from ssd.config import Config
from ssd.detectors.ssd300.loss import compiled_ssd_losses, ssd_losses
from ssd.detectors.ssd300.model import SSD300
from ssd.distributed import Ranks
from ssd.errors import InputError
from ssd.precision import grad_scaler, has_16_bit_units
from ssd.training.optimizer import build_optimizer
from ssd.training.resume import Origin
from ssd.training.state import Training


def build_training(
    config: Config,
    categories: Sequence[tuple[int, str]],
    ranks: Ranks,
    origin: Origin | None = None,
) -> tuple[Training, list[str]]:
    """The model on its device with its optimiser, and what the user should know of where its weights come from.

    categories: the data set's (id, name) in the order of the labels 1, 2, ...; with an origin, the weights are that
    checkpoint's. Raises InputError where weights and settings or categories do not fit.
    """
    notes: list[str] = []
    if (config.fp16 or config.bf16) and not has_16_bit_units(ranks.device):
        notes.append("this CPU has no 16-bit units, so all is computed in float32, which is faster here")
    elif config.fp16 and ranks.device.type == "cpu":
        notes.append("--fp16 on a CPU computes in bfloat16")
    torch.manual_seed(config.seed or 0)
    model = SSD300(config.backbone, 1 + len(categories))
    if origin:
        if origin.content["backbone"] != config.backbone:
            raise InputError(f"{origin.file}: pass --backbone {origin.content['backbone']}, which it was trained with")
        checkpoint.require_categories(origin.content, origin.file, list(categories), config.data)
        model = checkpoint.build_model(origin.content, origin.file)
    elif config.checkpoint:
        file = Path(config.checkpoint)
        fresh = checkpoint.load_for_fine_tuning(model, conversion.load(file), file)
        notes.append(f"starting from {file}" + (", with new class heads" if fresh else ""))
    else:
        conversion.load_backbone(model, config.backbone_weights)
    if config.freeze_backbone:
        model.freeze_trunk()
    model = model.to(ranks.device).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, config)
    losses_of = compiled_ssd_losses() if config.compile else ssd_losses
    return Training(model, optimizer, grad_scaler(config, ranks.device), losses_of, config, ranks), notes
