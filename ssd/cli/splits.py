"""The splits that a command reads."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ssd.config import Config
from ssd.console import say_on_stderr
from ssd.errors import InputError

if TYPE_CHECKING:
    from pipelines.annotations import Annotations
    from pipelines.readers.layouts.source import Source
    from pipelines.readers.splits import SplitFlags
    from ssd.distributed import Ranks
    from ssd.views import ObjectParts

DEMO_FOLDER = Path("data/demo")


def data_folder(config: Config) -> Path:
    if config.data != "demo":
        return Path(config.data)
    from pipelines.demo.data_set import write_demo_data

    # It takes up to half a minute, in which nothing else is said. Under torchrun one process says it.
    if not DEMO_FOLDER.exists() and os.environ.get("RANK", "0") == "0":
        say_on_stderr(f"writing the demo data to {DEMO_FOLDER}, 640 images")
    return write_demo_data(DEMO_FOLDER)


def find_splits(config: Config) -> "tuple[Source, Source]":
    """To train on and to judge by."""
    from pipelines.readers.splits import find_both

    return find_both(data_folder(config), _flags(config, "train"), _flags(config, "val"))


def find_split(config: Config, role: Literal["train", "val"]) -> "Source":
    """The one of them, without a look for the other where that is not needed to know it."""
    from pipelines.readers import splits

    flags = _flags(config, role)
    if flags.split or flags.annotations:
        return splits.find_split(data_folder(config), flags)
    return find_splits(config)[role == "val"]


def _flags(config: Config, role: Literal["train", "val"]) -> "SplitFlags":
    from pipelines.readers.splits import SplitFlags

    if role == "train":
        return SplitFlags(config.train_split, config.train_annotations, config.train_images, role)
    return SplitFlags(config.val_split, config.val_annotations, config.val_images, role)


def read_split(config: Config, role: Literal["train", "val"]) -> "Annotations":
    from pipelines.readers.reading import read_source
    from ssd.detectors.table import view_of
    from ssd.views import parts_of

    return read_source(find_split(config, role), parts_of(view_of(config.detector)))


def read_to_run(config: Config, source: "Source", ranks: "Ranks", parts: "ObjectParts | None" = None) -> "Annotations":
    """The split, parsed once a host; without its bad images where the config says so. parts: what objects are read
    with, if not what the config's detector looks at."""
    from ssd.detectors.table import view_of
    from ssd.views import parts_of

    parts = parts or parts_of(view_of(config.detector))
    if config.on_bad_image == "error":
        from pipelines.readers.once_a_host import read_once_a_host
        from pipelines.readers.reading import read_source

        return read_once_a_host(lambda: read_source(source, parts), ranks)
    from pipelines.readers.scan import read_usable

    return read_usable(source, ranks, parts)


def split_to_judge(
    content: dict[str, Any], file: Path, config: Config, ranks: "Ranks", parts: "ObjectParts | None" = None
) -> "tuple[Source, Annotations, str]":
    """The split to judge a detector by, with its labels: where it lies, what is in it, and what to say of its EXIF.

    content: with the detector's "categories". file: that it is in. parts: as in `read_to_run`. Raises InputError where
    the split has other categories, or cannot be judged by.
    """
    import numpy as np

    from pipelines.annotations import Category
    from pipelines.categories import differences_of, relabelled, require_points
    from pipelines.exif import look_at_images
    from pipelines.plausibility import of_split
    from ssd.checkpoints.checkpoint import require_categories
    from ssd.detectors.table import detector_of

    source = find_split(config, "val")
    split = read_to_run(config, source, ranks, parts)
    if skeleton := detector_of(config.detector).skeleton(config.detector):
        require_points(skeleton.names, split, file.name)
    finds_classes = not getattr(config.detector, "rpn_only", False)
    own = tuple(Category(*category) for category in content["categories"])
    if finds_classes and not differences_of(own, split, file.name):
        split = relabelled(split, own)
    (split,), exif_text = look_at_images([split], [np.arange(len(split))], ranks, config.exif)
    for suspicion in of_split(split):
        if suspicion.stops:
            raise InputError(f"{split.file}: {suspicion}")
        if ranks.is_main:
            say_on_stderr(f"warning: {split.file}: {suspicion}")
    if finds_classes:
        require_categories(content, file, list(split.categories), config.data)
    return source, split, exif_text


def judged_text(split: "Annotations") -> str:
    """What to say of a split to judge by that lacks images, or ''."""
    if not split.num_left_out:
        return ""
    whole = len(split) + split.num_left_out
    return f"{split.file}: the metrics are those of {len(split)} of its {whole} images, not comparable with all's"


def held_out_texts(*sources: "Source") -> list[str]:
    """What to say of splits that are parts of a single one."""
    from pipelines.readers.splits import held_out_text

    texts = [held_out_text(source) for source in sources]
    return [text for text in texts if text][:1]


def read_both_splits(
    config: Config, sources: "tuple[Source, Source]", ranks: "Ranks"
) -> "tuple[Annotations, Annotations]":
    """To train on and to judge by; of the former, the crowd regions are objects too where the config learns them."""
    from pipelines.categories import with_categories_of
    from ssd.detectors.table import view_of
    from ssd.views import SquareView

    train_split, val_split = (read_to_run(config, source, ranks) for source in sources)
    val_split = with_categories_of(train_split, val_split)
    view = view_of(config.detector)
    if isinstance(view, SquareView) and view.augmentation.learns_crowds:
        train_split = replace(train_split, is_crowd=train_split.is_crowd & False)
    return train_split, val_split


def data_name(config: Config) -> str:
    return Path(config.data).resolve().name
