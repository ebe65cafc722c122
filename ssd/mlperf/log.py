"""Compliance logs of MLPerf's benchmarks of detectors: a run's events in mlperf.log."""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from mlperf_logging.mllog import constants as keys
from mlperf_logging.mllog.mllog import MLLogger

from ssd.config import Config
from ssd.distributed import Ranks, broadcast_object, sum_over_ranks
from ssd.errors import InputError
from ssd.mlperf.benchmarks import BENCHMARKS, benchmark_of
from ssd.mlperf.hyper_parameters import hyper_parameters_of
from ssd.mlperf.page_cache import clear_page_cache
from ssd.schedule import plan_of
from ssd.storage.files import written_whole

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

    What happens within a run is told by its steps, from 0. The rules want epochs: of a run that is so many steps long,
    whose evaluations need not lie between two epochs, events have parts of epochs and the step as well.
    """

    def __init__(self, file: Path | None, config: Config, epochs_done: int | None = None, steps_done: int = 0) -> None:
        """file: None logs nothing, for runs without --mlperf and for all ranks but the first. epochs_done, steps_done:
        of the checkpoint that is resumed; None begins anew.

        Raises InputError if the file is not the log of a run with those epochs, or of a detector without a benchmark.
        """
        self.file, self._config = file, config
        self._benchmark = benchmark_of(config) if config.mlperf else None
        self._steps_per_epoch = 0
        self.notes: list[str] = []  # what the user should know
        self._open: dict[str, int] = {}  # the first epoch of the "epoch", the first step of the "block" that have begun
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
            self._kept = _events_until(file, epochs_done, steps_done)
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
            if key == keys.EPOCH_START:
                self._open["epoch"] = metadata[keys.EPOCH_NUM]
            elif key == keys.BLOCK_START:
                first = (metadata[keys.FIRST_EPOCH_NUM] - 1) * self._steps_per_epoch
                self._open["block"] = metadata.get(keys.STEP_NUM, first)
            elif key in (keys.EPOCH_STOP, keys.BLOCK_STOP):
                self._open.pop(key.removesuffix("_stop"), None)
        with written_whole(file) as temporary:
            temporary.write_text("".join(f"{_LINE_START}{json.dumps(event)}\n" for event in kept))
        self._logger.addHandler(logging.FileHandler(file))
        self._mllog.event("resumed")

    def submission(self, device: str) -> None:
        """Who submits what. device: the name of the platform unless the settings have one."""
        config = self._config
        if self._benchmark is None:
            return
        self._state(_RULESET_KEY, self._benchmark.ruleset)
        self._state(keys.SUBMISSION_BENCHMARK, self._benchmark.name)
        self._state(keys.SUBMISSION_ORG, config.mlperf_org)
        self._state(keys.SUBMISSION_PLATFORM, config.mlperf_platform or device)
        self._state(keys.SUBMISSION_DIVISION, config.mlperf_division)
        self._state(keys.SUBMISSION_STATUS, config.mlperf_status)

    def run_start(self, *, cache_cleared: bool) -> None:
        """To be called before any rank touches the data. cache_cleared: whether `clear_page_cache` did on all nodes."""
        self._mllog.event(keys.CACHE_CLEAR, cache_cleared)
        self._mllog.end(keys.INIT_STOP)
        self._mllog.start(keys.RUN_START)

    def hyper_parameters(self, *, steps_per_epoch: int, **about: int) -> None:
        """All that the rules name, and the last before the first step. about: what else `hyper_parameters_of` takes."""
        self._steps_per_epoch = steps_per_epoch
        if self._benchmark is None:
            return
        values = hyper_parameters_of(self._config, self._benchmark, steps_per_epoch=steps_per_epoch, **about)
        for key, value in values.items():
            self._state(key, value)
        if self.file is not None and self._kept is not None:
            self._resume(self.file, self._kept)

    def before_step(self, step: int) -> None:
        """Begins the block and the epoch that the step lies in, unless they have begun. A block is what lies between
        two evaluations."""
        if self._benchmark is None:
            return
        if "block" not in self._open:
            self._open["block"] = step
            last = min(after for after in plan_of(self._config, self._steps_per_epoch).judged if step < after)
            self._mllog.start(keys.BLOCK_START, metadata=self._block(step, last, step))
        if "epoch" not in self._open:  # a resumed run may be in the middle of one
            self._open["epoch"] = step // self._steps_per_epoch + 1
            self._mllog.start(keys.EPOCH_START, metadata={keys.EPOCH_NUM: self._open["epoch"]})

    def epoch_stop(self, epoch: int) -> None:
        """epoch: from 1."""
        self._open.pop("epoch", None)
        self._mllog.end(keys.EPOCH_STOP, metadata={keys.EPOCH_NUM: epoch})

    def eval_start(self, step: int) -> None:
        """step: how many have been done, as in `eval_stop`."""
        if self._benchmark is None:
            return
        if "block" in self._open:
            first = self._open.pop("block")
            self._mllog.end(keys.BLOCK_STOP, metadata=self._block(first, step, step))
        self._mllog.start(keys.EVAL_START, metadata=self._after(step))

    def eval_stop(self, step: int, metrics: Mapping[str, Any]) -> None:
        if self._benchmark is None:
            return
        self._mllog.event(keys.EVAL_ACCURACY, self._benchmark.accuracy(metrics), metadata=self._after(step))
        self._mllog.end(keys.EVAL_STOP, metadata=self._after(step))

    def _epochs(self, steps: int) -> int | float:
        whole, rest = divmod(steps, self._steps_per_epoch)
        return steps / self._steps_per_epoch if rest else whole

    def _step(self, step: int) -> dict[str, int]:
        return {keys.STEP_NUM: step} if self._config.steps else {}

    def _after(self, step: int) -> dict[str, int | float]:
        return {keys.EPOCH_NUM: self._epochs(step), **self._step(step)}

    def _block(self, first: int, last: int, step: int) -> dict[str, int | float]:
        """Of the block of the steps [first, last), after so many steps."""
        first_epoch = first // self._steps_per_epoch + 1
        return {keys.FIRST_EPOCH_NUM: first_epoch, keys.EPOCH_COUNT: self._epochs(last - first), **self._step(step)}

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
    done = (resumed["epoch"], resumed["step"]) if resumed else (None,)
    compliance = ComplianceLog(file, config, *done)
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
    known = [benchmark.ruleset for benchmark in BENCHMARKS.values()]
    if len(rulesets) != 1 or rulesets[0] not in known:
        raise InputError(
            f"{file}: not a log of this program by MLPerf's ruleset {', '.join(known)}; "
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


def _events_until(file: Path, epochs_done: int, steps_done: int) -> list[dict[str, Any]]:
    """The events up to the end of that epoch, and where they tell their step up to that step, but for an evaluation
    that did not end."""
    events = [event for event in read_events(file) if _happened_by(event, epochs_done, steps_done)]
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


def _happened_by(event: dict[str, Any], epochs_done: int, steps_done: int) -> bool:
    """Whether an event lies before the end of that epoch; that the next one has begun stays true whatever comes."""
    key, metadata = event["key"], event["metadata"]
    if keys.STEP_NUM in metadata:
        return bool(metadata[keys.STEP_NUM] <= steps_done)
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
