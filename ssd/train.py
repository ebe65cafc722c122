"""The training loop. It never asks which detector or data path it runs."""

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssd import checkpoint
from ssd.batch import Batch, TrainLoader
from ssd.config import Config
from ssd.distributed import Ranks, average_buffers, broadcast_object, gather_tensors, sum_over_ranks
from ssd.precision import autocast
from ssd.record import Run
from ssd.schedule import lr_at

# Batch norm's statistics are averaged once an epoch instead (`average_buffers`). torch 2.15 has another name for it.
_DDP_FLAGS = inspect.signature(DistributedDataParallel).parameters
_NO_BUFFER_SYNC: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _DDP_FLAGS else "broadcast_buffers": False
}

LossesOf = Callable[[nn.Module, Batch], dict[str, Tensor]]
Judge = Callable[[], dict[str, Any] | None]


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or NaN; the weights are lost, the checkpoints are not."""


def build_optimizer(model: nn.Module, config: Config, device: torch.device) -> torch.optim.SGD:
    """SGD as published: no weight decay on biases and other 1-d parameters ("the Tencent trick", Jia et al. 2018)."""
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in parameters if p.dim() > 1]
    plain = [p for name, p in parameters if p.dim() <= 1]
    return torch.optim.SGD(
        [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": config.weight_decay}],
        lr=config.learning_rate,
        momentum=config.momentum,
        # Fused takes the gradient scaler's verdict on the device; foreach's step would read it on the host.
        fused=device.type == "cuda",
        foreach=device.type != "cuda",
    )


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

    def train_step(self, forward: nn.Module, batch: Batch, lr: float) -> Tensor:
        """One step of SGD. forward: the model or its DDP wrapper. Returns the losses stacked, still on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with autocast(self.config, self.ranks.device):
            losses = self.losses_of(forward, batch)
        loss = torch.stack(list(losses.values()))
        self.optimizer.zero_grad()
        self.scaler.scale(loss.sum()).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "best_ap": self.best_ap,
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Takes up what `state` gave, but for settings, which are the run's own. The model has its weights already."""
        # Among them whether the optimiser is the fused one, which depends on the device.
        settings = [{name: group[name] for name in group if name != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(content["optimizer"])
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
        if content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        self.step, self.best_ap = content["step"], content["best_ap"]


def train(
    training: Training, loader: TrainLoader, judge: Judge, run: Run, describe: dict[str, Any]
) -> tuple[dict[str, Any], bool]:
    """Trains from training.step to the last epoch, or to the target.

    judge: the metrics of the model on the validation split, on rank 0. describe: what every checkpoint says of its run.
    Returns rank 0's results (the last evaluation's metrics, images_per_second, train_seconds, ...) and whether the
    target was reached. Raises NonFiniteLossError at the first logging step that sees one.
    """
    config, ranks = training.config, training.ranks
    forward = training.model
    if ranks.world_size > 1:
        forward = DistributedDataParallel(
            training.model,
            device_ids=[ranks.local_rank] if ranks.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **_NO_BUFFER_SYNC,
        )
    steps_per_epoch, global_batch_size = loader.steps_per_epoch, config.batch_size * ranks.world_size
    total_steps = config.epochs * steps_per_epoch
    meter = _Meter(run, training, total_steps, global_batch_size)
    metrics: dict[str, Any] = {}
    reached = config.target is not None and training.best_ap >= config.target
    if reached or training.step >= total_steps:  # killed between its last checkpoint and its results
        metrics = _judge(training, judge, run, training.step // steps_per_epoch) or {}
    batches = loader.batches(training.step)
    training.model.train()
    run.start_progress(total_steps, training.step)
    try:
        while training.step < total_steps and not reached:
            lr = lr_at(
                training.step,
                base_lr=config.learning_rate,
                global_batch_size=global_batch_size,
                steps_per_epoch=steps_per_epoch,
                warmup_steps=config.warmup,
                multistep=config.multistep,
            )
            meter.wait_for_data()
            batch = next(batches)
            meter.data_is_here()
            meter.add(training.train_step(forward, batch, lr))
            training.step += 1
            epoch, into_epoch = divmod(training.step, steps_per_epoch)
            if training.step % config.log_interval == 0 or into_epoch == 0:
                meter.log(lr)
            if into_epoch == 0:
                meter.end_epoch(epoch, lr)
                average_buffers(training.model, ranks)
                if epoch in config.evaluation or epoch == config.epochs:
                    metrics = _judge(training, judge, run, epoch) or metrics
                    ap = broadcast_object(metrics.get("AP"), ranks)
                    is_best, training.best_ap = ap > training.best_ap, max(ap, training.best_ap)
                    reached = config.target is not None and ap >= config.target
                else:
                    is_best = False
                _save(training, loader, run, {**describe, "epoch": epoch}, is_best=is_best)
                meter.restart()
    finally:
        run.stop_progress()
    return {**metrics, **meter.totals(), "epochs": training.step // steps_per_epoch}, reached


def _judge(training: Training, judge: Judge, run: Run, epoch: int) -> dict[str, Any] | None:
    started = time.perf_counter()
    metrics = judge()
    if metrics is not None:
        seconds = time.perf_counter() - started
        run.log("evaluation", epoch=epoch, step=training.step, evaluation_s=round(seconds, 3), **metrics)
        run.say(f"epoch {epoch}: AP {metrics['AP']:.3f}  AP50 {metrics['AP50']:.3f}  ({seconds:.0f} s)")
    return metrics


def _save(training: Training, loader: TrainLoader, run: Run, describe: dict[str, Any], *, is_best: bool) -> None:
    # As tensors, because weights_only=True loads no bytes.
    data_state = torch.tensor(list(loader.state()), dtype=torch.uint8)
    data_states = gather_tensors(data_state, training.ranks)
    if data_states is None:
        return
    content = {"format": checkpoint.FORMAT, **describe, **training.state(), "data_states": data_states}
    checkpoint.save(run.last_checkpoint, content)
    if is_best:
        checkpoint.save(run.best_checkpoint, content)


class _Meter:
    """Losses and times of the steps since the last line of the log; reads the losses from the device only there."""

    def __init__(self, run: Run, training: Training, total_steps: int, global_batch_size: int):
        self.run, self.training = run, training
        self.total_steps, self.global_batch_size = total_steps, global_batch_size
        self.began = time.perf_counter()
        # The first line's steps warm caches, allocators and workers up: the average speed leaves them out if it can.
        self.lines = 0
        self.warm_images, self.warm_seconds = 0, 0.0
        self.epoch_sum, self.epoch_steps, self.epoch_seconds = torch.zeros(2), 0, 0.0
        self.restart()

    def restart(self) -> None:
        self.losses: list[Tensor] = []
        self.data_wait_s = 0.0
        self.since = time.perf_counter()

    def wait_for_data(self) -> None:
        self.waiting_since = time.perf_counter()

    def data_is_here(self) -> None:
        self.data_wait_s += time.perf_counter() - self.waiting_since

    def add(self, losses: Tensor) -> None:
        self.losses.append(losses)
        self.run.advance()

    def log(self, lr: float) -> None:
        steps = len(self.losses)
        if steps == 0:
            return
        sums = torch.stack(self.losses).sum(dim=0).tolist()
        ranks = self.training.ranks
        box, class_ = (sum_over_ranks(value, ranks) / ranks.world_size / steps for value in sums)
        if not torch.isfinite(torch.tensor(box + class_)):
            raise NonFiniteLossError(
                f"the loss became {box + class_} in steps {self.training.step - steps}..{self.training.step - 1}; "
                f"lower --learning-rate or raise --warmup; earlier weights, if any, are in {self.run.last_checkpoint}"
            )
        seconds = time.perf_counter() - self.since
        images = steps * self.global_batch_size
        if self.lines == 1:
            self.warm_images, self.warm_seconds = 0, 0.0
        self.lines += 1
        self.warm_images += images
        self.warm_seconds += seconds
        self.epoch_sum += torch.tensor([box, class_]) * steps
        self.epoch_steps += steps
        self.epoch_seconds += seconds
        self.run.log(
            "train",
            step=self.training.step,
            loss=box + class_,
            box_loss=box,
            class_loss=class_,
            learning_rate=lr,
            images_per_second=round(images / seconds, 2),
            data_wait_s=round(self.data_wait_s, 4),
            elapsed_s=round(time.perf_counter() - self.began, 2),
        )
        self.run.advance(0, f"loss {box + class_:.3f}  {images / seconds:.1f} img/s")
        self.restart()

    def end_epoch(self, epoch: int, lr: float) -> None:
        box, class_ = (self.epoch_sum / self.epoch_steps).tolist()
        speed = self.epoch_steps * self.global_batch_size / self.epoch_seconds
        self.run.say(
            f"epoch {epoch}/{self.training.config.epochs}  loss {box + class_:.3f} (box {box:.3f}, class {class_:.3f})"
            f"  lr {lr:.2g}  {speed:.1f} img/s"
        )
        self.epoch_sum, self.epoch_steps, self.epoch_seconds = torch.zeros(2), 0, 0.0

    def totals(self) -> dict[str, Any]:
        return {
            "images_per_second": self.warm_images / self.warm_seconds if self.warm_seconds else None,
            "train_seconds": time.perf_counter() - self.began,
        }
