"""How a step is taken: plainly, over ranks, compiled, as one CUDA graph. Chosen once, before the first."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from ssd.batch import Batch, MatchedBatch
from ssd.config import Config
from ssd.detectors.table import detector_of
from ssd.distributed import Ranks
from ssd.errors import InputError
from ssd.training.state import Training

# Batch norm's statistics are averaged once an epoch instead (`average_statistics`). torch 2.15 has another name for it.
_DDP_FLAGS = inspect.signature(DistributedDataParallel).parameters
_NO_BUFFER_SYNC: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _DDP_FLAGS else "broadcast_buffers": False
}
# DDP arranges its buckets in the first ones: "CUDA semantics" in torch's manual asks for 11 before a capture.
STEPS_BEFORE_CAPTURE = 11

Step = Callable[[Batch, float], Tensor]


def require_device(config: Config, ranks: Ranks) -> None:
    """Raises InputError if the device has not what the settings ask for, or they do not go together."""
    detector = detector_of(config.detector)
    for option in ("compile", "cuda_graphs"):
        if getattr(config, option) and not detector.one_shape(config.detector):
            raise InputError(
                f"--{option.replace('_', '-')}: {detector.title(config.detector)} takes images of many shapes, each of "
                "which would be a graph of its own; leave it out"
            )
    if config.cuda_graphs and config.optimizer == "apex":  # its kernel takes the rate as a number, frozen in a graph
        raise InputError(
            "--optimizer apex cannot be in a graph of --cuda-graphs; pass --optimizer sgd, which is fused too, or "
            "leave out --cuda-graphs"
        )
    if config.cuda_graphs and ranks.device.type != "cuda":
        raise InputError("--cuda-graphs needs an NVIDIA GPU, and this run has none; leave it out")


def build_step(training: Training) -> Step:
    """The function that takes one step, as the settings ask for it: (batch, learning rate) -> the losses stacked.

    After each step the moving average, if there is one, is updated, also after a step that was skipped.
    """
    step: Step
    if training.config.cuda_graphs:
        step = GraphedStep(training)
    else:
        step = functools.partial(training.train_step, build_forward(training))
    average = training.average
    if average is None:
        return step

    def averaged(batch: Batch, lr: float) -> Tensor:
        losses = step(batch, lr)
        average.update(training.step)
        return losses

    return averaged


def build_forward(training: Training) -> Callable[[Tensor], Any]:
    """The model, for training: compiled, over ranks, or both."""
    compiled: Callable[[nn.Module], Any] = lambda module: module  # noqa: E731
    if training.config.compile:
        # One graph, or an error that says what keeps it from being one. It goes into DDP, whose own forward pass keeps
        # count of its steps and is no graph. Inside DDP, torch cuts the graph where a bucket of gradients ends.
        compiled = functools.partial(torch.compile, fullgraph=True, dynamic=False)
    forward: Any = compiled(training.model) if training.wrap is None else training.wrap(training.model, compiled)
    return _over_ranks(training, forward) if training.ranks.world_size > 1 else forward


def _over_ranks(training: Training, forward: nn.Module) -> nn.Module:
    config, ranks = training.config, training.ranks
    statistics = training.statistics.clone()
    over_ranks = DistributedDataParallel(
        forward,
        device_ids=[ranks.local_rank] if ranks.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        # Parts of a batch are not all alike to DDP, nor are batches of many shapes.
        static_graph=config.accumulate == 1 and detector_of(config.detector).one_shape(config.detector),
        **_NO_BUFFER_SYNC,
    )
    # It begins with rank 0's on all ranks, but a run that is resumed within an epoch has each rank's own.
    training.statistics.copy_(statistics)
    if config.gradient_compression == "bf16":
        over_ranks.register_comm_hook(None, bf16_compress_hook)
    return over_ranks


class GraphedStep:
    """The whole step (forward, backward, gradients over ranks, optimiser) as one launch.

    The first steps are taken one kernel after the other, and train like all others: they let cuDNN choose and DDP
    arrange itself. All batches have one shape; each is copied to where the graph reads it.
    """

    def __init__(self, training: Training):
        self.training = training
        self.lr = torch.zeros((), device=training.ranks.device)  # a number would be frozen in the graph
        self.stream = torch.cuda.Stream(training.ranks.device)
        current = torch.cuda.current_stream(training.ranks.device)
        self.stream.wait_stream(current)  # which may still be writing the weights that DDP sends to the other ranks
        with torch.cuda.stream(self.stream):  # DDP must be built on the stream of the capture
            self.forward = build_forward(training)
        current.wait_stream(self.stream)
        self.steps_before_capture = STEPS_BEFORE_CAPTURE
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Batch, lr: float) -> Tensor:
        assert isinstance(batch, MatchedBatch)  # of one shape
        self.lr.fill_(lr)
        if self.steps_before_capture:
            self.steps_before_capture -= 1
            return self._step_on_stream(batch)
        if self.graph is None:
            self.graph = self.training.graph = self._capture(batch)
        for place, tensor in zip(self.batch[:3], batch[:3], strict=True):
            place.copy_(tensor, non_blocking=True)
        self.graph.replay()
        return self.losses.clone()  # the next replay writes over them

    def _step_on_stream(self, batch: MatchedBatch) -> Tensor:
        current = torch.cuda.current_stream(self.training.ranks.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            losses = self.training.train_step(self.forward, batch, self.lr)
        current.wait_stream(self.stream)
        losses.record_stream(current)
        return losses

    def _capture(self, batch: MatchedBatch) -> torch.cuda.CUDAGraph:
        self.batch = MatchedBatch(batch.images.clone(), batch.offsets.clone(), batch.labels.clone(), batch.image_ids)
        torch.cuda.synchronize()
        self.training.optimizer.zero_grad()  # so that the gradients lie in the graph's own memory
        graph = torch.cuda.CUDAGraph()
        # The data path's threads go on meanwhile: only this thread's calls are held to what a graph may do.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            self.losses = self.training.train_step(self.forward, self.batch, self.lr)
        return graph
