"""Settings compared: measured one after the other, shown as a table, a JSON file and a plot."""

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich import box
from rich.table import Table

from ssd.config import Config
from ssd.console import Console
from ssd.detectors.table import to_dict
from ssd.distributed import Ranks
from ssd.environment import git_revision, hardware, versions
from ssd.errors import InputError, memory_failure
from ssd.precision import compute_dtype, convolutions_in_tf32
from ssd.speed.steps import Measurement, flops_per_image, inference_step, matmul_flops, measure, training_step
from ssd.training.build import build_training
from ssd.training.prefetch import on_side_stream

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Row(NamedTuple):
    """One configuration and what it came to. measured: None if memory did not suffice; out_of_memory says for what."""

    precision: str
    compile: bool
    batch_size: int
    measured: Measurement | None
    out_of_memory: str | None = None

    @property
    def name(self) -> str:
        return f"{self.precision}{' compiled' if self.compile else ''}"

    def to_dict(self) -> dict[str, Any]:
        about = {"precision": self.precision, "compile": self.compile, "batch_size": self.batch_size}
        if self.measured is None:
            return {**about, "out_of_memory": self.out_of_memory}
        return {**about, **self.measured._asdict()}


def _measured(rows: Sequence[Row]) -> list[tuple[Row, Measurement]]:
    return [(row, row.measured) for row in rows if row.measured is not None]


def compare(
    subject: str,
    config: Config,
    categories: Sequence[tuple[int, str]],
    batches_of: Callable[[int], Iterator[Any]],
    ranks: Ranks,
    *,
    precisions: Sequence[str],
    compiled: Sequence[bool],
    batch_sizes: Sequence[int],
    warmup_steps: int,
    timed_steps: int,
    trace: Path | None,
    progress: Callable[[str], None],
    keep: Callable[[Sequence[Row]], None],
) -> list[Row]:
    """subject: "train" or "inference". batches_of: the batches of so many images. trace: of the last configuration.
    keep: given the rows so far after each one, so that a run that is ended leaves what it has measured.

    A configuration that memory does not suffice for is a row that says so. Raises InputError if all are.
    """
    is_training = subject == "train"
    flops = flops_per_image(config.detector, 1 + len(categories), training=is_training)

    def measure_one(once: Config, trace: Path | None) -> Measurement:
        training, _ = build_training(once, categories, ranks, has_to_learn=False)
        training.model.train()
        batches = batches_of(once.batch_size)
        return measure(
            training_step if is_training else inference_step,
            training,
            on_side_stream(batches, ranks.device) if is_training else batches,
            flops_per_image=flops,
            warmup_steps=warmup_steps,
            timed_steps=timed_steps,
            trace=trace,
        )

    rows: list[Row] = []
    choices = list(product(precisions, compiled, batch_sizes))
    for precision, compiles, batch_size in choices:
        once = replace(
            config, fp16=precision == "fp16", bf16=precision == "bf16", compile=compiles, batch_size=batch_size
        )
        try:
            measured = measure_one(once, trace if len(rows) == len(choices) - 1 else None)
            rows.append(Row(precision, compiles, batch_size, measured))
            progress(f"{rows[-1].name}, batch {batch_size}: {measured.images_per_second:.1f} img/s")
        except (RuntimeError, MemoryError) as error:
            cause = _memory_cause(error)
            if cause is None:
                raise
            rows.append(Row(precision, compiles, batch_size, None, cause))
            progress(f"{rows[-1].name}, batch {batch_size}: out of memory: {cause}")
        torch.compiler.reset()
        _free_memory(ranks.device)
        keep(rows)
    if not _measured(rows):
        raise InputError(f"out of memory in every configuration ({rows[0].out_of_memory}); pass smaller --batch-sizes")
    return rows


def _memory_cause(error: BaseException | None) -> str | None:
    """What memory did not suffice for; None of other errors. One within a CUDA graph's capture makes the capture's end
    fail too, and is that error's context."""
    while error is not None:
        failure = memory_failure(error) if isinstance(error, Exception) else None
        if failure is not None:  # its remedy is in another command's flags
            return str(failure).removeprefix("out of memory: ").partition("; pass ")[0]
        error = error.__context__
    return None


