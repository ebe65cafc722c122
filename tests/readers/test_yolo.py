"""YOLO's text files are read as fractions of the upright image, and refused as strictly as COCO's files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tool_data import HEIGHT_PX, WIDTH_PX, draw

from pipelines.annotations import Annotations
from pipelines.readers.reading import annotation_files, read_source
from pipelines.readers.splits import find_named, find_sources
from ssd.errors import InputError


def write(folder: Path, *lines: str, names: str = "red\ngreen\n") -> Path:
    """One split of an image with these lines, and one whose text file is empty."""
    for name in ("a", "b"):
        draw(folder / "images" / f"{name}.jpg")
    (folder / "labels").mkdir()
    (folder / "labels" / "a.txt").write_text("\n".join(lines))
    (folder / "labels" / "b.txt").touch()
    if names:
        (folder / "classes.txt").write_text(names)
    return folder


def read(folder: Path) -> Annotations:
    return read_source(find_named(folder, "all"))


def test_centre_and_size_are_fractions(tmp_path: Path) -> None:
    split = read(write(tmp_path, "1 0.5 0.25 0.25 0.5", "", "0 0.1 0.1 0.2 0.2"))
    assert split.boxes_xywh_px.tolist() == [[36, 0, 24, 32], [0, 0, pytest.approx(19.2), pytest.approx(12.8)]]
    assert split.labels.tolist() == [2, 1] and split.categories == ((0, "red"), (1, "green"))
    assert split.file_names == ["a.jpg", "b.jpg"] and split.box_starts.tolist() == [0, 2, 2]
    assert split.mended == {} and split.repairs == {}
    files = annotation_files(find_named(tmp_path, "all"))
    assert [file.name for file in files] == ["classes.txt", "a.txt", "b.txt"]


def test_a_polygon_is_its_box_and_a_score_is_left_out(tmp_path: Path) -> None:
    polygon = "0 0.25 0.25 0.75 0.25 0.5 0.75"
    split = read(write(tmp_path, polygon, "1 0.5 0.5 0.5 0.5 0.9", "1 0.5 0.5 0.5 0.5 0.9"))
    assert split.boxes_xywh_px.tolist() == [[24, 16, 48, 32], [24, 16, 48, 32]]
    assert split.mended == {
        "polygons read as their boxes": 1,
        "numbers behind the box left out": 1,
        "lines that repeat another dropped": 1,
    }


def test_the_number_of_a_track_is_no_point(tmp_path: Path) -> None:
    """1 could be a point's, but not in a file with other tracks."""
    split = read(write(tmp_path, "1 0.5 0.5 0.5 0.5 0.9 1", "0 0.5 0.25 0.25 0.5 0.75 12"))
    assert split.boxes_xywh_px.tolist() == [[24, 16, 48, 32], [36, 0, 24, 32]]
    assert split.mended == {"numbers behind the box left out": 2}
    split = read(write(tmp_path / "points", "0 0.25 0.25 0.75 0.25 0.5 1"))
    assert split.mended == {"polygons read as their boxes": 1}


def test_a_line_may_name_its_class(tmp_path: Path) -> None:
    """The longest name that fits: a name may be several words, end in a number and have a comma."""
    lines = ("light 1 0.5 0.25 0.25 0.5", "red 0.5,0.5,0.5,0.5", "light 0.5 0.5 0.5 0.5", "big, red 0.5 0.5 0.5 0.5")
    split = read(write(tmp_path, *lines, names="red\nlight 1\nlight\nbig, red\n"))
    assert split.labels.tolist() == [2, 1, 3, 4]
    assert split.boxes_xywh_px.tolist() == [[36, 0, 24, 32], *[[24, 16, 48, 32]] * 3]
    assert split.mended == {"lines that name their class read by its name": 4}


def test_a_name_that_stands_twice_says_no_class(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="and 'red' stands 2 times among the names of classes"):
        read(write(tmp_path, "red 0.5 0.25 0.25 0.5", names="red\nred\n"))


def test_a_name_without_a_list_of_them_has_no_number(tmp_path: Path) -> None:
    write(tmp_path, "red 0.5 0.25 0.25 0.5", names="")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnc: 1\n")
    with pytest.raises(InputError, match="and 'red' is no number of a class; list the names"):
        read_source(find_named(tmp_path, "train"))


@pytest.mark.parametrize("line", ["a cat 1 2 3 4", "Car 0.0 0 -1.58 587.01 173.33 614.12 200.12", "# 0 1 2 3"])
def test_other_texts_beside_images_are_no_labels(line: str, tmp_path: Path) -> None:
    write(tmp_path, line)
    assert find_sources(tmp_path) == {}


