"""A detector with its post-processing as one graph, in a file that runs without this program: ONNX or torch.export."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ssd.checkpoints import checkpoint, conversion
from ssd.config import Config
from ssd.detectors.contract import Exportable
from ssd.detectors.table import detector_of, to_dict, view_of
from ssd.errors import InputError
from ssd.storage.files import written_whole
from ssd.views import pastes_closed

METADATA_KEY = "ssd300"
"""Where a file has its metadata as JSON, of any detector, by the name of the first one: in an ONNX model's
metadata_props, in torch.export's extra_files."""


_OUTPUTS = {
    "boxes_ltrb": "float32 B x D x 4 left, top, right, bottom in [0, 1] of the image, best score first",
    "scores": "float32 B x D",
    "labels": "int64 B x D, label i + 1 is categories[i], 0 none",
    "counts": "int64 B, how many rows are real",
    "masks": "float32 B x D x S x S, how likely each part of a box is the object's, which it is above 0.5: with a "
    "border of zeros stretched to the box, (S + 2) / S as large about its centre",
    "keypoints": "float32 B x D x P x 3: x, y in [0, 1] of the image, if they lie in it, and a score without bounds; "
    "P are the keypoints; 0 of labels that are not in keypoint_labels, unless that is empty",
}
_UP_TO_THE_LAST = ", whose right and bottom are a pixel less"
"""Where a mask is stretched to a box as Detectron has it."""


def metadata(exported: Exportable, settings: Any, categories: list[tuple[int, str]], config: Config) -> dict[str, Any]:
    """What the user of an exported file has to know. settings: the detector's own."""
    # A detector may find points that its settings do not name: COCO's, until data name others.
    skeleton = detector_of(settings).skeleton(settings)
    points: dict[str, Any] = {}
    if skeleton is not None:
        points = {"keypoints": skeleton.names, "keypoint_links": skeleton.links, "keypoint_labels": skeleton.labels}
    said = {**_OUTPUTS, "masks": _OUTPUTS["masks"] + (_UP_TO_THE_LAST if pastes_closed(view_of(settings)) else "")}
    return {
        "input": exported.input_text,
        "outputs": "; ".join(f"{name}: {said[name]}" for name in exported.outputs),
        **to_dict(settings),
        **points,
        "categories": categories,
        **config.thresholds._asdict(),
    }


def export(source: Path, target: Path, form: str, config: Config, words: Sequence[str] = ()) -> str:
    """Writes the detector of checkpoint source to target, whole or not at all; returns what the user should read.

    form: "onnx" or "torch". words: of --set. Raises InputError for a file that is no checkpoint, for a detector that
    has no such form, and where onnx is not installed.
    """
    if target.exists() and source.exists() and target.samefile(source):
        raise InputError(f"--output {target}: is the checkpoint; pass another name")
    content = conversion.with_words(conversion.load(source), words)
    settings = checkpoint.settings_of(content)
    detector = detector_of(settings)
    if detector.exportable is None:
        raise InputError(f"{source}: {detector.title(settings)} has no form without this program yet")
    model = checkpoint.build_model(content, source).eval()
    exported = detector.exportable(model, settings, config.thresholds)
    about = metadata(exported, settings, [tuple(each) for each in content["categories"]], config)
    program = to_program(exported)
    with written_whole(target) as temporary:
        (_save_onnx if form == "onnx" else _save_torch)(program, exported, about, temporary)
    names = ", ".join(name for _, name in about["categories"])
    return (
        f"wrote {target}: {detector.title(settings)}, {target.stat().st_size / 1e6:.0f} MB\n"
        f"in   {about['input']}\nout  {about['outputs'].replace('; ', chr(10) + '     ')}\n"
        f"detections score more than {config.score_threshold}; classes: {names}"
    )


@torch.no_grad()
def to_program(exported: Exportable) -> torch.export.ExportedProgram:
    """The module's graph."""
    inputs = tuple(exported.inputs.values())
    return torch.export.export(exported.module, inputs, dynamic_shapes=exported.dynamic)


def _save_torch(program: torch.export.ExportedProgram, exported: Exportable, about: dict[str, Any], file: Path) -> None:
    with file.open("wb") as stream:  # to a path, torch wants a name that ends in .pt2
        torch.export.save(program, stream, extra_files={METADATA_KEY: json.dumps(about)})


def _save_onnx(program: torch.export.ExportedProgram, exported: Exportable, about: dict[str, Any], file: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(f"--format onnx: {error.name} is not installed; pip install -e '.[export]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of onnxscript's own, about its own calls
        converted = torch.onnx.export(
            program, input_names=list(exported.inputs), output_names=list(exported.outputs), verbose=False
        )
    assert converted is not None
    converted.model.metadata_props[METADATA_KEY] = json.dumps(about)
    converted.save(file, external_data=False)
