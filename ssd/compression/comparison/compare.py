"""Detectors compared on one split: accuracy, size, memory, and speed in turns."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ssd.batch import EvalBatch, EvalLoader, GroundTruth
from ssd.compression.comparison import figures
from ssd.compression.comparison.figures import Compared
from ssd.compression.comparison.memory import peak_bytes
from ssd.compression.comparison.runtimes import Run, build_run, onnx_of
from ssd.compression.comparison.subjects import Subject, release, size_of
from ssd.compression.comparison.timing import Speed, in_turns
from ssd.config import Config
from ssd.detectors.table import tta_of, view_of
from ssd.distributed import Ranks
from ssd.environment import git_revision, hardware, versions
from ssd.evaluation.analysis import SHOWN_SCORE
from ssd.evaluation.detect import Results, detect_alone, detect_split
from ssd.evaluation.metrics import DECIDING, metrics_of
from ssd.inference.exported import load_exported, pixels_of
from ssd.report.example_pictures import Examples
from ssd.storage.files import written_whole
from ssd.views import View

EXAMPLES = 4


def compare(
    subjects: Sequence[Subject],
    configs: Sequence[Config],
    loader_of: Callable[[View], EvalLoader],
    ground_truth: GroundTruth,
    ranks: Ranks,
    *,
    output: Path,
    title: str,
    runtimes: Sequence[str],
    batch_sizes: Sequence[int],
    warmup_rounds: int,
    rounds: int,
    measures_memory: bool,
    progress: Callable[[str], None],
) -> list[Compared]:
    """Writes all of it into output, a folder that exists; returns the figures.

    configs: of each subject, with its detector and thresholds. loader_of: the split as a view has it. runtimes: of
    `runtimes.RUNTIMES`. The first subject is what the others' speeds are compared with.
    """
    views = [view_of(each.settings) for each in subjects]
    seen = [_Seen(loader_of(view), view, max(batch_sizes)) for view in views]
    examples, results = Examples(ground_truth, EXAMPLES, views[0]), []
    for subject, config, loader in zip(subjects, configs, seen, strict=True):
        results.append(_results(subject, loader, ground_truth, config, ranks))
        progress(f"{subject.name}: {len(results[-1])} detections")
        release(ranks.device)
    for batch in seen[0].first:
        examples.remember(batch)
    metrics = [
        metrics_of(ground_truth, each, names=configs[0].metrics, engine=configs[0].eval_engine) for each in results
    ]

    with tempfile.TemporaryDirectory() as folder:
        needs_onnx = {"onnxruntime", "openvino"} & set(runtimes)
        exports = [
            onnx_of(subject, Path(folder), config) if needs_onnx else (None, "")
            for subject, config in zip(subjects, configs, strict=True)
        ]
        files = [file for file, _ in exports]
        peaks: list[dict[str, int | None]] = [{} for _ in subjects]
        if measures_memory:
            for subject, config, file, peak in zip(subjects, configs, files, peaks, strict=True):
                for runtime in runtimes:
                    peak[runtime] = peak_bytes(runtime, subject.file, file, config, ranks.device, max(batch_sizes))
                progress(f"{subject.name}: memory is measured")
        speeds: list[dict[tuple[str, int], Speed]] = [{} for _ in subjects]
        for runtime in runtimes:
            runs: dict[int, Run] = {}
            for place, (subject, config, file) in enumerate(zip(subjects, configs, files, strict=True)):
                if (run := build_run(runtime, subject, file, config, ranks.device)) is not None:
                    runs[place] = run
            for batch_size in batch_sizes if runs else ():
                calls = {str(place): _call(run, seen[place].pixels(batch_size)) for place, run in runs.items()}
                measured = in_turns(calls, batch_size=batch_size, warmup_rounds=warmup_rounds, rounds=rounds)
                for place in runs:
                    speeds[place][runtime, batch_size] = measured[str(place)]
                progress(f"{runtime}, batch {batch_size}: {len(runs)} of {len(subjects)} files run so, and are timed")
            del runs
            release(ranks.device)

    found = [
        Compared(subject.name, subject.title, size_of(subject), each, speed, peak)
        for subject, each, speed, peak in zip(subjects, metrics, speeds, peaks, strict=True)
    ]
    about = {
        "split": title,
        "images": len(ground_truth.image_ids),
        "rounds": rounds,
        "warmup_rounds": warmup_rounds,
        "threads": torch.get_num_threads(),
        "thresholds": configs[0].thresholds._asdict(),
        "hardware": hardware(ranks.device),
        "versions": {**versions(), **_versions_of(runtimes)},
        "git_revision": git_revision(),
    }
    notes = notes_on(subjects, found, configs)
    for subject, (_, reason) in zip(subjects, exports, strict=True):
        if reason:
            notes.append(f"torch alone runs {subject.name}, as main.py export refuses it: {reason}")
    figures.write_json(output / figures.FIGURES, found, {**about, "notes": notes})
    if any(each.speeds for each in found):
        figures.write_plot(output / figures.PLOT, found, DECIDING[configs[0].metrics[0]])
    if len(examples):
        titles = [f"{each.name}, what scores {SHOWN_SCORE} or more" for each in found]
        sheet = examples.sheet(list(zip(titles, results, strict=True)))
        with written_whole(output / figures.PICTURES) as temporary:
            Image.fromarray(sheet).save(temporary, format="JPEG", quality=88)
    figures.write_page(output, found, title, notes, about, DECIDING[configs[0].metrics[0]])
    return found


class _Seen:
    """A split's loader that keeps its first batches, to measure on and to draw."""

    def __init__(self, loader: EvalLoader, view: View, count: int) -> None:
        self._loader, self._view, self._count = loader, view, max(count, 4 * EXAMPLES)
        self.first: list[EvalBatch] = []

    def __iter__(self) -> Any:
        for batch in self._loader:
            if sum(len(each.images) for each in self.first) < self._count:
                self.first.append(batch)
            yield batch

    def pixels(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """So many images of the first batch, which are of one padded size, again and again where they are too few."""
        batch = self.first[0]
        place = torch.arange(batch_size) % len(batch.images)
        return pixels_of(batch, self._view).cpu()[place].contiguous(), batch.placed_ltrb_px[place]


def _call(run: Run, given: tuple[Tensor, Tensor]) -> Callable[[], object]:
    return lambda: run(*given)


def _results(subject: Subject, loader: Any, ground_truth: GroundTruth, config: Config, ranks: Ranks) -> Results:
    """As of `detect.detect_split`: a checkpoint's in torch, an exported file's in onnxruntime."""
    if subject.content is None:
        exported = load_exported(subject.file, threads=torch.get_num_threads(), on_gpu=ranks.device.type == "cuda")
        return detect_alone(exported.detect, loader, ground_truth, view_of(subject.settings))
    model = subject.model().to(ranks.device).to(memory_format=torch.channels_last)
    found = detect_split(model, loader, ground_truth, config, ranks)
    assert found is not None  # there is one rank
    return found


def notes_on(subjects: Sequence[Subject], found: Sequence[Compared], configs: Sequence[Config]) -> list[str]:
    """What the reader should know beside the figures."""
    notes = []
    for subject, each, config in zip(subjects, found, configs, strict=True):
        if subject.content is None:
            own = load_exported(subject.file).about
            changed = [name for name, value in config.thresholds._asdict().items() if own.get(name) != value]
            if changed:
                said = ", ".join(f"{name} {own.get(name)}" for name in changed)
                notes.append(f"{subject.name} was exported with other thresholds: {said}")
            continue
        if tta_of(subject.settings, None) is not None:
            notes.append(
                f"{subject.name} is judged in one pass over an image; main.py evaluate judges it in the several passes "
                "of its configuration"
            )
        if each.size.nonzeros < 0.9 * each.size.parameters:
            notes.append(
                f"{subject.name} has {1 - each.size.nonzeros / each.size.parameters:.0%} zeros, which these runtimes "
                "compute with as with any number"
            )
    return notes


def _versions_of(runtimes: Sequence[str]) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("onnxruntime", "openvino") if name in runtimes}
