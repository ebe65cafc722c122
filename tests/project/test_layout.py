"""Imports point one way: from a floor to those below it, and nothing but its own path knows DALI."""

import ast
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SSD_FILES = sorted((ROOT / "ssd").glob("**/*.py"))
PIPELINES_FILES = sorted((ROOT / "pipelines").glob("**/*.py"))


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(source: str) -> set[str]:
    """Every module that the code imports anywhere, in functions too: `from a import b` gives a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they point"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


KNOWN = {module_name(each) for each in (*SSD_FILES, *PIPELINES_FILES)}


def packages(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def loaded_after(code: str) -> set[str]:
    """The modules of a fresh interpreter that ran this code in the project's root."""
    script = f"{code}\nimport sys\nprint('\\n'.join(['LOADED', *sys.modules]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.partition("LOADED\n")[2].splitlines())


# What the source says


def test_the_reader_of_imports_sees_them_all() -> None:
    source = "import a.b, c as d\nfrom e import f as g\ndef h():\n    if h:\n        from i.j import k\n"
    assert imported(source) == {"a.b", "c", "e", "e.f", "i.j", "i.j.k"}
    with pytest.raises(AssertionError, match="relative"):
        imported("from . import boxes")


def test_the_files_are_where_these_tests_look() -> None:
    assert {"ssd", "ssd.detectors.ssd300.model", "ssd.training.loop"} <= {module_name(file) for file in SSD_FILES}
    assert {"pipelines", "pipelines.dali.loaders", "pipelines.no_dali.loaders"} <= {
        module_name(file) for file in PIPELINES_FILES
    }


