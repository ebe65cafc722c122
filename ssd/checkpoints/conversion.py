"""A model's checkpoint in any form: ours, another program's, a safetensors file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch

from ssd.checkpoints import checkpoint
from ssd.detectors import names
from ssd.detectors.table import DETECTORS, detector_of, to_dict
from ssd.errors import InputError
from ssd.storage.files import written_whole
from ssd.storage.weight_files import ABOUT_KEY, read_any

_A_MODEL = (
    "a checkpoint of this program, of NVIDIA's DLE SSD, of torchvision, of Detectron, of detectron2 or of darknet"
)


def load(file: Path) -> dict[str, Any]:
    """The model of a file as `checkpoint.load` returns it: a checkpoint of this program or of another that a detector
    knows, or either's weights in a safetensors file. Another program's classes have the names of a .names file beside
    it, if there is one. Raises InputError for any other file."""
    content = read_any(file, _A_MODEL)
    for record_of in DETECTORS.values():
        if (found := record_of().foreign(content, file)) is not None:
            return {"format": checkpoint.FORMAT, **found, "categories": _named(found["categories"], file)}
    return checkpoint.require_model(content, file)


def _named(categories: list[tuple[int, str]], file: Path) -> list[tuple[int, str]]:
    """By the lines of a .names file beside the file, as darknet has it: most programs' weights only say how many
    classes there are. Their ids are 1, 2, ... Without such a file, or where it has the same names, as they are."""
    names_file = file.with_suffix(".names")
    if not names_file.is_file():
        return categories
    try:
        lines = names_file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{names_file}: not UTF-8 text; write a class's name on each line") from error
    found = [line.strip() for line in lines if line.strip()]
    if len(found) != len(categories):
        raise InputError(
            f"{names_file}: has {len(found)} names, {file.name} has {len(categories)} classes; "
            "write a class's name on each line"
        )
    if found == [name for _, name in categories]:
        return categories  # with their ids
    return list(enumerate(found, 1))


def with_words(content: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """The content of a checkpoint with the words of --set over its detector's settings. Raises InputError."""
    if not words:
        return content
    return {
        **content,
        "detector": to_dict(names.with_words(checkpoint.settings_of(content), words, of_checkpoint=True)),
    }


def save(file: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint's model, whole or not at all: as a safetensors file if its name ends so, as another program's
    if its detector has one with that ending, else as ours."""
    writers = detector_of(checkpoint.settings_of(content)).foreign_files
    if file.suffix in writers:
        written = writers[file.suffix](content)
        with written_whole(file) as temporary:
            temporary.write_bytes(written)
        return
    keys = ("format", "detector", "categories", "channels")
    about: dict[str, Any] = {key: content[key] for key in keys if key in content}
    if file.suffix != ".safetensors":
        checkpoint.save(file, {**about, "model": content["model"]})
        return
    tensors = {name: value.contiguous() for name, value in content["model"].items()}
    with written_whole(file) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, {"format": "pt", ABOUT_KEY: json.dumps(about)}))
