"""What tests share: small data sets, a checkpoint, the command line run in this process."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"

# Tests run beside each other, one a core. Threads that spin while they wait would take the cores from them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# `pytest` does not put the folder of main.py on the path, `python -m pytest` does.
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


# The files of most seconds, these first.
LONGEST = (
    "test_two_hosts",
    "test_faults",
    "test_torchvision_run",
    "test_run",
    "test_resume",
    "test_torchvision_export",
)


def _seconds_rank(item: pytest.Item) -> int:
    return LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:  # whole files are given away, so that each fixture of a module is made once
        items.sort(key=_seconds_rank)  # the longest first, or in the end one process waits for the other
    else:
        items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
    for_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not for_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in for_gpu:
            item.add_marker(pytest.mark.skip(reason="torch sees no NVIDIA GPU"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the real images, coco256 and bccd."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the sample data is not in {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def coco256(shared_data: Path) -> Path:
    """128 + 128 real COCO images."""
    return shared_data / "coco256"


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demo data: 12 training images, one of them empty, and 5 to judge by. Not to be written to, see `data_copy`."""
    from pipelines.demo.data_set import write_demo_data

    return write_demo_data(tmp_path_factory.mktemp("data") / "demo", train_images=12, val_images=5)


@pytest.fixture(scope="session", params=["demo", "coco256"])
def demo_or_real_data(request: pytest.FixtureRequest) -> Path:
    """The demo data in every clone, and beside them the real images where they are."""
    folder: Path = request.getfixturevalue("demo_data" if request.param == "demo" else "coco256")
    return folder


@pytest.fixture
def data_copy(demo_data: Path, tmp_path: Path) -> Path:
    """A copy of `demo_data` for the test to spoil."""
    return Path(shutil.copytree(demo_data, tmp_path / "data"))


@pytest.fixture(scope="session")
def demo_checkpoint(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an untrained SSD300-R18 for the categories of `demo_data`, to evaluate and to fine-tune."""
    import torch

    from pipelines.readers.coco import read_annotations
    from ssd.checkpoints import checkpoint
    from ssd.detectors.ssd300.model import SSD300

    split = read_annotations(demo_data, "val2017")
    torch.manual_seed(0)
    content = {
        "format": checkpoint.FORMAT,
        "detector": {"family": "ssd300", "backbone": "resnet18"},
        "categories": [tuple(category) for category in split.categories],
        "model": SSD300("resnet18", split.num_classes).state_dict(),
    }
    file = tmp_path_factory.mktemp("checkpoint") / "demo.pt"
    checkpoint.save(file, content)
    return file


@pytest.fixture(scope="session")
def demo_run_checkpoint(demo_checkpoint: Path) -> Path:
    """`demo_checkpoint` as a run that has just begun would have written it, but for the optimiser's state."""
    from ssd.checkpoints import checkpoint

    run = {
        "statistics": [],
        "optimizer": {},
        "scaler": {},
        "step": 0,
        "epoch": 0,
        "steps_per_epoch": 1,
        "global_batch_size": 2,
        "judged_step": 0,
        "best_ap": 0.0,
        "skipped_steps": 0,
        "tally": {},
        "seed": 1,
        "data": {},
        "data_states": [],
        "rng_states": {},
    }
    file = demo_checkpoint.with_name("demo-run.pt")
    checkpoint.save(file, {**checkpoint.load(demo_checkpoint), **run})
    return file


@pytest.fixture
def refusal(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs the command line in this process; asserts exit code 2 and one line on stderr, which it returns."""

    def run(*arguments: str | os.PathLike[str]) -> str:
        import main

        for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            monkeypatch.delenv(variable, raising=False)
        capfd.readouterr()
        code = main.main([os.fspath(argument) for argument in arguments])
        # DALI's decoder adds coloured lines of its own, which no setting of it keeps back.
        lines = capfd.readouterr().err.splitlines(keepends=True)
        complaint = "".join(line for line in lines if "[ERROR]" not in line)
        assert code == 2, complaint
        assert complaint.startswith("error: ") and complaint.count("\n") == 1 and complaint.endswith("\n"), complaint
        assert r"\n" not in complaint, complaint  # a line break within, as of a traceback
        return complaint.strip()

    return run


@pytest.fixture
def edit_annotations() -> Callable[[Path, str, Callable[[dict[str, Any]], None]], Path]:
    """(data folder, split, change) applies change to the split's document in place; returns the annotation file."""

    def edit(data: Path, split: str, change: Callable[[dict[str, Any]], None]) -> Path:
        file = data / "annotations" / f"instances_{split}.json"
        document = json.loads(file.read_text())
        change(document)
        file.write_text(json.dumps(document))
        return file

    return edit
