"""The demo data set: its layout and annotations are COCO's, its bytes repeat, and writing it is safe to interrupt."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from pipelines.demo import data_set, drawing, scenes, shapes
from ssd.errors import InputError

COUNTS = {"train2017": 24, "val2017": 8}
Annotations = dict[str, dict[str, Any]]


def write(folder: Path) -> Path:
    return data_set.write_demo_data(folder, COUNTS["train2017"], COUNTS["val2017"])


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("demo") / "coco")


@pytest.fixture(scope="module")
def content(data: Path) -> Annotations:
    return {split: json.loads((data / "annotations" / f"instances_{split}.json").read_text()) for split in COUNTS}


def test_layout_is_cocos(data: Path, content: Annotations) -> None:
    for split, count in COUNTS.items():
        assert {"info", "licenses", "images", "annotations", "categories"} <= content[split].keys()
        assert len(content[split]["images"]) == count
        assert {i["file_name"] for i in content[split]["images"]} == {p.name for p in (data / split).iterdir()}
        for image in content[split]["images"]:
            with Image.open(data / split / image["file_name"]) as picture:
                assert (picture.size, picture.mode) == ((image["width"], image["height"]), "RGB")


def test_ids_are_unique_and_category_ids_have_gaps(content: Annotations) -> None:
    image_ids = [image["id"] for split in COUNTS for image in content[split]["images"]]
    assert len(set(image_ids)) == sum(COUNTS.values())
    for split in COUNTS:
        annotations = content[split]["annotations"]
        assert len({annotation["id"] for annotation in annotations}) == len(annotations)
        category_ids = [category["id"] for category in content[split]["categories"]]
        assert len(category_ids) >= 5
        assert category_ids != list(range(1, len(category_ids) + 1))
        assert {annotation["category_id"] for annotation in annotations} == set(category_ids)


def test_images_vary_and_some_are_empty_or_hold_a_crowd(content: Annotations) -> None:
    for split in COUNTS:
        images, annotations = content[split]["images"], content[split]["annotations"]
        assert any(image["width"] > image["height"] for image in images)
        assert any(image["width"] < image["height"] for image in images)
        assert len({(image["width"], image["height"]) for image in images}) > len(images) // 2
        assert any(annotation["iscrowd"] for annotation in annotations)
        per_image = [sum(a["image_id"] == image["id"] and not a["iscrowd"] for a in annotations) for image in images]
        assert per_image.count(0) == 1  # at scenes.EMPTY_AT
        assert 1 not in per_image
        assert max(per_image) <= 7


def test_boxes_lie_inside_their_images(content: Annotations) -> None:
    for split in COUNTS:
        sizes = {image["id"]: (image["width"], image["height"]) for image in content[split]["images"]}
        for annotation in content[split]["annotations"]:
            left, top, width, height = annotation["bbox"]
            assert left >= 0 and top >= 0
            # The corner is a sum of two numbers rounded to 0.01.
            assert left + width <= sizes[annotation["image_id"]][0] + 0.01
            assert top + height <= sizes[annotation["image_id"]][1] + 0.01
            assert min(width, height) >= 5


def test_polygons_touch_all_sides_of_their_boxes(content: Annotations) -> None:
    objects = [a for split in COUNTS for a in content[split]["annotations"] if not a["iscrowd"]]
    for annotation in objects:
        (polygon,) = annotation["segmentation"]
        points = np.array(polygon).reshape(-1, 2)
        left_top, right_bottom = points.min(0), points.max(0)
        # Both sides are rounded to 0.01.
        np.testing.assert_allclose(annotation["bbox"], [*left_top, *(right_bottom - left_top)], atol=0.011)


def test_pycocotools_agrees_on_masks_boxes_and_areas(data: Path) -> None:
    for split in COUNTS:
        coco = COCO(str(data / "annotations" / f"instances_{split}.json"))
        for annotation in coco.anns.values():
            mask = coco.annToMask(annotation)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            left, top, width, height = annotation["bbox"]
            sides = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            if annotation["iscrowd"]:
                assert sides == (left, top, left + width, top + height)
                assert mask.sum() == annotation["area"]
            else:
                # Rasterizing moves a side by up to a pixel, and loses a tip thinner than that: 3 px.
                np.testing.assert_allclose(sides, (left, top, left + width, top + height), atol=3)
                # Along the outline, half of the pixels of an error band one pixel wide.
                assert abs(mask.sum() - annotation["area"]) <= 2 * (width + height)


def test_objects_are_drawn_where_the_annotations_say() -> None:
    rng = np.random.default_rng(0)
    for _, make_shape in shapes.CLASSES.values():
        shape = make_shape(rng)
        to_px = drawing.Placement(np.array([80.3, 70.6]), 40.0, 0.3)
        scene = scenes.Scene(np.zeros((140, 160, 3), dtype=np.float32))
        assert scene.place(1, shape, to_px)
        rows, columns = np.nonzero(scene.pixels.max(2) > 0.05)  # a shadow on black stays black
        drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        # Up to a pixel of each side counts though hardly covered, or not though half covered; PIL's rounding adds 1/3.
        np.testing.assert_allclose(drawn, scene.objects[0].box_ltrb_px, atol=1.34)


def test_stars_have_named_points_where_they_are_drawn() -> None:
    """Upright and alone, but for a donut on its left hand: the eyes are dark, and its left is on the right."""
    rng = np.random.default_rng(0)
    scene = scenes.Scene(np.ones((200, 200, 3), dtype=np.float32))
    assert scene.place(4, shapes.CLASSES[4][1](rng), drawing.Placement(np.array([100.0, 100.0]), 60.0, 0.0))
    (star,) = scene.annotations()
    names = shapes.POINTS[4][0]
    points = {name: star["keypoints"][3 * i : 3 * i + 3] for i, name in enumerate(names)}
    assert star["num_keypoints"] == len(names) == 7 and all(v == 2 for _, _, v in points.values())
    for part in ("eye", "hand", "foot"):
        (left_x, left_y, _), (right_x, right_y, _) = points[f"left_{part}"], points[f"right_{part}"]
        assert left_x > 100 > right_x and left_y == pytest.approx(right_y)
        assert left_x + right_x == pytest.approx(200)
    for eye in ("left_eye", "right_eye"):
        x, y, _ = points[eye]
        assert scene.pixels[int(y) + 2, int(x)].mean() < 0.35
    x, y, _ = points["left_hand"]
    assert scene.place(7, shapes.CLASSES[7][1](rng), drawing.Placement(np.array([x + 8, y]), 24.0, 0.0))
    star = scene.annotations()[0]
    assert star["keypoints"][3 * names.index("left_hand") + 2] == 1
    assert "keypoints" not in scene.annotations()[1]


def test_points_beyond_the_picture_are_not_stated(content: Annotations) -> None:
    rows = [row for split in COUNTS for row in content[split]["annotations"] if "keypoints" in row]
    assert rows and {row["category_id"] for row in rows} == {4}
    sizes = {image["id"]: (image["width"], image["height"]) for split in COUNTS for image in content[split]["images"]}
    for row in rows:
        points = np.reshape(row["keypoints"], (-1, 3))
        stated = points[:, 2] > 0
        assert not points[~stated].any() and (points[stated, :2] < sizes[row["image_id"]]).all()
        assert row["num_keypoints"] == stated.sum()
    assert any(0 in row["keypoints"][2::3] for row in rows) and any(1 in row["keypoints"][2::3] for row in rows)


def test_box_of_an_object_cut_by_the_border() -> None:
    square = np.array([(-5.0, 2.0), (5.0, 2.0), (5.0, 12.0), (-5.0, 12.0)])
    clipped = drawing.clip_to_image(square, width=20, height=10)
    np.testing.assert_array_equal([clipped.min(0), clipped.max(0)], [(0, 2), (5, 10)])
    assert drawing.area(clipped) == 40


def test_run_lengths_go_down_the_columns_and_start_with_zeros() -> None:
    assert scenes._run_lengths(np.array([[0, 1], [1, 1], [0, 0]], dtype=np.bool_)) == [1, 1, 1, 2, 1]
    assert scenes._run_lengths(np.array([[1, 0], [1, 1]], dtype=np.bool_)) == [0, 2, 1, 1]


def test_bytes_repeat(data: Path, tmp_path: Path) -> None:
    assert digests(write(tmp_path / "again")) == digests(data)


def test_seeds_and_splits_differ(data: Path, tmp_path: Path) -> None:
    other = data_set.write_demo_data(tmp_path / "other", 1, 1, seed=1)
    first, second = "train2017/000000000001.jpg", "val2017/000000000002.jpg"
    assert len({(folder / name).read_bytes() for folder in (data, other) for name in (first, second)}) == 4


def test_second_call_writes_nothing(data: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    assert write(data) == data
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before


def test_other_counts_or_damage_are_written_anew(tmp_path: Path) -> None:
    folder = data_set.write_demo_data(tmp_path / "coco", 1, 1)
    data_set.write_demo_data(folder, 2, 1)
    intact = digests(folder)
    assert len(list((folder / "train2017").iterdir())) == 2
    next((folder / "train2017").iterdir()).unlink()
    data_set.write_demo_data(folder, 2, 1)
    assert digests(folder) == intact


def test_killed_writer_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "coco"

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(json, "dumps", killed)  # after the pictures, before the annotations
        data_set.write_demo_data(folder, 2, 1)
    assert not folder.exists()
    data_set.write_demo_data(folder, 2, 1)
    assert digests(folder) == digests(data_set.write_demo_data(tmp_path / "undisturbed", 2, 1))
    assert not list(tmp_path.glob(".*.unfinished"))


def test_concurrent_writers_agree(tmp_path: Path) -> None:
    folder = tmp_path / "coco"
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: data_set.write_demo_data(folder, 3, 1), range(3)))
    assert results == [folder] * 3
    assert digests(folder) == digests(data_set.write_demo_data(tmp_path / "alone", 3, 1))


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "coco" / "train2017").mkdir(parents=True)
    precious = tmp_path / "coco" / "train2017" / "000000000009.jpg"
    precious.write_bytes(b"a real picture")
    with pytest.raises(InputError, match=r"coco.*empty or a new folder"):
        write(tmp_path / "coco")
    assert precious.read_bytes() == b"a real picture"
