"""What the annotation reader passes is clean, and what it refuses it refuses with one line that helps."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_documents import DOCUMENT, MASK, assert_clean, changed, with_boxes, without, write

from pipelines.annotations import Annotations
from pipelines.readers.coco import find_split, read_annotations

SPLITS = [("demo", "train2017"), ("demo", "val2017")]
REAL_SPLITS = [("coco256", "train2017"), ("coco256", "val2017"), ("bccd", "train"), ("bccd", "val")]

# --- what a good file gives ---


def test_boxes_are_grouped_by_image_and_labelled_in_category_list_order(tmp_path: Path) -> None:
    annotations = read_annotations(write(tmp_path, DOCUMENT), "train")
    assert_clean(annotations)
    assert annotations.file == tmp_path / "annotations" / "instances_train.json"
    assert annotations.categories == ((90, "kite"), (3, "car")) and annotations.num_classes == 3
    assert annotations.image_ids.tolist() == [70, 7, 9]
    assert annotations.file_names == ["a.jpg", "b.jpg", "c.jpg"]
    assert annotations.sizes_px.tolist() == [[200, 100], [50, 60], [10, 10]]
    assert annotations.box_starts.tolist() == [0, 2, 2, 3]
    assert annotations.boxes_of(0) == slice(0, 2) and annotations.boxes_of(1) == slice(2, 2)
    assert annotations.annotation_ids.tolist() == [12, 5, 11]
    assert annotations.labels.tolist() == [2, 1, 2]
    assert annotations.is_crowd.tolist() == [False, True, True]
    assert annotations.areas_px.tolist() == [4000, 1250, 60.5]  # 1250 = 50 x 25, where the file states none
    expected_ltrb: list[list[float]] = [[0.1, 0.1, 0.6, 0.6], [0.2525, 0.25, 0.5025, 0.5], [0, 0, 1, 1]]
    np.testing.assert_allclose(annotations.boxes_ltrb, expected_ltrb, rtol=1e-7)  # one rounding to float32
    assert annotations.repairs == {} and annotations.repairs_text == ""


def test_boxes_of_an_image_keep_the_order_of_the_file(tmp_path: Path) -> None:
    boxes = [
        {"id": id, "image_id": (70, 7, 9)[id % 3], "category_id": 3, "bbox": [0, 0, 5, 5]} for id in range(3000, 0, -1)
    ]
    annotations = read_annotations(write(tmp_path, changed("annotations", to=boxes)), "train")
    expected = [*range(3000, 0, -3), *range(2998, 0, -3), *range(2999, 0, -3)]
    assert annotations.annotation_ids.tolist() == expected


def test_only_images_with_a_box_that_is_no_crowd_train(tmp_path: Path) -> None:
    indices = read_annotations(write(tmp_path, DOCUMENT), "train").trainable_indices()
    assert indices.tolist() == [0] and indices.dtype == np.int64


def test_images_too_small_to_crop_do_not_train(tmp_path: Path) -> None:
    boxes = [{"id": 1 + k, "image_id": id, "category_id": 3, "bbox": [0, 0, 2, 2]} for k, id in enumerate((70, 7, 9))]
    document = changed("annotations", to=boxes)
    for image, size in zip(document["images"], ((3, 300), (4, 4), (300, 3)), strict=True):
        image["width"], image["height"] = size
    annotations = read_annotations(write(tmp_path, document), "train")
    assert annotations.trainable_indices().tolist() == [1] and len(annotations.ground_truth().image_ids) == 3


def test_a_split_without_boxes_can_be_evaluated_but_not_trained(tmp_path: Path) -> None:
    annotations = read_annotations(write(tmp_path, changed("annotations", to=[])), "train")
    assert_clean(annotations)
    assert len(annotations) == 3 and annotations.trainable_indices().tolist() == []
    assert len(annotations.coco_dataset()["images"]) == 3 and annotations.coco_dataset()["annotations"] == []


def test_absent_or_null_iscrowd_means_no_crowd(tmp_path: Path) -> None:
    document = changed("annotations", 0, "iscrowd", to=None)
    del document["annotations"][1]["iscrowd"]
    assert read_annotations(write(tmp_path, document), "train").is_crowd.tolist() == [False, True, False]


def test_annotations_of_openimages_as_mlperf_has_them(tmp_path: Path) -> None:
    """264 classes without a supercategory, images without a licence and addresses, boxes with OpenImages' flags."""
    flags = {"IsOccluded": 1, "IsInside": 0, "IsDepiction": 0, "IsTruncated": -1, "IsGroupOf": 1}
    absent = {"license": None, "coco_url": None}
    document: dict[str, Any] = {
        "info": {"description": "OpenImages-MLPerf", "year": None},
        "licenses": [],
        "categories": [{"id": id, "name": f"class {id}", "supercategory": None} for id in range(1, 265)],
        "images": [
            {"id": 0, "file_name": "000002b66c9c498e.jpg", "height": 683, "width": 1024, **absent},
            {"id": 1, "file_name": "0000e8b36676338b.jpg", "height": 1024, "width": 768, **absent},
        ],
        "annotations": [
            {"id": 0, "image_id": 0, "category_id": 264, "bbox": [102.4, 68.3, 512.0, 341.5], "area": 174848.0,
             "iscrowd": 0, **flags},
            {"id": 1, "image_id": 0, "category_id": 1, "bbox": [0.0, 0.0, 1024.0, 683.0], "area": 699392.0,
             "iscrowd": 1, **flags},
        ],
    }  # fmt: skip
    data = write(tmp_path, document)
    for image in document["images"]:
        (tmp_path / "train" / image["file_name"]).touch()
    annotations = read_annotations(data, "train")
    assert_clean(annotations)
    assert annotations.num_classes == 265 and annotations.file_names[0] == "000002b66c9c498e.jpg"
    assert annotations.labels.tolist() == [264, 1] and annotations.is_crowd.tolist() == [False, True]
    np.testing.assert_allclose(annotations.boxes_ltrb[0], [0.1, 0.1, 0.6, 0.6], rtol=1e-6)
    assert annotations.areas_px.tolist() == [174848, 699392] and annotations.repairs == {}
    assert annotations.trainable_indices().tolist() == [0]


