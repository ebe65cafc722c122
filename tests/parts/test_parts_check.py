"""What the check says of masks and keypoints."""

from pathlib import Path
from typing import Any

import pytest
from parts_data import document, write

import main
from pipelines.check import Effect, check, exit_code
from pipelines.readers.splits import find_named
from ssd.views import BOXES, ObjectParts, ShortSideView

BOTH = ObjectParts(masks=True, keypoints=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def found(folder: Path, parts: ObjectParts) -> dict[str, tuple[str, list[tuple[str, str]]]]:
    source = find_named(folder, "train")
    (report,) = check(source, source, 1, "", ShortSideView(parts=parts))
    kinds = {kind.what: (kind.effect, [tuple(item) for item in items]) for kind, items in report.findings.items()}
    assert exit_code([report]) == any(effect is not Effect.HARMLESS for effect, _ in kinds.values())
    return {what: kinds[what] for what in kinds if "mask" in what or "keypoint" in what}


def spoiled(folder: Path) -> Path:
    content: dict[str, Any] = document()
    rows = content["annotations"]
    rows[0]["segmentation"] = [[1, 2, 3], [4, 5, 6, 7, 8, 9]]
    rows[1]["segmentation"]["size"] = [30, 40]
    rows[2]["segmentation"] = []
    rows[4]["segmentation"].append([1, 2, 3, 4])
    rows[0]["keypoints"][:3] = [60, 12, 2]
    rows[2]["keypoints"][:3] = [0, 0, 1]
    rows[3]["keypoints"] = [1, 2, 3]
    return write(folder, content)


def test_all_that_is_wrong_is_named(tmp_path: Path) -> None:
    kinds = found(spoiled(tmp_path / "data"), BOTH)
    assert kinds == {
        "broken masks": (
            "stops it",
            [
                ("annotations[0]", "has in polygon 0 3 numbers, which are no pairs of x and y"),
                ("annotations[1]", "has a mask of size [30, 40] (height, width) in an image of [40, 30]"),
            ],
        ),
        "objects without a mask": ("stops it", [("annotations[2]", "")]),
        "masks' polygons of less than three points": ("changes it", [("annotations[4]", "has 1 of them")]),
        "keypoints outside the image": ("changes it", [("annotations[0]", "has nose")]),
        "keypoints that are stated, but at 0, 0": ("changes it", [("annotations[2]", "has nose")]),
        "broken keypoints": (
            "stops it",
            [("annotations[3]", "has 3 numbers in 'keypoints', but its category has 5 points")],
        ),
    }


def test_a_detector_of_boxes_is_not_concerned(tmp_path: Path) -> None:
    kinds = found(spoiled(tmp_path / "data"), BOXES)
    assert "objects without a mask" not in kinds and len(kinds) == 5
    assert {effect for effect, _ in kinds.values()} == {"harmless"}


def test_good_masks_and_points_are_nothing_to_tell_of(tmp_path: Path) -> None:
    assert found(write(tmp_path / "data"), BOTH) == {}


def test_categories_with_odd_points_are_named(tmp_path: Path) -> None:
    content = document()
    content["categories"][0]["keypoints"] = ["a"]
    kinds = found(write(tmp_path / "data", content), BOTH)
    ((_, text),) = kinds["broken keypoints"][1]
    assert "different 'keypoints'" in text


def test_the_command_knows_what_the_data_are_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = spoiled(tmp_path / "data")
    command = ["check", "--data", str(folder), "--train-split", "train", "--val-split", "train", "--num-workers", "1"]
    assert main.main(command) == 0
    assert "does not look at them" in " ".join(capsys.readouterr().out.split())
    assert main.main([*command, "--detector", "maskrcnn_resnet50_fpn"]) == 1
    out = capsys.readouterr().out
    assert "broken masks" in out and "broken keypoints" in out
