"""The training loop. It never asks which detector or data path it runs."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ssd.batch import Batch, TrainLoader
from ssd.checkpoints import checkpoint
from ssd.checkpoints.retention import Keeper
from ssd.config import Config
from ssd.distributed import Ranks, Vote, average_buffers, gather_tensors
from ssd.mlperf.log import ComplianceLog
from ssd.precision import autocast
from ssd.run.files import Run
from ssd.schedule import lr_at
from ssd.training.apex_sgd import apex_sgd
from ssd.training.ema import Average, join_buffers
from ssd.training.evaluations import Evaluations, Judge
from ssd.training.interruption import Preempted, Watchdog, stop_signals
from ssd.training.loss_log import Meter, Tally
from ssd.training.prefetch import on_side_stream
from ssd.training.step import build_step

Forward = Callable[[Tensor], Any]
LossesOf = Callable[[Forward, Batch], dict[str, Tensor]]


def build_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """SGD as published: no weight decay on biases and other 1-d parameters ("the Tencent trick", Jia et al. 2018)."""
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in parameters if p.dim() > 1]
    plain = [p for name, p in parameters if p.dim() <= 1]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": config.weight_decay}]
    optimizer: torch.optim.Optimizer
    if config.optimizer == "apex":
        optimizer = apex_sgd(groups, lr=config.learning_rate, momentum=config.momentum)
    else:  # fused takes the verdict on a step on the device; the other implementations would read it on the host
        optimizer = torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=True)
    # Its own momentum begins as memory as it finds it, which a first step that is skipped leaves so.
    for _, parameter in parameters:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


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
    judged_epoch: int = 0
    """The last epoch whose evaluation, if it was due, is in best_ap."""
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.skipped_steps = torch.zeros((), dtype=torch.int64, device=self.ranks.device)
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.statistics = join_buffers(self.model)
        self.average = None if self.config.ema is None else Average(self.model, self.config.ema)

    @property
    def judged_model(self) -> nn.Module:
        """The model to evaluate and to hand on: the moving average if there is one."""
        return self.model if self.average is None else self.average.model

    def train_step(self, forward: Forward, batch: Batch, lr: float | Tensor) -> Tensor:
        """One step of SGD. forward: as `step.build_forward` has it. Returns the losses stacked, still on the device.

        A step whose loss or gradients are not finite, on any rank, leaves the model as it was and is counted in
        skipped_steps. The host does not wait for that verdict.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
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
        parts = [batch] if count == 1 else map(Batch, *(tensor.tensor_split(count) for tensor in batch))
        losses: list[Tensor] = []
        for part in parts:
            # The ranks exchange gradients once, with those of the last part.
            waits = len(losses) < count - 1
            with getattr(forward, "no_sync", nullcontext)() if waits else nullcontext():
                with autocast(self.config, self.ranks.device):
                    of_part = torch.stack(list(self.losses_of(forward, part).values()))
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
            "judged_epoch": self.judged_epoch,
            "skipped_steps": int(self.skipped_steps),
            "tally": asdict(self.tally),
        }

    def _state_beside_average(self) -> dict[str, Any]:
        if self.average is None:
            return {}
        statistics = gather_tensors(self.average.statistics.cpu(), self.ranks)
        return {"trained_model": self.model.state_dict(), "average_statistics": statistics}

    def restore(self, content: dict[str, Any]) -> None:
        """Takes up what `state` gave, but for settings, which are the run's own. The model has its weights already, or
        the average's where there was one."""
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
        self.step, self.best_ap, self.judged_epoch = content["step"], content["best_ap"], content["judged_epoch"]
        self.skipped_steps.fill_(content["skipped_steps"])
        self.tally = Tally(**content["tally"])
        if self.average is not None:
            self.average.model.load_state_dict(content["model"])
        if "trained_model" in content:  # "model" is the average
            self.model.load_state_dict(content["trained_model"])
            if self.average is not None:
                self.average.statistics.copy_(self._own_of(content["average_statistics"]))
        self.statistics.copy_(self._own_of(content["statistics"]))

    def _own_of(self, statistics: list[Tensor]) -> Tensor:
        same_ranks = len(statistics) == self.ranks.world_size
        return statistics[self.ranks.rank] if same_ranks else torch.stack(statistics).mean(dim=0)


