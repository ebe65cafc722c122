"""Checkpoints: written atomically, verified, and loadable with weights_only=True, so that a file can run no code."""

import errno
from pathlib import Path
from typing import Any

import torch

from ssd.config import BACKBONES
from ssd.detectors.ssd300.model import SSD300
from ssd.errors import InputError
from ssd.files import written_whole
from ssd.weight_files import fits, read

FORMAT = 1


def save(file: Path, content: dict[str, Any]) -> None:
    """Writes content so that `file` is always whole: the old one or the new one.

    content must be loadable with weights_only=True: dicts, lists, tuples, numbers, strings, tensors.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            written_whole(file, durable=True, temporary_name=".unfinished") as temporary,
            temporary.open("wb") as stream,
        ):
            torch.save(content, stream)
    except RuntimeError as error:
        # How torch reports that its stream took no more.
        raise OSError(errno.ENOSPC, f"cannot be written whole ({str(error).splitlines()[0]})", str(file)) from error


_MODEL_KEYS: dict[str, type] = {"model": dict, "backbone": str, "categories": list}
_RUN_KEYS: dict[str, type] = {
    "statistics": list,
    "optimizer": dict,
    "scaler": dict,
    "step": int,
    "epoch": int,
    "steps_per_epoch": int,
    "global_batch_size": int,
    "judged_epoch": int,
    "best_ap": float,
    "skipped_steps": int,
    "tally": dict,
    "seed": int,
    "data": dict,
    "data_states": list,
    "rng_states": dict,
}


def load(file: Path) -> dict[str, Any]:
    """A checkpoint of `save` in a run. Raises InputError for any file that is not one, whole and of this format."""
    return require_model(read(file, "a checkpoint"), file)


def require_model(content: Any, file: Path) -> dict[str, Any]:
    """The content of a file, if it is a model's checkpoint of this format. Raises InputError for any other."""
    if not isinstance(content, dict) or content.get("format") != FORMAT or not _has(content, _MODEL_KEYS):
        raise InputError(f"{file}: not a checkpoint of this program; pass a run's checkpoints/last.pt or best.pt")
    if content["backbone"] not in BACKBONES:
        raise InputError(f"{file}: unknown backbone {content['backbone']!r}; it was written by another version")
    return content


def load_run(file: Path) -> dict[str, Any]:
    """`load`, with all that a run needs to go on."""
    content = {} if file.suffix == ".safetensors" and file.is_file() else load(file)
    if not _has(content, _RUN_KEYS):
        raise InputError(
            f"--resume {file}: holds a model but no run; pass it as --checkpoint to start from its weights"
        )
    return content


def load_newest(files: list[Path]) -> tuple[Path, dict[str, Any], list[str]]:
    """`load_run` of the first file that is whole, which file it is, and what is wrong with those before it.

    Raises InputError if none is.
    """
    complaints: list[str] = []
    for file in files:
        try:
            return file, load_run(file), complaints
        except InputError as error:
            if len(files) == 1:
                raise
            complaints.append(str(error))
    raise InputError(f"{'; '.join(complaints)}; none of these checkpoints can be resumed, move them away to start anew")


def _has(content: dict[str, Any], kinds: dict[str, type]) -> bool:
    return all(isinstance(content.get(key), kind) for key, kind in kinds.items())


def build_model(content: dict[str, Any], file: Path) -> SSD300:
    """The checkpoint's own model: its backbone, its classes, its weights."""
    model = thinned_as(SSD300(content["backbone"], len(content["categories"]) + 1), content, file)
    try:
        model.load_state_dict(content["model"])
    except (RuntimeError, AttributeError) as error:  # other shapes, or no tensors
        raise InputError(
            f"{file}: its weights do not fit its own backbone {content['backbone']}; use another"
        ) from error
    return model


def thinned_as(model: SSD300, content: dict[str, Any], file: Path) -> SSD300:
    """The model with the channels of a checkpoint, which main.py thin may have made fewer."""
    plan = content.get("channels", {})
    try:
        return model.thinned(plan) if plan else model
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file}: its channel plan does not fit its backbone {model.backbone} ({error}); use another"
        ) from error


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
    own = thinned_as(model, content, file).state_dict()
    fitting = {name: value for name, value in content["model"].items() if name in own and fits(value, own[name])}
    fresh = sorted(own.keys() - fitting.keys())
    if any(not name.startswith("class_heads.") for name in fresh):
        raise InputError(f"--checkpoint {file}: its weights do not fit its own backbone {model.backbone}; use another")
    model.load_state_dict(fitting, strict=False)
    return fresh
