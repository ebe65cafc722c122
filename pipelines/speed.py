"""How fast each data path makes finished batches, at what cost, and the ceiling: decoding the same files, no more."""

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

import pipelines
from pipelines.annotations import Annotations
from pipelines.no_dali.workers import plain_errors
from pipelines.readers.image_files import read_rgb
from ssd.distributed import Ranks
from ssd.host_memory import keep_freed_memory
from ssd.views import View

DECODE_ONLY = "decode_only"
_MEMORY_BATCHES = 20


class Speed(NamedTuple):
    """images_per_second: finished images. cpu_seconds_per_image: of all threads and processes of the path."""

    images_per_second: float
    cpu_seconds_per_image: float


class Measurement(NamedTuple):
    """A subject with so many threads or processes: its `Speed`, the median over the rounds, and `peak_memory_mib`."""

    images_per_second: float
    cpu_seconds_per_image: float
    workers: int
    peak_memory_mib: float | None = None


class _DecodeOnly(Dataset[int]):
    def __init__(self, annotations: Annotations):
        self.annotations = annotations

    def __getitem__(self, index: int) -> int:
        return len(read_rgb(self.annotations.image_folder / self.annotations.file_names[index]))


def _decode_only(annotations: Annotations, batch_size: int, workers: int) -> Iterator[Any]:
    indices = annotations.trainable_indices()
    endless = (indices[np.arange(first, first + batch_size) % len(indices)] for first in range(0, 1 << 40, batch_size))
    loader = DataLoader(_DecodeOnly(annotations), batch_sampler=endless, num_workers=workers)  # type: ignore[arg-type]
    return plain_errors(loader)


def batches_of(
    subject: str, annotations: Annotations, view: View, batch_size: int, workers: int, ranks: Ranks
) -> Iterator[Any]:
    if subject == DECODE_ONLY:
        return _decode_only(annotations, batch_size, workers)
    return pipelines.build_train(
        subject, annotations, batch_size=batch_size, num_workers=workers, seed=0, ranks=ranks, view=view
    ).batches(0)


def endless(
    annotations: Annotations,
    name: str,
    workers: int,
    ranks: Ranks,
    view: View,
    batch_size: int,
    *,
    training: bool = True,
) -> Iterator[Any]:
    """A data path's full batches, as in training, or those of the evaluation over and over."""
    settings: dict[str, Any] = {"batch_size": batch_size, "num_workers": workers, "ranks": ranks, "view": view}
    if training:
        yield from pipelines.build_train(name, annotations, seed=0, **settings).batches(0)
    while True:
        loader = pipelines.build_eval(name, annotations, **settings)
        yield from (batch for batch in loader if len(batch.images) == batch_size)


def _cpu_seconds() -> float:
    """User and system time of this process and of its living workers."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def memory_mib() -> float:
    """Resident memory of this process and of its workers; what several of them share is divided among them."""
    this = psutil.Process()
    infos = [process.memory_full_info() for process in (this, *this.children(recursive=True))]
    return sum(getattr(info, "pss", info.uss) for info in infos) / 2**20


def peak_memory_mib(
    subject: str, annotations: Annotations, view: View, batch_size: int, workers: int, ranks: Ranks
) -> float:
    """The largest `memory_mib` in _MEMORY_BATCHES batches of a process of its own: here the allocators hold what the
    other subjects left."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_memory_mib, subject, annotations, view, batch_size, workers, ranks).result()


def _peak_memory_mib(
    subject: str, annotations: Annotations, view: View, batch_size: int, workers: int, ranks: Ranks
) -> float:
    set_start_method(None, force=True)  # spawned itself, this process would spawn its workers, which a run forks
    if ranks.device.type == "cpu":
        keep_freed_memory()  # as a run does
    batches = batches_of(subject, annotations, view, batch_size, workers, ranks)
    return max(memory_mib() for _ in islice(batches, _MEMORY_BATCHES))


def mib_per_worker(measurements: list[Measurement]) -> float | None:
    """What one worker more costs: the slope of memory over worker counts; None of a single count."""
    measured = [(m.workers, m.peak_memory_mib) for m in measurements if m.peak_memory_mib is not None]
    if len({count for count, _ in measured}) < 2:
        return None
    counts, memory = np.array(measured).T
    return float(np.polyfit(counts, memory, 1)[0])


