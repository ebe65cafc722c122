"""An exported ONNX file, run by onnxruntime on what evaluation and prediction give a model."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssd.batch import Detections, EvalBatch
from ssd.constants import constant
from ssd.detectors.table import DETECTORS, from_dict, view_of
from ssd.errors import InputError
from ssd.inference.export import METADATA_KEY
from ssd.views import View


class Exported(NamedTuple):
    """A file that `export` wrote, ready to run.

    session: onnxruntime's. settings: the detector's own. categories: the (id, name) of the labels 1, 2, ...
    about: the rest of the file's metadata, with the thresholds that its detections were made by.
    """

    session: Any
    settings: Any
    categories: list[tuple[int, str]]
    about: dict[str, Any]

    def detect(self, batch: EvalBatch) -> Detections:
        """What the file finds in a finished batch, on the CPU."""
        return self.run(feed_of(pixels_of(batch, view_of(self.settings)), batch.placed_ltrb_px, self.input_names))

    def run(self, feed: dict[str, np.ndarray]) -> Detections:
        found = dict(zip(self.output_names, self.session.run(None, feed), strict=True))
        return Detections(**{name: torch.from_numpy(value) for name, value in found.items()})

    @property
    def input_names(self) -> list[str]:
        return [each.name for each in self.session.get_inputs()]

    @property
    def output_names(self) -> list[str]:
        return [each.name for each in self.session.get_outputs()]


def load_exported(file: Path, *, threads: int | None = None, on_gpu: bool = False) -> Exported:
    """threads: of one operator; onnxruntime's own choice without. on_gpu: where this onnxruntime can.

    Raises InputError where onnxruntime is not installed, and for what is no file of main.py export.
    """
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as failures
    except ModuleNotFoundError as error:
        raise InputError(f"{file}: onnxruntime is not installed; pip install -e '.[export]'") from error
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # of warnings about its own rewriting of the graph
    if threads is not None:
        options.intra_op_num_threads = threads
    # Threads that spin after a run take the cores from whatever is measured next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    wanted = ["CUDAExecutionProvider"] if on_gpu else []
    providers = [name for name in (*wanted, "CPUExecutionProvider") if name in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(file, options, providers=providers)
    except (failures.InvalidProtobuf, failures.InvalidGraph, failures.Fail, failures.NotImplemented) as error:
        raise InputError(f"{file}: not a file that onnxruntime can run ({str(error).splitlines()[0]})") from error
    try:
        about = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
        own = {"family", *(field.name for field in fields(DETECTORS[about["family"]]().settings))}
        settings = from_dict({name: value for name, value in about.items() if name in own})
        categories = [(int(number), str(name)) for number, name in about["categories"]]
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{file}: not written by main.py export, it does not say what it detects") from error
    rest = {name: value for name, value in about.items() if name not in own | {"categories"}}
    return Exported(session, settings, categories, rest)


def pixels_of(batch: EvalBatch, view: View) -> Tensor:
    """The batch's images before the view normalised them: B x 3 x H x W uint8 RGB, on their device. Padding is the
    mean."""
    mean, std = (constant(values, batch.images.device).mul(255).view(3, 1, 1) for values in (view.mean, view.std))
    return (batch.images.float() * std + mean).round().clamp(0, 255).to(torch.uint8)


def feed_of(pixels: Tensor, placed_ltrb_px: Tensor, input_names: list[str]) -> dict[str, np.ndarray]:
    """A file's inputs. pixels: as of `pixels_of`. placed_ltrb_px: as in `EvalBatch`."""
    given = {
        "images": pixels.cpu().contiguous().numpy(),
        "sizes_px": placed_ltrb_px[:, 2:].contiguous().numpy(),
        "placed_ltrb_px": placed_ltrb_px.contiguous().numpy(),
    }
    return {name: given[name] for name in input_names}
