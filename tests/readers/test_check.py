"""`main.py check` lists all that is wrong at once, also where the strict reader refuses, and changes nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dirty_data import (
    HEIGHT_PX,
    WIDTH_PX,
    animated_without_frames,
    annotation_file,
    damaged,
    edit,
    jpeg_bomb,
    picture,
    png_bomb,
    saved,
    segment_of_no_length,
    truncated,
    with_orientation,
    write_clean_data,
)

import main
from pipelines.check import Effect, SplitReport, exit_code
from pipelines.check import check as check_sources
from pipelines.readers.image_files import read_rgb
from pipelines.readers.splits import find_named, read_annotations
from ssd.errors import InputError

Spoil = Callable[[Path], object]
Found = dict[str, list[str]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def clean_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clean_data(tmp_path_factory.mktemp("clean") / "data")


@pytest.fixture
def data(clean_data: Path, tmp_path: Path) -> Path:
    """Clean data for the test to spoil."""
    return Path(shutil.copytree(clean_data, tmp_path / "data"))


def check(data: Path, train: str, val: str, num_threads: int) -> list[SplitReport]:
    return check_sources(find_named(data, train), find_named(data, val), num_threads)


def found(report: SplitReport) -> Found:
    """What -> where."""
    return {kind.what: [item.where for item in items] for kind, items in report.findings.items()}


def state(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file): (file.stat().st_mtime_ns, file.stat().st_mode, file.read_bytes()) for file in files}


def test_a_fault_of_a_file_that_both_splits_come_of_is_told_once(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(data / "val")
    annotation_file(data, "val").unlink()
    edit(data, lambda document: document["annotations"][3].pop("category_id"))
    assert main.main(["check", "--data", str(data)]) == 1
    shown = capsys.readouterr().out
    assert "held out" in shown and shown.count("annotations[3]: has no 'category_id'") == 1
    assert "1 would stop a run" in shown


def test_clean_data(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state(data)
    assert main.main(["check", "--data", str(data), "--train-split", "train", "--val-split", "val"]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("8 images, 16 boxes, 2 categories") == 2 and shown.out.count("nothing found") == 2
    assert "exit code 0" in shown.out
    assert shown.err == ""  # no bar where there is no terminal
    assert state(data) == before


def replace_image(name: str, content: Callable[[Path], bytes], split: str = "train") -> Spoil:
    def spoil(data: Path) -> None:
        file = data / split / name
        file.write_bytes(content(file))

    return spoil


def entry(table: str, row: int, **values: Any) -> Spoil:
    return lambda data: edit(data, lambda document: document[table][row].update(values))


def link_out(data: Path) -> None:
    outside = data.parent / "outside.jpg"
    (data / "train" / "b.jpg").rename(outside)
    (data / "train" / "b.jpg").symlink_to(outside)


def repeat_annotation(data: Path) -> None:
    edit(data, lambda document: document["annotations"].append({**document["annotations"][2], "id": 1000}))


def crowd_only(data: Path) -> None:
    edit(data, lambda document: [row.update(iscrowd=1) for row in document["annotations"][2:4]])


def no_boxes(data: Path) -> None:
    edit(data, lambda document: document["annotations"].clear())


PNG = saved("PNG", picture(9))

# What is spoilt, what the check must call it, where it must say it is, and what a run would do.
ONE_FINDING: list[tuple[str, Spoil, str, list[str], Effect]] = [
    ("missing", lambda data: (data / "train" / "b.jpg").unlink(), "missing images", ["images[1]"], Effect.STOPS),
    ("truncated", replace_image("b.jpg", truncated), "truncated images", ["b.jpg"], Effect.STOPS),
    ("garbage", replace_image("b.jpg", lambda _: b"garbage"), "unreadable images", ["b.jpg"], Effect.STOPS),
    ("empty", replace_image("b.jpg", lambda _: b""), "unreadable images", ["b.jpg"], Effect.STOPS),
    ("damaged", replace_image("b.jpg", damaged), "damaged images", ["b.jpg"], Effect.STOPS),
    (
        "tiff",
        replace_image("b.jpg", lambda _: saved("TIFF", picture(9))),
        "unsupported images", ["b.jpg"], Effect.STOPS,
    ),  # fmt: skip
    (
        "16 bits",
        replace_image("b.jpg", lambda _: saved("PNG", picture(9).convert("I;16"))),
        "unsupported images", ["b.jpg"], Effect.STOPS,
    ),
    (
        "animated",
        replace_image("b.jpg", lambda _: saved("PNG", picture(9), save_all=True, append_images=[picture(8)])),
        "unsupported images", ["b.jpg"], Effect.STOPS,
    ),
    ("JPEG segment", replace_image("b.jpg", segment_of_no_length), "damaged images", ["b.jpg"], Effect.STOPS),
    ("PNG cut", replace_image("b.jpg", lambda _: PNG[:-12]), "truncated images", ["b.jpg"], Effect.STOPS),
    (
        "PNG checksum",
        replace_image("b.jpg", lambda _: PNG[:-13] + bytes([PNG[-13] ^ 1]) + PNG[-12:]),
        "damaged images", ["b.jpg"], Effect.STOPS,
    ),
    (
        "animation without frames",
        replace_image("b.jpg", lambda _: animated_without_frames(PNG)),
        "unsupported images", ["b.jpg"], Effect.STOPS,
    ),
    ("JPEG bomb", replace_image("b.jpg", jpeg_bomb), "oversized images", ["b.jpg"], Effect.STOPS),
    ("PNG bomb", replace_image("b.jpg", lambda _: png_bomb()), "oversized images", ["b.jpg"], Effect.STOPS),
    ("other size", entry("images", 1, width=WIDTH_PX + 1), "wrongly sized images", ["b.jpg"], Effect.STOPS),
    ("path", entry("images", 1, file_name="../z.jpg"), "paths out of the image folder", ["images[1]"], Effect.STOPS),
    ("link", link_out, "paths out of the image folder", ["images[1]"], Effect.STOPS),
    ("repeated id", entry("images", 1, file_name="a.jpg"), "repeated ids or file names", ["images[1]"], Effect.STOPS),
    (
        "repeated id of a box",
        entry("annotations", 3, id=3),
        "ids of boxes that repeat or are text: numbered", ["annotations[3]"], Effect.HARMLESS,
    ),
    ("malformed", entry("annotations", 3, bbox=[1, 2]), "malformed entries", ["annotations[3]"], Effect.STOPS),
    ("image id", entry("annotations", 3, image_id=99), "boxes of unknown images", ["annotations[3]"], Effect.STOPS),
    (
        "category",
        entry("annotations", 3, category_id=99),
        "boxes of unknown categories", ["annotations[3]"], Effect.STOPS,
    ),
    (
        "degenerate",
        entry("annotations", 3, bbox=[4, 4, 0, 9]),
        "zero-size boxes dropped", ["annotations[3]"], Effect.CHANGES,
    ),
    (
        "not finite",
        entry("annotations", 3, bbox=[float("nan"), 4, 9, 9]),
        "boxes that are not finite dropped", ["annotations[3]"], Effect.CHANGES,
    ),
    (
        "outside",
        entry("annotations", 3, bbox=[900, 4, 9, 9]),
        "boxes outside the image dropped", ["annotations[3]"], Effect.CHANGES,
    ),
    (
        "overhanging",
        entry("annotations", 3, bbox=[40, 4, 90, 9]),
        "boxes clipped to the image", ["annotations[3]"], Effect.CHANGES,
    ),
    ("box twice", repeat_annotation, "boxes stated twice", ["b.jpg"], Effect.CHANGES),
    (
        "upside down",
        replace_image("b.jpg", lambda file: with_orientation(file, 3)),
        "EXIF orientation, boxes may be turned", ["b.jpg"], Effect.CHANGES,
    ),
    (
        "turned",
        replace_image("b.jpg", lambda file: with_orientation(file, 6)),
        "EXIF orientation, boxes as stored", ["b.jpg"], Effect.HARMLESS,
    ),
    (
        "image twice",
        lambda data: shutil.copy(data / "train" / "a.jpg", data / "train" / "b.jpg"),
        "images with the same content as another", ["b.jpg"], Effect.HARMLESS,
    ),
    (
        "gray",
        replace_image("b.jpg", lambda _: saved("JPEG", picture(9).convert("L"))),
        "gray images", ["b.jpg"], Effect.HARMLESS,
    ),
    (
        "CMYK",
        replace_image("b.jpg", lambda _: saved("JPEG", picture(9).convert("CMYK"))),
        "CMYK images", ["b.jpg"], Effect.HARMLESS,
    ),
    (
        "palette",
        replace_image("b.jpg", lambda _: saved("PNG", picture(9).convert("P"))),
        "palette, transparent or 1-bit images", ["b.jpg"], Effect.HARMLESS,
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "what", "where", "effect"), [case[1:] for case in ONE_FINDING], ids=[case[0] for case in ONE_FINDING]
)
def test_each_fault_is_found_once_and_nothing_else(
    spoil: Spoil, what: str, where: list[str], effect: Effect, data: Path
) -> None:
    spoil(data)
    train, val = check(data, "train", "val", 1)
    assert found(train) == {what: where} and found(val) == {}
    (kind,) = train.findings
    assert kind.effect is effect and kind.remedy
    assert exit_code([train, val]) == (effect is not Effect.HARMLESS)


@pytest.mark.parametrize("spoil", [case[1] for case in ONE_FINDING], ids=[case[0] for case in ONE_FINDING])
def test_the_check_and_the_torch_path_agree_on_what_stops_a_run(spoil: Spoil, data: Path) -> None:
    spoil(data)
    (report,) = check(data, "train", "train", 1)
    stops = any(kind.effect is Effect.STOPS for kind in report.findings)
    try:
        annotations = read_annotations(data, "train")
        for name, size_px in zip(annotations.file_names, annotations.sizes_px.tolist(), strict=True):
            height, width, _ = read_rgb(annotations.image_folder / name).shape
            refused = [width, height] != size_px
            if refused:
                break
    except InputError:
        refused = True
    assert refused == stops


def test_crowd_regions_and_images_without_a_box(data: Path) -> None:
    crowd_only(data)
    (report,) = check(data, "train", "train", 1)
    assert found(report) == {"crowd regions": ["b.jpg", "b.jpg"], "images without a box to learn from": ["b.jpg"]}
    assert exit_code([report]) == 0


def test_nothing_to_learn(data: Path) -> None:
    no_boxes(data)
    train, val = check(data, "train", "val", 1)
    assert "no image with a box to learn from" in found(train) and exit_code([train, val]) == 1
    (alone,) = check(data, "val", "val", 1)
    assert found(alone) == {}


def test_an_image_in_both_splits(data: Path) -> None:
    shutil.copy(data / "train" / "a.jpg", data / "val" / "c.jpg")
    train, val = check(data, "train", "val", 1)
    assert found(train) == {} and found(val) == {"images that are also in the training split": ["c.jpg"]}
    assert exit_code([train, val]) == 1


def test_splits_of_different_categories(data: Path) -> None:
    edit(data, lambda document: document["categories"][0].update(name="zeppelin"), "val")
    train, val = check(data, "train", "val", 1)
    assert found(val) == {"other categories than the training split": ["instances_val.json"]}


def test_a_square_image_that_exif_turns_may_have_turned_boxes(data: Path) -> None:
    square = picture(9).resize((WIDTH_PX, WIDTH_PX))
    file = data / "train" / "b.jpg"
    square.save(file)
    file.write_bytes(with_orientation(file, 6))
    entry("images", 1, height=WIDTH_PX)(data)
    (report,) = check(data, "train", "train", 1)
    assert found(report) == {"EXIF orientation, boxes may be turned": ["b.jpg"]}


def test_sizes_stated_as_exif_turns_images_are_taken_for_upright_unless_others_are_not(data: Path) -> None:
    replace_image("b.jpg", lambda file: with_orientation(file, 6))(data)
    entry("images", 1, width=HEIGHT_PX, height=WIDTH_PX)(data)
    (report,) = check(data, "train", "train", 1)
    assert found(report) == {"EXIF orientation, boxes as EXIF turns the images": ["b.jpg"]}
    replace_image("c.jpg", lambda file: with_orientation(file, 6))(data)
    (report,) = check(data, "train", "train", 1)
    what = found(report)
    assert what["EXIF orientation, sizes stated both ways"] == ["instances_train.json"]
    (item,) = next(items for kind, items in report.findings.items() if kind.what == "wrongly sized images")
    assert item.problem == "is 64 x 48 pixels, stated are 48 x 64, its size when EXIF has turned it"


def test_exif_that_is_no_exif_is_no_finding(data: Path) -> None:
    replace_image("b.jpg", lambda file: saved("JPEG", picture(9), exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))(data)
    (report,) = check(data, "train", "train", 1)
    assert found(report) == {}


def test_boxes_of_refused_images_and_categories_are_not_refused_as_well(data: Path) -> None:
    def spoil(document: dict[str, Any]) -> None:
        document["images"][0]["width"] = -1
        document["categories"][1]["name"] = ""

    edit(data, spoil)
    (report,) = check(data, "train", "train", 1)
    assert found(report) == {"malformed entries": ["categories[1]", "images[0]"]}
    assert report.annotations is not None and len(report.annotations) == 7 and len(report.annotations.labels) == 7


def spoil_everything(data: Path) -> Found:
    """Several faults of each stage of reading in the training split; returns what must be found."""
    expected: dict[str, list[str]] = {}

    def spoil(document: dict[str, Any]) -> None:
        images, boxes = document["images"], document["annotations"]
        boxes[3]["category_id"] = boxes[5]["category_id"] = 99
        boxes[4]["image_id"] = 99
        boxes[6]["bbox"] = "none"
        boxes[7]["bbox"][2] = 0
        boxes[8]["id"] = boxes[9]["id"]
        boxes.insert(2, 17)  # moves all that follows by one
        images.insert(0, {"id": "x"})

    edit(data, spoil)
    expected["boxes of unknown categories"] = ["annotations[4]", "annotations[6]"]
    expected["boxes of unknown images"] = ["annotations[5]"]
    expected["malformed entries"] = ["images[0]", "annotations[2]", "annotations[7]"]
    expected["zero-size boxes dropped"] = ["annotations[8]"]
    expected["ids of boxes that repeat or are text: numbered"] = ["annotations[9]"]
    expected["ids of images that are text or too large: numbered"] = ["images[0]"]
    (data / "train" / "h.jpg").unlink()
    expected["missing images"] = ["images[8]"]
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
        replace_image(name, truncated)(data)
    expected["truncated images"] = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    replace_image("e.jpg", lambda _: saved("JPEG", picture(9).convert("L")))(data)
    expected["gray images"] = ["e.jpg"]
    expected["images without a box to learn from"] = ["c.jpg", "d.jpg"]
    return expected


def test_all_faults_are_found_at_once(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = spoil_everything(data)
    before = state(data)
    json_file = tmp_path / "findings.json"
    flags = ["--train-split", "train", "--val-split", "val", "--num-workers", "2", "--json", str(json_file)]
    monkeypatch.setenv("COLUMNS", "100")
    assert main.main(["check", "--data", str(data), *flags]) == 1
    assert state(data) == before

    content = json.loads(json_file.read_text())
    assert content["exit_code"] == 1 and content["splits"]["val"]["findings"] == []
    findings = content["splits"]["train"]["findings"]
    where = {kind["what"]: [item["where"] for item in kind["items"]] for kind in findings}
    assert {what: sorted(places) for what, places in where.items()} == {w: sorted(p) for w, p in expected.items()}
    assert all(kind["count"] == len(kind["items"]) and kind["remedy"] for kind in findings)
    assert [kind["effect"] for kind in findings] == ["stops it"] * 5 + ["changes it"] + ["harmless"] * 4

    shown = capsys.readouterr().out
    assert all(what in shown for what in expected)
    assert "a.jpg: Premature end of JPEG file" in shown and "... and 1 more" in shown and "d.jpg: " not in shown
    assert "5 would stop a run, 1 would change what it learns or scores, 4 harmless; exit code 1" in shown


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"images": []}', b""])
def test_annotations_that_are_none(content: bytes, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotation_file(data).write_bytes(content)
    assert main.main(["check", "--data", str(data), "--train-split", "train", "--val-split", "val"]) == 1
    shown = capsys.readouterr().out
    assert "its annotations cannot be read" in shown and "nothing found" in shown


def test_what_is_wrong_with_all_entries_is_told_as_the_start_of_a_run_tells_it(data: Path) -> None:
    """And no list that is empty without them is a second finding."""
    shutil.rmtree(data / "train")
    (data / "train" / "day 1").mkdir(parents=True)
    (report,) = check(data, "train", "train", 1)
    ((kind, items),) = report.findings.items()
    assert (kind.what, len(items), kind.effect) == ("missing images", 8, Effect.STOPS)
    with pytest.raises(InputError) as refused:
        read_annotations(data, "train")
    assert str(refused.value) == f"{report.file}: {kind.remedy}"
    assert "which has 1 entry, such as 'day 1'; name the folder by --train-images" in kind.remedy
    edit(data, lambda document: document.update(categories=["red", "green"]))
    (report,) = check(data, "train", "train", 1)
    ((kind, items),) = report.findings.items()
    assert kind.remedy == "categories[0] is not a JSON object; correct or remove that entry" and len(items) == 2


def test_no_such_split_or_flag_is_bad_input(data: Path, refusal: Callable[..., str], tmp_path: Path) -> None:
    assert "'test'" in refusal("check", "--data", data, "--train-split", "train", "--val-split", "test")
    assert "--json" in refusal("check", "--data", data, "--json", tmp_path / "none" / "findings.json")
    assert "--data" in refusal("check")


def test_the_demo_data(demo_data: Path) -> None:
    reports = check(demo_data, "train2017", "val2017", 1)
    assert exit_code(reports) == 0
    assert set().union(*map(found, reports)) == {"crowd regions", "images without a box to learn from"}


def test_the_real_data(coco256: Path, shared_data: Path) -> None:
    reports = check(coco256, "train2017", "val2017", 1)
    assert exit_code(reports) == 0
    assert set().union(*map(found, reports)) == {
        "crowd regions",
        "images without a box to learn from",
        "gray images",
        # 256 images do not show all of COCO's 80.
        "classes without boxes",
        "classes with boxes to judge by and none to learn from",
    }
    reports = check(shared_data / "bccd", "train", "val", 1)
    assert [found(report).get("zero-size boxes dropped", []) for report in reports] != [[], []]
    assert exit_code(reports) == 1
