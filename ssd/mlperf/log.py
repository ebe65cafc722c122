"""Compliance logs of MLPerf's SSD and RetinaNet benchmarks: a run's events in mlperf.log."""

import json
import logging
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mlperf_logging.mllog import constants as keys
from mlperf_logging.mllog.mllog import MLLogger

from ssd.config import Config
from ssd.detectors.table import detector_of
from ssd.distributed import Ranks, broadcast_object, sum_over_ranks
from ssd.errors import InputError
from ssd.mlperf.page_cache import clear_page_cache
from ssd.schedule import REFERENCE_BATCH
from ssd.storage.files import written_whole


class Benchmark(NamedTuple):
    """name: in logs. ruleset: the checker's, that a log is written by. quality: the AP that the closed division asks
    for."""

    name: str
    ruleset: str
    quality: float


# The rules of 1.1.0 ask for MXNet's own names of weights, and from 2.0.0 to 4.1.0 `ssd` is RetinaNet.
SSD = Benchmark(keys.SSD, "1.0.0", 0.23)
# From 6.0.0 on there is none of RetinaNet.
RETINANET = Benchmark(keys.RETINANET, "5.1.0", 0.34)
_BENCHMARKS = {benchmark.name: benchmark for benchmark in (SSD, RETINANET)}


def benchmark_of(config: Config) -> Benchmark:
    return _BENCHMARKS[detector_of(config.detector).mlperf(config.detector)]


_LINE_START = ":::MLLOG "
# Our own; the checker passes over what it does not know.
_RULESET_KEY = "ruleset"
_FIRST_ATTEMPT_KEY = "first_attempt_run_start_ms"
_ROOT = Path(__file__).parents[2]


