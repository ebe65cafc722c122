"""What the reader passes of masks and keypoints, and what it refuses of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
from parts_data import POINTS, document, write
from pycocotools.coco import COCO

from pipelines.annotations import Annotations
from pipelines.readers import splits
from pipelines.readers.coco import read_annotations
from ssd.errors import InputError
from ssd.keypoints import PERSON, mirrored, sigmas_of
from ssd.masks import runs_of
from ssd.views import ObjectParts

BOTH = ObjectParts(masks=True, keypoints=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("parts") / "data")


@pytest.fixture(scope="module")
def split(folder: Path) -> Annotations:
    return read_annotations(folder, "train", BOTH)


def test_masks_are_those_of_the_file(folder: Path, split: Annotations) -> None:
    """By pycocotools, from our own dataset and from the file."""
    theirs, ours = COCO(str(folder / "annotations" / "instances_train.json")), COCO()
    ours.dataset = split.coco_dataset()
    ours.createIndex()
    assert len(ours.anns) == 5 and split.masks is not None
    for id, annotation in theirs.anns.items():
        mask = ours.annToMask(ours.anns[id])
        assert mask.any() and np.array_equal(mask, theirs.annToMask(annotation))
    assert split.masks.is_rle.tolist() == [False, True, True, True, False]


def test_keypoints_are_those_of_the_file(split: Annotations) -> None:
    assert split.keypoints is not None
    skeleton = split.keypoints.skeleton
    assert skeleton.names == tuple(POINTS) and skeleton.links == ((0, 1), (0, 2), (1, 3)) and skeleton.labels == (2,)
    assert not split.keypoints.points[1].any()  # object 12
    assert split.keypoints.points[0, 1].tolist() == [8.5, 11, 1]
    assert [row["num_keypoints"] for row in split.coco_dataset()["annotations"]] == [4, 0, 4, 4, 4]


def test_only_what_is_asked_for_is_read(folder: Path, split: Annotations) -> None:
    boxes = read_annotations(folder, "train")
    assert boxes.masks is None and boxes.keypoints is None
    assert "segmentation" not in boxes.coco_dataset()["annotations"][0]
    prints = {
        read_annotations(folder, "train", parts).fingerprint()
        for parts in (ObjectParts(), ObjectParts(masks=True), ObjectParts(keypoints=True), BOTH)
    }
    assert len(prints) == 4 and boxes.fingerprint() in prints


def test_parts_stay_with_their_objects(split: Annotations) -> None:
    some = split.without({"1.jpg": "missing"})
    assert some.masks is not None and some.keypoints is not None and split.masks is not None
    assert some.annotation_ids.tolist() == [11, 14, 15] and len(some.masks) == 3
    for place, old in enumerate((0, 3, 4)):
        for ours, theirs in zip(some.masks.rows_of(place), split.masks.rows_of(old), strict=True):
            assert np.array_equal(ours, theirs)
    assert np.array_equal(some.keypoints.points, split.keypoints.points[[0, 3, 4]])  # type: ignore[union-attr]


def test_compressed_run_lengths_are_read_as_pycocotools_does() -> None:
    rng = np.random.default_rng(0)
    for share in (0.02, 0.3, 0.5, 0.98):
        mask = (rng.random((37, 51)) < share).astype(np.uint8)
        runs = runs_of(pycocotools.mask.encode(np.asfortranarray(mask))["counts"].decode())
        flat = np.repeat(np.arange(len(runs)) % 2, runs)
        assert np.array_equal(flat, mask.ravel(order="F"))


def _first(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"][0].update({key: value})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_first("segmentation", None), "annotations[0] has no 'segmentation'"),
        (_first("segmentation", []), "annotations[0] has no 'segmentation'"),
        (_first("segmentation", "x"), "which is neither polygons nor run lengths"),
        (_first("segmentation", [[1, 2, 3, 4, 5]]), "5 numbers, which are no pairs"),
        (_first("segmentation", [[1, 2, 3, 4]]), "has no polygon of three points or more"),
        (_first("segmentation", [[1, 2, 3, 4, 5, "6"]]), "which is not a list of numbers"),
        (_first("segmentation", [[1, 2, 3, 4, 5, float("nan")]]), "not finite"),
        (_first("segmentation", {"size": [9, 9], "counts": "0"}), "has a mask of size [9, 9] (height, width) in an"),
        (_first("segmentation", {"size": [32, 48], "counts": [5, 6]}), "not those of 48 x 32 pixels"),
        (_first("segmentation", {"size": [32, 48], "counts": [-5, 1541]}), "not those of 48 x 32 pixels"),
        (_first("segmentation", {"size": [32, 48], "counts": "~~"}), "no run lengths"),
        (_first("segmentation", {"size": [32, 48], "counts": "PP"}), "cut short"),
        (_first("segmentation", {"size": [32, 48], "counts": "PPPPPPPPPPPP0"}), "too large"),
        (_first("segmentation", {"size": [32, 48], "counts": None}), "neither a list of numbers nor a text"),
        (_first("keypoints", [1, 2, 2]), "has 3 numbers in 'keypoints', but its category has 5 points"),
        (_first("keypoints", [1, 2, 3] * 5), "a visibility that is none of 0, 1 and 2"),
        (_first("keypoints", [1, 2, "2"] * 5), "which is not a list of numbers"),
        (_first("keypoints", [float("inf"), 2, 2] * 5), "not finite"),
        (lambda d: d["annotations"][1].update(keypoints=[1, 2, 2]), "its category does not name any"),
        (lambda d: d["categories"][1].update(keypoints=[1]), "categories[1] has 'keypoints' [1.0]"),
        (lambda d: d["categories"][1].update(keypoints=["a", "a"]), "has a name twice"),
        (lambda d: d["categories"][1].update(skeleton=[[0, 1]]), "pairs of numbers from 1 to 5"),
        (lambda d: d["categories"][0].update(keypoints=["a"]), "different 'keypoints'"),
        (lambda d: d["categories"][1].pop("keypoints"), "no category has 'keypoints'"),
        (lambda d: [row.pop("keypoints") for row in d["annotations"]], "none of its objects has 'keypoints'"),
        (lambda d: [row.pop("segmentation") for row in d["annotations"]], "have boxes and no masks"),
    ],
)  # fmt: skip
def test_what_is_broken_is_named_in_one_line(change: Any, said: str, tmp_path: Path) -> None:
    content = document()
    change(content)
    folder = write(tmp_path / "data", content)
    with pytest.raises(InputError) as refused:
        read_annotations(folder, "train", BOTH)
    assert said in str(refused.value) and "instances_train.json" in str(refused.value)
    assert "\n" not in str(refused.value)
    if "categories" not in said and "'segmentation'" in said:
        read_annotations(folder, "train")  # who asks for boxes does not care


def test_polygons_of_two_points_are_dropped_and_counted(tmp_path: Path) -> None:
    content = document()
    content["annotations"][0]["segmentation"].append([1, 2, 3, 4])
    split = read_annotations(write(tmp_path / "data", content), "train", BOTH)
    assert split.masks is not None and len(split.masks.rows_of(0)) == 2
    assert split.repairs == {"masks' polygons of less than three points dropped": 1}


def test_other_forms_have_no_masks(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "images" / "a.jpg").touch()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "labels" / "classes.txt").write_text("thing\n")
    with pytest.raises(InputError, match="masks are read from COCO's JSON, and this is YOLO"):
        splits.read_annotations(tmp_path, "all", ObjectParts(masks=True))


def test_names_say_which_points_are_mirror_images() -> None:
    assert mirrored(tuple(POINTS)) == [0, 2, 1, 4, 3]
    # COCO's own: each but the nose with its neighbour.
    assert mirrored(PERSON.names) == [0, *(i + (1 if i % 2 else -1) for i in range(1, 17))]
    assert mirrored(("EyeLeft", "eye_right", "EyeRight", "left_only")) == [2, 1, 0, 3]


def test_labels_say_which_objects_have_points() -> None:
    labels = torch.tensor([[0, 1, 2], [3, 2, 0]])
    assert PERSON.are_of(labels).tolist() == [[False, True, True], [True, True, False]]  # no label named: all have
    of_two = PERSON._replace(labels=(2, 3))
    assert of_two.are_of(labels).tolist() == [[False, False, True], [True, True, False]]
    assert [of_two.is_of(label) for label in (1, 2, 3)] == [False, True, True]


def test_cocos_points_have_cocos_sigmas_and_others_their_mean() -> None:
    import pycocotools.cocoeval

    theirs = pycocotools.cocoeval.Params("keypoints").kpt_oks_sigmas
    assert np.allclose(sigmas_of(PERSON.names), theirs)
    assert sigmas_of(("a", "b")) == (round(float(theirs.mean()), 3),) * 2