def test_fractions_are_of_the_upright_image(tmp_path: Path) -> None:
    write(tmp_path, "0 0.5 0.25 1 0.5")
    exif = Image.Exif()
    exif[0x0112] = 6
    draw(tmp_path / "images" / "a.jpg", exif=exif.tobytes())
    split = read(tmp_path)
    assert split.sizes_px.tolist()[0] == [HEIGHT_PX, WIDTH_PX]
    assert split.boxes_xywh_px.tolist() == [[0, 0, HEIGHT_PX, WIDTH_PX / 2]]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("0 48 32 20 20", "a box in pixels? YOLO's are fractions of the image"),
        ("blue 0.5 0.5 0.1 0.1", "has 'blue 0.5 0.5 0.1 0.1', and there is no class 'blue'"),
        ("gren 0.5 0.5 0.1 0.1", "and there is no class 'gren'; is it 'green'?"),
        ("red 0.5 0.5 0.1", "which is not a class from 0 on and a box of 4 numbers"),
        ("red 0.5 0.5 0.1 0.1 red", "which is not a class from 0 on and a box of 4 numbers"),
        ("red 48 32 20 20", "a box in pixels? YOLO's are fractions of the image"),
        ("0 0.5 0.5 0.1", "which is not a class from 0 on and a box of 4 numbers"),
        ("0.5 0.5 0.5 0.1 0.1", "which is not a class from 0 on"),
        ("0 nan 0.5 0.1 0.1", "which is not a class from 0 on"),
        ("7 0.5 0.5 0.1 0.1", "has category_id 7, but no category has that id"),
    ],
)
def test_a_line_that_is_no_box_is_named(line: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        read(write(tmp_path, "0 0.5 0.5 0.5 0.5", line))
    assert complaint in str(refused.value) and "labels/a.txt, line 2" in str(refused.value)


def test_classes_without_names_are_numbered(tmp_path: Path) -> None:
    split = read(write(tmp_path, "2 0.5 0.5 0.5 0.5", names=""))
    assert [category.name for category in split.categories] == ["class 0", "class 1", "class 2"]
    assert split.mended == {"classes without a name numbered": 1}


@pytest.mark.parametrize(
    "names", ["{0: red, 1: green}", "[red, green]", "\"['red', 'green']\"", "red, green", "\n- red\n- green"]
)
def test_names_of_a_data_yaml(names: str, tmp_path: Path) -> None:
    write(tmp_path, "1 0.5 0.5 0.5 0.5", names="")
    (tmp_path / "data.yaml").write_text(f"train: images\nval: images\nnames: {names}\n")
    split = read_source(find_named(tmp_path, "train"))
    assert [category.name for category in split.categories] == ["red", "green"]
    assert np.array_equal(split.labels, [2])


@pytest.mark.parametrize("names", ["0 red\n1 green\n", "0: red\n1: green\n", "red, green\n"])
def test_names_of_a_text_file(names: str, tmp_path: Path) -> None:
    split = read(write(tmp_path, "1 0.5 0.5 0.5 0.5", names=names))
    assert names_of(split) == ["red", "green"] and len(split.mended) == 1


def test_names_that_begin_with_other_numbers_are_whole(tmp_path: Path) -> None:
    assert names_of(read(write(tmp_path, "1 0.5 0.5 0.5 0.5", names="3 wheels\n4 wheels\n"))) == [
        "3 wheels",
        "4 wheels",
    ]


def test_names_that_are_no_names_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "1 0.5 0.5 0.5 0.5", names="")
    (tmp_path / "data.yaml").write_text(
        "train: images\nval: images\nnames: [{id: 0, name: red}, {id: 1, name: green}]\n"
    )
    with pytest.raises(InputError, match="data.yaml: 'names' must be a list, or names by class number; correct it"):
        read_source(find_named(tmp_path, "train"))


def test_decimal_commas_are_points(tmp_path: Path) -> None:
    split = read(write(tmp_path, "1 0,5 0,25 0,25 0,5", "0,0.5,0.5,0.5,0.5"))  # where commas part numbers, they do
    assert split.boxes_xywh_px.tolist() == [[36, 0, 24, 32], [24, 16, 48, 32]]
    assert split.mended == {"decimal commas read as points": 1}


