"""How fast a model trains and detects on the batches it is given, and where the time goes."""

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ssd.batch import Batch, EvalBatch, whole
from ssd.console import say
from ssd.detectors.contract import Detector
from ssd.detectors.table import detector_of
from ssd.distributed import broadcast_object
from ssd.evaluation.detect import in_precision
from ssd.precision import compute_dtype
from ssd.training.state import Training
from ssd.training.step import STEPS_BEFORE_CAPTURE, build_forward, build_step

_MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}


class TrainingSpeed(NamedTuple):
    """images_per_second: of whole steps. data_wait_fraction: the part of the time, in [0, 1], without a batch."""

    images_per_second: float
    data_wait_fraction: float


class Measurement(NamedTuple):
    """images_per_second: of whole steps. milliseconds: a step's, by part; a part that cannot be told alone is missing.
    mfu: the model's floating-point operations a second over `matmul_flops`. peak_memory_bytes: of the GPU's tensors, or
    on a CPU of the process."""

    images_per_second: float
    milliseconds: dict[str, float]
    mfu: float
    peak_memory_bytes: int


class Stopwatch:
    """When each part of each step ends: on the GPU by events in its stream, so that nothing waits."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        self._marks: list[tuple[str, Any]] = []

    def mark(self, part: str) -> None:
        """part is what has just ended; "" begins a step."""
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((part, event))
        else:
            self._marks.append((part, time.perf_counter()))

    def milliseconds(self) -> dict[str, float]:
        """A step's mean by part."""
        if self._on_gpu:
            torch.cuda.synchronize()
        totals: dict[str, float] = {}
        for (_, began), (part, ended) in zip(self._marks, self._marks[1:], strict=False):
            elapsed_ms = began.elapsed_time(ended) if self._on_gpu else 1e3 * (ended - began)
            totals[part] = totals.get(part, 0.0) + elapsed_ms
        steps = sum(part == "" for part, _ in self._marks)
        return {part: total / steps for part, total in totals.items() if part}


def measure_training(
    training: Training, batches: Iterator[Batch], *, warmup_steps: int, timed_steps: int
) -> TrainingSpeed:
    """Takes warmup_steps + timed_steps training steps at a rate of 0, so that the weights stay as they are."""
    take_step = build_step(training)

    def step() -> float:
        began = time.perf_counter()
        batch = next(batches)
        waited_s = time.perf_counter() - began
        take_step(batch, 0.0)
        return waited_s

    for _ in range(warmup_steps):
        step()
    _synchronise(training.ranks.device)
    began = time.perf_counter()
    waited_s = sum(step() for _ in range(timed_steps))
    _synchronise(training.ranks.device)
    seconds = time.perf_counter() - began
    return TrainingSpeed(timed_steps * training.config.batch_size / seconds, waited_s / seconds)


_LONG_ENOUGH_S, _MOST_STEPS = 10.0, 100


def seconds_of_step(training: Training, batches: Iterator[Batch]) -> float:
    """Of a training step with its wait for data, the same on all ranks, which take the steps together. They take some
    ten seconds, or five steps, and the weights stay as they are."""

    def measured(warmup_steps: int, timed_steps: int) -> float:
        speed = measure_training(training, batches, warmup_steps=warmup_steps, timed_steps=timed_steps)
        seconds: float = broadcast_object(training.config.batch_size / speed.images_per_second, training.ranks)
        return seconds

    # Each begins anew: its first step may compile, and a later one captures the graph.
    warmup_steps = STEPS_BEFORE_CAPTURE + 1 if training.config.cuda_graphs else 2
    at_first_s = measured(warmup_steps, 3)
    more = min(_MOST_STEPS, int(_LONG_ENOUGH_S / at_first_s))
    return measured(warmup_steps, more) if more > 3 else at_first_s


def through_training(
    training: Training, sources: dict[str, Callable[[], Iterator[Batch]]], *, timed_steps: int
) -> dict[str, dict[str, float]]:
    """`measure_training` on each source's batches, and as "in_memory" on the last source's first one; prints them."""
    found = {}
    for name, batches_of in sources.items():
        batches = batches_of()
        in_memory = next(batches)
        found[name] = measure_training(training, batches, warmup_steps=2, timed_steps=timed_steps)
        del batches  # ends its workers before the next one's start
    found["in_memory"] = measure_training(
        training, itertools.repeat(in_memory), warmup_steps=1, timed_steps=timed_steps
    )
    for name, speed in found.items():
        say(f"training on {name}: {speed.images_per_second:.1f} img/s, {speed.data_wait_fraction:.0%} waiting")
    return {name: speed._asdict() for name, speed in found.items()}


