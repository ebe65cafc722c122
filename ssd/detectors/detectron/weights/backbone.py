"""The bodies that Detectron begins with: its own files for ImageNet, and Caffe's in torch's form."""

from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor, nn

from ssd.detectors.detectron.settings import BLOCKS, DetectronSettings
from ssd.detectors.detectron.weights.accounts import Arrays, account
from ssd.detectors.detectron.weights.names import blob_names
from ssd.errors import InputError
from ssd.storage.weight_files import read_any

WHAT = "weights of a body of Detectron's, such as R-50.pkl, or of Caffe, such as resnet50_caffe.pth"
_BATCH_NORM_EPS = 1e-5
_PLACE = "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/"
# (blocks, groups, width of a group, norm) -> file. The places are those that Detectron's configurations name.
_FILES: dict[tuple[tuple[int, ...], int, int, str], str] = {
    (BLOCKS[50], 1, 64, "affine"): "MSRA/R-50.pkl",
    (BLOCKS[101], 1, 64, "affine"): "MSRA/R-101.pkl",
    (BLOCKS[101], 32, 8, "affine"): "20171220/X-101-32x8d.pkl",
    (BLOCKS[101], 64, 4, "affine"): "FBResNeXt/X-101-64x4d.pkl",
    (BLOCKS[152], 32, 8, "affine"): "25093814/X-152-32x8d-IN5k.pkl",
    (BLOCKS[50], 1, 64, "group"): "47261647/R-50-GN.pkl",
    (BLOCKS[101], 1, 64, "group"): "47592356/R-101-GN.pkl",
}


def load_backbone(model: nn.Module, settings: DetectronSettings, source: str) -> str | None:
    """Fills the body, and a head's res5. source: "imagenet" (the file that Detectron begins with, downloaded once),
    "none" (keep the fresh weights), or a file: a .pkl of Detectron's, of a body or a whole model, or a .pth with caffe
    in its name. Returns which blobs a file has that nothing takes. Raises InputError for any other file."""
    if source == "none":
        _require_learning(settings)
        return None
    file = _downloaded(settings) if source == "imagenet" else Path(source)
    complaint = f"--backbone-weights {source}"
    content = read_any(file, WHAT)
    arrays = (
        _blobs_of_caffe(content, settings, complaint, file) if file.suffix == ".pth" else _blobs(content, complaint)
    )
    own = model.state_dict()
    blobs = {name: blob for name, blob in blob_names(own, settings).items() if _is_of_body(name)}
    found = account(arrays, blobs, own)
    if found.missing or found.mismatched:
        raise InputError(
            f"{complaint}: not the body of {settings.name}: {found._replace(unused=[]).text()}; pass another"
        )
    model.load_state_dict(found.state, strict=False)
    is_whole = isinstance(content, dict) and "blobs" in content
    return f"{file}: {found.text()}" if found.unused and not is_whole else None


def _require_learning(settings: DetectronSettings) -> None:
    if settings.norm == "affine":
        raise InputError(
            "--backbone-weights none: a body with frozen norms cannot learn from scratch; pass a file, or a "
            "configuration with group norm, such as scratch_e2e_mask_rcnn_R-50-FPN_3x_gn"
        )
    if settings.freeze_at:
        raise InputError(
            f"--backbone-weights none: {settings.name} would keep random weights up to res{settings.freeze_at}; pass "
            "--set RESNETS.FREEZE_AT 0, or a file"
        )


def _is_of_body(name: str) -> bool:
    return name.startswith("backbone.body.") or ".layer4." in name


def blobs_in(content: Any) -> dict[str, np.ndarray] | None:
    """The arrays of a file of Detectron's, of a whole model or a body; None of anything else."""
    if not isinstance(content, dict) or "format" in content:
        return None
    blobs = content.get("blobs", content)
    if not isinstance(blobs, dict):
        return None
    arrays = {str(name): value for name, value in blobs.items() if isinstance(value, np.ndarray)}
    return arrays if "conv1_w" in arrays else None


def _blobs(content: Any, complaint: str) -> Arrays:
    arrays = blobs_in(content)
    if arrays is None:
        raise InputError(f"{complaint}: has no conv1_w, so it is not {WHAT}; pass another file")
    return arrays


def _blobs_of_caffe(content: Any, settings: DetectronSettings, complaint: str, file: Path) -> Arrays:
    """Of a state dict of torchvision's names with Caffe's batch norm, which becomes a scale and a shift."""
    if "caffe" not in file.name.lower():
        raise InputError(
            f"{complaint}: torchvision's bodies see other images than Detectron's; pass a .pkl of Detectron's, or a "
            "file of Caffe's with caffe in its name"
        )
    if settings.norm != "affine":
        raise InputError(
            f"{complaint}: Caffe's bodies have batch norm, and {settings.name} group norm; pass another file"
        )
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{complaint}: no state dict, so it is not {WHAT}; pass another file")
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        prefix, _, kind = str(key).rpartition(".")
        if kind == "running_var":
            try:
                weight, shift, mean = (content[f"{prefix}.{name}"] for name in ("weight", "bias", "running_mean"))
            except KeyError as error:
                raise InputError(f"{complaint}: lacks {error}, so it is not {WHAT}; pass another file") from None
            scale = weight / torch.sqrt(value + _BATCH_NORM_EPS)
            state |= {f"{prefix}.weight": scale, f"{prefix}.bias": shift - mean * scale}
    for key, value in content.items():
        if f"{str(key).rpartition('.')[0]}.running_var" not in content and not str(key).startswith("fc."):
            state[str(key)] = value
    named = {f"backbone.body.{name}": value for name, value in state.items()}
    blobs = blob_names(named, settings)
    return {blobs[name]: value.numpy() for name, value in named.items() if name in blobs}


def _downloaded(settings: DetectronSettings) -> Path:
    """The file in torch's hub folder, which is filled once."""
    known = _FILES.get((settings.blocks, settings.groups, settings.width_per_group, settings.norm))
    if known is None:
        raise InputError(
            f"--backbone-weights imagenet: Detectron has none for the body of {settings.name}; pass a file or none"
        )
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(known).name
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(_PLACE + known, str(file), progress=False)
        except (URLError, OSError, RuntimeError) as error:
            raise InputError(
                f"--backbone-weights imagenet: cannot download {_PLACE}{known} ({error}); download it elsewhere and "
                "pass --backbone-weights FILE"
            ) from error
    return file
