"""The optimiser: SGD, torch's or apex's, in groups of parameters."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ssd.config import Config
from ssd.training.apex_sgd import apex_sgd


def build_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """SGD as published: no weight decay on biases and other 1-d parameters ("the Tencent trick", Jia et al. 2018).

    With a rate or decay for biases or norms, as Detectron has them, these are groups of their own.
    """
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = _groups(parameters, config)
    optimizer: torch.optim.Optimizer
    if config.optimizer == "apex":
        optimizer = apex_sgd(groups, lr=config.learning_rate, momentum=config.momentum)
    else:  # fused takes the verdict on a step on the device; the other implementations would read it on the host
        optimizer = torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=True)
    _begin_momentum(optimizer, [p for _, p in parameters])
    return optimizer


def _groups(parameters: list[tuple[str, nn.Parameter]], config: Config) -> list[dict[str, Any]]:
    decayed = {"params": [p for _, p in parameters if p.dim() > 1], "weight_decay": config.weight_decay}
    if (config.bias_rate, config.bias_decay, config.norm_decay) == (1.0, 0.0, 0.0):
        return [{"params": [p for _, p in parameters if p.dim() <= 1], "weight_decay": 0.0}, decayed]
    biases = [p for name, p in parameters if p.dim() <= 1 and name.rpartition(".")[2] == "bias"]
    scales = [p for name, p in parameters if p.dim() <= 1 and name.rpartition(".")[2] != "bias"]
    return [
        {"params": biases, "weight_decay": config.bias_decay, "rate": config.bias_rate},
        {"params": scales, "weight_decay": config.norm_decay, "rate": 1.0},
        {**decayed, "rate": 1.0},
    ]


def set_rate(optimizer: torch.optim.Optimizer, lr: float | torch.Tensor) -> None:
    """Each group's own share of the rate of a step."""
    for group in optimizer.param_groups:
        rate = group.get("rate", 1.0)
        group["lr"] = lr if rate == 1.0 else rate * lr


def add_adapters(optimizer: torch.optim.Optimizer, adapters: nn.Module, config: Config) -> None:
    """Has it train these too, in two groups of their own, as of a model."""
    parameters = [p for p in adapters.parameters() if p.requires_grad]
    for decay, own in ((0.0, [p for p in parameters if p.dim() <= 1]),
                       (config.weight_decay, [p for p in parameters if p.dim() > 1])):  # fmt: skip
        if own:
            optimizer.add_param_group({"params": own, "weight_decay": decay})
    _begin_momentum(optimizer, parameters)


def _begin_momentum(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    # SGD would make the momentum in the first step, of memory that is not set. A skipped first step would leave it so.
    for parameter in parameters:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def take_momentum(optimizer: torch.optim.Optimizer, model: nn.Module, momentum: dict[str, torch.Tensor]) -> None:
    """Begins with the momentum of a checkpoint of main.py thin, where it has some of a weight of that name and shape.

    momentum: by the name of a weight.
    """
    for name, parameter in model.named_parameters():
        buffer = momentum.get(name)
        if parameter.requires_grad and buffer is not None and buffer.shape == parameter.shape:
            optimizer.state[parameter]["momentum_buffer"].copy_(buffer)
