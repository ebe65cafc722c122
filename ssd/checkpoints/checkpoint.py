"""Checkpoints: written atomically, verified, and loadable with weights_only=True, so that a file can run no code.

What a run's checkpoint holds comes from `training/state.py`, what describes the run from `cli/training_run.py`.
"""

import errno
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssd.detectors.channels import thinned
from ssd.detectors.contract import Detector
from ssd.detectors.table import detector_of, from_dict
from ssd.errors import InputError
from ssd.storage.files import interruption_held, written_whole
from ssd.storage.weight_files import fits, read

FORMAT = 2


def save(file: Path, content: dict[str, Any]) -> None:
    """Writes content so that `file` is always whole: the old one or the new one.

    content must be loadable with weights_only=True: dicts, lists, tuples, numbers, strings, tensors.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            interruption_held(),
            written_whole(file, durable=True, temporary_name=".unfinished") as temporary,
            temporary.open("wb") as stream,
        ):
            torch.save(content, stream)
    except RuntimeError as error:
        # How torch reports that its stream took no more.
        raise OSError(errno.ENOSPC, f"cannot be written whole ({str(error).splitlines()[0]})", str(file)) from error
    except OSError as error:
        if error.filename is not None:
            raise
        # Of the stream's last bytes, or of the wait for the disk.
        raise OSError(error.errno, f"cannot be written whole ({error.strerror})", str(file)) from error


_MODEL_KEYS: dict[str, type] = {"model": dict, "detector": dict, "categories": list}
_RUN_KEYS: dict[str, type] = {
    "statistics": list,
    "optimizer": dict,
    "scaler": dict,
    "step": int,
    "epoch": int,
    "steps_per_epoch": int,
    "global_batch_size": int,
    "judged_step": int,
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
    if isinstance(content, dict) and content.get("format") == 1 and isinstance(content.get("backbone"), str):
        # Until version 0.1 every detector was an SSD300.
        own = {"backbone": content["backbone"]}
        if isinstance(settings := content.get("settings"), dict) and "augmentation" in settings:
            own["augmentation"] = settings["augmentation"]
        content = {**content, "format": FORMAT, "detector": {"family": "ssd300", **own}}
        if isinstance(epoch := content.get("judged_epoch"), int) and isinstance(content.get("steps_per_epoch"), int):
            content["judged_step"] = epoch * content["steps_per_epoch"]
    if not isinstance(content, dict) or content.get("format") != FORMAT or not _has(content, _MODEL_KEYS):
        raise InputError(f"{file}: not a checkpoint of this program; pass a run's checkpoints/last.pt or best.pt")
    try:
        detector_of(settings_of(content)).title(settings_of(content))
    except (ValueError, TypeError) as error:
        raise InputError(f"{file}: {error}; it was written by another version") from error
    momentum = content.get("momentum", {})  # of main.py thin
    if not isinstance(momentum, dict) or not all(isinstance(value, torch.Tensor) for value in momentum.values()):
        raise InputError(f"{file}: its momentum is no table of tensors; thin anew, or take it out")
    return content


def settings_of(content: dict[str, Any]) -> Any:
    """The detector's own settings, of a checkpoint that `require_model` has passed."""
    return from_dict(content["detector"])


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


def build_model(content: dict[str, Any], file: Path) -> nn.Module:
    """The checkpoint's own model: its detector, its classes, its weights."""
    settings = settings_of(content)
    detector = detector_of(settings)
    model = thinned_as(detector.build(settings, len(content["categories"]) + 1), content, file)
    try:
        model.load_state_dict(content["model"])
    except (RuntimeError, AttributeError) as error:  # other shapes, or no tensors
        raise InputError(f"{file}: its weights do not fit its own {detector.title(settings)}; use another") from error
    return model


def thinned_as(model: nn.Module, content: dict[str, Any], file: Path) -> nn.Module:
    """The model with the channels of a checkpoint, of which main.py thin may have left fewer."""
    plan = content.get("channels", {})
    try:
        return thinned(model, plan) if plan else model
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: its channel plan does not fit {title_of(content)} ({error}); use another") from error


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
    if file.suffix != ".pt" and [name for _, name in own] == [f"class {place}" for place in range(1, len(own) + 1)]:
        raise InputError(
            f"{file}: does not say what its classes are called; put {file.with_suffix('.names').name} beside it, "
            f"with a name a line, such as {categories[0][1]} in the first"
        )
    (our_id, our_name), (their_id, their_name) = next((a, b) for a, b in zip(own, categories, strict=True) if a != b)
    raise InputError(
        f"{file}: trained on other categories than {data} has (category {our_id} {our_name!r} there is {their_id} "
        f"{their_name!r} here); pass the data it was trained on, or --checkpoint in training to fine-tune it"
    )


def load_for_fine_tuning(model: nn.Module, settings: Any, content: dict[str, Any], file: Path) -> list[str]:
    """Copies the checkpoint's weights into a model with the same settings. Heads of another number of classes keep
    their fresh weights; returns the names of those."""
    require_detector(content, f"--checkpoint {file}", settings)
    detector = detector_of(settings)
    title = detector.title(settings)
    own = thinned_as(model, content, file).state_dict()
    fitting = {name: value for name, value in content["model"].items() if name in own and fits(value, own[name])}
    fresh = sorted(own.keys() - fitting.keys())
    if any(not name.startswith(detector.fresh_heads(settings)) for name in fresh):
        raise InputError(f"--checkpoint {file}: its weights do not fit its own {title}; use another")
    model.load_state_dict(fitting, strict=False)
    return fresh


def require_detector(content: dict[str, Any], what: str, settings: Any) -> None:
    """Raises InputError, beginning with what, unless the checkpoint's detector is built as these settings say."""
    own = settings_of(content)
    title, own_title = detector_of(settings).title(settings), title_of(content)
    rules, own_rules = (getattr(each, "rules", None) for each in (settings, own))
    if title == own_title and rules != own_rules:
        raise InputError(f"{what}: works by {own_rules}'s rules, and this run by {rules}'s; leave --detector out")
    if title == own_title:
        return
    option = f"--detector {own.name}"
    if own.name == settings.name:
        differ = [name for name, value in asdict(own).items() if value != getattr(settings, name)]
        option = f"--{differ[0].replace('_', '-')} {getattr(own, differ[0])}"
    raise InputError(f"{what}: holds {own_title}, and this run trains {title}; pass {option}")


def detector_of_content(content: dict[str, Any]) -> Detector:
    """The record of the checkpoint's detector."""
    return detector_of(settings_of(content))


def title_of(content: dict[str, Any]) -> str:
    """What a person calls the checkpoint's detector, such as "SSD300-resnet50"."""
    settings = settings_of(content)
    return detector_of(settings).title(settings)
