"""What is compared: checkpoints and exported files, with their classes and sizes."""

import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ssd.checkpoints import checkpoint, conversion
from ssd.compression.comparison.onnx_sizes import onnx_sizes
from ssd.compression.summary import parts_of, summarize_detector
from ssd.detectors.table import detector_of
from ssd.errors import InputError
from ssd.inference.exported import load_exported


class Subject(NamedTuple):
    """A detector in a file.

    name: by which it is shown. content: of a checkpoint; None of an exported file.
    settings: the detector's own. categories: the (id, name) of its labels 1, 2, ...
    """

    name: str
    file: Path
    settings: Any
    categories: list[tuple[int, str]]
    content: dict[str, Any] | None

    @property
    def title(self) -> str:
        return detector_of(self.settings).title(self.settings)

    def model(self) -> nn.Module:
        """A checkpoint's, in evaluation mode."""
        assert self.content is not None
        return checkpoint.build_model(self.content, self.file).eval()


class Size(NamedTuple):
    """What a model consists of: of an exported file, its convolutions and linear layers.

    flops: of one image of the detector's usual size, two a product and its sum; nonzero_flops: of them, those with
    weights that are not 0. bytes_raw, bytes_zipped: of the model alone in a file, as it is and by zip's deflate.
    """

    parameters: int
    nonzeros: int
    flops: int
    nonzero_flops: int
    bytes_raw: int
    bytes_zipped: int


def load_subjects(files: Sequence[Path]) -> list[Subject]:
    """Raises InputError for a file that is no detector, and where they do not find the same classes."""
    subjects = []
    for file, name in zip(files, _names_of(files), strict=True):
        if file.suffix == ".onnx":
            exported = load_exported(file)
            subjects.append(Subject(name, file, exported.settings, exported.categories, None))
            continue
        content = conversion.load(file)
        categories = [(int(number), str(text)) for number, text in content["categories"]]
        subjects.append(Subject(name, file, checkpoint.settings_of(content), categories, content))
    first = subjects[0]
    for other in subjects[1:]:
        if other.categories != first.categories:
            raise InputError(
                f"{other.file}: detects {_said(other)}, and {first.file} detects {_said(first)}; "
                "pass files that were trained on the same categories"
            )
    return subjects


def _said(subject: Subject) -> str:
    names = [name for _, name in subject.categories]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _names_of(files: Sequence[Path]) -> list[str]:
    """The files' names, with as many of their folders as tell them apart."""
    for depth in range(1, 2 + max(len(file.resolve().parts) for file in files)):
        names = ["/".join(file.resolve().parts[-depth:]) for file in files]
        if len(set(names)) == len(names):
            return names
    raise InputError(f"{files[0]}: is given more than once; pass each file once")


def size_of(subject: Subject) -> Size:
    raw, zipped = _bytes_of(subject)
    if subject.content is None:
        width, height = detector_of(subject.settings).input_size_px(subject.settings)
        return Size(*onnx_sizes(subject.file, width, height), raw, zipped)
    total = parts_of(summarize_detector(subject.model(), subject.settings))[-1]
    return Size(total.weights, total.nonzeros, total.flops, total.nonzero_flops, raw, zipped)


def _bytes_of(subject: Subject) -> tuple[int, int]:
    if subject.content is None:
        return _measured_bytes(subject.file)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.pt")  # without what a run keeps beside its model
        conversion.save(file, subject.content)
        return _measured_bytes(file)


def _measured_bytes(file: Path) -> tuple[int, int]:
    deflate, zipped = zlib.compressobj(6), 0
    with file.open("rb") as stream:
        while part := stream.read(2**20):
            zipped += len(deflate.compress(part))
    return file.stat().st_size, zipped + len(deflate.flush())


def release(device: torch.device) -> None:
    """Gives memory back that the models before this one used."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