# From the ground up. A room may import from the floors below its own, and from the same floor nothing.
# The files that lie flat in ssd/ are the ground.
FLOORS = [
    {"ground"},
    {"pictures", "storage"},
    {"detectors"},
    {"checkpoints", "evaluation"},
    {"inference", "run"},
    {"report", "mlperf"},
    {"training"},
    {"speed"},
    {"compression", "distillation"},
    {"options"},
    {"cli"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


# What a run trains unless something else is named: settings of plain values, which import nothing.
ALLOWED_UP = {("ssd.config", "ssd.detectors.ssd300.settings")}


def room_of(module: str) -> str:
    """The folder of ssd/ that a module lies in: ssd.training.loop -> training."""
    name = module.removeprefix("ssd.").partition(".")[0]
    return name if (ROOT / "ssd" / name).is_dir() and module != "ssd" else "ground"


@functools.cache
def modules_imported(file: Path) -> frozenset[str]:
    """The modules of this project that a file imports, in type checks and in functions too."""
    found = set()
    for name in imported(file.read_text()):
        if name in KNOWN and not (ROOT / name.replace(".", "/")).is_dir():
            found.add(name)
    return frozenset(found - {module_name(file)})


# But for the front door, whose `load` reaches into the house.
@pytest.mark.parametrize("file", [file for file in SSD_FILES if file != ROOT / "ssd" / "__init__.py"], ids=module_name)
def test_a_room_imports_from_lower_floors_only(file: Path) -> None:
    room = room_of(module_name(file))
    for name in modules_imported(file):
        if name.startswith("ssd."):
            other = room_of(name)
            if (module_name(file), name) in ALLOWED_UP:
                continue
            assert other == room or FLOOR[other] < FLOOR[room], f"{module_name(file)} imports {name}"


# From the ground up, the rooms of ssd/detectors and, as "shared" below them, the files that lie flat there.
DETECTOR_FLOORS = [
    {"shared", "postprocess"},
    {"tta"},
    {"contract"},
    {"recipes"},
    {"ssd300", "torchvision", "yolov2"},
    {"retinanet", "detectron"},  # made of torchvision's parts
    {"names", "table"},
]
DETECTOR_FLOOR = {room: floor for floor, rooms in enumerate(DETECTOR_FLOORS) for room in rooms}


def room_of_detectors(module: str) -> str:
    name = module.removeprefix("ssd.detectors.").partition(".")[0]
    return name if (ROOT / "ssd" / "detectors" / name).is_dir() or name in DETECTOR_FLOOR else "shared"


def test_the_rooms_of_detectors_import_from_lower_floors_only() -> None:
    files = [file for file in SSD_FILES if module_name(file).startswith("ssd.detectors.")]
    rooms = {room_of_detectors(module_name(file)) for file in files}
    assert rooms == DETECTOR_FLOOR.keys()
    for file in files:
        room = room_of_detectors(module_name(file))
        for name in modules_imported(file):
            other = room_of_detectors(name)
            is_lower = not name.startswith("ssd.detectors.") or DETECTOR_FLOOR[other] < DETECTOR_FLOOR[room]
            assert other == room or is_lower, f"{module_name(file)} imports {name}"


# Of pipelines/, from the ground up: its rooms, the files that lie flat there, and "pipelines" itself, the door.
PIPELINES_FLOORS = [
    {"augmentation", "box_counts", "object_parts", "demo", "download"},
    {"annotations"},
    {"categories", "readers", "ragged"},
    {"plausibility", "exif", "dali", "no_dali"},
    {"pipelines", "check", "show", "speed"},
]
PIPELINES_FLOOR = {name: floor for floor, names in enumerate(PIPELINES_FLOORS) for name in names}


def place_in_pipelines(module: str) -> str:
    return module.removeprefix("pipelines.").partition(".")[0]


def test_pipelines_import_from_lower_floors_only() -> None:
    assert {place_in_pipelines(module_name(file)) for file in PIPELINES_FILES} == PIPELINES_FLOOR.keys()
    for file in PIPELINES_FILES:
        place = place_in_pipelines(module_name(file))
        for name in modules_imported(file):
            other = place_in_pipelines(name)
            is_lower = not name.startswith("pipelines.") or PIPELINES_FLOOR[other] < PIPELINES_FLOOR[place]
            assert other == place or is_lower, f"{module_name(file)} imports {name}"


DETECTOR_ROOMS = {"ssd300", "torchvision", "retinanet", "detectron", "yolov2"}
KNOW_A_DETECTOR = {
    ("ssd.config", "ssd300"): "what a run trains unless another is named",
    ("ssd.detectors.names", None): "what --detector takes",
    ("ssd.detectors.table", None): "every record by its family's name",
    ("ssd.options.detectors", None): "each detector's own flags",
    ("ssd.options.distillation", "retinanet"): "Distill_GID_detectron2's students are RetinaNets",
    ("ssd.distillation.detectron2_config", "retinanet"): "the same",
    ("ssd.distillation.detectron2_config", "detectron"): "its YAML files have Detectron's keys, read by one grammar",
}
"""What is no detector's and yet imports a detector's room, and why. None: any of them."""


def detector_room_of(module: str) -> str | None:
    name = module.removeprefix("ssd.detectors.").partition(".")[0]
    return name if module.startswith("ssd.detectors.") and name in DETECTOR_ROOMS else None


def test_what_all_detectors_share_knows_none() -> None:
    used = set()
    for file in SSD_FILES:
        module = module_name(file)
        if detector_room_of(module) is not None:
            continue
        for room in set(filter(None, map(detector_room_of, modules_imported(file)))):
            allowed = {
                (who, what)
                for who, what in KNOW_A_DETECTOR
                if (module == who or module.startswith(f"{who}.")) and what in (None, room)
            }
            assert allowed, f"{module} imports the room of {room}"
            used |= allowed
    assert used == KNOW_A_DETECTOR.keys(), "no longer needed"


def test_the_rooms_within_compression_know_nothing_of_each_other() -> None:
    """They share what lies flat in it, which knows none of them, but for what puts a schedule beside a training."""
    folder = ROOT / "ssd" / "compression"
    rooms = {file.name for file in folder.iterdir() if file.is_dir() and file.name != "__pycache__"}
    assert "schedules" in rooms
    for file in set(folder.glob("**/*.py")) - {folder / "attach.py"}:
        own = file.relative_to(folder).parts[0]
        for name in modules_imported(file):
            other = name.removeprefix("ssd.compression.").partition(".")[0]
            assert not (name.startswith("ssd.compression.") and other in rooms - {own}), f"{file} imports {name}"


def test_every_room_is_on_a_floor() -> None:
    assert {room_of(module_name(file)) for file in SSD_FILES} == FLOOR.keys()


def test_a_room_is_small_enough_to_look_over() -> None:
    """A dozen files, and a room with more says why."""
    more = {
        # A word each that all rooms use: boxes, images, views. In folders, of which any could import any, it could no
        # longer be seen from a name that something is the ground.
        ROOT / "ssd": 18,
        # The loop and what its steps call, which is read in one go.
        ROOT / "ssd" / "training": 13,
    }
    for folder in {file.parent for file in (*SSD_FILES, *PIPELINES_FILES)}:
        files = [file for file in folder.glob("*.py") if file.name != "__init__.py"]
        assert len(files) <= more.get(folder, 12), folder
    assert all(len(list(folder.glob("*.py"))) > 13 for folder in more), "no longer needed"


def test_no_files_import_each_other_in_a_circle() -> None:
    arrows = {module_name(file): modules_imported(file) for file in (*SSD_FILES, *PIPELINES_FILES)}
    done: set[str] = set()

    def follow(name: str, path: list[str]) -> None:
        assert name not in path, f"a circle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in done:
            for other in arrows.get(name, ()):
                follow(other, [*path, name])
            done.add(name)

    for name in arrows:
        follow(name, [])


@pytest.mark.parametrize("file", [file for file in SSD_FILES if "cli" not in file.parts], ids=module_name)
def test_only_the_command_line_imports_pipelines(file: Path) -> None:
    assert packages(imported(file.read_text())).isdisjoint({"pipelines", "nvidia", "main", "tests"})


def test_the_model_knows_no_settings() -> None:
    assert "ssd.config" not in imported((ROOT / "ssd" / "detectors" / "ssd300" / "model.py").read_text())


@pytest.mark.parametrize("file", PIPELINES_FILES, ids=module_name)
def test_pipelines_import_little_of_ssd(file: Path) -> None:
    modules = imported(file.read_text())
    rooms = {name for name in modules if (ROOT / name.replace(".", "/")).is_dir() and name.startswith("ssd.")}
    assert not rooms
    assert packages(modules).isdisjoint({"main", "tests"})
    assert not any(name.startswith("ssd.detectors") for name in modules)


@pytest.mark.parametrize("file", [f for f in PIPELINES_FILES if f.parent.name != "dali"], ids=module_name)
def test_only_its_own_path_imports_dali(file: Path) -> None:
    modules = imported(file.read_text())
    assert "nvidia" not in packages(modules)
    if file != ROOT / "pipelines" / "__init__.py":
        assert "pipelines.dali" not in modules


# What an interpreter does


def test_importing_all_of_ssd_but_its_command_line_loads_neither_pipelines_nor_dali() -> None:
    modules = [module_name(file) for file in SSD_FILES if "cli" not in file.parts]
    loaded = loaded_after("\n".join(f"import {name}" for name in modules))
    assert set(modules) <= loaded
    assert {name for name in loaded if name.split(".")[0] == "pipelines" or name.startswith("nvidia.dali")} == set()


def test_the_torch_path_loads_no_dali() -> None:
    loaded = loaded_after("import pipelines.no_dali.loaders, pipelines.demo.data_set")
    assert {"pipelines.no_dali.loaders", "pipelines.annotations"} <= loaded
    assert {name for name in loaded if name.startswith("nvidia.dali") or name.startswith("pipelines.dali")} == set()


HELP = """
import contextlib, io, runpy, sys
sys.argv = ["main.py", {arguments}]
with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(output):
    try:
        runpy.run_path("main.py", run_name="__main__")
    except SystemExit as end:
        assert end.code == {code}, end.code
assert "main.py" in output.getvalue(), output.getvalue()
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ('"--help"', 0),
        *((f'"{command}", "--help"', 0) for command in ("evaluate", "check", "convert")),
        ('"--no-such-flag"', 2),
    ],
    ids=str,
)
def test_help_and_mistakes_are_answered_without_torch(arguments: str, code: int) -> None:
    loaded = loaded_after(HELP.format(arguments=arguments, code=code))
    assert "ssd.config" in loaded
    assert packages(loaded).isdisjoint({"torch", "torchvision", "numpy", "nvidia", "PIL", "pycocotools"})
