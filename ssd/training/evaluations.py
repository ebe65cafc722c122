"""A run's evaluations: when they are made, and what becomes of their metrics.

Detection needs the device, so training waits for it. The metrics need one core for seconds: where nothing depends on
them yet, another process computes them while training goes on. A checkpoint waits for them, so whatever a run goes on
from either has their outcome or is from before the evaluation, which then is made again.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ssd.checkpoints.retention import Keeper
from ssd.distributed import broadcast_object, sum_over_ranks
from ssd.evaluation.metrics import DECIDING
from ssd.mlperf.log import ComplianceLog
from ssd.run.files import Run
from ssd.schedule import epochs_at
from ssd.training.background import Background, ProcessLostError
from ssd.training.interruption import Preempted
from ssd.training.state import Training

# With fewer detections the metrics take less than the start of a process: 1.4 s of a core, where 100,000 detections
# take 1.7 (benchmarks/metrics.py).
OVERLAP_FROM = 100_000


class Judge(NamedTuple):
    """How the model is judged.

    detect: runs the model over the split; all ranks call it. Rank 0 gets what `detect.detect_split` returns, or
    anything else that is as long as there are detections, the others None. It is given a function that says whether
    a signal has asked this rank to end: from then on it may leave out the rest. metrics: turns that into
    {"AP": 0.25, "AP50": 0.43, ...}, of any names, but with the one that decides; it can be pickled, because another
    process may call it.
    """

    detect: Callable[[Callable[[], bool]], Any | None]
    metrics: Callable[[Any], dict[str, Any]]


class _Begun(NamedTuple):
    """An evaluation whose metrics are being computed. waited_s: what training has waited for it so far."""

    step: int
    waited_s: float
    detections: Any
    metrics: Background


class Evaluations:
    """metrics: those of the last evaluation, on rank 0."""

    def __init__(self, judge: Judge, training: Training, run: Run, compliance: ComplianceLog, keeper: Keeper,
                 steps_per_epoch: int):  # fmt: skip
        self.judge, self.training, self.run, self.compliance, self.keeper = judge, training, run, compliance, keeper
        self.metrics: dict[str, Any] = {}
        self.steps_per_epoch = steps_per_epoch
        self._deciding = DECIDING[training.config.metrics[0]]
        self._begun: _Begun | None = None

    def evaluate(self, *, may_overlap: bool, is_asked_to_end: Callable[[], bool]) -> tuple[float, float | None] | None:
        """The model's AP, and that of masks where it has one, on all ranks; None if its metrics are left to `collect`.

        Raises Preempted, on all ranks, if a signal has asked any of them to end before all detections were there.
        """
        started = time.perf_counter()
        self.compliance.eval_start(self.training.step)
        detections = self.judge.detect(is_asked_to_end)
        if sum_over_ranks(torch.tensor([int(is_asked_to_end())]), self.training.ranks):
            raise Preempted("asked to end in an evaluation")
        many = may_overlap and detections is not None and len(detections) >= OVERLAP_FROM
        if broadcast_object(many, self.training.ranks):
            if detections is not None:
                waited_s = time.perf_counter() - started
                metrics = Background(self.judge.metrics, detections)
                self._begun = _Begun(self.training.step, waited_s, detections, metrics)
            return None
        if detections is not None:
            self.metrics = self.judge.metrics(detections)
            self.compliance.eval_stop(self.training.step, self.metrics)
            self._tell(self.training.step, time.perf_counter() - started)
        aps = self.metrics.get(self._deciding), self.metrics.get("segm_AP")
        found: tuple[float, float | None] = broadcast_object(aps, self.training.ranks)
        return found

    def collect(self, *, wait: bool) -> None:
        """Takes up the metrics of the evaluation that has begun, if any, on rank 0, which alone knows of them. wait:
        for those that are not there yet."""
        begun = self._begun
        if begun is None or not (wait or begun.metrics.is_done()):
            return
        started = time.perf_counter()
        try:
            self.metrics = begun.metrics.value()
        except ProcessLostError as error:
            when = self._when(begun.step)
            self.run.say(f"warning: {when}: lost the process that judges it ({error}); judging it here")
            self.metrics = self.judge.metrics(begun.detections)
        self._begun = None
        self._tell(begun.step, begun.waited_s + time.perf_counter() - started)
        training, ap = self.training, self.metrics[self._deciding]
        is_best, training.best_ap, training.judged_step = ap > training.best_ap, max(ap, training.best_ap), begun.step
        if is_best:
            self.keeper.promote(begun.step, best_ap=ap, judged_step=begun.step)

    def _when(self, step: int) -> str:
        epochs, into_epoch = divmod(step, self.steps_per_epoch)
        return f"step {step}" if into_epoch else f"epoch {epochs}"

    def _tell(self, step: int, seconds: float) -> None:
        metrics = self.metrics
        epoch = epochs_at(step, self.steps_per_epoch)
        self.run.log("evaluation", epoch=epoch, step=step, evaluation_s=round(seconds, 3), **metrics)
        names = dict.fromkeys(["AP", "AP50", *(DECIDING[name] for name in self.training.config.metrics)])
        figures = "  ".join(f"{name} {metrics[name]:.3f}" for name in names if name in metrics)
        self.run.say(f"{self._when(step)}: {figures}  ({seconds:.0f} s)")

    def end(self) -> None:
        """Does without the metrics that are not there yet."""
        if self._begun is not None:
            self._begun.metrics.end()
            self._begun = None
