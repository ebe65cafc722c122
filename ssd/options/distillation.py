"""--distill on the command line: methods by name, or a configuration of Distill_GID_detectron2."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ssd.config import Config
from ssd.detectors.retinanet.settings import RetinaNetSettings, settings_named
from ssd.distillation.detectron2_config.files import SUFFIXES, Files, read_files
from ssd.distillation.detectron2_config.shipped import NAMES
from ssd.distillation.detectron2_config.translate import Start, start_of, student_settings
from ssd.distillation.settings import METHODS
from ssd.errors import InputError
from ssd.schedule import DECAY
from ssd.storage.yaml_lines import nearest_to


def is_file(name: str) -> bool:
    """Whether it stands for a configuration and no method."""
    return name in NAMES or name.lower().endswith(SUFFIXES)


def method_or_file(text: str) -> str:
    """The type of --distill."""
    if text not in METHODS and not is_file(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is none of {', '.join(METHODS)}, no .yaml file and no configuration known by name"
            f"{nearest_to(text, [*METHODS, *NAMES])}"
        )
    return text


def files_in(arguments: Sequence[str]) -> Files | None:
    """The configuration that --distill names, if any. Raises InputError where it cannot be read."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--distill", nargs="*", default=[])
    found, _ = parser.parse_known_args(arguments)
    names = [name for name in found.distill if is_file(name)]
    if len(names) > 1:
        raise InputError(f"--distill {' '.join(names)}: names two configurations; pass one")
    return read_files(names[0]) if names else None


def named_student(files: Files) -> RetinaNetSettings:
    """What --detector would say of the student: its name alone."""
    return settings_named(student_settings(files).builder)


def start_with(files: Files, options: dict[str, Any], recipe: str | None, world_size: int) -> Start:
    """What the flags start from. options: those that were given, of which --distill is made the methods' names, and
    --distill-settings follow those of the configuration. Raises InputError for flags that say what it says."""
    for name, value in (("--detector", options.get("detector")), ("--recipe", recipe)):
        if value is not None:
            raise InputError(
                f"{name} {value}: the {'student' if name == '--detector' else 'run'} is that of --distill "
                f"{files.name}; leave one of them out"
            )
    if "gid" in options["distill"]:
        raise InputError(f"--distill {files.name} gid: the file is gid with its settings; leave gid out")
    start = start_of(files, options, options.get("batch_size"), world_size)
    options["distill"] = tuple("gid" if name == files.name else name for name in options["distill"])
    options["distill_settings"] = (*start.config.distill_settings, *options.get("distill_settings", ()))
    return Start(_made_room_for(options, start.config, files.run["SOLVER.GAMMA"]), start.notes)


def _made_room_for(options: dict[str, Any], config: Config, gamma: float) -> Config:
    """The config of a configuration without what cannot stand beside a flag that overrules it. gamma: what the rate is
    multiplied by at each fall."""
    if config.steps and "epochs" in options:
        # Falls and evaluations stay at their share of the run, in whole epochs.
        epochs, steps = options["epochs"], config.steps
        falls, evaluated = (
            tuple(sorted({max(1, round(step * epochs / steps)) for step in each} - {epochs}))
            for each in (config.multistep, config.evaluation)
        )
        config = replace(config, steps=None, multistep=falls, evaluation=evaluated)
    if options.get("warmup") == 0 or options.get("warmup_power", 1) != 1:
        config = replace(config, warmup_factor=None)
    falls = options.get("multistep", config.multistep)
    return replace(config, multistep_factors=() if gamma == DECAY else (gamma,) * len(falls))
