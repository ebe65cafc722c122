"""What --detector names, and what each family brings to the command line. Light: nothing here imports torch."""

import difflib
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from ssd.config import Config, Recipe
from ssd.detectors.detectron.config import naming as detectron_naming
from ssd.detectors.detectron.config import recipes as detectron_recipes
from ssd.detectors.detectron.config import shipped as detectron
from ssd.detectors.retinanet import recipes as retinanet_recipes
from ssd.detectors.retinanet import settings as retinanet
from ssd.detectors.ssd300 import recipes as ssd300
from ssd.detectors.ssd300.settings import SSD300Settings
from ssd.detectors.torchvision import names as torchvision
from ssd.detectors.torchvision import recipes as torchvision_recipes
from ssd.detectors.torchvision.square import recipes as square_recipes
from ssd.detectors.torchvision.square import settings as square
from ssd.detectors.yolov2 import recipes as yolov2_recipes
from ssd.detectors.yolov2 import settings as yolov2_settings
from ssd.detectors.yolov2.darknet import configurations as yolov2
from ssd.errors import InputError


class Family(NamedTuple):
    """names: all that --detector takes for it, the first as an example. settings_named: one of these names -> its
    settings; what is None in them `settled` decides by --backbone-weights. defaults: settings -> what a run starts from
    without a recipe. recipes: what --recipe names. file_suffix: how files end that --detector takes as well.
    with_words: (settings, the words of --set) -> settings; None of a family without --set. usual: what a run starts
    from without a recipe, where that depends on the batch; "" for `defaults`. least_part: images of a part of a batch.
    for_batch: (settings, images of such a part) -> settings. notes: what the user should know of settings. benchmark:
    settings -> the MLPerf benchmark that it is judged by, "" for none. candidates: (settings, images of a part of a
    batch) -> how many proposals of theirs training chooses from; of detectors whose benchmark asks for it.
    require_same: (settings of --detector, those of a checkpoint by that name, names of the given settings) raises
    InputError where the file that --detector names says what the checkpoint does not. of_checkpoint_with_words: as
    with_words, of a family with --set in the commands that use a checkpoint's detector alone."""

    names: tuple[str, ...]
    settings_named: Callable[[str], Any]
    settled: Callable[[Any, str], Any]
    defaults: Callable[[Any], Config]
    recipes: dict[str, Recipe]
    file_suffix: str = ""
    with_words: Callable[[Any, Sequence[str]], Any] | None = None
    usual: str = ""
    least_part: int = 2  # batch norm on a map of 1 x 1 needs two
    for_batch: Callable[[Any, int], Any] | None = None
    notes: Callable[[Any], list[str]] | None = None
    benchmark: Callable[[Any], str] = lambda settings: ""
    candidates: Callable[[Any, int], int] | None = None
    require_same: Callable[[Any, Any, Collection[str]], None] | None = None
    of_checkpoint_with_words: Callable[[Any, Sequence[str]], Any] | None = None


FAMILIES = {
    "detectron": Family(
        detectron.NAMES, detectron_naming.settings_named, lambda settings, weights: settings,
        detectron_recipes.defaults, detectron_recipes.RECIPES, ".yaml", detectron_naming.with_words, "detectron",
        1, detectron_recipes.for_batch, detectron_naming.notes_of,
        lambda settings: "maskrcnn" if settings.mask_head else "", detectron_recipes.candidates,
    ),
    "ssd300": Family(
        ("ssd300",), lambda name: SSD300Settings(), lambda settings, weights: settings, lambda settings: Config(),
        ssd300.RECIPES, benchmark=lambda settings: "ssd",
    ),
    "retinanet": Family(
        retinanet.NAMES, retinanet.settings_named, retinanet.settled, retinanet_recipes.defaults,
        retinanet_recipes.RECIPES, benchmark=lambda settings: "retinanet",
    ),
    "torchvision": Family(
        torchvision.NAMES, torchvision.unsettled, torchvision.settled, torchvision_recipes.defaults,
        torchvision_recipes.RECIPES, benchmark=torchvision_recipes.benchmark,
        candidates=torchvision_recipes.candidates,
    ),
    "torchvision_ssd": Family(
        square.NAMES, square.unsettled, square.settled, square_recipes.defaults, square_recipes.RECIPES
    ),
    "yolov2": Family(
        yolov2.NAMES, yolov2_settings.settings_named, lambda settings, weights: settings, yolov2_recipes.defaults,
        yolov2_recipes.RECIPES, ".cfg", notes=yolov2_recipes.notes_of, require_same=yolov2_settings.require_same,
        of_checkpoint_with_words=yolov2_settings.with_words,
    ),
}  # fmt: skip


def settings_named(name: str, words: Sequence[str] = ()) -> Any:
    """The settings that --detector NAME stands for, with the words of --set. Raises InputError with the nearest name
    for an unknown one, and for words where the detector has no --set."""
    for family in FAMILIES.values():
        if name in family.names or (family.file_suffix and name.endswith(family.file_suffix)):
            return with_words(family.settings_named(name), words)
    names = [each for family in FAMILIES.values() for each in family.names]
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    raise InputError(
        f"--detector {name}: there is no such detector; "
        + (f"did you mean {nearest[0]}?" if nearest else "main.py summary lists all")
    )


def with_words(settings: Any, words: Sequence[str], *, of_checkpoint: bool = False) -> Any:
    """The settings with the words of --set over them. Raises InputError where the detector has no --set."""
    if not words:
        return settings
    family = FAMILIES[settings.family]
    change = family.with_words or (family.of_checkpoint_with_words if of_checkpoint else None)
    if change is None:
        raise InputError(f"--set: means nothing for {settings.name} here; leave it out")
    return change(settings, words)


def family_of(settings: Any) -> Family:
    return FAMILIES[settings.family]
