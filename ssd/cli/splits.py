"""The splits that a command reads."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ssd.config import Config
from ssd.errors import InputError

if TYPE_CHECKING:
    from pipelines.annotations import Annotations
    from ssd.distributed import Ranks

DEMO_FOLDER = Path("data/demo")


def data_folder(config: Config) -> Path:
    if config.data != "demo":
        return Path(config.data)
    from pipelines.demo.data_set import write_demo_data

    # It takes up to half a minute, in which nothing else is said. Under torchrun one process says it.
    if not DEMO_FOLDER.exists() and os.environ.get("RANK", "0") == "0":
        print(f"writing the demo data to {DEMO_FOLDER}, 640 images", file=sys.stderr, flush=True)
    return write_demo_data(DEMO_FOLDER)


def read_split(config: Config, split: str) -> "Annotations":
    from pipelines.readers.splits import read_annotations

    return read_annotations(data_folder(config), split)


def read_split_to_run(config: Config, split: str, ranks: "Ranks") -> "Annotations":
    """The split, parsed once a host; without its bad images where the config says so."""
    if config.on_bad_image == "error":
        from pipelines.readers.once_a_host import read_once_a_host

        return read_once_a_host(lambda: read_split(config, split), ranks)
    from pipelines.readers.scan import read_usable

    return read_usable(data_folder(config), split, ranks)


def judged_text(split: "Annotations") -> str:
    """What to say of a split to judge by that lacks images, or ''."""
    if not split.num_left_out:
        return ""
    whole = len(split) + split.num_left_out
    return f"{split.file}: the metrics are those of {len(split)} of its {whole} images, not comparable with all's"


def read_both_splits(config: Config, ranks: "Ranks") -> "tuple[Annotations, Annotations]":
    """To train on and to judge by; of the former, the crowd regions are objects too where the config learns them."""
    from ssd.detectors.table import view_of
    from ssd.views import SquareView

    train_split = read_split_to_run(config, config.train_split, ranks)
    val_split = read_split_to_run(config, config.val_split, ranks)
    if train_split.categories != val_split.categories:
        raise InputError(f"{val_split.file}: its categories are not those of {train_split.file}; make them equal")
    view = view_of(config.detector)
    if isinstance(view, SquareView) and view.augmentation.learns_crowds:
        train_split = replace(train_split, is_crowd=train_split.is_crowd & False)
    return train_split, val_split


def data_name(config: Config) -> str:
    return Path(config.data).resolve().name
