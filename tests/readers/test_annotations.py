"""What the annotation reader passes is clean, and what it refuses it refuses with one line that helps."""

import copy
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_documents import DOCUMENT, MASK, assert_clean, changed, with_boxes, without, write
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.annotations import Annotations
from pipelines.readers.coco import find_split, read_annotations
from ssd.errors import InputError

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


def refusal(folder: Path, split: str = "train") -> str:
    """The message with which the split is refused: one line, about a file or folder of the data set."""
    with pytest.raises(InputError) as refused:
        read_annotations(folder, split)
    message = str(refused.value)
    assert len(message.splitlines()) == 1 and str(folder) in message
    assert ";" in message or "?" in message, f"no remedy in {message!r}"
    return message


NOT_OBJECTS: list[Any] = [[], "text", 3, None, True]
NOT_INTEGERS: list[Any] = [7.0, True, None, []]
NOT_BOXES: list[Any] = [
    None, 4, "abcd", {}, [], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, "4"], [1, 2, 3, True], [[1, 2, 3, 4]],
]  # fmt: skip
NOT_INSIDE = ["", "/etc/passwd", "../a.jpg", "x/../../a.jpg", "x\\b.jpg", "b.jpg\0", "./b.jpg", "x//b.jpg", ".."]
BAD_ENTRIES: list[tuple[dict[str, Any], str]] = [
    *[(without(key), f"'{key}' is missing") for key in DOCUMENT],
    *[(changed(key, to={}), f"'{key}' is not a list") for key in DOCUMENT],
    *[(changed(key, to=None), f"'{key}' is not a list") for key in DOCUMENT],
    *[(changed(key, 1, to=[]), f"{key}[1] is not a JSON object") for key in DOCUMENT],
    (changed("images", to=[]), "'images' is empty"),
    (changed("categories", to=[]), "'categories' is empty"),
    *[(without("categories", 1, key), f"categories[1] has no '{key}'") for key in ("id", "name")],
    (changed("categories", 1, "id", to=90), "categories[1] repeats 'id' 90"),
    (changed("categories", 1, "id", to="3"), "categories[1] has 'id' '3', which is not an integer"),
    (changed("categories", 1, "name", to=3), "categories[1] has 'name' 3, which is not text"),
    (changed("categories", 1, "name", to=" "), "categories[1] has an empty 'name'"),
    (changed("categories", 1, "name", to="\ud800"), "categories[1] has a 'name' that is not Unicode"),
    *[
        (changed("categories", 1, "name", to=name), "categories[1] has a 'name' with control characters")
        for name in ("two\nlines", "\x1b[2J", "nul\0")
    ],
    *[(without("images", 1, key), f"images[1] has no '{key}'") for key in ("id", "file_name", "width", "height")],
    *[
        (changed("images", 1, key, to=value), f"images[1] has '{key}' {value}, which is not an integer")
        for key in ("id", "width", "height")
        for value in NOT_INTEGERS
    ],
    (changed("images", 1, "id", to=70), "images[1] repeats 'id' 70"),
    (changed("images", 1, "id", to=10**30), "images[1] has 'id' 1000000000000000000000000000000, which is too large"),
    (changed("images", 1, "file_name", to=5), "images[1] has 'file_name' 5, which is not text"),
    (changed("images", 1, "file_name", to="a.jpg"), "images[1] repeats 'file_name' 'a.jpg'"),
    *[
        (changed("images", 1, "file_name", to=name), f"images[1] has file_name {name!r}, not a plain path")
        for name in NOT_INSIDE
    ],
    (changed("images", 1, "width", to=0), "images[1] has a 'width' outside 1..65535"),
    (changed("images", 1, "height", to=-4), "images[1] has a 'height' outside 1..65535"),
    (changed("images", 1, "width", to=65536), "images[1] has a 'width' outside 1..65535"),
    *[
        (without("annotations", 1, key), f"annotations[1] has no '{key}'")
        for key in ("image_id", "category_id", "bbox")
    ],
    (changed("annotations", 1, "image_id", to=8), "annotations[1] has image_id 8, but no image has that id"),
    (changed("annotations", 1, "image_id", to=70.0), "annotations[1] has 'image_id' 70.0, which is not an integer"),
    (changed("annotations", 1, "category_id", to=1), "annotations[1] has category_id 1, but no category has that id"),
    (changed("annotations", 1, "id", to=11), "annotations[1] repeats 'id' 11"),
    (changed("annotations", 1, "id", to="x"), "annotations[1] has 'id' 'x', which is not an integer"),
    (changed("annotations", 1, "area", to="x"), "annotations[1] has 'area' 'x', which is not a number"),
    (changed("annotations", 1, "area", to=10**400), "annotations[1] has a number too large in 'area'"),
    (changed("annotations", 1, "iscrowd", to=2), "annotations[1] has an 'iscrowd' that is neither 0 nor 1"),
    (changed("annotations", 1, "iscrowd", to="0"), "annotations[1] has 'iscrowd' '0', which is not 0 or 1"),
    *[(changed("annotations", 1, "bbox", to=box), "annotations[1] has 'bbox'") for box in NOT_BOXES],
    (changed("annotations", 1, "bbox", to=[1, 2, 3, -(10**400)]), "annotations[1] has a number too large in 'bbox'"),
]


