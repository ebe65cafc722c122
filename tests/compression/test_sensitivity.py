"""An analysis of sensitivity: a tensor at a time, levels by hand, points kept, and a schedule that can be followed."""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import main
from ssd.cli.compression import sensitivity as command
from ssd.compression.analysis import records
from ssd.compression.analysis.sensitivity import (
    DENSE,
    Judged,
    Point,
    bearable,
    measure,
    prunable,
    pruned,
    schedule_text,
)
from ssd.compression.schedules.distiller_yaml import load_schedule
from ssd.errors import InputError


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 4, 2), nn.Flatten(), nn.Linear(4, 3))


def test_what_is_pruned_by_hand() -> None:
    weight = torch.tensor([[1.0, -4], [-2, 3], [5, 0.5]])
    assert pruned(weight, 0.5, "element").tolist() == [[0, -4], [0, 3], [5, 0]]
    kernels = weight.view(3, 2, 1, 1)
    # Filters of mean magnitude 2.5, 2.5 and 2.75: of equal ones the first goes. Channels of 8/3 and 2.5.
    assert pruned(kernels, 0.34, "filter").flatten().tolist() == [0, 0, -2, 3, 5, 0.5]
    assert pruned(kernels, 0.5, "channel").flatten().tolist() == [1, 0, -2, 0, 5, 0]
    assert torch.equal(pruned(weight, 0.1, "element"), weight)  # int(0.6) is none


def test_the_tensors_that_have_such_groups() -> None:
    assert prunable(small(), "element") == ["0.weight", "1.weight", "3.weight"]
    assert prunable(small(), "filter") == ["0.weight", "1.weight"]
    assert prunable(small(), "channel") == ["0.weight", "1.weight", "3.weight"]


def test_one_tensor_at_a_time_and_all_as_it_was_after_it() -> None:
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen: list[set[str]] = []

    def judge() -> Judged:
        seen.append({name for name, value in model.state_dict().items() if not torch.equal(value, before[name])})
        return Judged(0.5, float(len(seen)))

    done = {("3.weight", 0.9): Point("3.weight", 0.9, 0.9, 0.1, 7.0)}
    points = list(measure(model, ["0.weight", "3.weight"], [0.5, 0.9], "element", judge, done))
    assert seen == [set(), {"0.weight"}, {"0.weight"}, {"3.weight"}]
    assert [(each.tensor, each.level) for each in points] == [
        (DENSE, 0.0), ("0.weight", 0.5), ("0.weight", 0.9), ("3.weight", 0.5), ("3.weight", 0.9),
    ]  # fmt: skip
    assert points[1].sparsity == 0.5 and points[2].sparsity == 7 / 8  # int(0.9 x 8) of 8
    assert points[-1].loss == 7.0  # measured before
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def points_of(**aps: list[float]) -> list[Point]:
    """Of tensors, AP at 0.25, 0.5 and 0.75; the dense model has 0.5."""
    rows = [Point(DENSE, 0.0, 0.0, 0.5, 1.0)]
    for name, values in aps.items():
        rows += [Point(name, level, level, ap, 1.0) for level, ap in zip((0.25, 0.5, 0.75), values, strict=True)]
    return rows


def test_the_levels_of_the_schedule() -> None:
    points = points_of(easy=[0.5, 0.495, 0.491], lucky=[0.495, 0.4, 0.5], hard=[0.3, 0.2, 0.1], better=[0.6, 0.6, 0.4])
    assert bearable(points, 0.01) == {"easy": 0.75, "lucky": 0.25, "better": 0.5}


@pytest.mark.parametrize("group", ["element", "filter", "channel"])
def test_the_schedule_can_be_read(group: str, tmp_path: Path) -> None:
    file = tmp_path / "schedule.yaml"
    file.write_text(schedule_text({"a.weight": 0.5, "b.weight": 0.75, "c.weight": 0.5}, group, epochs=6))
    first, second = load_schedule(file).policies
    assert first.instance.arguments["weights"] == ["a.weight", "c.weight"]
    assert (first.instance.arguments["final_sparsity"], second.instance.arguments["final_sparsity"]) == (0.5, 0.75)
    assert first.epochs == tuple(range(6))
    kind = {"element": None, "filter": "Filters", "channel": "Channels"}[group]
    assert first.instance.arguments.get("group_type") == kind