def _free_memory(device: torch.device) -> None:
    """All that the last configuration used: the next one's first steps should find as much as its own did."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def about(config: Config, num_classes: int, rows: Sequence[Row], subject: str, ranks: Ranks) -> dict[str, Any]:
    """What the figures hold for."""
    used = {row.precision: PRECISIONS[row.precision] for row in rows}
    return {
        **to_dict(config.detector),
        "num_classes": num_classes,
        "computed_in": {name: computed_in(name, ranks.device) for name in used},
        "gflop_per_image": flops_per_image(config.detector, num_classes, training=subject == "train") / 1e9,
        "matmul_tflops": {name: matmul_flops(dtype, ranks.device) / 1e12 for name, dtype in used.items()},
        "hardware": hardware(ranks.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "git_revision": git_revision(),
    }


def computed_in(precision: str, device: torch.device) -> str:
    """The type, such as "bfloat16", that a precision of PRECISIONS comes to on a device."""
    asked = Config(fp16=precision == "fp16", bf16=precision == "bf16")
    dtype = compute_dtype(asked, device)
    if dtype is None and convolutions_in_tf32(device):
        return "float32, convolutions in TF32"
    return str(dtype or torch.float32).removeprefix("torch.")


def show_table(subject: str, rows: Sequence[Row], device: torch.device) -> None:
    parts = list(dict.fromkeys(part for _, measured in _measured(rows) for part in measured.milliseconds))
    types = {row.precision: computed_in(row.precision, device) for row in rows}
    table = Table(
        title=f"{subject}: milliseconds a step by part", title_justify="left", box=box.SIMPLE, padding=(0, 0, 0, 1),
        caption="; ".join(f"{name}: {what}" for name, what in types.items() if what.endswith("TF32")),
        caption_justify="left",
    )  # fmt: skip
    for heading in ("", "batch", "img/s", *parts, "MFU", "MiB"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=bool(heading))
    for row in rows:
        if row.measured is None:
            table.add_row(row.name, str(row.batch_size), "no memory", *["-" for _ in parts], "-", "-")
            continue
        speed, milliseconds, mfu, peak = row.measured
        by_part = (f"{milliseconds[part]:.1f}" if part in milliseconds else "-" for part in parts)
        table.add_row(row.name, str(row.batch_size), f"{speed:.1f}", *by_part, f"{mfu:.0%}", f"{peak / 2**20:.0f}")
    Console().print(table)


def write_json(file: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """The fastest configuration's figures, if any is measured, and all of them under "configurations"."""
    measured = _measured(rows)
    fastest = max(measured, key=lambda pair: pair[1].images_per_second)[0].to_dict() if measured else {}
    content = {**fastest, "configurations": [row.to_dict() for row in rows], **about}
    file.write_text(json.dumps(content, indent=2) + "\n")


def write_plot(file: Path, subject: str, rows: Sequence[Row]) -> None:
    """Images a second as bars, and under each the parts of its step."""
    from matplotlib.figure import Figure

    measured = _measured(rows)
    figure = Figure(figsize=(9, 1.6 + 0.6 * len(measured)), layout="constrained")
    speeds, times = figure.subplots(1, 2, sharey=True)
    names = [f"{row.name}, batch {row.batch_size}" for row, _ in measured]
    found = [one for _, one in measured]
    bars = speeds.barh(names, [one.images_per_second for one in found], color="#0072B2")
    speeds.bar_label(bars, [f"{one.images_per_second:.0f} ({one.mfu:.0%} MFU)" for one in found], padding=3, fontsize=8)
    speeds.set(xlabel="images / s", title=subject)
    speeds.margins(x=0.45)
    left = [0.0] * len(measured)
    colours = ("0.6", "#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73")
    for part, colour in zip(dict.fromkeys(part for one in found for part in one.milliseconds), colours, strict=False):
        widths = [one.milliseconds.get(part, 0.0) / row.batch_size for row, one in measured]
        times.barh(names, widths, left=left, color=colour, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    times.set(xlabel="ms / image", title="by part")
    times.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    speeds.invert_yaxis()
    figure.savefig(file, dpi=150)
