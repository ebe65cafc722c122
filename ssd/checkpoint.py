"""Checkpoints: written atomically, verified, and loadable with weights_only=True, so that a file can run no code."""

import errno
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from ssd.config import BACKBONES
from ssd.errors import InputError
from ssd.model import SSD300

FORMAT = 1
# What a damaged or foreign file makes torch.load raise.
_UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    struct.error,
    zlib.error,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)


def save(file: Path, content: dict[str, Any]) -> None:
    """Writes content so that `file` is always whole: the old one or the new one.

    content must be loadable with weights_only=True: dicts, lists, tuples, numbers, strings, tensors.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    # One name, so that what a killed run leaves behind is written over by the next.
    temporary = file.with_name(f".{file.name}.unfinished")
    try:
        with temporary.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except RuntimeError as error:
        temporary.unlink(missing_ok=True)
        # How torch reports that its stream took no more.
        raise OSError(errno.ENOSPC, f"cannot be written whole ({str(error).splitlines()[0]})", str(file)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name too must survive a power cut
    finally:
        os.close(folder)


def _read(file: Path, what: str) -> Any:
    if not file.is_file():
        raise InputError(f"{file}: no such file; pass the path of {what}")
    try:
        if zipfile.is_zipfile(file):
            _verify(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        if isinstance(error, InputError):
            raise
        if isinstance(error, pickle.UnpicklingError):  # torch's own text advises to trust the file
            raise InputError(f"{file}: is not {what}, or holds more than plain weights; use another file") from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{file}: cannot be read as {what} ({reason[:200]}); use another file") from error


def _verify(file: Path) -> None:
    """Raises InputError if the zip archive is damaged: torch does not check the checksums that it writes."""
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
        for entry in archive.infolist():
            # torch stores its entries plainly; it takes memory as it finds it for what claims to be a folder.
            if entry.compress_type != zipfile.ZIP_STORED or entry.external_attr != 0:
                damaged = damaged or entry.filename
    if damaged is not None:
        raise InputError(f"{file}: damaged at {damaged}; use another checkpoint")


_MODEL_KEYS: dict[str, type] = {"model": dict, "backbone": str, "categories": list}
_RUN_KEYS: dict[str, type] = {
    "optimizer": dict,
    "scaler": dict,
    "step": int,
    "epoch": int,
    "best_ap": float,
    "seed": int,
    "data": dict,
    "data_states": list,
}


def load(file: Path) -> dict[str, Any]:
    """A checkpoint of `save` in a run. Raises InputError for any file that is not one, whole and of this format."""
    content = _read(file, "a checkpoint")
    if not isinstance(content, dict) or content.get("format") != FORMAT or not _has(content, _MODEL_KEYS):
        raise InputError(f"{file}: not a checkpoint of this program; pass a run's checkpoints/last.pt or best.pt")
    if content["backbone"] not in BACKBONES:
        raise InputError(f"{file}: unknown backbone {content['backbone']!r}; it was written by another version")
    return content


def load_run(file: Path) -> dict[str, Any]:
    """`load`, with all that a run needs to go on."""
    content = load(file)
    if not _has(content, _RUN_KEYS):
        raise InputError(
            f"--resume {file}: holds a model but no run; pass it as --checkpoint to start from its weights"
        )
    return content


def _has(content: dict[str, Any], kinds: dict[str, type]) -> bool:
    return all(isinstance(content.get(key), kind) for key, kind in kinds.items())


def build_model(content: dict[str, Any], file: Path) -> SSD300:
    """The checkpoint's own model: its backbone, its classes, its weights."""
    model = SSD300(content["backbone"], len(content["categories"]) + 1)
    try:
        model.load_state_dict(content["model"])
    except (RuntimeError, AttributeError) as error:  # other shapes, or no tensors
        raise InputError(
            f"{file}: its weights do not fit its own backbone {content['backbone']}; use another"
        ) from error
    return model


def require_categories(content: dict[str, Any], file: Path, categories: list[tuple[int, str]], data: str) -> None:
    """Raises InputError unless the checkpoint was trained on these (id, name) categories in this order."""
    own = [tuple(category) for category in content["categories"]]
    if own == categories:
        return
    if len(own) != len(categories):
        raise InputError(
            f"{file}: trained on {len(own)} categories, {data} has {len(categories)}; "
            "pass the data it was trained on, or --checkpoint in training to fine-tune it"
        )
    ours, theirs = next((a, b) for a, b in zip(own, categories, strict=True) if a != b)
    raise InputError(
        f"{file}: trained on other categories than {data} has ({ours} there is {theirs} here); "
        "pass the data it was trained on, or --checkpoint in training to fine-tune it"
    )


def load_for_fine_tuning(model: SSD300, content: dict[str, Any], file: Path) -> list[str]:
    """Copies the checkpoint's weights into a model of the same backbone. Class heads of another number of classes keep
    their fresh weights; returns the names of those."""
    if content["backbone"] != model.backbone:
        raise InputError(f"--checkpoint {file}: pass --backbone {content['backbone']}, which it was trained with")
    own = model.state_dict()
    fits = {name: value for name, value in content["model"].items() if name in own and _fits(value, own[name])}
    fresh = sorted(own.keys() - fits.keys())
    if any(not name.startswith("class_heads.") for name in fresh):
        raise InputError(f"--checkpoint {file}: its weights do not fit its own backbone {model.backbone}; use another")
    model.load_state_dict(fits, strict=False)
    return fresh


# The trunk's children in the order of torchvision's ResNet (relu and maxpool have no weights).
_TRUNK_NAMES = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6"}


def load_backbone(model: SSD300, source: str) -> None:
    """Fills the trunk: source is "imagenet" (torchvision's IMAGENET1K_V1, downloaded once), "none" (keep the fresh
    weights) or a file with a torchvision ResNet state dict."""
    if source == "none":
        return
    if source == "imagenet":
        state = _download_imagenet(model.backbone)
    else:
        state = _read(Path(source), "a torchvision ResNet state dict")
    trunk = {}
    for name, value in state.items() if isinstance(state, dict) else ():
        head, _, tail = str(name).partition(".")
        if head in _TRUNK_NAMES:
            trunk[f"{_TRUNK_NAMES[head]}.{tail}"] = value
    _fill(model.trunk, trunk, f"--backbone-weights {source}: not the weights of a torchvision {model.backbone}")


def _fill(module: nn.Module, state: dict[str, Tensor], complaint: str) -> None:
    own = module.state_dict()
    # Files from before torch 0.4.1 lack this counter, which nothing here reads.
    missing = {name for name in own.keys() - state.keys() if not name.endswith("num_batches_tracked")}
    if missing or any(name not in own or not _fits(value, own[name]) for name, value in state.items()):
        raise InputError(f"{complaint}; pass another file, or none")
    module.load_state_dict(state, strict=False)


def _fits(value: Any, own: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == own.shape


def _download_imagenet(backbone: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights

    weights = get_model_weights(backbone)["IMAGENET1K_V1"]
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
        return state
    except (URLError, OSError, RuntimeError) as error:
        raise InputError(
            f"--backbone-weights imagenet: cannot download {weights.url} ({error}); download it elsewhere and pass "
            "--backbone-weights FILE, or --backbone-weights none to train from scratch"
        ) from error