@pytest.mark.parametrize(("document", "problem"), BAD_ENTRIES, ids=[problem[:60] for _, problem in BAD_ENTRIES])
def test_a_bad_entry_is_named(tmp_path: Path, document: object, problem: str) -> None:
    message = refusal(write(tmp_path, document))
    assert "instances_train.json" in message and problem in message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "not valid JSON at line 1, column 1"),
        (b'{"images":\n [}', "not valid JSON at line 2, column 3"),
        (b'{"images": "\xff"}', "not UTF-8 at byte 12"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"images": ' + b"9" * 5000 + b"}", "integer of thousands of digits"),
        *[(json.dumps(value).encode(), "must hold a JSON object") for value in NOT_OBJECTS],
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: bytes, problem: str) -> None:
    message = refusal(write(tmp_path, text))
    assert "instances_train.json" in message and problem in message


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    write(tmp_path, DOCUMENT)
    file = tmp_path / "annotations" / "instances_train.json"
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert "not valid JSON at line 1" in refusal(tmp_path)


def test_missing_folders_and_files_are_named(tmp_path: Path) -> None:
    assert "no such data folder" in refusal(tmp_path / "nowhere")
    message = refusal(tmp_path)
    assert str(tmp_path / "train") in message and str(tmp_path / "images" / "train") in message
    (tmp_path / "train").mkdir()
    message = refusal(tmp_path)
    assert str(tmp_path / "annotations" / "instances_train.json") in message and "no such annotation file" in message


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: object, **kwargs: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    write(tmp_path, DOCUMENT)
    monkeypatch.setattr(Path, "open", denied)  # root, who runs this in a container, may read anything
    assert "cannot be read (Permission denied)" in refusal(tmp_path)


def test_missing_images_are_named_and_counted(tmp_path: Path) -> None:
    write(tmp_path, DOCUMENT)
    (tmp_path / "train" / "b.jpg").unlink()
    assert "image 'b.jpg' not found" in refusal(tmp_path)
    (tmp_path / "train" / "c.jpg").unlink()
    (tmp_path / "train" / "c.jpg").mkdir()  # a folder is no image
    assert "image 'b.jpg' and 1 more not found" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["nowhere/b.jpg", "a.jpg/b.jpg", "\ud800/b.jpg", "two\nlines.jpg"])
def test_an_image_that_cannot_exist_is_missing(tmp_path: Path, name: str) -> None:
    assert "not found" in refusal(write(tmp_path, changed("images", 1, "file_name", to=name)))


def test_a_name_too_long_for_the_file_system_is_refused(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, changed("images", 1, "file_name", to=f"{'x' * 5000}/b.jpg")))
    assert "cannot list its images" in message and len(message) < 500


