"""What the annotation reader refuses, it refuses with one line that helps."""

import json
from pathlib import Path
from typing import Any

import pytest
from coco_documents import DOCUMENT, assert_clean, changed, without, write

from pipelines.readers.coco import read_annotations
from ssd.errors import InputError


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