@pytest.mark.parametrize("document", [without("annotations", 1, "id"), changed("annotations", 1, "id", to=0)])
def test_boxes_are_numbered_where_pycocotools_could_not_use_their_ids(tmp_path: Path, document: object) -> None:
    annotations = read_annotations(write(tmp_path, document), "train")
    assert annotations.annotation_ids.tolist() == [2, 3, 1]


def test_ground_truth_states_the_original_numbers(tmp_path: Path) -> None:
    truth = read_annotations(write(tmp_path, changed("annotations", 1, "bbox", to=[-20, 10, 100, 50])), "train")
    assert truth.coco_dataset() == {
        "images": DOCUMENT["images"],
        "categories": DOCUMENT["categories"],
        "annotations": [
            {"id": 12, "image_id": 70, "category_id": 3, "bbox": [-20, 10, 100, 50], "area": 4000, "iscrowd": 0},
            {"id": 5, "image_id": 70, "category_id": 90, "bbox": [50.5, 25, 50, 25], "area": 1250, "iscrowd": 1},
            {"id": 11, "image_id": 9, "category_id": 3, "bbox": [0, 0, 10, 10], "area": 60.5, "iscrowd": 1},
        ],
    }


@pytest.mark.parametrize("image_folder", ["train", "images/train"])
def test_both_layouts_are_understood(tmp_path: Path, image_folder: str) -> None:
    write(tmp_path, DOCUMENT, image_folder)
    assert find_split(tmp_path, "train") == (tmp_path / image_folder, tmp_path / "annotations/instances_train.json")
    assert read_annotations(tmp_path, "train").image_folder == tmp_path / image_folder


def test_images_may_lie_in_subfolders(tmp_path: Path) -> None:
    write(tmp_path, changed("images", 1, "file_name", to="night/deep/b.jpg"))
    (tmp_path / "train" / "night" / "deep").mkdir(parents=True)
    (tmp_path / "train" / "b.jpg").rename(tmp_path / "train" / "night" / "deep" / "b.jpg")
    assert read_annotations(tmp_path, "train").file_names == ["a.jpg", "night/deep/b.jpg", "c.jpg"]


def test_segmentation_of_any_kind_is_ignored(tmp_path: Path) -> None:
    document = changed("annotations", 0, "segmentation", to={"counts": "abc", "size": [10, 10]})
    document["annotations"][1]["segmentation"] = MASK
    assert_clean(read_annotations(write(tmp_path, document), "train"))


# --- repairs: an image of 200 x 100 pixels ---