def test_links_may_not_leave_the_image_folder(tmp_path: Path) -> None:
    data, outside = write(tmp_path / "data", DOCUMENT), tmp_path / "outside"
    outside.mkdir()
    (data / "train" / "b.jpg").rename(outside / "b.jpg")
    (data / "train" / "b.jpg").symlink_to(outside / "b.jpg")
    assert "images[1] has file_name 'b.jpg', a link out of" in refusal(data)

    (data / "train" / "b.jpg").unlink()
    (data / "train" / "sub").symlink_to(outside)
    write(data, changed("images", 1, "file_name", to="sub/b.jpg"))
    assert "images[1] has file_name 'sub/b.jpg', a link out of" in refusal(data)


def test_links_inside_the_image_folder_and_to_it_are_fine(tmp_path: Path) -> None:
    data = write(tmp_path / "data", DOCUMENT)
    (data / "train" / "b.jpg").unlink()
    (data / "train" / "b.jpg").symlink_to("a.jpg")
    (data / "train").rename(tmp_path / "elsewhere")
    (data / "train").symlink_to(tmp_path / "elsewhere")
    assert_clean(read_annotations(data, "train"))


def test_a_link_to_itself_or_to_nothing_is_missing(tmp_path: Path) -> None:
    write(tmp_path, DOCUMENT)
    for name in ("b.jpg", "c.jpg"):
        (tmp_path / "train" / name).unlink()
        (tmp_path / "train" / name).symlink_to(name if name == "b.jpg" else "nothing")
    assert "image 'b.jpg' and 1 more not found" in refusal(tmp_path)


# --- whatever the file holds, the answer is clean annotations or InputError ---

FIELDS = [
    ("images",), ("categories",), ("annotations",),
    *[("images", 1, key) for key in DOCUMENT["images"][1]],
    *[("categories", 1, key) for key in DOCUMENT["categories"][1]],
    *[("annotations", 1, key) for key in DOCUMENT["annotations"][1]],
    *[("annotations", 1, "bbox", i) for i in range(4)],
    *[(key, 1) for key in DOCUMENT],
]  # fmt: skip
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([0, 1, 7, 70, 2**63, -(2**63), 10**400, 2**1024 - 1]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=5), st.sampled_from(["a.jpg", "..", "\ud800"])),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.sampled_from(["id", "name"]), values),
    max_leaves=5,
)
BYTES = json.dumps(changed("annotations", 2, "segmentation", to=MASK)).encode()
TOKENS = [b"[", b"]", b"{", b"}", b"0", b"-", b",", b'"', b"e9", b"NaN", b"null"]


@pytest.fixture(scope="module")
def fuzz_folder() -> Any:
    folder = Path(tempfile.mkdtemp())
    yield folder
    shutil.rmtree(folder)


def assert_clean_or_refused(folder: Path, document: object) -> None:
    write(folder, document)
    try:
        annotations = read_annotations(folder, "train")
    except InputError as error:
        assert len(str(error).splitlines()) == 1 and "instances_train.json" in str(error)
        str(error).encode()  # a console can print it
    else:
        assert_clean(annotations)


@settings(max_examples=400, deadline=None)
@given(changes=st.lists(st.tuples(st.sampled_from(FIELDS), VALUES), min_size=1, max_size=2))
def test_any_value_in_any_field(fuzz_folder: Path, changes: list[tuple[tuple[Any, ...], object]]) -> None:
    document: Any = copy.deepcopy(DOCUMENT)
    for path, value in changes:
        try:
            at = document
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            pass  # an earlier change took the place away
    assert_clean_or_refused(fuzz_folder, document)


@settings(max_examples=400, deadline=None)
@given(box=st.lists(st.floats(-300, 300) | NUMBERS, min_size=4, max_size=4))
def test_any_numbers_in_a_box(fuzz_folder: Path, box: list[float]) -> None:
    assert_clean_or_refused(fuzz_folder, with_boxes(box))


@settings(max_examples=400, deadline=None)
@given(at=st.integers(0, len(BYTES)), cut=st.integers(0, 5), put=st.binary(max_size=3) | st.sampled_from(TOKENS))
def test_any_damage_to_the_bytes(fuzz_folder: Path, at: int, cut: int, put: bytes) -> None:
    assert_clean_or_refused(fuzz_folder, BYTES[:at] + put + BYTES[at + cut :])


# --- whole data sets ---


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
