"""Resuming a run equals not having interrupted it, bit for bit; and what does not fit is noticed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from runs import assert_equal_runs, last_of, log_of, run_all, settings, write_small_data

from ssd.checkpoints import checkpoint

pytestmark = pytest.mark.slow

PATHS = ("dali", "no_dali")


def two_epochs() -> list[str]:
    return [*settings(), "--epochs", "2", "--keep-checkpoints", "99"]


class Place(NamedTuple):
    """The step (from 1) after which a run of two epochs of five images is interrupted."""

    within_epoch: int
    at_its_end: int
    last: int


PLACES = {1: Place(4, 3, 6), 2: Place(3, 2, 4)}  # by ranks: epochs of 3 and of 2 steps


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_data(tmp_path_factory.mktemp("data") / "demo")


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """By the number of ranks, the folder with the undisturbed runs of both data paths, of one worker, with a checkpoint
    after every step; and, with one worker and with two, the runs that went on from those of the two places."""
    folders: dict[int, Path] = {}

    def of(ranks: int) -> Path:
        if ranks not in folders:
            folder = tmp_path_factory.mktemp(f"ranks{ranks}")
            commands: list[list[object]] = []
            for path in PATHS:
                command = ["--data", data, "--data_pipeline", path, *two_epochs(), "--checkpoint-every", "1 step"]
                commands.append([*command, "--num-workers", 1, "--output", folder / path])
                for step in PLACES[ranks][:2]:
                    for workers in (1, 2):
                        file = folder / path / "checkpoints" / f"step-{step:08}.pt"
                        output = folder / f"{path}-{step}-{workers}"
                        commands.append([*command, "--num-workers", workers, "--output", output, "--resume", file])
            (folder / "said.txt").write_text(run_all(commands, ranks))
            folders[ranks] = folder
        return folders[ranks]

    return of


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("place", Place._fields[:2])
@pytest.mark.parametrize("path", PATHS)
def test_an_interrupted_run_ends_with_the_same_weights(
    path: str, place: str, ranks: int, workers: int, runs: Callable[[int], Path]
) -> None:
    folder, step, last = runs(ranks), getattr(PLACES[ranks], place), PLACES[ranks].last
    undisturbed, resumed = folder / path, folder / f"{path}-{step}-{workers}"
    assert [line["step"] for line in log_of(resumed, "train")] == [*range(step + 1, last + 1)]
    expected = last_of(undisturbed)
    assert expected["step"] == last and len(expected["data_states"]) == ranks
    assert_equal_runs(last_of(resumed), expected)
    # The steps mattered.
    before = checkpoint.load_run(undisturbed / "checkpoints" / f"step-{last - 1:08}.pt")
    assert not torch.equal(expected["model"]["trunk.0.weight"], before["model"]["trunk.0.weight"])
    told, should_be = (
        [(line["box_loss"], line["class_loss"]) for line in log_of(run, "train")] for run in (resumed, undisturbed)
    )
    assert told == should_be[step:]


@pytest.mark.parametrize("path", PATHS)
def test_an_epochs_line_is_that_of_the_whole_epoch(path: str, runs: Callable[[int], Path]) -> None:
    """Also where the run was interrupted within the epoch: the undisturbed run says the same of its second epoch."""
    said = (runs(1) / "said.txt").read_text().split("of 6 images to train on")[1:]
    lines = {}
    for text in said:
        (output,) = (line.split(" in ")[-1] for line in text.splitlines() if line.startswith("SSD300-"))
        (lines[Path(output).name],) = (
            line.partition("  lr")[0] for line in text.splitlines() if line.startswith("epoch 2/2")
        )
    assert lines[path].startswith("epoch 2/2  loss ")
    assert {line for name, line in lines.items() if name.startswith(path)} == {lines[path]}


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    data: Path, runs: Callable[[int], Path], tmp_path: Path
) -> None:
    undisturbed = runs(1) / "no_dali"
    output = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    for name in ("last.pt", "step-00000006.pt"):
        file = output / "checkpoints" / name
        file.write_bytes(file.read_bytes()[:-1000])
    command = ["--data", data, "--data_pipeline", "no_dali", *two_epochs(), "--output", output, "--resume", "auto"]
    said = run_all([command], 1)
    for name in ("last.pt", "step-00000006.pt"):
        assert f"note: {output / 'checkpoints' / name}: cannot be read as a checkpoint" in said
    assert f"going on from {output / 'checkpoints' / 'step-00000005.pt'} instead" in said
    assert_equal_runs(last_of(output), last_of(undisturbed))
    assert [line["step"] for line in log_of(output, "train")] == [1, 2, 3, 4, 5, 6]


def test_a_run_goes_on_at_another_rate(data: Path, runs: Callable[[int], Path], tmp_path: Path) -> None:
    undisturbed = runs(1) / "no_dali"
    command = ["--data", data, "--data_pipeline", "no_dali", *two_epochs(), "--num-workers", 1, "--lr", "0.025"]
    file = undisturbed / "checkpoints" / "step-00000004.pt"
    run_all([[*command, "--output", tmp_path / "run", "--resume", file]], 1)
    before, after = (log_of(run, "train")[-2:] for run in (undisturbed, tmp_path / "run"))
    assert [line["step"] for line in after] == [5, 6]
    assert [line["learning_rate"] for line in after] == [line["learning_rate"] / 2 for line in before]
    assert after[0]["loss"] == before[0]["loss"] and after[1]["loss"] != before[1]["loss"]


# --- another number of ranks ---


@pytest.mark.parametrize("path", PATHS)
def test_on_other_ranks_a_run_goes_on_by_the_images_it_has_seen(
    path: str, data: Path, runs: Callable[[int], Path], tmp_path: Path
) -> None:
    """After an epoch and four images on two ranks, a third step on one rank is left of an epoch of five images."""
    file = runs(2) / path / "checkpoints" / "step-00000003.pt"
    command = ["--data", data, "--data_pipeline", path, *two_epochs(), "--num-workers", 1, "--output", tmp_path / "run"]
    said = run_all([[*command, "--resume", file]], 1)
    assert "resuming after epoch 1 and 2 of 3 steps: world_size was 2 and is 1" in said
    assert ("the images come in a new order" in said) == (path == "dali")
    assert [line["step"] for line in log_of(tmp_path / "run", "train")] == [6]
    last = last_of(tmp_path / "run")
    assert last["step"] == 6 and last["data"]["world_size"] == 1 and len(last["data_states"]) == 1


# --- what does not fit ---


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--bs", "4"], "batch_size was 2 and is 4"),
        (["--seed", "4"], "seed was 3 and is 4"),
        (["--data_pipeline", "no_dali"], "data_pipeline was dali and is no_dali"),
        (["--train-split", "val2017"], "data was "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_other_data_and_settings_are_refused(
    flags: list[str], complaint: str, data: Path, runs: Callable[[int], Path], refusal: Callable[..., str]
) -> None:
    file = runs(1) / "dali" / "checkpoints" / "last.pt"
    command = ["--data", data, "--data_pipeline", "dali", *settings(), "--epochs", "3", *flags]
    message = refusal(*command, "--resume", file, "--output", file.parents[2] / "none")
    assert complaint in message and "--resume-anyway" in message
    assert not (file.parents[2] / "none").exists()


@pytest.mark.parametrize("name", ["dali", "graph"])
def test_another_dali_is_refused(
    name: str, data: Path, runs: Callable[[int], Path], tmp_path: Path, refusal: Callable[..., str]
) -> None:
    content = last_of(runs(1) / "dali")
    file = tmp_path / "other.pt"
    checkpoint.save(file, {**content, "data": {**content["data"], name: "other"}})
    command = ["--data", data, "--data_pipeline", "dali", *settings(), "--epochs", "3"]
    assert f"{name} was other and is " in refusal(*command, "--resume", file, "--output", tmp_path / "run")