def train(
    training: Training,
    loader: TrainLoader,
    judge: Judge,
    run: Run,
    compliance: ComplianceLog,
    describe: dict[str, Any],
) -> tuple[dict[str, Any], bool]:
    """Trains from training.step to the last epoch, or to the target.

    judge: of the model on the validation split. describe: what every checkpoint says of its run.
    Returns rank 0's results (the last evaluation's metrics, images_per_second, train_seconds, ...) and whether the
    target was reached. Raises NonFiniteLossError at the logging step that sees that the loss stays infinite, and
    Preempted, after a checkpoint, one or two steps after a signal has asked any rank to end.
    """
    config, ranks = training.config, training.ranks
    take_step = build_step(training)
    steps_per_epoch, total_steps = loader.steps_per_epoch, config.epochs * loader.steps_per_epoch
    keeper, meter, vote = Keeper(run.folder, config), Meter(run, training, total_steps), Vote(ranks)
    watchdog = Watchdog(60 * config.timeout)
    evaluations = Evaluations(judge, training, run, compliance, keeper)
    reached = config.target is not None and training.best_ap >= config.target
    must_stop = False
    # For an AP: with a target the next step depends on it, and MLPerf's log has an order.
    nothing_waits = config.target is None and not config.mlperf

    def save(*, is_best: bool = False) -> None:
        watchdog.is_alive()
        evaluations.collect(wait=True)
        if training.tally.lost_steps > 1:  # what led there is not worth the place of an earlier checkpoint
            return
        training.tally.elapsed_s = meter.elapsed_s()
        content = _checkpoint(training, loader, describe)
        if ranks.is_main:
            keeper.save(content, is_best=is_best)

    def evaluate(epoch: int, *, may_overlap: bool = False) -> None:
        nonlocal reached
        watchdog.is_alive()
        ap = evaluations.evaluate(epoch, may_overlap=may_overlap)
        if ap is None:
            return
        is_best, training.best_ap, training.judged_epoch = ap > training.best_ap, max(ap, training.best_ap), epoch
        reached = reached or (config.target is not None and ap >= config.target)
        save(is_best=is_best)

    batches = on_side_stream(loader.batches(training.step), ranks.device)
    training.model.train()
    watchdog.is_alive()
    run.start_progress(total_steps, training.step)
    try:
        with stop_signals() as request:
            epoch, into_epoch = divmod(training.step, steps_per_epoch)
            is_due = into_epoch == 0 and training.judged_epoch < epoch and _is_judged(epoch, config)
            if is_due or reached or training.step >= total_steps:  # ended between a checkpoint and what follows it
                evaluate(epoch)
            while training.step < total_steps and not (reached or must_stop):
                if training.step % steps_per_epoch == 0:
                    compliance.epoch_start(training.step // steps_per_epoch + 1)
                lr = _lr(training, steps_per_epoch)
                meter.wait_for_data()
                batch = next(batches)
                meter.data_is_here()
                meter.add(take_step(batch, lr), batch.image_ids)
                training.step += 1
                watchdog.is_alive()

                must_stop, is_time = vote.cast(request.received, ranks.is_main and keeper.asks())
                epoch, into_epoch = divmod(training.step, steps_per_epoch)
                judges = into_epoch == 0 and _is_judged(epoch, config)
                saves = judges or must_stop or is_time or keeper.is_due(training.step, steps_per_epoch)
                if saves or into_epoch == 0 or training.step % config.log_interval == 0:
                    meter.log(lr)
                    evaluations.collect(wait=False)
                if into_epoch == 0:
                    compliance.epoch_stop(epoch)
                    meter.end_epoch(epoch, lr)
                    average_buffers(training.model, ranks)
                    if training.average is not None:
                        average_buffers(training.average.model, ranks)
                if saves:
                    save()  # before an evaluation too, which may take longer than a signal leaves time for
                if judges and not must_stop:
                    evaluate(epoch, may_overlap=nothing_waits and training.step < total_steps)
                if saves or into_epoch == 0:
                    meter.restart()
        vote.end()
    finally:
        watchdog.end()
        evaluations.end()
        run.stop_progress()
    if must_stop:
        raise Preempted(f"ended after step {training.step} of {total_steps}, as it was asked to")
    return {**evaluations.metrics, **meter.totals(), "epochs": training.step // steps_per_epoch}, reached


def _lr(training: Training, steps_per_epoch: int) -> float:
    config = training.config
    return lr_at(
        training.step,
        base_lr=config.learning_rate,
        global_batch_size=config.batch_size * training.ranks.world_size,
        steps_per_epoch=steps_per_epoch,
        warmup_steps=config.warmup,
        multistep=config.multistep,
        cosine_steps=config.epochs * steps_per_epoch if config.schedule == "cosine" else None,
    )


def _is_judged(epoch: int, config: Config) -> bool:
    return epoch in config.evaluation or epoch == config.epochs


def _checkpoint(training: Training, loader: TrainLoader, describe: dict[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint, with what each rank has of its own; whole on rank 0 only."""
    device = training.ranks.device
    # As tensors, because weights_only=True loads no bytes.
    data_state = torch.tensor(list(loader.state()), dtype=torch.uint8)
    rng_states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        rng_states["cuda"] = torch.cuda.get_rng_state(device)
    return {
        "format": checkpoint.FORMAT,
        **describe,
        "epoch": training.step // loader.steps_per_epoch,
        "steps_per_epoch": loader.steps_per_epoch,
        "global_batch_size": training.config.batch_size * training.ranks.world_size,
        **training.state(),
        "data_states": gather_tensors(data_state, training.ranks),
        "rng_states": {name: gather_tensors(state, training.ranks) for name, state in rng_states.items()},
    }
