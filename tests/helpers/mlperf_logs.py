"""What the tests of MLPerf's logs share: the training loop on a toy model with made-up APs, and what a log tells."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssd.batch import MatchedBatch
from ssd.config import Config
from ssd.detectors.ssd300.recipes import RECIPES
from ssd.distributed import Ranks
from ssd.mlperf.benchmarks import SSD, Benchmark
from ssd.mlperf.checker import check
from ssd.mlperf.log import ComplianceLog, read_events
from ssd.run.files import Run
from ssd.training.evaluations import Judge
from ssd.training.loop import train
from ssd.training.optimizer import build_optimizer
from ssd.training.state import Training

HERE = Ranks(0, 0, 1, torch.device("cpu"))
CLOSED = replace(RECIPES["mlperf"](114, 8), mlperf=True, mlperf_division="closed", seed=7)
BOUNDARIES = "--multistep must be 40 50 or both longer by the same tenths: 44 55, 48 60, ..."
REACHED = {40: 0.21, 45: 0.2299, 50: 0.2301}  # made up


# --- the training loop on a toy model, with made-up APs ---


class ToyLoader:
    """Two steps an epoch of one number."""

    steps_per_epoch = 2

    def batches(self, first_step: int) -> Iterator[MatchedBatch]:
        while True:
            yield MatchedBatch(*[torch.ones(1, 1)] * len(MatchedBatch._fields))

    def state(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None:
        pass


def toy_losses(model: nn.Module, batch: MatchedBatch) -> dict[str, Tensor]:
    return {"box": model(batch.images).square().mean(), "class": torch.zeros(())}


class Killed(BaseException):
    pass


def begun(log: Path, config: Config = CLOSED, epochs_done: int | None = None, steps_done: int = 0) -> ComplianceLog:
    """A log up to its first epoch, or gone on with after that many epochs and steps."""
    compliance = ComplianceLog(log, config, epochs_done, steps_done)
    compliance.submission("toy")
    if epochs_done is None:
        compliance.run_start(cache_cleared=True)
    about = {"train_samples": 117266, "eval_samples": 5000, "crop_attempts": 1}
    compliance.hyper_parameters(world_size=8, steps_per_epoch=ToyLoader.steps_per_epoch, **about)
    return compliance


def toy_run(
    folder: Path,
    config: Config,
    aps: Mapping[float, float | tuple[float, float]],
    *,
    resume: str | None = None,
    die_at: float | None = None,
) -> Path:
    """The log of a run whose evaluation after each epoch of `aps`, or part of one, finds that AP, or APs of boxes and
    masks.

    resume: a checkpoint's name. die_at: dies in the evaluation of that epoch, after its start was logged.
    """
    log = folder / "mlperf.log"
    resumed = torch.load(folder / "checkpoints" / resume, weights_only=True) if resume else None
    done = (resumed["epoch"], resumed["step"]) if resumed else ()
    compliance = begun(log, config, *done)
    model = nn.Linear(1, 1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    training = Training(model, build_optimizer(model, config), scaler, toy_losses, config, HERE)
    if resumed:
        training.restore(resumed)

    def metrics(detections: np.ndarray) -> dict[str, Any]:
        epoch = training.step / ToyLoader.steps_per_epoch
        if epoch == die_at:
            raise Killed
        found = aps[epoch]
        of_boxes, of_masks = found if isinstance(found, tuple) else (found, None)
        return {"AP": of_boxes, "AP50": 0.4, **({} if of_masks is None else {"segm_AP": of_masks})}

    judge = Judge(lambda _: np.zeros((0, 7)), metrics)
    _, reached = train(training, ToyLoader(), judge, Run(folder, HERE), compliance, {})
    compliance.run_stop(success=reached)
    return log


def checker(log: Path, *flags: str, ruleset: str = "1.0.0") -> subprocess.CompletedProcess[str]:
    """MLPerf's own command."""
    command = [sys.executable, "-m", "mlperf_logging.compliance_checker", "--ruleset", ruleset, *flags]
    return subprocess.run([*command, log.name], cwd=log.parent, capture_output=True, text=True)


def assert_passes(log: Path, benchmark: Benchmark = SSD) -> None:
    # So that what stands there twice is an error, too.
    done = checker(log, "--werror", ruleset=benchmark.ruleset)
    assert done.returncode == 0 and "SUCCESS" in done.stderr, done.stderr
    assert check(log, benchmark) == []


def story(log: Path) -> list[tuple[Any, ...]]:
    """(key, numbers of epochs) in order."""
    numbers = ("epoch_num", "first_epoch_num", "epoch_count")
    return [(e["key"], *(e["metadata"][n] for n in numbers if n in e["metadata"])) for e in read_events(log)]


def value_of(log: Path, key: str) -> Any:
    (value,) = [event["value"] for event in read_events(log) if event["key"] == key]
    return value


def rewritten(log: Path, to: Path, *, key: str, **changes: Any) -> Path:
    """A copy of the log with changed events of that key, or without them if there are no changes."""
    events = [event for event in read_events(log) if changes or event["key"] != key]
    changed = [{**event, **changes} if event["key"] == key else event for event in events]
    to.write_text("".join(f":::MLLOG {json.dumps(event)}\n" for event in changed))
    return to