def test_lists_of_ultralytics_autosplit_are_splits(tmp_path: Path) -> None:
    write(tmp_path, "1 0.5 0.5 0.5 0.5")
    for split, name in (("train", "a"), ("val", "b")):
        (tmp_path / f"autosplit_{split}.txt").write_text(f"./images/{name}.jpg\n")
    assert {name: read_source(found).file_names for name, found in find_sources(tmp_path).items()} == {
        "train": ["images/a.jpg"],
        "val": ["images/b.jpg"],
    }


def names_of(split: Annotations) -> list[str]:
    return [category.name for category in split.categories]


@pytest.mark.parametrize(
    ("names", "expected"),
    [("[yes, no]", ["yes", "no"]), ("[011, 1_0]", ["011", "1_0"]), ("{0: null, 1: 1e3}", ["null", "1e3"])],
)
def test_names_are_read_as_they_are_written(names: str, expected: list[str], tmp_path: Path) -> None:
    write(tmp_path, "1 0.5 0.5 0.5 0.5", names="")
    (tmp_path / "data.yaml").write_text(f"train: images\nval: images\ntest:  # none\nnames: {names}\n")
    split = read_source(find_named(tmp_path, "train"))
    assert names_of(split) == expected and list(find_sources(tmp_path)) == ["train", "val"]


def test_a_number_of_classes_that_is_not_that_of_the_names_is_said(tmp_path: Path) -> None:
    write(tmp_path, "1 0.5 0.5 0.5 0.5", names="")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnc: 5\nnames: [red, green]\n")
    split = read_source(find_named(tmp_path, "train"))
    assert split.mended == {"another number of classes stated than there are names": 1}


@pytest.mark.parametrize(
    "place", ["classes.txt", "labels/classes.txt", "labels/Classes.TXT", "images/obj.names", "cells.names"]
)
def test_names_are_found_where_tools_put_them(place: str, tmp_path: Path) -> None:
    write(tmp_path, "1 0.5 0.5 0.5 0.5", names="")
    (tmp_path / place).write_text("red\ngreen\n")
    split = read(tmp_path)
    assert names_of(split) == ["red", "green"] and split.mended == {}


def test_a_yaml_whose_splits_are_elsewhere_still_names_the_classes(tmp_path: Path) -> None:
    write(tmp_path, "1 0.5 0.5 0.5 0.5", names="")
    (tmp_path / "data.yaml").write_text("train: /home/me/tr\nval: /home/me/va\nnames: [red, green]\n")
    assert names_of(read(tmp_path)) == ["red", "green"]


def test_other_yaml_files_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "1 0.5 0.5 0.5 0.5", names="")
    (tmp_path / "classes.yaml").write_text("- red\n- green\n")
    (tmp_path / "compose.yaml").write_text("services: [broken\n")
    (tmp_path / "._shapes.yaml").write_bytes(b"\0\5\x16\7names: [")
    (tmp_path / "shapes.yaml").write_text("train: Images\nval: IMAGES\nnames: [red, green]\n")
    assert names_of(read_source(find_named(tmp_path, "train"))) == ["red", "green"]


def test_a_data_yaml_that_is_none_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text("names: [red\ntrain: images")
    with pytest.raises(InputError, match=r"data\.yaml: not valid YAML"):
        find_named(tmp_path, "train")


def test_a_folder_of_images_is_a_split_by_its_labels_not_by_its_first_images(tmp_path: Path) -> None:
    for folder, names in (("train", [f"im{i:03d}" for i in range(24)]), ("north", ["a", "b"])):
        for name in names:
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}.jpg").touch()
        (tmp_path / folder / f"{names[-1]}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "raw").mkdir()
    for i in range(30):  # texts of something else
        (tmp_path / "raw" / f"{i}.jpg").touch()
        (tmp_path / "raw" / f"{i}.txt").write_text("a red cell")
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "c.jpg").touch()
    (tmp_path / "val" / "c.txt").touch()  # without objects, as its label file says
    assert sorted(find_sources(tmp_path)) == ["north", "train", "val"]


@pytest.mark.parametrize("above", ["data", "images/img", "elsewhere"])
def test_what_the_folders_above_are_called_says_nothing(above: str, tmp_path: Path) -> None:
    folder = write(tmp_path / above / "set", "1 0.5 0.5 0.5 0.5")
    (folder / "images").rename(folder / "pics")
    split = read_source(find_named(folder, "pics"))
    assert split.labels.tolist() == [2] and [category.name for category in split.categories] == ["red", "green"]


