"""Names of folders and files that are no UTF-8: every command reads and writes them, or says in a line what to do."""

import json
import os
from pathlib import Path

import pytest
from runs import SETTINGS, write_small_data

import main

pytestmark = pytest.mark.slow

SMALL = ["--epochs", "1", *SETTINGS[:-1]]  # with plots


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name is no UTF-8, with the demo data in it, of which the files to train on are called likewise."""
    folder = Path(f"{tmp_path_factory.mktemp('place')}/caf\udce9")
    folder.mkdir()
    data = write_small_data(folder / "data")
    (file,) = (data / "annotations").glob("*train*.json")
    document = json.loads(file.read_text())
    for image in document["images"]:
        name = f"\udce9{image['file_name']}"
        os.rename(data / "train2017" / image["file_name"], data / "train2017" / name)
        image["file_name"] = name
    file.write_text(json.dumps(document))
    return folder


def test_every_command(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, run = ["--data", str(place / "data")], place / "run"
    torch_path, device = ["--data_pipeline", "no_dali"], ["--device", "cpu"]
    last = str(run / "checkpoints" / "last.pt")
    commands = [
        ["check", *data],
        [*data, *torch_path, *SMALL, "--output", str(run)],
        [*data, *torch_path, *SMALL, "--output", str(run), "--resume", "auto", "--epochs", "2"],
        ["evaluate", *data, *torch_path, *device, "--checkpoint", last, "--score-threshold", "0"],
        ["predict", *device, "--checkpoint", last, "--output", str(place / "found"), str(place / "data" / "train2017")],
        ["plot", str(run), str(run), "--output", str(place / "plots")],
        ["convert", last, str(place / "weights.safetensors")],
        ["show-data", *data, *torch_path, "--output", str(place / "show.png"), "--rows", "1", "--columns", "1"],
    ]
    for command in commands:
        assert main.main(command) == 0, (command, capfd.readouterr())
    assert (run / "report.html").read_text().count("caf?") and (place / "show.png").exists()
    assert len(list((place / "found").glob("\udce9*.jpg"))) == 6


def test_dali_refuses_them_by_name(place: Path, refusal) -> None:
    line = refusal("--data", place / "data", *SMALL, "--data_pipeline", "dali", "--output", place / "dali")
    assert "this name is no UTF-8" in line and "--data_pipeline no_dali" in line
    assert not (place / "dali").exists()