class ComplianceLog:
    """The events of one run, in the order in which they have to be told.

    A run that was killed and resumed has one log too: it goes on in the same file, without what came after the
    checkpoint, and run_start stays where it was. Its time to target so includes all that was lost. A run that was
    killed before its first checkpoint leaves nothing to go on from: the next attempt is a run of its own with a clock
    of its own, and its log says when the first attempt began.
    """

    def __init__(self, file: Path | None, config: Config, epochs_done: int | None = None) -> None:
        """file: None logs nothing, for runs without --mlperf and for all ranks but the first. epochs_done: of the
        checkpoint that is resumed; None begins anew.

        Raises InputError if the file is not the log of a run with those epochs.
        """
        self.file, self._config = file, config
        self.notes: list[str] = []  # what the user should know
        self._open: dict[str, int] = {}  # the first epoch of the "epoch" and of the "block" that have begun
        self._kept: list[dict[str, Any]] | None = None  # of the log that is resumed
        first_attempt_ms: int | None = None
        self._logger = logging.Logger("mlperf")
        # mllog tells the line of code that an event comes from, from the project's root on; that is a pattern to it.
        self._mllog = MLLogger(self._logger, root_dir=re.escape(str(_ROOT)))
        if file is None:
            self._logger.addHandler(logging.NullHandler())
        elif epochs_done is None:
            file.parent.mkdir(parents=True, exist_ok=True)
            first_attempt_ms = _first_run_start_ms(file)
            self._logger.addHandler(logging.FileHandler(file, mode="w"))
        else:
            self._kept = _events_until(file, epochs_done)
        if epochs_done is None:
            self._mllog.start(keys.INIT_START)
        if first_attempt_ms is not None:
            self._mllog.event(_FIRST_ATTEMPT_KEY, first_attempt_ms)
            self.notes.append(
                f"{file}: an earlier attempt ended before its first checkpoint; nothing of it is used, and MLPerf's "
                "clock starts anew"
            )

    def _state(self, key: str, value: Any) -> None:
        """Logs what the rules want to be told exactly once. A resumed run must say what its log says already."""
        if self._kept is None:
            self._mllog.event(key, value)
            return
        told = [event["value"] for event in self._kept if event["key"] == key]
        if told != [value]:
            raise InputError(
                f"{self.file}: its run has {key} {', '.join(map(str, told)) or 'unknown'}, this one {value}, and an "
                "MLPerf run keeps its settings; pass the same, or resume without --mlperf"
            )

    def _resume(self, file: Path, kept: list[dict[str, Any]]) -> None:
        """Goes on after the events of the checkpoint's past; the others are lost, as the steps they tell of."""
        for event in kept:
            key, metadata = event["key"], event["metadata"]
            if key in (keys.EPOCH_START, keys.BLOCK_START):
                self._open[key.removesuffix("_start")] = metadata.get(keys.EPOCH_NUM) or metadata[keys.FIRST_EPOCH_NUM]
            elif key in (keys.EPOCH_STOP, keys.BLOCK_STOP):
                self._open.pop(key.removesuffix("_stop"), None)
        with written_whole(file) as temporary:
            temporary.write_text("".join(f"{_LINE_START}{json.dumps(event)}\n" for event in kept))
        self._logger.addHandler(logging.FileHandler(file))
        self._mllog.event("resumed")

    def submission(self, device: str) -> None:
        """Who submits what. device: the name of the platform unless the settings have one."""
        config = self._config
        self._state(_RULESET_KEY, benchmark_of(config).ruleset)
        self._state(keys.SUBMISSION_BENCHMARK, benchmark_of(config).name)
        self._state(keys.SUBMISSION_ORG, config.mlperf_org)
        self._state(keys.SUBMISSION_PLATFORM, config.mlperf_platform or device)
        self._state(keys.SUBMISSION_DIVISION, config.mlperf_division)
        self._state(keys.SUBMISSION_STATUS, config.mlperf_status)

    def run_start(self, *, cache_cleared: bool) -> None:
        """To be called before any rank touches the data. cache_cleared: whether `clear_page_cache` did on all nodes."""
        self._mllog.event(keys.CACHE_CLEAR, cache_cleared)
        self._mllog.end(keys.INIT_STOP)
        self._mllog.start(keys.RUN_START)

    def hyper_parameters(self, *, world_size: int, train_samples: int, eval_samples: int, crop_attempts: int) -> None:
        """All that the rules name, and the last before the epochs.

        train_samples, eval_samples: images. crop_attempts: a round of the random crop, MLPerf's max_samples.
        """
        config = self._config
        global_batch_size = config.batch_size * world_size
        values = {
            keys.SEED: config.seed,
            keys.TRAIN_SAMPLES: train_samples,
            keys.EVAL_SAMPLES: eval_samples,
            keys.GLOBAL_BATCH_SIZE: global_batch_size,
            keys.OPT_BASE_LR: config.learning_rate * global_batch_size / REFERENCE_BATCH,
            keys.OPT_WEIGHT_DECAY: config.weight_decay,
        }
        if benchmark_of(config) == RETINANET:
            values |= {
                keys.GRADIENT_ACCUMULATION_STEPS: config.accumulate,
                keys.OPT_NAME: keys.SGD,
                keys.OPT_LR_WARMUP_EPOCHS: config.warmup / math.ceil(train_samples / global_batch_size),
                keys.OPT_LR_WARMUP_FACTOR: config.warmup_factor or 0,
            }
        else:
            values |= {
                keys.GRADIENT_ACCUMULATION_STEPS: 1,
                keys.MODEL_BN_SPAN: config.batch_size,  # each rank normalises by its own images
                keys.OPT_LR_WARMUP_STEPS: config.warmup,
                keys.OPT_LR_WARMUP_FACTOR: 0,  # the reference's code for a rise in a straight line from 0
                keys.OPT_LR_DECAY_BOUNDARY_EPOCHS: list(config.multistep),
                keys.MAX_SAMPLES: crop_attempts,
            }
        for key, value in values.items():
            self._state(key, value)
        if self.file is not None and self._kept is not None:
            self._resume(self.file, self._kept)

    def epoch_start(self, epoch: int) -> None:
        """epoch: from 1. A block is what lies between two evaluations."""
        if "block" not in self._open:
            last = min((e for e in self._config.evaluation if epoch <= e), default=self._config.epochs)
            epochs = min(last, self._config.epochs) - epoch + 1
            self._open["block"] = epoch
            self._mllog.start(keys.BLOCK_START, metadata={keys.FIRST_EPOCH_NUM: epoch, keys.EPOCH_COUNT: epochs})
        if "epoch" not in self._open:  # a resumed run may be in the middle of one
            self._open["epoch"] = epoch
            self._mllog.start(keys.EPOCH_START, metadata={keys.EPOCH_NUM: epoch})

    def epoch_stop(self, epoch: int) -> None:
        self._open.pop("epoch", None)
        self._mllog.end(keys.EPOCH_STOP, metadata={keys.EPOCH_NUM: epoch})

    def eval_start(self, epoch: int) -> None:
        if "block" in self._open:
            first = self._open.pop("block")
            block = {keys.FIRST_EPOCH_NUM: first, keys.EPOCH_COUNT: epoch - first + 1}
            self._mllog.end(keys.BLOCK_STOP, metadata=block)
        self._mllog.start(keys.EVAL_START, metadata={keys.EPOCH_NUM: epoch})

    def eval_stop(self, epoch: int, ap: float) -> None:
        self._mllog.event(keys.EVAL_ACCURACY, ap, metadata={keys.EPOCH_NUM: epoch})
        self._mllog.end(keys.EVAL_STOP, metadata={keys.EPOCH_NUM: epoch})

    def run_stop(self, *, success: bool) -> None:
        self._mllog.end(keys.RUN_STOP, metadata={keys.STATUS: keys.SUCCESS if success else keys.ABORTED})