def measure_once(batches: Iterator[Any], *, batch_size: int, warmup_batches: int, timed_batches: int) -> Speed:
    """One round over fresh batches. The warm-up empties the queue that the workers filled while nobody took from it."""
    for _ in range(warmup_batches):
        next(batches)
    _synchronise()
    cpu_seconds, began = _cpu_seconds(), time.perf_counter()
    for _ in range(timed_batches):
        next(batches)
    _synchronise()
    seconds, cpu_seconds = time.perf_counter() - began, _cpu_seconds() - cpu_seconds
    images = batch_size * timed_batches
    return Speed(images / seconds, cpu_seconds / images)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def benchmark(
    annotations: Annotations,
    view: View,
    *,
    subjects: tuple[str, ...],
    workers: list[int],
    batch_size: int,
    timed_batches: int,
    rounds: int,
    ranks: Ranks,
    progress: Callable[[str], None],
) -> dict[str, list[Measurement]]:
    """For each of `subjects` (DECODE_ONLY or a data path) one measurement a worker count.

    The subjects take turns within each round, so that a machine whose speed drifts slows them all alike.
    """
    found: dict[tuple[str, int], list[Speed]] = {(s, w): [] for w in workers for s in subjects}
    for number in range(rounds):
        for subject, count in found:
            progress(f"round {number + 1} of {rounds}: {subject} with {count}")
            batches = batches_of(subject, annotations, view, batch_size, count, ranks)
            once = measure_once(
                batches, batch_size=batch_size, warmup_batches=4 + 2 * count, timed_batches=timed_batches
            )
            found[subject, count].append(once)
            del batches
            gc.collect()  # ends the workers and DALI's threads before the next one starts
    memory_mib = {}
    for subject, count in found:
        progress(f"memory of {subject} with {count}")
        memory_mib[subject, count] = peak_memory_mib(subject, annotations, view, batch_size, count, ranks)
    return {
        subject: [Measurement(*median(found[subject, count]), count, memory_mib[subject, count]) for count in workers]
        for subject in subjects
    }


def median(rounds: list[Speed]) -> Speed:
    return Speed(*(statistics.median(values) for values in zip(*rounds, strict=True)))


def show_table(found: dict[str, list[Measurement]], console: Console) -> None:
    """Prints a row a subject and worker count; "of decoding" is the part of the ceiling with as many workers."""
    table = Table(title="finished training batches", title_justify="left")
    for heading in ("", "workers", "img/s", "CPU ms an img", "of decoding", "peak MiB", "MiB a worker"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=not heading)
    ceiling = {m.workers: m.images_per_second for m in found.get(DECODE_ONLY, [])}
    for subject, measurements in found.items():
        slope = mib_per_worker(measurements)
        for m in measurements:
            part = f"{m.images_per_second / ceiling[m.workers]:.0%}" if m.workers in ceiling else "-"
            table.add_row(
                subject, str(m.workers), f"{m.images_per_second:.0f}", f"{1e3 * m.cpu_seconds_per_image:.2f}", part,
                f"{m.peak_memory_mib or 0:.0f}", "-" if slope is None else f"{slope:.0f}",
            )  # fmt: skip
        table.add_section()
    console.print(table)


def write_plot(file: Path, found: dict[str, list[Measurement]], data_name: str) -> None:
    """Images a second against workers, a line a subject."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    looks = {
        DECODE_ONLY: ("0.5", "--", "decoding alone"),
        "dali": ("#0072B2", "-", "DALI"),
        "no_dali": ("#D55E00", "-", "PyTorch"),
    }
    for subject, measurements in found.items():
        colour, line, label = looks[subject]
        workers = [m.workers for m in measurements]
        axes.plot(workers, [m.images_per_second for m in measurements], line, marker="o", color=colour, label=label)
    axes.set(xlabel="threads or processes", ylabel="images / s", title=f"Finished training batches, {data_name}")
    axes.set_xticks(workers)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def best(measurements: list[Measurement]) -> Measurement:
    return max(measurements, key=lambda m: m.images_per_second)


def write_json(file: Path, found: dict[str, list[Measurement]], about: dict[str, Any]) -> None:
    """Each subject's best measurement, with all of them under "by_workers", beside what `about` says."""
    content = {
        subject: {
            **best(measurements)._asdict(),
            "mib_per_worker": mib_per_worker(measurements),
            "by_workers": [m._asdict() for m in measurements],
        }
        for subject, measurements in found.items()
    }
    file.write_text(json.dumps({**content, **about}, indent=2) + "\n")
