"""Whole detectors in Detectron's files, as checkpoints of this program and back."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssd.detectors.detectron.builders import build
from ssd.detectors.detectron.config.naming import configuration_of, settings_named
from ssd.detectors.detectron.config.shipped import NAMES
from ssd.detectors.detectron.config.translate import settings_of
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.detectors.detectron.weights.accounts import Arrays, account, as_array
from ssd.detectors.detectron.weights.backbone import blobs_in
from ssd.detectors.detectron.weights.classes import categories_of, with_points
from ssd.detectors.detectron.weights.detectron2 import foreign_detectron2
from ssd.detectors.detectron.weights.names import blob_names
from ssd.detectors.detectron.weights.pytorch_names import blobs_of_pytorch, state_of_pytorch
from ssd.detectors.detectron.weights.saved_config import read_saved, saved_text
from ssd.errors import InputError
from ssd.storage.pickles import pickled


def foreign(content: Any, file: Path) -> dict[str, Any] | None:
    """A file of Detectron's, {"blobs", "cfg"}, of detectron2's model zoo, or a checkpoint of Detectron.pytorch, as the
    content {"detector", "categories", "model", "notes"} of a checkpoint of ours; None for anything else.

    Its configuration is the one in it, else the YAML file beside it of the same name, else the shipped one whose name
    it has. With 81 classes it was trained on COCO; of others only the number is known. Momentum is left out. Raises
    InputError for a body alone, and where weights are missing or have other shapes than the configuration says.
    """
    if (of_second := foreign_detectron2(content, file)) is not None:
        return of_second
    arrays, settings, notes = blobs_in(content), None, list[str]()
    if (state := state_of_pytorch(content)) is not None:
        settings, notes = _settings(None, file)
        arrays = blobs_of_pytorch(state, settings)
    if arrays is None:
        return None
    if "cls_score_w" not in arrays and not any(blob.startswith("rpn_cls_logits") for blob in arrays):
        raise InputError(f"{file}: holds a body's weights alone; pass it as --backbone-weights")
    if settings is None:
        settings, notes = _settings(content.get("cfg") if "blobs" in content else None, file)
    settings = _with_points(settings, arrays)
    num_classes = 2 if settings.rpn_only else _rows("cls_score_w", arrays, file)
    with torch.device("meta"):  # without drawing weights that the file's replace
        model = build(settings, num_classes)
    own = model.state_dict()
    found = account(arrays, blob_names(own, settings), own)
    if found.missing or found.mismatched:
        raise InputError(f"{file}: not a whole {settings.name} of Detectron: {found.text()}; use another file")
    weights = {name: found.state.get(name, _constant(name, value.shape)) for name, value in own.items()}
    return {
        "detector": {"family": settings.family, **asdict(settings)},
        "categories": categories_of(settings, num_classes),
        "model": weights,
        "notes": [*notes, *([f"{file}: {found.text()}"] if found.unused else [])],
    }


def _settings(text: Any, file: Path) -> tuple[DetectronSettings, list[str]]:
    """With what the user should know of them. text: of the configuration in a file, if it has one."""
    beside = file.with_suffix(".yaml")
    if isinstance(text, str | bytes):
        text = text.decode("latin1") if isinstance(text, bytes) else text
        saved = read_saved(text, file.stem, file)
        return settings_of(saved.config), saved.notes
    if beside.is_file():
        return settings_named(str(beside)), []
    if file.stem in NAMES:
        return settings_named(file.stem), []
    raise InputError(
        f"{file}: has no configuration in it; put its YAML file beside it as {beside.name}, or give it a shipped name"
    )


def _with_points(settings: DetectronSettings, arrays: Arrays) -> DetectronSettings:
    """With as many keypoints as a file has."""
    score = "kps_score_w" if settings.keypoint_upsampling == 1 else "kps_score_lowres_w"
    if score not in arrays:
        return settings
    # A deconvolution's kernel is in x out.
    return with_points(settings, arrays[score].shape[1 if settings.keypoint_deconv_output else 0])


def _rows(blob: str, arrays: Arrays, file: Path) -> int:
    if blob not in arrays or arrays[blob].ndim != 2 or len(arrays[blob]) < 2:
        raise InputError(f"{file}: its {blob} is missing or tells no classes; use another file")
    return len(arrays[blob])


def _constant(name: str, shape: torch.Size) -> torch.Tensor:
    """Of a frozen norm that is a scale and a shift."""
    return torch.ones(shape) if name.endswith("running_var") else torch.zeros(shape)


def weights_of(content: dict[str, Any]) -> bytes:
    """A checkpoint of ours as a file of Detectron's. Raises InputError for one that has to be run by other rules."""
    if content.get("channels"):
        raise InputError("convert: main.py thin has taken filters out of it, which a .pkl cannot say; write a .pt")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in content["detector"].items()
    }
    values.pop("family")
    settings = DetectronSettings(**values)
    if settings.rules != "detectron":
        raise InputError(
            "convert: this R-CNN comes of detectron2, whose boxes and anchors lie elsewhere than Detectron's, so it "
            "would find nothing as Detectron's .pkl; write a .pt"
        )
    model = content["model"]
    blobs: dict[str, np.ndarray] = {
        blob: as_array(name, model[name]) for name, blob in blob_names(model, settings).items()
    }
    num_classes = len(content["categories"]) + 1
    points = len(settings.skeleton.names) if settings.skeleton else 0
    if points and settings.keypoint_upsampling > 1:
        blobs |= _enlarging("kps_score", points, settings.keypoint_upsampling)
    if settings.mask_head and settings.mask_upsampling > 1:
        masks = num_classes if settings.mask_of_classes else 1
        blobs |= _enlarging("mask_fcn_logits_up", masks, settings.mask_upsampling)
    text = saved_text(configuration_of(settings), num_classes, points)
    return pickled({"blobs": blobs, "cfg": text})


def _enlarging(blob: str, maps: int, factor: int) -> dict[str, np.ndarray]:
    """The deconvolution by which Detectron enlarges logits bilinearly, which it never trains: maps x maps x K x K."""
    side = 2 * factor
    rise = 1 - np.abs(np.arange(side) - (factor - 0.5)) / factor
    kernel = np.zeros((maps, maps, side, side), dtype=np.float32)
    kernel[range(maps), range(maps)] = np.outer(rise, rise)
    return {f"{blob}_w": kernel, f"{blob}_b": np.zeros(maps, dtype=np.float32)}


FOREIGN_FILES: dict[str, Callable[[dict[str, Any]], bytes]] = {".pkl": weights_of}
"""What `main.py convert` writes for Detectron, by the end of the file's name."""
