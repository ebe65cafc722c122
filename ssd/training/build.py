"""A model on its device, with ImageNet's weights, another run's, or those of the checkpoint that a run goes on from."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ssd.checkpoints import checkpoint, conversion
from ssd.config import Config
from ssd.detectors.table import detector_of
from ssd.distributed import Ranks
from ssd.errors import InputError
from ssd.precision import grad_scaler, has_16_bit_units
from ssd.training.optimizer import build_optimizer, take_momentum
from ssd.training.resume import Origin
from ssd.training.state import Training


def build_training(
    config: Config,
    categories: Sequence[tuple[int, str]],
    ranks: Ranks,
    origin: Origin | None = None,
    *,
    has_to_learn: bool = True,
) -> tuple[Training, list[str]]:
    """The model on its device with its optimiser, and what the user should know of where its weights come from.

    categories: the data set's (id, name) in the order of the labels 1, 2, ...; with an origin, the weights are that
    checkpoint's. has_to_learn: whether fresh weights that would stay as they are, are refused; to be measured a model
    may have them. Raises InputError where weights and settings or categories do not fit.
    """
    notes: list[str] = []
    momentum: dict[str, torch.Tensor] = {}
    if (config.fp16 or config.bf16) and not has_16_bit_units(ranks.device):
        notes.append("this CPU has no 16-bit units, so all is computed in float32, which is faster here")
    elif config.fp16 and ranks.device.type == "cpu":
        notes.append("--fp16 on a CPU computes in bfloat16")
    torch.manual_seed(config.seed or 0)
    settings = config.detector
    detector = detector_of(settings)
    model = detector.build(settings, 1 + len(categories))
    if origin:
        checkpoint.require_detector(origin.content, str(origin.file), settings)
        checkpoint.require_categories(origin.content, origin.file, list(categories), config.data)
        model = checkpoint.build_model(origin.content, origin.file)
    elif config.checkpoint:
        file = Path(config.checkpoint)
        content = conversion.load(file)
        fresh = checkpoint.load_for_fine_tuning(model, settings, content, file)
        momentum = content.get("momentum", {})
        notes += content.get("notes", [])
        notes.append(
            f"starting from {file}"
            + (" and its momentum" if momentum else "")
            + (", with new class heads" if fresh else "")
        )
    elif has_to_learn or config.backbone_weights != "none":
        note = detector.load_backbone(model, settings, config.backbone_weights)
        notes += [note] if note else []
    if config.freeze_backbone:
        if detector.freeze_backbone is None:
            raise InputError(f"--freeze-backbone: {detector.title(settings)} has none that can be left as it is")
        detector.freeze_backbone(model)
    model = model.to(ranks.device).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, config)
    take_momentum(optimizer, model, momentum)
    losses_of = detector.losses_of(settings, config.compile)
    return Training(model, optimizer, grad_scaler(config, ranks.device), losses_of, config, ranks), notes
