"""The three files of a distillation: the run's, which names the student's and the teacher's."""

import os
from pathlib import Path
from typing import NamedTuple

from ssd.distillation.detectron2_config.reading import Configuration, of_values, path_of, read
from ssd.distillation.detectron2_config.shipped import NAMES, values_of
from ssd.errors import InputError
from ssd.storage.yaml_lines import in_a_line

# Paths in such files are relative to the folder that its commands run in, which is above that of its configurations.
_MOST_FOLDERS = 3
SUFFIXES = (".yaml", ".yml")


class Files(NamedTuple):
    """name: as --distill has it."""

    name: str
    run: Configuration
    student: Configuration
    teacher: Configuration


def read_files(name: str) -> Files:
    """name: one of NAMES, or of a YAML file. Raises InputError as `reading.read`, and for a file that is not there."""
    if name in NAMES:
        of_run, of_student, of_teacher = values_of(name)
        return Files(
            name,
            of_values(name, "run", of_run),
            of_values(of_run["DISTILL.STUDENT_YAML"], "student", of_student),
            of_values(of_run["DISTILL.TEACHER_YAML"], "teacher", of_teacher),
        )
    if not os.path.isfile(name) and Path(name).stem in NAMES:
        raise InputError(f"--distill {name}: there is no such file; pass {Path(name).stem}, which is known by name")
    run = read(Path(name), "run")
    return Files(name, run, _named_by(run, "DISTILL.STUDENT_YAML"), _named_by(run, "DISTILL.TEACHER_YAML"))


def _named_by(run: Configuration, key: str) -> Configuration:
    if not run[key]:
        raise run.error(key, "has to name a file; pass a configuration that has DISTILL.STUDENT_YAML and TEACHER_YAML")
    file = found(run, key, run)
    if file is None:
        path = in_a_line(run[key])
        raise run.error(key, f"there is no file {path} here or in a folder above {run.name}; correct the path")
    return read(file, key.removeprefix("DISTILL.").removesuffix("_YAML").lower())


def found(stating: Configuration, key: str, run: Configuration) -> Path | None:
    """The file of the path that a key of a configuration states: from the current folder, or else from one of those
    above the run's file; None where there is none. Raises InputError for a text that is no path."""
    path = path_of(stating[key], f"{stating.places.get(key, stating.name)}: {key}")
    folders = [Path(), *Path(run.name).absolute().parents[:_MOST_FOLDERS]]
    # os.path, because a path that is too long is no file to it, and an error to pathlib.
    return next((folder / path for folder in folders if os.path.isfile(folder / path)), None)
