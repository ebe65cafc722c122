"""What is wrong with a whole data set is told before training, and named: no entry of it could be refused alone."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from square_view import VIEW
from tool_data import (
    BOXES_XYWH_PX,
    HEIGHT_PX,
    WIDTH_PX,
    Document,
    document_of,
    write_coco,
    write_json,
    write_voc,
    write_yolo,
)

import main
from pipelines import build_train
from pipelines.annotations import Annotations
from pipelines.box_counts import count_boxes
from pipelines.categories import with_categories_of
from pipelines.plausibility import look_at_both, of_counts, of_pair, of_split
from pipelines.readers.reading import read_source
from pipelines.readers.splits import find_named
from ssd.distributed import Ranks
from ssd.errors import InputError


def splits(folder: Path) -> tuple[Annotations, Annotations]:
    return read_source(find_named(folder, "train")), read_source(find_named(folder, "val"))


def boxes(change: Callable[[list[float]], list[float]]) -> Callable[[Document, Path], None]:
    def apply(document: Document, folder: Path) -> None:
        for row in document["annotations"]:
            row["bbox"] = change(row["bbox"])

    return apply


def fractions(box: list[float]) -> list[float]:
    return [side / length for side, length in zip(box, (WIDTH_PX, HEIGHT_PX) * 2, strict=True)]


def corners(box: list[float]) -> list[float]:
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def test_a_good_set_arouses_no_suspicion(tmp_path: Path) -> None:
    assert look_at_both(*splits(write_coco(tmp_path)), VIEW) == []


def test_corners_are_told_by_the_areas_that_are_stated(tmp_path: Path) -> None:
    """Near the left upper corner of their images no box leaves it."""

    def change(document: Document, folder: Path) -> None:
        for row in document["annotations"]:
            row["bbox"], row["area"] = [2 * row["id"], 5, 2 * row["id"] + 10, 5 + 8], 80

    (found,) = of_split(splits(write_coco(tmp_path, change))[0])
    assert "look like corners" in found.what and found.where == ["8 of 8 state the area that they have as corners"]
    assert of_split(splits(write_coco(tmp_path / "b", boxes(lambda box: [0, 0, *box[2:]])))[0]) == []


def test_boxes_that_are_fractions_stop_a_run(tmp_path: Path) -> None:
    train, val = splits(write_coco(tmp_path, boxes(fractions)))
    with pytest.raises(InputError, match="fractions of the image, not pixels: 8 of 8 boxes have no number above 1"):
        look_at_both(train, val, VIEW)


def test_corners_of_voc_that_are_fractions(tmp_path: Path) -> None:
    def change(xml: str) -> str:
        return re.sub(
            r"<([xy])(m..)>(\d+)<", lambda m: f"<{m[1]}{m[2]}>{int(m[3]) / (96 if m[1] == 'x' else 64):.5f}<", xml
        )

    (found,) = of_split(splits(write_voc(tmp_path, change))[0])
    assert "fractions" in found.what and found.stops


def test_corners_that_are_fractions_where_coco_has_sizes(tmp_path: Path) -> None:
    """The boxes end beyond the first pixel, at 0.3 + 0.8 of it."""
    (found,) = of_split(splits(write_coco(tmp_path, boxes(lambda _: [0.3, 0.35, 0.8, 0.85])))[0])
    assert "fractions" in found.what and found.stops and found.where[0].startswith("8 of 8")


def test_some_fractions_are_warned_of(tmp_path: Path) -> None:
    def first_only(document: Document, folder: Path) -> None:
        document["annotations"][0]["bbox"] = [0.1, 0.2, 0.5, 0.5]

    warnings = look_at_both(*splits(write_coco(tmp_path, first_only)), VIEW)
    assert ["1 of 8 boxes have" in warnings[0], "1 of 4 boxes have" in warnings[1]] == [True, True]


@pytest.mark.parametrize(("side_px", "count", "is_told"), [(200, 20, True), (140, 20, False), (200, 19, False)])
def test_boxes_in_percent_are_warned_of(side_px: int, count: int, is_told: bool) -> None:
    boxes_xywh = np.random.default_rng(0).uniform(0, 50, (count, 4))
    sizes_px = np.full((count, 2), side_px)
    counts = count_boxes(boxes_xywh, sizes_px, tolerance_px=1)
    assert counts.as_percent == (count if side_px == 200 else 0) and counts.as_fractions == 0
    found = [each.what for each in of_counts(counts)]
    assert ("boxes that look like percent of the image, not pixels" in found) is is_told
    assert of_counts(count_boxes(boxes_xywh, sizes_px, tolerance_px=1, form="YOLO")) == []  # they are fractions there
    boxes_xywh[0] = [60, 60, 50, 50]  # beyond 100
    assert of_counts(count_boxes(boxes_xywh, sizes_px, tolerance_px=1)) == []


def test_corners_given_as_sizes_are_warned_of(tmp_path: Path) -> None:
    train, _ = splits(write_coco(tmp_path, boxes(corners)))
    (found,) = of_split(train)
    assert "corners (left, top, right, bottom)" in found.what and found.where[0].startswith("4 of 8 leave the image")


@pytest.mark.parametrize(
    ("times", "odd_box", "told"),
    [
        (1, [0, 0, 0, 0], "3 of 8 leave the image, and 7 would fit in it as corners"),
        # As corners it is empty, as left, top, width and height it is not.
        (2, [10, 10, 10, 10], "7 of 16 leave the image, and 15 would fit in it as corners"),
    ],
)
def test_an_odd_box_among_corners_hides_nothing(times: int, odd_box: list[float], told: str, tmp_path: Path) -> None:
    def corners_but_one(document: Document, folder: Path) -> None:
        rows = document["annotations"] * times
        document["annotations"] = [{**row, "id": i, "bbox": corners(row["bbox"])} for i, row in enumerate(rows, 1)]
        document["annotations"][-1]["bbox"] = odd_box

    (found,) = of_split(splits(write_coco(tmp_path, corners_but_one))[0])
    assert found.where == [told]


def test_large_boxes_that_overhang_a_little_are_no_corners(tmp_path: Path) -> None:
    """Pictures of one large object each: all boxes would fit as corners too."""
    assert of_split(splits(write_coco(tmp_path, boxes(lambda _: [2, 2, WIDTH_PX - 1, HEIGHT_PX - 1])))[0]) == []


def test_sizes_given_as_corners_of_voc_are_warned_of(tmp_path: Path) -> None:
    def sizes(xml: str) -> str:
        """Of both boxes, xmax and ymax of the first would be right of xmin and below ymin as corners too."""
        first, second = re.findall("<bndbox>.*?</bndbox>", xml)
        return xml.replace(
            first, "<bndbox><xmin>11</xmin><ymin>9</ymin><xmax>32</xmax><ymax>24</ymax></bndbox>"
        ).replace(second, "<bndbox><xmin>51</xmin><ymin>31</ymin><xmax>26</xmax><ymax>20</ymax></bndbox>")

    (found,) = of_split(splits(write_voc(tmp_path, sizes))[0])
    assert "left, top, width, height where VOC has corners" in found.what and "4 of 8" in found.where[0]


def test_exchanged_corners_of_voc_are_no_sizes(tmp_path: Path) -> None:
    swapped = {"xmin": "xmax", "xmax": "xmin"}
    train, _ = splits(write_voc(tmp_path, lambda xml: re.sub("xm(in|ax)", lambda m: swapped[m[0]], xml)))
    assert train.box_counts.impossible == 8 and of_split(train) == []  # each is dropped, and counted so


def test_corners_given_as_centres_of_yolo_are_warned_of(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    assert of_split(splits(tmp_path)[0]) == []
    lines = [f"{c} {x / 96} {y / 64} {(x + w) / 96} {(y + h) / 64}\n" for c, (x, y, w, h) in enumerate(BOXES_XYWH_PX)]
    for file in (tmp_path / "labels").glob("*/*.txt"):
        file.write_text("".join(lines))
    (found,) = of_split(splits(tmp_path)[0])
    assert "where YOLO has centre, width, height" in found.what
    assert found.where == ["4 of 8 leave the image, and all would fit in it as corners"]


def test_a_few_large_boxes_that_leave_the_image_are_no_corners(tmp_path: Path) -> None:
    def one_leaves(document: Document, folder: Path) -> None:
        document["annotations"][0]["bbox"] = [2, 2, WIDTH_PX, HEIGHT_PX]

    assert of_split(splits(write_coco(tmp_path, one_leaves))[0]) == []


@pytest.mark.parametrize("name", ["dali", "no_dali"])
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda d, f: [row.update(iscrowd=1) for row in d["annotations"]], "8 are crowd regions"),
        (boxes(lambda b: [b[0] + b[2], b[1] + b[3], -b[2], -b[3]]), "8 boxes of negative size (corners exchanged?)"),
        (boxes(lambda b: [b[0], b[1], 0, 0]), "8 zero-size boxes dropped"),
        (boxes(lambda b: [b[0] + 1000, *b[1:]]), "8 boxes outside the image dropped"),
        (lambda d, f: d["annotations"].clear(), "its 4 images have no boxes at all"),
    ],
    ids=["crowd", "negative", "zero", "outside", "none"],
)  # fmt: skip
def test_nothing_to_learn_says_why(change: Callable, why: str, name: str, tmp_path: Path) -> None:
    import torch

    train, _ = splits(write_coco(tmp_path, change))
    with pytest.raises(InputError) as refused:
        build_train(
            name, train, batch_size=2, num_workers=0, seed=0, ranks=Ranks(0, 0, 1, torch.device("cpu")), view=VIEW
        )
    assert why in str(refused.value) and "nothing to learn from" in str(refused.value)


# --- categories ---


def change_val(folder: Path, change: Callable[[Document], object]) -> tuple[Annotations, Annotations]:
    write_coco(folder)
    file = folder / "annotations" / "instances_val.json"
    document = json.loads(file.read_text())
    change(document)
    write_json(file, document)
    return splits(folder)


def test_categories_in_another_order_are_the_same(tmp_path: Path) -> None:
    train, val = change_val(tmp_path, lambda document: document["categories"].reverse())
    assert val.labels.tolist() == [2, 1] * 2
    as_train = with_categories_of(train, val)
    assert as_train.categories == train.categories and as_train.labels.tolist() == [1, 2] * 2


def test_a_category_that_has_no_box_may_lack_or_be_too_many(tmp_path: Path) -> None:
    def only_green(document: Document) -> None:
        document["categories"] = [{"id": 9, "name": "blue"}, document["categories"][1]]
        document["annotations"] = [row for row in document["annotations"] if row["category_id"] == 2]

    train, val = change_val(tmp_path, only_green)
    as_train = with_categories_of(train, val)
    assert as_train.categories == train.categories and as_train.labels.tolist() == [2, 2]


DIFFERENCES: list[tuple[Callable[[Document], object], str]] = [
    (lambda d: d["categories"][1].update(name="lime"), "id 2 is 'lime' here and 'green' in instances_train.json"),
    (
        lambda d: [c.update(id=3 - c["id"]) for c in d["categories"]],
        "'red' has id 2 here and 1 in instances_train.json",
    ),
    (
        lambda d: (d["categories"].append({"id": 3, "name": "blue"}), d["annotations"][0].update(category_id=3)),
        "'blue' (id 3) has boxes here and is not in instances_train.json",
    ),
]


@pytest.mark.parametrize(("change", "difference"), DIFFERENCES, ids=[difference for _, difference in DIFFERENCES])
def test_categories_that_differ_are_named(change: Callable, difference: str, tmp_path: Path) -> None:
    train, val = change_val(tmp_path, change)
    with pytest.raises(InputError) as refused:
        with_categories_of(train, val)
    assert difference in str(refused.value) and "make them equal" in str(refused.value)


# --- classes ---


def classes(tmp_path: Path, learned: dict[str, int], judged: dict[str, int]) -> list[str]:
    """What is suspected of so many boxes of each class."""
    names = list(learned | judged)
    found = []
    for split, counts in (("train", learned), ("val", judged)):
        document = document_of([f"{split}{i}" for i in range(2)])
        document["categories"] = [{"id": k, "name": name} for k, name in enumerate(names, 1)]
        of_class = [k for k, name in enumerate(names, 1) for _ in range(counts.get(name, 0))]
        document["annotations"] = [
            {"id": i, "image_id": 1, "category_id": k, "bbox": [4, 4, 20 + i % 40, 30]}
            for i, k in enumerate(of_class, 1)
        ]
        write_json(tmp_path / "annotations" / f"instances_{split}.json", document)
        for row in document["images"]:
            (tmp_path / "images" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "images" / split / row["file_name"]).touch()
        found.append(read_source(find_named(tmp_path, split)))
    return [f"{each.what}: {', '.join(each.where)}" for each in of_pair(*found)]


def test_classes_that_are_suspicious(tmp_path: Path) -> None:
    many = {"helmet": 90, "vest": 80, "Vest": 40, "lane 1": 70, "lane 2": 1}
    found = classes(
        tmp_path / "a", {**many, "hemlet": 2, "shapes": 0}, {"helmet": 9, "vest": 8, "glove": 1, "shapes": 0}
    )
    assert found == [
        "classes with boxes to judge by and none to learn from: glove",
        "classes without boxes: shapes",
        "classes whose names differ in case or spaces only: 'vest' = 'Vest'",
        "classes that may be others mistyped: 'hemlet' (2, 'helmet' has 99)",
    ]
    assert classes(tmp_path / "b", {"cat": 9}, {}) == ["a split to judge by without boxes: instances_val.json"]
    assert classes(tmp_path / "c", {"cat": 90, "dog": 3}, {"cat": 9, "dog": 1}) == []


def test_the_check_shows_boxes_by_class_and_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = write_coco(tmp_path / "data", boxes(fractions))
    command = ["check", "--data", str(data), "--num-workers", "1", "--json", str(tmp_path / "found.json")]
    assert main.main(command) == 1
    shown = capsys.readouterr().out
    assert "fractions of the image" in shown and "red" in shown
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["boxes_by_class"] == {"red": {"train": 4, "val": 2}, "green": {"train": 4, "val": 2}}
