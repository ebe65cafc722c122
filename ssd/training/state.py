"""All that changes while a model trains, and the step that changes it."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ssd.batch import Batch
from ssd.config import Config
from ssd.distributed import Ranks, gather_tensors
from ssd.errors import InputError
from ssd.precision import autocast
from ssd.running_statistics import join_statistics
from ssd.training.ema import Average
from ssd.training.optimizer import PUBLISHED, add_adapters, build_optimizer, set_rate, take_momentum

Forward = Callable[[Tensor], Any]


LossesOf = Callable[[Forward, Any], dict[str, Tensor]]
"""Of a detector: (forward, batch of its kind) -> losses by name."""


class Companion(Protocol):
    """What changes beside a model while it trains, such as pruning masks. Its state is part of checkpoints."""

    name: str

    def before_step(self, step: int, lr: float) -> float:
        """Before step (from 0) is taken at this rate. Returns the rate to take it at."""
        ...

    def after_step(self, step: int) -> None:
        """After the step and the moving average's update; before an evaluation or a checkpoint."""
        ...

    def state(self) -> dict[str, Any]:
        """Loadable with weights_only=True. All ranks call it together; rank 0's is kept."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up what `state` gave, after the model has its weights."""
        ...


@dataclass
class Tally:
    """What a run has to tell at its next epoch's end, and remember till then; part of its checkpoints.

    losses: by name, sums over this epoch's steps. steps: those with a finite loss. seconds: of this epoch.
    elapsed_s: of the run, whatever interrupted it. lost_steps: the last steps, all with a loss that was not finite.
    """

    losses: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    elapsed_s: float = 0.0
    lost_steps: int = 0


