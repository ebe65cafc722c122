"""How fast each data path makes finished batches, at what cost, and the ceiling: decoding the same files, no more."""

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
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
from pipelines.images import read_rgb
from ssd.distributed import Ranks

DECODE_ONLY = "decode_only"


class Measurement(NamedTuple):
    """Medians over the rounds.

    images_per_second: finished images. cpu_seconds_per_image: of all threads and processes of the path.
    peak_rss_mib: resident memory of this process and its workers, the largest seen. workers: threads or processes.
    """

    images_per_second: float
    cpu_seconds_per_image: float
    peak_rss_mib: float
    workers: int


class _DecodeOnly(Dataset[int]):
    def __init__(self, annotations: Annotations):
        self.annotations = annotations

    def __getitem__(self, index: int) -> int:
        return len(read_rgb(self.annotations.image_folder / self.annotations.file_names[index]))


def _decode_only(annotations: Annotations, batch_size: int, workers: int) -> Iterator[Any]:
    indices = annotations.trainable_indices()
    endless = (indices[np.arange(first, first + batch_size) % len(indices)] for first in range(0, 1 << 40, batch_size))
    return iter(DataLoader(_DecodeOnly(annotations), batch_sampler=endless, num_workers=workers))  # type: ignore[arg-type]


def batches_of(subject: str, annotations: Annotations, batch_size: int, workers: int, ranks: Ranks) -> Iterator[Any]:
    if subject == DECODE_ONLY:
        return _decode_only(annotations, batch_size, workers)
    return pipelines.build_train(
        subject, annotations, batch_size=batch_size, num_workers=workers, seed=0, ranks=ranks
    ).batches(0)


def _cpu_seconds() -> float:
    """User and system time of this process and of its living workers."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def resident_mib() -> float:
    """Memory of this process and of its workers, shared pages counted once in each."""
    this = psutil.Process()
    return sum(process.memory_info().rss for process in (this, *this.children(recursive=True))) / 2**20


def measure_once(batches: Iterator[Any], *, batch_size: int, warmup_batches: int, timed_batches: int) -> Measurement:
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
    return Measurement(images / seconds, cpu_seconds / images, resident_mib(), 0)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def benchmark(
    annotations: Annotations,
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
    found: dict[tuple[str, int], list[Measurement]] = {(s, w): [] for w in workers for s in subjects}
    for number in range(rounds):
        for subject, count in found:
            progress(f"round {number + 1} of {rounds}: {subject} with {count}")
            batches = batches_of(subject, annotations, batch_size, count, ranks)
            once = measure_once(
                batches, batch_size=batch_size, warmup_batches=4 + 2 * count, timed_batches=timed_batches
            )
            found[subject, count].append(once._replace(workers=count))
            del batches
            gc.collect()  # ends the workers and DALI's threads before the next one starts
    return {subject: [median(found[subject, count]) for count in workers] for subject in subjects}


def median(rounds: list[Measurement]) -> Measurement:
    return Measurement(
        statistics.median(r.images_per_second for r in rounds),
        statistics.median(r.cpu_seconds_per_image for r in rounds),
        max(r.peak_rss_mib for r in rounds),
        rounds[0].workers,
    )


def show_table(found: dict[str, list[Measurement]]) -> None:
    """Prints a row a subject and worker count; "of decoding" is the part of the ceiling with as many workers."""
    table = Table(title="finished training batches", title_justify="left")
    for heading in ("", "workers", "img/s", "CPU ms / img", "of decoding", "peak MiB"):
        table.add_column(heading, justify="left" if not heading else "right")
    ceiling = {m.workers: m.images_per_second for m in found.get(DECODE_ONLY, [])}
    for subject, measurements in found.items():
        for m in measurements:
            part = f"{m.images_per_second / ceiling[m.workers]:.0%}" if m.workers in ceiling else "-"
            row = (f"{m.images_per_second:.0f}", f"{1e3 * m.cpu_seconds_per_image:.2f}", part, f"{m.peak_rss_mib:.0f}")
            table.add_row(subject, str(m.workers), *row)
        table.add_section()
    Console(highlight=False).print(table)


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
    axes.set(xlabel="threads or processes", ylabel="images / s", title=f"Finished SSD300 batches, {data_name}")
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
        subject: {**best(measurements)._asdict(), "by_workers": [m._asdict() for m in measurements]}
        for subject, measurements in found.items()
    }
    file.write_text(json.dumps({**content, **about}, indent=2) + "\n")
