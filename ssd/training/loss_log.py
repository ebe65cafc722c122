"""Losses and times of a run: read from the device at logging steps only, told in the log and at an epoch's end."""

import time
from typing import Any

import torch
from torch import Tensor

from ssd.distributed import gather_tensors, sum_over_ranks
from ssd.run.files import Run
from ssd.training.state import Training

# So many steps in a row whose loss is not finite are no accident of a batch.
MAX_LOST_STEPS = 5


class NonFiniteLossError(RuntimeError):
    """The loss stays infinite or NaN. None of these steps has changed the weights."""


class Meter:
    """The steps since the last line of the log."""

    def __init__(self, run: Run, training: Training, total_steps: int, steps_per_epoch: int):
        self.run, self.training = run, training
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self.global_batch_size = training.config.batch_size * training.ranks.world_size
        self.began = time.perf_counter() - training.tally.elapsed_s
        # The first line's steps warm caches, allocators and workers up: the average speed leaves them out if it can.
        self.lines = 0
        self.warm_images, self.warm_seconds = 0, 0.0
        self.restart()

    def elapsed_s(self) -> float:
        return time.perf_counter() - self.began

    def restart(self) -> None:
        self.losses: list[Tensor] = []
        self.image_ids: list[Tensor] = []
        self.data_wait_s = 0.0
        self.since = time.perf_counter()

    def wait_for_data(self) -> None:
        self.waiting_since = time.perf_counter()

    def data_is_here(self) -> None:
        self.data_wait_s += time.perf_counter() - self.waiting_since

    def add(self, losses: Tensor, image_ids: Tensor) -> None:
        self.losses.append(losses)
        self.image_ids.append(image_ids)
        self.run.advance()

    def log(self, lr: float) -> None:
        """Raises NonFiniteLossError, on all ranks, after MAX_LOST_STEPS in a row on any of them."""
        if not self.losses:
            return
        training, tally = self.training, self.training.tally
        losses = torch.stack(self.losses).double().cpu()
        is_finite = losses.isfinite().all(dim=1, keepdim=True)
        sums = sum_over_ranks(torch.cat([losses.where(is_finite, 0), is_finite], dim=1), training.ranks)
        counts = sums[:, -1] == training.ranks.world_size
        steps = int(counts.sum())
        of_lines = (sums[counts, :-1].sum(dim=0) / training.ranks.world_size).tolist()
        by_name = dict(zip(training.loss_names, of_lines, strict=True))
        seconds = time.perf_counter() - self.since
        images = len(self.losses) * self.global_batch_size
        if self.lines == 1:
            self.warm_images, self.warm_seconds = 0, 0.0
        self.lines += 1
        self.warm_images += images
        self.warm_seconds += seconds
        for name, loss in by_name.items():
            tally.losses[name] = tally.losses.get(name, 0.0) + loss
        tally.steps, tally.seconds = tally.steps + steps, tally.seconds + seconds
        tally.elapsed_s = self.elapsed_s()
        self.run.log(
            "train",
            step=training.step,
            epoch=round(training.step / self.steps_per_epoch, 4),
            loss=sum(of_lines) / steps if steps else None,
            **{f"{name}_loss": loss / steps if steps else None for name, loss in by_name.items()},
            skipped_steps=int(training.skipped_steps),
            learning_rate=lr,
            images_per_second=round(images / seconds, 2),
            data_wait_s=round(self.data_wait_s, 4),
            elapsed_s=round(tally.elapsed_s, 2),
        )
        self.run.show_state(
            f"loss {_means(by_name, steps)}  lr {lr:.2g}  "
            f"{images / seconds:.1f} img/s  {self.data_wait_s / seconds:.0%} data wait"
        )
        for call in training.at_log_lines:
            call()
        if steps < len(self.losses):
            self._tell_of_lost_steps(is_finite.squeeze(1))
        self._count_lost_steps(counts.tolist())
        if steps:
            means = {name: loss / steps for name, loss in by_name.items()}
            for text in filter(None, (warning(means) for warning in training.warnings)):
                self.run.say(f"warning: {text}")
        self.restart()

    def _tell_of_lost_steps(self, is_finite: Tensor) -> None:
        """Writes the ids of the images whose losses were not finite on their rank."""
        first = self.training.step - len(self.losses) + 1
        own = [torch.zeros(0, 2, dtype=torch.int64)]
        for row in (~is_finite).nonzero().flatten().tolist():
            image_ids = self.image_ids[row]
            own.append(torch.stack([torch.full_like(image_ids, first + row), image_ids], dim=1))
        parts = gather_tensors(torch.cat(own), self.training.ranks)
        if parts is None:
            return
        lost: dict[int, list[int]] = {}
        for step, image_id in torch.cat(parts).tolist():
            lost.setdefault(step, []).append(image_id)
        self.run.write_lost_batches(lost)
        self.run.say(
            f"warning: the loss was not finite at step {', '.join(map(str, lost))}, which changed no weights; "
            f"the images are in {self.run.lost_batches}"
        )

    def _count_lost_steps(self, counts: list[bool]) -> None:
        tally, step = self.training.tally, self.training.step
        longest = 0
        for it_counts in counts:
            tally.lost_steps = 0 if it_counts else tally.lost_steps + 1
            longest = max(longest, tally.lost_steps)
        # At the run's end it cannot get better any more.
        if longest >= MAX_LOST_STEPS or (step == self.total_steps and tally.lost_steps > 1):
            raise NonFiniteLossError(
                f"the loss became infinite or NaN and stays so, {longest} steps in a row up to step {step}; "
                f"lower --learning-rate, raise --warmup, or look at the images in {self.run.lost_batches}; "
                f"earlier weights, if any, are in {self.run.last_checkpoint}"
            )

    def end_epoch(self, epoch: int, lr: float) -> None:
        tally = self.training.tally
        images, epochs = self.global_batch_size * tally.steps, self.total_steps / self.steps_per_epoch
        self.run.say(
            f"epoch {epoch}/{epochs:.4g}  loss {_means(tally.losses, tally.steps)}  lr {lr:.2g}"
            f"  {images / tally.seconds:.1f} img/s"
        )
        tally.losses, tally.steps, tally.seconds = {}, 0, 0.0

    def totals(self) -> dict[str, Any]:
        return {
            "images_per_second": self.warm_images / self.warm_seconds if self.warm_seconds else None,
            "train_seconds": self.elapsed_s(),
            "skipped_steps": int(self.training.skipped_steps),
        }


def _means(losses: dict[str, float], steps: int) -> str:
    """Such as "2.345 (box 1.234, class 1.111)", of sums over so many steps."""
    parts = ", ".join(f"{name} {_mean(loss, steps)}" for name, loss in losses.items())
    return f"{_mean(sum(losses.values()), steps)} ({parts})"


def _mean(total: float, steps: int) -> str:
    return f"{total / steps:.3f}" if steps else "-"