@pytest.mark.parametrize("name", ["A.txt", "a.TXT"])
@pytest.mark.parametrize("folder", ["labels", "Labels"])
def test_label_files_in_another_case_are_found(folder: str, name: str, tmp_path: Path) -> None:
    write(tmp_path, "1 0.5 0.5 0.5 0.5")
    (tmp_path / "labels" / "a.txt").rename(tmp_path / "labels" / name)
    (tmp_path / "labels").rename(tmp_path / folder)
    split = read(tmp_path)
    assert split.labels.tolist() == [2] and split.mended == {"label files in another case found": 1}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_labels_with_a_byte_order_mark_make_a_split(encoding: str, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "labels" / "a.txt").write_text("1 0.5 0.5 0.5 0.5\n", encoding=encoding)
    split = read(tmp_path)
    what = "UTF-16" if encoding == "utf-16" else "UTF-8 with a byte order mark"
    assert split.labels.tolist() == [2] and split.mended == {f"{what} read": 1}


def test_images_without_labels_and_labels_without_images_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "1 0.5 0.5 0.5 0.5")
    (tmp_path / "labels" / "b.txt").unlink()
    for name, text in (("gone", "0 0.5 0.5 0.5 0.5"), ("notes", "a red cell")):
        (tmp_path / "labels" / f"{name}.txt").write_text(text)
    split = read(tmp_path)
    assert split.labels.tolist() == [2] and split.file_names == ["a.jpg", "b.jpg"]
    assert split.mended == {
        "images without a label file taken as without objects": 1,
        "label files without an image left out": 1,
    }


@pytest.mark.parametrize(("suffix", "brand"), [("heic", b"heic"), ("avif", b"avif")])
def test_images_of_a_format_that_is_not_read_are_to_be_converted(suffix: str, brand: bytes, tmp_path: Path) -> None:
    write(tmp_path, "1 0.5 0.5 0.5 0.5")
    (tmp_path / "images" / "a.jpg").unlink()
    (tmp_path / "images" / f"a.{suffix}").write_bytes(b"\0\0\0\x1cftyp" + brand + bytes(60))
    with pytest.raises(InputError, match=f"a\\.{suffix} cannot be read as an image .*{suffix.upper()}.*convert"):
        read(tmp_path)


def test_folders_of_splits_say_more_than_lists_of_names(tmp_path: Path) -> None:
    """Frames of two videos are called alike: a bare name in a list may be of either."""
    for split, line in (("train", "0 0.5 0.5 0.5 0.5"), ("val", "1 0.5 0.5 0.5 0.5")):
        draw(tmp_path / "images" / split / "0001.jpg")
        (tmp_path / "labels" / split).mkdir(parents=True)
        (tmp_path / "labels" / split / "0001.txt").write_text(line)
        (tmp_path / f"{split}.txt").write_text("0001\n")
    found = find_sources(tmp_path)
    assert {name: read_source(source).labels.tolist() for name, source in found.items()} == {"train": [1], "val": [2]}
    assert all(source.file.is_dir() for source in found.values())


def test_files_that_are_no_lists_do_no_harm(tmp_path: Path) -> None:
    folder = write(tmp_path, "0 0.5 0.5 0.5 0.5")
    (folder / "train.txt").write_text("images/a.jpg\n../a\0b.jpg\n")
    (folder / "val.txt").write_text("images/b.jpg\n")
    (folder / "README.txt").write_bytes(b"\xff\xfe\x00")  # UTF-16 that is cut off
    (folder / "model.onnx.data").write_bytes(bytes(2**22 + 1))
    assert find_sources(folder).keys() == {"train", "val"}


def test_an_image_of_another_format_beside_the_one_to_read_is_passed_over(tmp_path: Path) -> None:
    folder = write(tmp_path, "0 0.5 0.5 0.5 0.5")
    (folder / "images" / "a.HEIC").write_bytes(b"anything")
    split = read(folder)
    assert split.file_names == ["a.jpg", "b.jpg"] and split.mended == {}


def test_a_label_file_is_not_of_an_image_in_another_case_too(tmp_path: Path) -> None:
    folder = write(tmp_path, "0 0.5 0.5 0.5 0.5")
    draw(folder / "images" / "A.jpg")
    split = read(folder)
    assert split.file_names == ["A.jpg", "a.jpg", "b.jpg"] and split.box_starts.tolist() == [0, 0, 1, 1]


def test_the_folder_of_images_may_be_named_as_the_data(tmp_path: Path) -> None:
    write(tmp_path, "0 0.5 0.5 0.5 0.5")
    assert read(tmp_path / "images").labels.tolist() == [1]