@dataclass
class Training:
    """All that changes while a model trains, and what a checkpoint holds of it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    losses_of: LossesOf
    config: Config
    ranks: Ranks
    step: int = 0
    best_ap: float = float("-inf")  # pycocotools says -1 of a split without objects
    judged_step: int = 0
    """The last step whose evaluation, if it was due, is in best_ap."""
    reached_by: list[float] | None = None
    """The APs of boxes and masks of the evaluation that reached --target and --target-masks."""
    tally: Tally = field(default_factory=Tally)
    graph: torch.cuda.CUDAGraph | None = None
    """The captured step of --cuda-graphs. NCCL does not end before it is reset."""
    loss_names: tuple[str, ...] = ()
    """Of what `train_step` returns; known from the first step on."""
    companions: list[Companion] = field(default_factory=list)
    version: int = 0
    """Of the model's layers: how a step is taken has to be built anew where it has changed."""
    wrap: Callable[[nn.Module, Callable[[nn.Module], Any]], nn.Module] | None = None
    """(model, what compiles a module or leaves it) -> what `losses_of` calls in the model's place, if not itself."""
    adapters: nn.Module | None = None
    """What learns beside the model, and is no part of it. Whoever brings it saves it, as a companion."""
    warnings: list[Callable[[dict[str, float]], str]] = field(default_factory=list)
    """Each is shown the losses of a line of the log by name, and says what the user should know of them, or ""."""
    at_log_lines: list[Callable[[], None]] = field(default_factory=list)
    """Each is called where a line of the log is written, and the host has waited for the device anyway."""
    checks: list[Callable[[nn.Module], None]] = field(default_factory=list)
    """Each is shown a copy of the model with filters less, and raises InputError where this training cannot go on with
    one like it."""

    def __post_init__(self) -> None:
        self.skipped_steps = torch.zeros((), dtype=torch.int64, device=self.ranks.device)
        self._parameters = self._learning()
        self.statistics = join_statistics(self.model)
        self.average = None if self.config.ema is None else Average(self.model, self.config.ema)

    def _learning(self) -> list[nn.Parameter]:
        modules = [self.model, *([] if self.adapters is None else [self.adapters])]
        return [p for module in modules for p in module.parameters() if p.requires_grad]

    def learn_beside(self, adapters: nn.Module) -> None:
        """Has these learn too. Before the first step, and before `restore`."""
        self.adapters = adapters.to(self.ranks.device)
        add_adapters(self.optimizer, self.adapters, self.config)
        self._parameters = self._learning()

    def take_up_layers(self, momentum: dict[str, Tensor]) -> None:
        """Goes on after layers of the model, and of its average, were replaced. momentum: by the name of a weight."""
        former = self.optimizer
        self.optimizer = build_optimizer(self.model, self.config)
        take_momentum(self.optimizer, self.model, momentum)
        if self.adapters is not None:
            add_adapters(self.optimizer, self.adapters, self.config)
            for parameter in self.adapters.parameters():
                self.optimizer.state[parameter] = former.state[parameter]
        self._parameters = self._learning()
        self.statistics = join_statistics(self.model)
        if self.average is not None:
            self.average.follow(self.model)
        self.version += 1

    @property
    def judged_model(self) -> nn.Module:
        """The model to evaluate and to hand on: the moving average if there is one."""
        return self.model if self.average is None else self.average.model

    def train_step(self, forward: Forward, batch: Batch, lr: float | Tensor) -> Tensor:
        """One step of SGD. forward: as `step.build_forward` has it. Returns the losses stacked, still on the device.

        A step whose loss or gradients are not finite, on any rank, leaves the model as it was and is counted in
        skipped_steps. The host does not wait for that verdict.
        """
        set_rate(self.optimizer, lr)
        statistics = self.statistics.clone()
        self.optimizer.zero_grad()
        losses = self._backward(forward, batch)
        is_bad = ~self._sum_of_gradients().isfinite()
        if self.config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self._parameters, self.config.clip_norm)
        self.optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        torch.where(is_bad, statistics, self.statistics, out=self.statistics)
        self.skipped_steps += is_bad
        return losses

    def _backward(self, forward: Forward, batch: Batch) -> Tensor:
        """Computes the gradients of a batch, in config.accumulate parts one after the other; returns its losses.

        The mean of the parts' losses is the batch's, as they are means over images; only batch norm sees the parts.
        """
        count = self.config.accumulate
        parts = [batch] if count == 1 else batch.split(count)
        losses: list[Tensor] = []
        for part in parts:
            # The ranks exchange gradients once, with those of the last part.
            waits = len(losses) < count - 1
            with getattr(forward, "no_sync", nullcontext)() if waits else nullcontext():
                with autocast(self.config, self.ranks.device):
                    named = self.losses_of(forward, part)
                    of_part = torch.stack(list(named.values()))
                self.loss_names = tuple(named)
                loss = of_part.sum()
                # An infinite loss may have finite gradients. NaN for their seed makes them tell it, and DDP tells all
                # ranks.
                self.scaler.scale(loss).backward((1 + 0 * loss.detach()) / count)
            losses.append(of_part.detach())
        return torch.stack(losses).mean(dim=0)

    def _sum_of_gradients(self) -> Tensor:
        """Of their absolute values: infinite or NaN if any is. The largest would take a CPU four times as long."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients, 1.0)

    def state(self) -> dict[str, Any]:
        """Of all ranks, on rank 0; they call it together."""
        return {
            # What evaluates, predicts or fine-tunes from a checkpoint takes "model", and need not know of averages.
            "model": self.judged_model.state_dict(),
            # Within an epoch each rank has its own.
            "statistics": gather_tensors(self.statistics.cpu(), self.ranks),
            **self._state_beside_average(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "best_ap": self.best_ap,
            "judged_step": self.judged_step,
            **({} if self.reached_by is None else {"reached_by": self.reached_by}),
            "skipped_steps": int(self.skipped_steps),
            "tally": asdict(self.tally),
            **({"companions": {each.name: each.state() for each in self.companions}} if self.companions else {}),
        }

    def _state_beside_average(self) -> dict[str, Any]:
        if self.average is None:
            return {}
        statistics = gather_tensors(self.average.statistics.cpu(), self.ranks)
        return {"trained_model": self.model.state_dict(), "average_statistics": statistics}

    def restore(self, content: dict[str, Any]) -> None:
        """Takes up what `state` gave, but for settings, which are the run's own. The model has its weights already, or
        the average's where there was one. Raises InputError where biases or norms had no rate or decay of their own and
        have now, or the other way round."""
        if len(content["optimizer"]["param_groups"]) != len(self.optimizer.param_groups):
            was = content.get("settings", {})
            flags = " ".join(
                f"--{name.replace('_', '-')} {was.get(name, usual):g}" for name, usual in PUBLISHED.items()
            )
            raise InputError(f"--resume: --bias-rate, --bias-decay or --norm-decay is not as it was; pass {flags}")
        # Among them whether the optimiser is the fused one; the rate is that of the step.
        settings = [
            {name: group[name] for name in group if name not in ("params", "lr")}
            for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(content["optimizer"])
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
        if content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        self.step, self.best_ap, self.judged_step = content["step"], content["best_ap"], content["judged_step"]
        self.reached_by = content.get("reached_by")
        self.skipped_steps.fill_(content["skipped_steps"])
        self.tally = _tally_of(content["tally"])
        if self.average is not None:
            self.average.model.load_state_dict(content["model"])
        if "trained_model" in content:  # "model" is the average
            self.model.load_state_dict(content["trained_model"])
            if self.average is not None:
                self.average.statistics.copy_(self._own_of(content["average_statistics"]))
        self.statistics.copy_(self._own_of(content["statistics"]))
        for companion in self.companions:
            if companion.name in content.get("companions", {}):
                companion.restore(content["companions"][companion.name])

    def _own_of(self, statistics: list[Tensor]) -> Tensor:
        same_ranks = len(statistics) == self.ranks.world_size
        return statistics[self.ranks.rank] if same_ranks else torch.stack(statistics).mean(dim=0)


def _tally_of(saved: dict[str, Any]) -> Tally:
    """The tally of a checkpoint. Until version 0.1 it had SSD300's two losses in fields of their own."""
    losses = saved.get("losses", {name: saved[f"{name}_loss"] for name in ("box", "class") if f"{name}_loss" in saved})
    return Tally(**{**{key: value for key, value in saved.items() if not key.endswith("_loss")}, "losses": losses})
