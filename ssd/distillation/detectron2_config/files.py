"""The three files of a distillation: the run's, which names the student's and the teacher's."""

from pathlib import Path
from typing import NamedTuple

from ssd.distillation.detectron2_config.reading import Configuration, of_values, read
from ssd.distillation.detectron2_config.shipped import NAMES, values_of
from ssd.errors import InputError

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
    if not Path(name).is_file() and Path(name).stem in NAMES:
        raise InputError(f"--distill {name}: there is no such file; pass {Path(name).stem}, which is known by name")
    run = read(Path(name), "run")
    return Files(name, run, _named_by(run, "DISTILL.STUDENT_YAML"), _named_by(run, "DISTILL.TEACHER_YAML"))


def _named_by(run: Configuration, key: str) -> Configuration:
    if not run[key]:
        raise run.error(key, "has to name a file")
    file = found(run[key], run)
    if file is None:
        raise run.error(key, f"there is no file {run[key]} here or in a folder above {run.name}; correct the path")
    return read(file, key.removeprefix("DISTILL.").removesuffix("_YAML").lower())


def found(path: str, run: Configuration) -> Path | None:
    """The file of a path that a configuration states: from the current folder, or else from one of those above the
    run's file; None where there is none."""
    folders = [Path(), *Path(run.name).absolute().parents[:_MOST_FOLDERS]]
    candidates = (folder / Path(path).expanduser() for folder in folders)
    return next((each for each in candidates if each.is_file()), None)