def begin(
    config: Config, folder: Path, places: Iterable[Path], device: str, resumed: dict[str, Any] | None, ranks: Ranks
) -> ComplianceLog:
    """The log of an --mlperf run up to run_start, or one that logs nothing.

    An MLPerf run's time begins before its data are touched. Annotations are data too, so all that needs them, the model
    with its number of classes included, comes after this. places: the data's files and folders, which the system is to
    forget before. device: its name.
    """
    log = folder / "mlperf.log"
    if not config.mlperf:
        compliance = ComplianceLog(None, config)
        if log.exists():
            compliance.notes.append(
                f"{log}: tells of an earlier attempt only, because this one runs without --mlperf; no later one can go "
                "on with it"
            )
        return compliance
    file = log if ranks.is_main else None
    compliance = ComplianceLog(file, config, resumed["epoch"] if resumed else None)
    compliance.submission(device)
    if not resumed:
        failed = ranks.local_rank == 0 and not clear_page_cache(places)
        failures = int(sum_over_ranks(torch.tensor(int(failed)), ranks))
        compliance.run_start(cache_cleared=failures == 0)
        broadcast_object(None, ranks)  # no rank goes on to the data before the first has logged that
    return compliance


def read_events(file: Path) -> list[dict[str, Any]]:
    """The events of a log of this program: "key", "value", "metadata", "time_ms" and more. A last line that a killed
    run left unfinished is passed over. Raises InputError for any other file."""
    if not file.is_file():
        raise InputError(f"{file}: no such log; only a run that began with --mlperf can go on with it")
    lines = [line for line in file.read_text(errors="replace").split("\n") if line.startswith(_LINE_START)]
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            events.append(json.loads(line.removeprefix(_LINE_START)))
        except ValueError as error:
            if number < len(lines):
                raise InputError(f"{file}: event {number} is damaged; begin a new run") from error
    rulesets = [event["value"] for event in events if isinstance(event, dict) and event.get("key") == _RULESET_KEY]
    known = (SSD.ruleset, RETINANET.ruleset)
    if len(rulesets) != 1 or rulesets[0] not in known:
        raise InputError(
            f"{file}: not a log of this program by MLPerf's ruleset {' or '.join(known)}; "
            "resume without --mlperf, or begin a new run"
        )
    return events


def _first_run_start_ms(file: Path) -> int | None:
    """When the first of the attempts began that this log, if there is one, knows of."""
    try:
        events = read_events(file)
    except InputError:
        return None
    times_ms = [event["value"] for event in events if event["key"] == _FIRST_ATTEMPT_KEY]
    times_ms += [event["time_ms"] for event in events if event["key"] == keys.RUN_START]
    return min(times_ms, default=None)


def _events_until(file: Path, epochs_done: int) -> list[dict[str, Any]]:
    """The events up to the end of that epoch, but for an evaluation that did not end."""
    events = [event for event in read_events(file) if _happened_by(event, epochs_done)]
    stopped, judged = (
        {event["metadata"][keys.EPOCH_NUM] for event in events if event["key"] == key}
        for key in (keys.EPOCH_STOP, keys.EVAL_STOP)
    )
    if not stopped.issuperset(range(1, epochs_done + 1)):
        raise InputError(
            f"{file}: lacks some of the {epochs_done} epochs of the checkpoint, which then ran without --mlperf; "
            "resume without it too"
        )
    of_evaluation = (keys.EVAL_START, keys.EVAL_ACCURACY)
    return [e for e in events if e["key"] not in of_evaluation or e["metadata"][keys.EPOCH_NUM] in judged]


def _happened_by(event: dict[str, Any], epochs_done: int) -> bool:
    """Whether an event lies before the end of that epoch; that the next one has begun stays true whatever comes."""
    key, metadata = event["key"], event["metadata"]
    if key == keys.EPOCH_START:
        return metadata[keys.EPOCH_NUM] <= epochs_done + 1
    if key == keys.BLOCK_START:
        return metadata[keys.FIRST_EPOCH_NUM] <= epochs_done + 1
    if key == keys.BLOCK_STOP:
        return metadata[keys.FIRST_EPOCH_NUM] + metadata[keys.EPOCH_COUNT] - 1 <= epochs_done
    return key != keys.RUN_STOP and metadata.get(keys.EPOCH_NUM, 0) <= epochs_done


def run_seconds(file: Path) -> float:
    """From run_start to run_stop, in a log that has both."""
    time_ms = {event["key"]: event["time_ms"] for event in read_events(file)}
    return (time_ms[keys.RUN_STOP] - time_ms[keys.RUN_START]) / 1000
