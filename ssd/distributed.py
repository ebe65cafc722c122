"""Ranks: torchrun's environment, the process group, and the few collectives the project uses."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ssd.errors import InputError, LostRankError
from ssd.host_memory import keep_freed_memory


@dataclass(frozen=True)
class Ranks:
    """Where this process stands. rank, local_rank in [0, world_size); device: what it trains on."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def runs_on_gpu(device: str) -> bool:
    """What "auto", "cpu" or "cuda" means here. Raises InputError for "cuda" without a GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU here; pass --device cpu, or install a GPU build and driver")
    return device != "cpu" and torch.cuda.is_available()


@contextmanager
def process_group(device: str = "auto", local_rank: int | None = None, timeout_minutes: float = 30) -> Iterator[Ranks]:
    """Joins the ranks that torchrun started (its RANK, WORLD_SIZE, LOCAL_RANK), or stands alone without them.

    device: "auto", "cpu" or "cuda". local_rank: the ancestors' --local_rank flag, for launchers that set no LOCAL_RANK.
    timeout_minutes: how long a rank waits for the others before it gives up; an evaluation on rank 0 alone must fit.
    Raises LostRankError when it does, or when one of them is gone.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" not in os.environ:
        raise InputError("WORLD_SIZE is set, but not RANK; start with torchrun, or unset WORLD_SIZE")
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", local_rank or 0))
    use_gpu = runs_on_gpu(device)
    torch.backends.cudnn.benchmark = use_gpu  # every image has one size, so the first steps may choose for all
    if use_gpu and local_rank >= torch.cuda.device_count():
        raise InputError(
            f"local rank {local_rank} has no GPU, there are {torch.cuda.device_count()}; lower --nproc_per_node"
        )
    if use_gpu:
        torch.cuda.set_device(local_rank)
    else:
        keep_freed_memory()
    ranks = Ranks(rank, local_rank, world_size, torch.device("cuda", local_rank) if use_gpu else torch.device("cpu"))
    if world_size == 1:
        yield ranks
        return
    try:
        # gloo beside NCCL carries what lives on the host: results and data-path states.
        dist.init_process_group("cpu:gloo,cuda:nccl" if use_gpu else "gloo", timeout=timedelta(minutes=timeout_minutes))
        yield ranks
    except RuntimeError as error:
        if not _is_of_collective(error):
            raise
        raise LostRankError(
            f"rank {rank} waited in vain for another one, which died or did not come within {timeout_minutes:g} "
            f"minutes (--timeout): {str(error).splitlines()[0]}"
        ) from error
    # Not after an error: NCCL's end waits for the other ranks, which wait in a collective for this one. The process
    # says what is wrong and ends, and torchrun ends the others.
    dist.destroy_process_group()


def _is_of_collective(error: RuntimeError) -> bool:
    """Whether it is gloo or NCCL that complains; gloo does so by a plain RuntimeError."""
    return isinstance(error, dist.DistError) or re.search(r"gloo/\S+\.(?:cc|h):\d+\]", str(error)) is not None


def broadcast_object(value: Any, ranks: Ranks) -> Any:
    """Rank 0's value, on every rank."""
    if ranks.world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def gather_tensors(tensor: Tensor, ranks: Ranks) -> list[Tensor] | None:
    """Every rank's CPU tensor, in rank order, on rank 0; None elsewhere.

    They may differ in their first dimension, 0 included; the other dimensions and the dtype are the same.
    """
    if ranks.world_size == 1:
        return [tensor]
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(ranks.world_size)]
    dist.all_gather(counts, torch.tensor([len(tensor)]))
    longest = max(int(count) for count in counts)
    padded = torch.cat([tensor, tensor.new_zeros(longest - len(tensor), *tensor.shape[1:])])
    parts = [torch.empty_like(padded) for _ in counts] if ranks.is_main else None
    dist.gather(padded, parts, dst=0)
    return parts and [part[: int(count)] for part, count in zip(parts, counts, strict=True)]


def sum_over_ranks(tensor: Tensor, ranks: Ranks) -> Tensor:
    """The sum of every rank's CPU tensor, all of one shape, on every rank."""
    if ranks.world_size > 1:
        dist.all_reduce(tensor)
    return tensor


class Vote:
    """What any rank wants, known to all at the same step: one step after it was wanted, so that nobody waits for it.

    Among CPUs, beside the step under way. Every rank casts as often as the others, and ends the vote.
    """

    def __init__(self, ranks: Ranks):
        self._ranks = ranks
        self._wishes: Tensor | None = None
        self._work: Any = None

    def cast(self, *wishes: bool) -> list[bool]:
        """Takes this rank's wishes; returns those of the last round, each as any rank had it."""
        if self._ranks.world_size == 1:
            return list(wishes)
        decided = self.end() or [False] * len(wishes)
        self._wishes = torch.tensor(wishes, dtype=torch.uint8)
        self._work = dist.all_reduce(self._wishes, dist.ReduceOp.MAX, async_op=True)
        return decided

    def end(self) -> list[bool] | None:
        """Waits for the round under way; returns what it has decided."""
        if self._work is None or self._wishes is None:
            return None
        self._work.wait()
        decided, self._work = self._wishes.bool().tolist(), None
        return decided