@pytest.mark.parametrize(
    ("box_xywh_px", "expected_ltrb", "repair"),
    [
        ([0, 0, 200, 100], [0, 0, 1, 1], None),
        ([-0.5, 0, 100.5, 50], [0, 0, 0.5, 0.5], None),  # half a pixel is rounding, not an error
        ([-0.6, 0, 100.6, 50], [0, 0, 0.5, 0.5], "boxes clipped to the image"),
        ([150, 50, 100, 100], [0.75, 0.5, 1, 1], "boxes clipped to the image"),
        ([-1e9, -1e9, 2e9, 2e9], [0, 0, 1, 1], "boxes clipped to the image"),
        ([10, 10, 0.1, 0.1], [0.05, 0.1, 0.0505, 0.101], None),
        ([10, 10, 0, 20], None, "zero-size boxes dropped"),
        ([10, 10, 20, 0.09], None, "zero-size boxes dropped"),
        ([10, 10, -5, 20], None, "boxes of negative size (corners exchanged?) dropped"),
        ([200, 0, 10, 10], None, "boxes outside the image dropped"),
        ([-20, 0, 20, 10], None, "boxes outside the image dropped"),
        ([0, -20, 10, 20.05], None, "boxes outside the image dropped"),  # 0.05 px of it are inside
        ([float("nan"), 0, 10, 10], None, "boxes that are not finite dropped"),
        ([0, 0, float("inf"), 10], None, "boxes that are not finite dropped"),
        ([1e308, 0, 1e308, 10], None, "boxes that are not finite dropped"),  # its right side is not
        ([0, 0, 1e200, 1e200], None, "boxes that are not finite dropped"),  # its area is not
    ],
)
def test_boxes_are_kept_clipped_or_dropped(
    tmp_path: Path, box_xywh_px: list[float], expected_ltrb: list[float] | None, repair: str | None
) -> None:
    annotations = read_annotations(write(tmp_path, with_boxes([20, 10, 100, 50], box_xywh_px)), "train")
    assert_clean(annotations)
    kept = [box_xywh_px] if expected_ltrb else []
    assert annotations.boxes_xywh_px.tolist() == [[20, 10, 100, 50], *kept]
    if expected_ltrb:
        np.testing.assert_allclose(annotations.boxes_ltrb[1], expected_ltrb, atol=1e-7)  # float32 below 1
    assert annotations.repairs == ({repair: 1} if repair else {})


def test_repairs_are_told_in_one_line(tmp_path: Path) -> None:
    boxes: list[list[float]] = [[0, 0, 0, 5], [0, 0, 5, 0], [-5, 0, 10, 10]]
    annotations = read_annotations(write(tmp_path, with_boxes(*boxes)), "train")
    counts = "zero-size boxes dropped: 2, boxes clipped to the image: 1"
    assert annotations.repairs_text == f"{annotations.file}: {counts}"


# --- what is refused ---


def split_of(folder: str, split: str, request: pytest.FixtureRequest) -> Annotations:
    """Of the demo data, which every clone has, or of the real images where they are."""
    data: Path = request.getfixturevalue("demo_data" if folder == "demo" else "shared_data")
    return read_annotations(data if folder == "demo" else data / folder, split)


@pytest.mark.parametrize(("folder", "split"), [*SPLITS, *REAL_SPLITS])
def test_a_whole_data_set_is_clean(folder: str, split: str, request: pytest.FixtureRequest) -> None:
    annotations = split_of(folder, split, request)
    assert_clean(annotations)
    expected_repairs = {"zero-size boxes dropped": 2} if (folder, split) == ("bccd", "train") else {}
    assert annotations.repairs == expected_repairs


@pytest.mark.parametrize(("folder", "split"), [*SPLITS, *REAL_SPLITS[:2]])
def test_ground_truth_equals_what_pycocotools_reads(folder: str, split: str, request: pytest.FixtureRequest) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    annotations = split_of(folder, split, request)
    theirs, ours = coco.COCO(os.fspath(annotations.file)), coco.COCO()
    ours.dataset = annotations.coco_dataset()
    ours.createIndex()
    assert ours.getImgIds() == theirs.getImgIds() and ours.getCatIds() == theirs.getCatIds()
    assert [ours.cats[id]["name"] for id in ours.getCatIds()] == [theirs.cats[id]["name"] for id in theirs.getCatIds()]
    assert ours.anns.keys() == theirs.anns.keys() and len(ours.anns) > (900 if folder == "coco256" else 10)
    for id, truth in theirs.anns.items():
        assert {key: truth[key] for key in ours.anns[id]} == ours.anns[id]
        assert ours.anns[id].keys() == {"id", "image_id", "category_id", "bbox", "area", "iscrowd"}
    for id, image in theirs.imgs.items():
        assert {key: image[key] for key in ("id", "file_name", "width", "height")} == ours.imgs[id]
