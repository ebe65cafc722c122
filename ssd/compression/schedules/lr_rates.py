"""The learning rate of a schedule's lr_schedulers, as a function of the epoch."""

import inspect
import math
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from ssd.errors import InputError
from ssd.storage.yaml_lines import nearest_to

# What a policy may call once an epoch; the others of torch are in `arguments.REFUSED`.
LR_SCHEDULERS = (
    "StepLR", "MultiStepLR", "ConstantLR", "LinearLR", "ExponentialLR", "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts", "PolynomialLR", "MultiStepMultiGammaLR", "CyclicLR", "OneCycleLR",
)  # fmt: skip
_FILLED_IN = ("self", "optimizer", "last_epoch", "verbose")


class MultiStepMultiGammaLR(lr_scheduler.LRScheduler):
    """The rate is multiplied by gammas[i] from epoch milestones[i] on."""

    def __init__(self, optimizer: torch.optim.Optimizer, milestones: list[int], gammas: list[float]) -> None:
        if len(milestones) != len(gammas) or list(milestones) != sorted(milestones):
            raise ValueError("milestones must rise, and have a gamma each")
        self.milestones, self.gammas = milestones, gammas
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        factor: float = 1.0
        for gamma in self.gammas[: bisect_right(self.milestones, self.last_epoch)]:
            factor *= gamma
        return [float(base) * factor for base in self.base_lrs]


class DistillerPolynomialLR(lr_scheduler.LRScheduler):
    """base x (1 - epoch / T_max) ** power; beyond T_max, where Distiller's turns around, it stays 0."""

    def __init__(self, optimizer: torch.optim.Optimizer, T_max: int, power: float) -> None:
        self.T_max, self.power = T_max, power
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        return [base * max(0.0, 1 - self.last_epoch / self.T_max) ** self.power for base in self.base_lrs]


def scheduler_class(name: str, arguments: dict[str, Any]) -> Any:
    """The class of a name in LR_SCHEDULERS. Distiller's PolynomialLR has T_max, torch's total_iters.

    Raises ValueError for arguments that the class does not take.
    """
    own: dict[str, Any] = {"MultiStepMultiGammaLR": MultiStepMultiGammaLR}
    if name == "PolynomialLR" and "T_max" in arguments:
        own[name] = DistillerPolynomialLR
    found = own.get(name) or getattr(lr_scheduler, name)
    known = {key: p for key, p in inspect.signature(found.__init__).parameters.items() if key not in _FILLED_IN}
    for key in arguments:
        if key not in known:
            raise ValueError(f"{name} takes no argument {key!r}{nearest_to(key, known)}")
    if "cycle_momentum" in known and arguments.get("cycle_momentum", True):
        raise ValueError(f"{name} changes the momentum too, which is the run's; pass cycle_momentum: false")
    missing = [key for key, p in known.items() if p.default is p.empty and key not in arguments]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found(_optimizer(1.0), **arguments).step(1)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{name} does not take these arguments ({error})") from None
    return found


def rates_of(
    schedulers: Sequence[tuple[str, dict[str, Any], Sequence[int]]], base_lr: float, num_epochs: int
) -> list[float]:
    """The rate of each epoch.

    schedulers: (name, arguments, epochs in which it acts), in the order of their policies. One that acts in epoch e
    sets at its end the rate of epoch e + 1; where none acts, the rate stays.
    Raises InputError for one that ends before, or makes a rate that is none.
    """
    optimizer = _optimizer(base_lr)
    made = [(scheduler_class(name, given)(optimizer, **given), set(epochs)) for name, given, epochs in schedulers]
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no step of the optimiser comes before, and epochs are passed
        for epoch in range(num_epochs):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            for scheduler, epochs in made:
                if epoch in epochs and epoch + 1 < num_epochs:
                    try:
                        scheduler.step(epoch + 1)
                    except (ValueError, OverflowError) as error:  # of one that ends, or grows without end
                        raise InputError(
                            f"{type(scheduler).__name__} has no rate for epoch {epoch + 1} ({error}); end its policy "
                            "before, or give it more steps: one is an epoch"
                        ) from error
    rates = [0.0 if -1e-9 * base_lr < rate < 0 else rate for rate in rates]  # what is rounded at a rate of 0
    for epoch, rate in enumerate(rates):
        if not (math.isfinite(rate) and rate >= 0):
            names = " and ".join(dict.fromkeys(name for name, _, _ in schedulers))
            raise InputError(f"{names} makes a rate of {rate:g} in epoch {epoch}; give it other arguments")
    return rates


def _optimizer(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