def training_step(training: Training, watch: Stopwatch) -> Callable[[Iterator[Batch]], None]:
    """A step of the training loop that tells `watch` where its parts end. As one CUDA graph it has but two."""
    plain_losses_of, forward = training.losses_of, build_forward(training)

    def timed_forward(*inputs: Any) -> Any:
        predictions = forward(*inputs)
        watch.mark("forward")
        return predictions

    def timed_losses_of(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        losses = plain_losses_of(model, batch)
        watch.mark("loss")
        return losses

    graphed = build_step(training) if training.config.cuda_graphs else None
    if graphed is None:
        training.losses_of = timed_losses_of
        training.optimizer.register_step_pre_hook(lambda *_: watch.mark("backward"))

    def step(batches: Iterator[Batch]) -> None:
        watch.mark("")
        batch = next(batches)
        watch.mark("data")
        if graphed is not None:
            graphed(batch, 0.0)
            watch.mark("step")
        else:
            training.train_step(timed_forward, batch, 0.0)
            watch.mark("optimiser")

    return step


def inference_step(training: Training, watch: Stopwatch) -> Callable[[Iterator[Any]], None]:
    """A step of `detect.detect_split` up to its detections."""
    config, device = training.config, training.ranks.device
    training.model.eval()
    forward = in_precision(build_forward(training), config, device)
    detect = detector_of(config.detector).detect(config.detector, config.thresholds)

    def timed_forward(*inputs: Any) -> Any:
        outputs = forward(*inputs)
        watch.mark("forward")
        return outputs

    @torch.no_grad()
    def step(batches: Iterator[Any]) -> None:
        watch.mark("")
        batch = next(batches)
        watch.mark("data")
        if not isinstance(batch, EvalBatch):
            batch = EvalBatch(batch.images, whole(batch.images), torch.arange(len(batch.images)))
        detect(timed_forward, batch)
        watch.mark("post-processing")

    return step


def measure(
    build: Callable[[Training, Stopwatch], Callable[[Iterator[Any]], None]],
    training: Training,
    batches: Iterator[Any],
    *,
    flops_per_image: float,
    warmup_steps: int,
    timed_steps: int,
    trace: Path | None = None,
) -> Measurement:
    """build: `training_step` or `inference_step`. trace: a file for one more step, as chrome://tracing reads it."""
    device, watch = training.ranks.device, Stopwatch(training.ranks.device)
    # Before the steps, which may leave no memory for it.
    ceiling = matmul_flops(compute_dtype(training.config, device) or torch.float32, device)
    step = build(training, watch)
    reset_peak_memory(device)
    for _ in range(warmup_steps):
        step(batches)
    _synchronise(device)
    watch.restart()
    began = time.perf_counter()
    for _ in range(timed_steps):
        step(batches)
    _synchronise(device)
    speed = timed_steps * training.config.batch_size / (time.perf_counter() - began)
    milliseconds, peak = watch.milliseconds(), peak_memory_bytes(device)
    if trace is not None:
        _write_trace(trace, lambda: step(batches), device)
    return Measurement(speed, milliseconds, speed * flops_per_image / ceiling, peak)


def flops_per_image(settings: Any, num_classes: int, *, training: bool) -> float:
    """Floating-point operations of the model's convolutions, two a multiplication, as torch counts them; forward and
    backward, or forward alone. Whatever a step leaves out, it is the same work. settings: the detector's own."""
    detector = detector_of(settings)
    if not detector.one_shape(settings):
        return _counted_flops(detector, settings, num_classes, training=training)
    with torch.device("meta"):
        model, images = (
            detector.build(settings, num_classes),
            torch.empty(2, 3, *detector.input_size_px(settings)[::-1]),
        )
    model.train(training)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        outputs = detector.trace(model, images)
        if training:
            torch.stack([output.sum() for output in outputs]).sum().backward()
    return counter.get_total_flops() / len(images)


def _counted_flops(detector: Detector, settings: Any, num_classes: int, *, training: bool) -> float:
    """Of a model whose shapes depend on its numbers, computed on one synthetic image."""
    model = detector.build(settings, num_classes).train(training)
    for module in model.modules():  # where a hook watches, heads take each map by itself, and compute no gaps
        module.register_forward_hook(lambda *_: None)
    batch: Any = detector.synthetic(settings, num_classes, torch.device("cpu"), 1)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        if training:
            torch.stack(list(detector.losses_of(settings, False)(model, batch).values())).sum().backward()
        else:
            detector.trace(model, batch.images)
    return counter.get_total_flops()


@functools.cache
def matmul_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a large matrix product: what is to be had of the device.

    Measured once a process. The best of ten, each as a product and as a 1x1 convolution: on a CPU they are two
    libraries, MKL and oneDNN, of which the first takes twice as long in float32 on AMD's. A CPU without 16-bit units
    computes bfloat16 by way of float32, so there float32 takes part too, and what a small product shows to be ten times
    as slow as the best is left out: a bfloat16 product takes a minute on a CPU without AVX-512.
    """
    dtypes = dict.fromkeys([dtype, torch.float32] if device.type == "cpu" else [dtype])
    products = [(multiply, each) for each in dtypes for multiply in (_as_product, _as_convolution)]
    size = _MATMUL_SIZE[device.type]
    trials_s = [_product_seconds(*product, size // 8, device, times=3) for product in products]
    quick = [product for product, trial_s in zip(products, trials_s, strict=True) if trial_s < 10 * min(trials_s)]
    return 2 * size**3 / min(_product_seconds(*product, size, device, times=10) for product in quick)


def _as_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.mm(a, b)


def _as_convolution(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    size = len(a)
    return torch.conv2d(a.t().view(1, size, 1, size), b.view(size, size, 1, 1))


def _product_seconds(
    multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    dtype: torch.dtype,
    size: int,
    device: torch.device,
    *,
    times: int,
) -> float:
    """The shortest of so many products of two size x size matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(times):
        _synchronise(device)
        began = time.perf_counter()
        multiply(a, b)
        _synchronise(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _write_trace(file: Path, step: Callable[[], None], device: torch.device) -> None:
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiler:
        step()
        _synchronise(device)
    profiler.export_chrome_trace(str(file))


def reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # not Linux, or a kernel without it: the peak is the process's so far
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
