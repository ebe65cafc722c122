"""What --recipe names: settings that the detector's family has for a purpose, or out of a TOML file.

A file has some of Config's settings, named as config.json names them, and may begin with `recipe = "coco"` to start
from that. A table `[distill_settings.pkd]` has settings of a method of distillation. Values are checked as those of the
flags are, and the flags of the command line overrule them.
"""

import difflib
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssd.config import Config
from ssd.detectors.names import family_of
from ssd.distillation.settings import METHODS, words_of
from ssd.errors import InputError
from ssd.options.flags import Parser, overlay


def base_of(recipe: str | None, parser: Parser, detector: Any, batch_size: int | None, world_size: int) -> Config:
    """What the flags start from. detector: the settings that --detector stands for. batch_size: that of the flags,
    which the rates of some recipes depend on.

    Raises InputError that names the file and what is wrong with it.
    """
    family = family_of(detector)
    settings: dict[str, Any] = {"recipe": recipe}
    if recipe is not None and recipe not in family.recipes:
        if not recipe.endswith(".toml"):
            names = ", ".join(family.recipes)
            raise InputError(f"--recipe {recipe}: is none of {names}, which {detector.name} has, and no .toml file")
        settings = _read(Path(recipe), parser, detector, list(family.recipes))
    name = settings.pop("recipe", None) or family.usual
    base = family.recipes[name] if name else None
    config = base(batch_size or settings.get("batch_size"), world_size, detector) if base else family.defaults(detector)
    if {"epochs", "steps"} & set(settings) and "minutes" not in settings:
        config = replace(config, minutes=None)  # a run has one length, and the file says it
    return overlay(config, settings)


def said_in(recipe: str) -> set[str] | None:
    """The names of the settings in a recipe's file, which `base_of` has read. None of one that starts from another
    recipe, and of a recipe by name: they say all settings."""
    if not recipe.endswith(".toml"):
        return None
    content = tomllib.loads(Path(recipe).read_text(encoding="utf-8"))
    return None if "recipe" in content else set(content)


def _read(file: Path, parser: Parser, detector: Any, recipes: list[str]) -> dict[str, Any]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--recipe {file}: cannot be read ({error.strerror}); pass another file") from None
    except ValueError as error:  # of TOML or UTF-8
        raise InputError(f"--recipe {file}: not valid TOML ({error}); correct it") from None
    known = ["recipe", *Config(detector=detector).to_dict()]
    settings: dict[str, Any] = {}
    for key, value in content.items():
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1)
            remedy = f"did you mean {nearest[0]!r}?" if nearest else "names are those of a run's config.json"
            raise InputError(f"--recipe {file}: there is no setting {key!r}; {remedy}")
        try:
            if key == "distill_settings" and isinstance(value, dict):
                value = words_of(value)
            settings[key] = parser.value_of(key, value)
            _require_methods(settings.get("distill", ()))
        except InputError as error:
            raise InputError(f"--recipe {file}: {error}") from None
    if settings.get("recipe") not in (None, *recipes):
        raise InputError(f"--recipe {file}: may start from {', '.join(recipes)} only, not from another file")
    return settings


def _require_methods(names: Sequence[str]) -> None:
    """Raises InputError where a recipe would begin with another file's settings."""
    for name in names:
        if name not in METHODS:
            raise InputError(f"distill = {name!r}: a recipe names methods; pass the configuration as --distill itself")
