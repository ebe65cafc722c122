"""The optimiser: SGD, torch's or apex's, in groups of parameters."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssd.config import Config
from ssd.training.apex_sgd import apex_sgd

PUBLISHED = {"bias_rate": 1.0, "bias_decay": 0.0, "norm_decay": 0.0}
"""Settings with which biases and norms' scales are one group; with others these are groups of their own."""


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
    by_name = dict(parameters)
    has_own = any(getattr(config, name) != usual for name, usual in PUBLISHED.items())
    params = [[by_name[name] for name in names] for names in names_of_groups(parameters, has_own)]
    if not has_own:
        return [{"params": params[0], "weight_decay": 0.0}, {"params": params[1], "weight_decay": config.weight_decay}]
    return [
        {"params": params[0], "weight_decay": config.bias_decay, "rate": config.bias_rate},
        {"params": params[1], "weight_decay": config.norm_decay, "rate": 1.0},
        {"params": params[2], "weight_decay": config.weight_decay, "rate": 1.0},
    ]


def names_of_groups(parameters: Sequence[tuple[str, Tensor]], has_own: bool) -> list[list[str]]:
    """The weights of each group of the optimiser, in its order: those of one dimension and the others; where biases and
    norms' scales have a rate or a decay of their own, these two and the others."""
    small, large = ([name for name, p in parameters if (p.dim() > 1) == is_large] for is_large in (False, True))
    if not has_own:
        return [small, large]
    biases = [name for name in small if name.rpartition(".")[2] == "bias"]
    return [biases, [name for name in small if name not in biases], large]


def set_rate(optimizer: torch.optim.Optimizer, lr: float | torch.Tensor) -> None:
    """Each group's own share of the rate of a step."""
    for group in optimizer.param_groups:
        rate = group.get("rate", 1.0)
        group["lr"] = lr if rate == 1.0 else rate * lr


def add_adapters(optimizer: torch.optim.Optimizer, adapters: nn.Module, config: Config) -> None:
    """Has it train these too, in groups of their own, as of a model."""
    parameters = [(name, p) for name, p in adapters.named_parameters() if p.requires_grad]
    for group in _groups(parameters, config):
        if group["params"]:
            optimizer.add_param_group(group)
    _begin_momentum(optimizer, [p for _, p in parameters])


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
