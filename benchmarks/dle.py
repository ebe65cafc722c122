"""NVIDIA's published SSD, DeepLearningExamples' PyTorch/Detection/SSD, as a peer: its modules from a checkout."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch
from torchvision.models import resnet

from ssd.detectors.ssd300.settings import BACKBONES

HELP = "PyTorch/Detection/SSD of a DeepLearningExamples checkout"


def module(checkout: Path, name: str) -> ModuleType:
    """`ssd/<name>.py` without its package, which needs apex; its ResNets start with random weights."""
    spec = importlib.util.spec_from_file_location(f"dle_{name}", checkout / "ssd" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # a DataLoader's workers look its classes up by name

    def without_download(build: Callable[..., torch.nn.Module]) -> Callable[..., torch.nn.Module]:
        return lambda weights=None: build(weights=None)

    # Already at its import, model.py builds a ResNet-50 to be a default value.
    with patch.multiple(resnet, **{name: without_download(getattr(resnet, name)) for name in BACKBONES}):
        spec.loader.exec_module(loaded)
    return loaded


def optimizer(
    model: torch.nn.Module, learning_rate: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """SGD with the groups of ssd/train.py, which imports apex: no weight decay for biases and batch norm."""
    no_decay = [p for name, p in model.named_parameters() if p.dim() == 1 or name.endswith(".bias")]
    decay = [p for name, p in model.named_parameters() if not (p.dim() == 1 or name.endswith(".bias"))]
    groups = [{"params": no_decay, "weight_decay": 0.0}, {"params": decay}]
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, weight_decay=weight_decay)