def test_points_are_kept_and_half_a_line_is_not(tmp_path: Path) -> None:
    about = {"model": "m", "images": "10"}
    assert records.open_records(tmp_path / "a", about) == {}
    points = points_of(t=[0.5, 0.4, 0.3])
    for point in points:
        records.add_record(tmp_path / "a", point)
    table = tmp_path / "a" / records.TABLE
    assert list(records.open_records(tmp_path / "a", about).values()) == points
    table.write_text(table.read_text()[:-3])  # a run that was killed
    assert list(records.open_records(tmp_path / "a", about).values()) == points[:-1]
    records.add_record(tmp_path / "a", points[-1])
    assert list(records.open_records(tmp_path / "a", about).values()) == points
    with pytest.raises(InputError, match="analysis with other images"):
        records.open_records(tmp_path / "a", {**about, "images": "11"})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (records.ABOUT, '{"model": '),
        (records.ABOUT, "[1]"),
        (records.TABLE, "a,b\n1,2\n"),
        (records.TABLE, "tensor,level,sparsity,ap,loss\nt,0.5\n"),
        (records.TABLE, "tensor,level,sparsity,ap,loss\nt,x,0,0,0\n"),
        (records.TABLE, None),
    ],
)
def test_damaged_records_are_refused_and_left(name: str, text: str | None, tmp_path: Path) -> None:
    records.open_records(tmp_path, {"model": "m"})
    (tmp_path / name).unlink()
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match="is damaged; pass another folder"):
        records.open_records(tmp_path, {"model": "m"})
    assert text is None or (tmp_path / name).read_text() == text


def test_the_command_goes_on_where_it_was(
    demo_data: Path, demo_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With a judge that takes no time: what it is of, how often it is asked, and what is written."""
    asked: list[float] = []

    def judge_of(model: nn.Module, *_: Any) -> tuple[Callable[[], Judged], str]:
        def judge() -> Judged:
            weight: Tensor = model.get_parameter("extra_blocks.0.0.weight")
            zeros = 1 - int(weight.count_nonzero()) / weight.numel()
            asked.append(zeros)
            if len(asked) == 3:
                raise KeyboardInterrupt
            return Judged(0.5 - 0.1 * zeros, 1 + zeros)

        return judge, "2 images"

    monkeypatch.setattr(command, "_judge", judge_of)
    arguments = ["sensitivity", "--checkpoint", str(demo_checkpoint), "--data", str(demo_data), "--device", "cpu"]
    arguments += ["--output", str(tmp_path / "out"), "--tensors", "extra_blocks.0.0.*", "--levels", "0.5", "0.9"]
    arguments += ["--group", "filter", "--max-drop", "0.05"]
    assert main.main(arguments) == 130
    assert main.main(arguments) == 0
    assert "which has 2 points" in capfd.readouterr().out
    assert [round(zeros, 2) for zeros in asked] == [0, 0.5, 0.9, 0.9]
    with pytest.raises(InputError, match="metrics"):  # whose AP is another
        command.sensitivity([*arguments[1:], "--metrics", "voc07"])
    with (tmp_path / "out" / records.TABLE).open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["tensor"], float(row["level"])) for row in rows] == [
        ("", 0.0), ("extra_blocks.0.0.weight", 0.5), ("extra_blocks.0.0.weight", 0.9),
    ]  # fmt: skip
    (policy,) = load_schedule(tmp_path / "out" / records.SCHEDULE).policies
    assert policy.instance.arguments["weights"] == ["extra_blocks.0.0.weight"]
    assert policy.instance.arguments["final_sparsity"] == 0.5
    with Image.open(tmp_path / "out" / records.PLOT) as picture:
        assert picture.width > 400


@pytest.mark.slow
def test_ap_and_loss_are_those_of_the_images(
    demo_data: Path, demo_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sensitivity", "--checkpoint", str(demo_checkpoint), "--data", str(demo_data), "--device", "cpu"]
    arguments += ["--output", str(tmp_path), "--tensors", "class_heads.0.weight", "--levels", "1", "--images", "2"]
    assert main.main([*arguments, "--data_pipeline", "no_dali", "--num-workers", "0"]) == 0
    assert re.search(r"on 2 images of val2017, [0-9a-f]{16,}\n", capfd.readouterr().out)  # the split's fingerprint
    with (tmp_path / records.TABLE).open() as stream:
        dense, without = list(csv.DictReader(stream))
    assert float(without["sparsity"]) == 1
    assert float(dense["loss"]) > 0 and dense["loss"] != without["loss"]


def test_bad_input(demo_data: Path, demo_checkpoint: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    arguments = ("sensitivity", "--checkpoint", demo_checkpoint, "--data", demo_data, "--output", tmp_path / "out")
    assert "fits no tensor" in refusal(*arguments, "--tensors", "trunk.99.*", "--device", "cpu")
    assert "--levels" in refusal(*arguments, "--levels", "1.5")
