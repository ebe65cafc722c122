"""A VOC folder is read as the same data in a COCO folder would be, and refused as strictly."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from voc_data import image_xml, object_xml, voc_of_coco, write_voc

from pipelines.readers.coco import read_annotations as read_coco
from pipelines.readers.splits import find_named, read_annotations
from ssd.errors import InputError

DOG = object_xml("dog", 1, 1, 100, 50)


def a_folder(folder: Path, first: str = image_xml("one", DOG), **files: str) -> Path:
    """Of one training image; files: more XML, by name."""
    xml = {"one": first, "two": image_xml("two", object_xml("cat", 11, 21, 30, 40)), **files}
    return write_voc(folder / "voc", {"train": ["one"], "val": ["two"]}, xml)


def test_pixels_count_from_one_and_the_last_belongs_to_the_box(tmp_path: Path) -> None:
    split = read_annotations(a_folder(tmp_path), "train")
    assert split.boxes_xywh_px.tolist() == [[0, 0, 100, 50]]  # xmin 1, xmax 100 of 100 pixels: all of them
    assert split.boxes_ltrb.tolist() == [[0, 0, 1, 1]]
    val = read_annotations(a_folder(tmp_path / "b"), "val")
    assert val.boxes_xywh_px.tolist() == [[10, 20, 20, 20]]
    assert val.areas_px.tolist() == [400]
    assert val.repairs == {}


def test_categories_are_all_names_in_order_so_that_splits_agree(tmp_path: Path) -> None:
    folder = a_folder(tmp_path, third=image_xml("third", object_xml("ant", 1, 1, 9, 9)))
    train, val = (read_annotations(folder, split) for split in ("train", "val"))
    assert train.categories == val.categories == ((1, "ant"), (2, "cat"), (3, "dog"))  # not the parts' "head"
    assert train.labels.tolist() == [3] and val.labels.tolist() == [2]


def test_difficult_objects_are_ignored_like_crowds(tmp_path: Path) -> None:
    hard = object_xml("dog", 1, 1, 20, 20, difficult=1)
    split = read_annotations(a_folder(tmp_path, image_xml("one", hard)), "train")
    assert split.is_crowd.tolist() == [True]
    assert len(split.trainable_indices()) == 0
    assert split.coco_dataset()["annotations"][0]["iscrowd"] == 1


def test_the_file_name_may_have_another_suffix(tmp_path: Path) -> None:
    folder = a_folder(tmp_path, image_xml("one", DOG).replace("one.jpg", "C:\\photos\\one.png"))
    (folder / "JPEGImages" / "one.jpg").rename(folder / "JPEGImages" / "one.png")
    assert read_annotations(folder, "train").file_names == ["one.png"]
    # But it is the list that says which image it is.
    other = a_folder(tmp_path / "b", image_xml("one", DOG).replace("one.jpg", "two.jpg"))
    assert read_annotations(other, "train").file_names == ["one.jpg"]


def test_lists_of_classes_alone_are_put_together(tmp_path: Path) -> None:
    """As VoTT writes them: each names all images of its split, with 1 or -1 behind."""
    folder = a_folder(tmp_path, three=image_xml("three", DOG))
    lists = folder / "ImageSets" / "Main"
    for name in ("dog", "cat"):
        (lists / f"{name}_train.txt").write_text("one.jpg 1\nthree.jpg -1\n")
        (lists / f"{name}_val.txt").write_text("two.jpg 1\n")
    (lists / "train.txt").unlink()
    (lists / "val.txt").unlink()
    train, val = (read_annotations(folder, split) for split in ("train", "val"))
    assert train.file_names == ["one.jpg", "three.jpg"] and val.file_names == ["two.jpg"]
    assert train.mended["lists of classes put together"] == 2


def test_names_in_quotes_are_read(tmp_path: Path) -> None:
    folder = a_folder(tmp_path)
    (folder / "ImageSets" / "Main" / "train.txt").write_text('"one"\n')
    assert read_annotations(folder, "train").file_names == ["one.jpg"]


def test_an_image_without_objects_stays(tmp_path: Path) -> None:
    split = read_annotations(a_folder(tmp_path, image_xml("one")), "train")
    assert len(split) == 1 and len(split.labels) == 0


def test_boxes_outside_are_clipped_or_dropped_and_counted(tmp_path: Path) -> None:
    first = image_xml("one", object_xml("dog", 91, 1, 120, 50), object_xml("dog", 300, 1, 320, 9), DOG)
    split = read_annotations(a_folder(tmp_path, first), "train")
    assert split.repairs == {"boxes outside the image dropped": 1, "boxes clipped to the image": 1}
    assert np.allclose(split.boxes_ltrb, [[0.9, 0, 1, 1], [0, 0, 1, 1]])


BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;">]><annotation>&c;</annotation>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><annotation><folder>&b;</folder></annotation>'


BARE = "<object><name>dog</name><bndbox{}>{}</bndbox></object>"


@pytest.mark.parametrize(
    ("xml", "complaint"),
    [
        ("<annotation><size>", "is not valid XML at line 1, column 19 (no element found)"),
        ("", "is not valid XML at line 1, column 1"),
        ("<html></html>", "holds a 'html', not an 'annotation'"),
        (BOMB, "has a DOCTYPE"),
        (OUTSIDE, "has a DOCTYPE"),
        ('<?xml version="1.0" encoding="klingon"?><annotation></annotation>', "unknown encoding"),
        ("<annotation></annotation>", "states no size, and its image 'one.jpg' cannot be read"),
        (image_xml("one", DOG, width="wide"), "has 'width' 'wide', which is not an integer"),
        (image_xml("one", DOG, height=0), "states no size, and its image 'one.jpg' cannot be read"),
        (image_xml("one", DOG, height=70_000), "has a 'height' outside 1..65535"),
        (image_xml("one", object_xml("", 1, 1, 9, 9)), ", object 1 has no 'name'"),
        (image_xml("one", DOG, object_xml("dog", 1, "", 9, 9)), ", object 2 has no 'bndbox' with numbers for xmin"),
        (image_xml("one", DOG).replace("min>", "Min>"), ", object 1 has no 'bndbox' with numbers for xmin"),
        (image_xml("one", BARE.format(' xmin="1" ymin="1" xmax="9" ymax="9"', "")), ", object 1 has no 'bndbox' with"),
        (image_xml("one", BARE.format("", "1,1,9,9")), ", object 1 has no 'bndbox' with numbers for xmin"),
        (image_xml("one", DOG).replace("object>", "Object>"), "has 'Object' where VOC has an 'object' each"),
        (image_xml("one", f"<objects>{DOG}</objects>"), "has 'objects' where VOC has an 'object' each"),
        (image_xml("one", object_xml("dog", 1, 1, 9, 9, "so so")), "object 1 has a 'difficult' 'so so', which is"),
    ],
)
def test_what_cannot_be_understood_is_named(xml: str, complaint: str, tmp_path: Path) -> None:
    folder = a_folder(tmp_path, xml)
    with pytest.raises(InputError) as error:
        read_annotations(folder, "train")
    assert complaint in str(error.value) and "Annotations/one.xml" in str(error.value)
    assert str(error.value).endswith("; correct or remove that entry")


def test_whatever_the_xml_holds_is_clean_or_refused(tmp_path: Path) -> None:
    """Two hundred spoiled files: nothing but InputError comes out, and what passes is in range."""
    whole = image_xml("one", DOG, object_xml("cat", 1.5, 2, 30, 40, 1)).encode()
    folder = a_folder(tmp_path)
    draw = random.Random(1)
    digits = [at for at, value in enumerate(whole) if chr(value).isdigit()]
    passed = 0
    for _ in range(200):
        spoiled = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            at = draw.choice(digits) if draw.random() < 0.8 else draw.randrange(len(whole))
            spoiled[at : at + 1] = draw.choice([b"", b"0", b"9", b"-", b".", b"e9", b"nan", b"<", b"\0", b"\xff"])
        (folder / "Annotations" / "one.xml").write_bytes(spoiled)
        try:
            split = read_annotations(folder, "train")
        except InputError as error:
            assert "one.xml" in str(error) and "\n" not in str(error)
        else:
            passed += 1
            left, top, right, bottom = split.boxes_ltrb.T
            assert ((0 <= left) & (left < right) & (right <= 1) & (0 <= top) & (top < bottom) & (bottom <= 1)).all()
            assert np.isfinite(split.boxes_xywh_px).all()
    assert 20 < passed < 180
    (folder / "Annotations" / "one.xml").write_text("<annotation>" * 100_000 + "</annotation>" * 100_000)
    with pytest.raises(InputError, match="states no size"):
        read_annotations(folder, "train")


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    folder = a_folder(tmp_path)
    (folder / "Annotations" / "one.xml").unlink()
    with pytest.raises(InputError, match=r"train\.txt: Annotations/one\.xml is missing"):
        read_annotations(folder, "train")
    (folder / "JPEGImages" / "two.jpg").unlink()
    with pytest.raises(InputError, match=r"image 'two\.jpg' not found"):
        read_annotations(folder, "val")
    with pytest.raises(InputError, match=r"no split 'test' is there; .*'val' \(VOC, Main/val.txt\)"):
        find_named(folder, "test")
    shutil.rmtree(folder / "Annotations")
    with pytest.raises(InputError, match="no annotations were found"):
        find_named(folder, "val")


def test_a_list_that_names_an_image_twice_or_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    folder = a_folder(tmp_path)
    names = folder / "ImageSets" / "Main" / "train.txt"
    names.write_text("one\n\n  one\n")
    with pytest.raises(InputError, match=r"Annotations/one\.xml repeats 'file_name' 'one\.jpg'"):
        read_annotations(folder, "train")
    names.write_text("../Annotations/one\n")
    with pytest.raises(InputError, match=r"Annotations/\.\./Annotations/one\.xml is missing"):
        read_annotations(folder, "train")
    names.write_text("")
    with pytest.raises(InputError, match=r"train\.txt: 'images' is empty"):
        read_annotations(folder, "train")


# --- the same as a COCO folder ---


@pytest.fixture(scope="module")
def voc(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`demo_data` as VOC."""
    folder = tmp_path_factory.mktemp("voc") / "demo"
    return voc_of_coco(demo_data, {"train": "train2017", "val": "val2017"}, folder)


@pytest.mark.parametrize(("split", "coco_split"), [("train", "train2017"), ("val", "val2017")])
def test_it_holds_what_the_coco_folder_holds(split: str, coco_split: str, voc: Path, demo_data: Path) -> None:
    ours, theirs = read_annotations(voc, split), read_coco(demo_data, coco_split)
    # Decimal text gives the numbers back, but for the last bit that adding and taking away 1 costs.
    assert np.allclose(ours.boxes_xywh_px, theirs.boxes_xywh_px, rtol=0, atol=1e-9)
    assert np.allclose(ours.boxes_ltrb, theirs.boxes_ltrb, rtol=0, atol=1e-6)
    assert np.array_equal(ours.sizes_px, theirs.sizes_px)
    assert np.array_equal(ours.is_crowd, theirs.is_crowd)
    names = [[split.categories[label - 1].name for label in split.labels.tolist()] for split in (ours, theirs)]
    assert names[0] == names[1]


def test_the_check_lists_all_that_is_wrong(tmp_path: Path, demo_data: Path, capsys: pytest.CaptureFixture) -> None:
    import main

    folder = voc_of_coco(demo_data, {"train": "train2017", "val": "val2017"}, tmp_path / "voc")
    assert main.main(["check", "--data", str(folder), "--train-split", "train", "--val-split", "val"]) in (0, 1)
    assert "would stop a run" not in capsys.readouterr().out
    first, second, third = sorted((folder / "Annotations").glob("train-*.xml"))[:3]
    first.write_text("<annotation>")
    second.unlink()
    third.write_text(third.read_text().replace("<xmin>", "<xmin>x", 1))
    command = ["check", "--data", str(folder), "--train-split", "train", "--val-split", "train", "--json"]
    assert main.main([*command, str(tmp_path / "found.json")]) == 1
    findings = json.loads((tmp_path / "found.json").read_text())["splits"]["train"]["findings"]
    (malformed,) = (finding for finding in findings if finding["what"] == "malformed entries")
    where = [item["where"] for item in malformed["items"]]
    assert where == [f"Annotations/{first.name}", f"Annotations/{second.name}", f"Annotations/{third.name}, object 1"]


def test_evaluate_and_show_data_take_it(
    voc: Path, demo_checkpoint: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    """The checkpoint is for the demo data's categories, which are in another order: that is noticed."""
    import main

    picture = tmp_path / "picture.png"
    arguments = ["show-data", "--data", str(voc), "--train-split", "train", "--data_pipeline", "no_dali", "--rows", "1"]
    assert main.main([*arguments, "--output", str(picture)]) == 0
    assert picture.stat().st_size > 0
    evaluation = ["evaluate", "--data", voc, "--val-split", "val", "--checkpoint", demo_checkpoint, "--device", "cpu"]
    assert "trained on other categories" in refusal(*evaluation, "--data_pipeline", "no_dali", "--num-workers", "0")


# VOCdevkit and its years

CLASSES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
).split()


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """Two years of two splits with an image each, and the twenty classes in the first."""
    folder = tmp_path / "VOCdevkit"
    objects = [object_xml(name, 1, 1, 9, 9) for name in reversed(CLASSES)]
    for year, splits in (("2007", ("trainval", "test")), ("2012", ("trainval", "val"))):
        xml = {
            f"{year}_{split}": image_xml(f"{year}_{split}", *(objects if year == "2007" else [DOG])) for split in splits
        }
        write_voc(folder / f"VOC{year}", {split: [f"{year}_{split}"] for split in splits}, xml)
    return folder


@pytest.mark.parametrize("above", [False, True], ids=["devkit", "above"])
def test_years_are_splits(devkit: Path, above: bool) -> None:
    data = devkit.parent if above else devkit
    both = read_annotations(data, "2007_trainval+2012_trainval")
    assert both.file_names == ["VOC2007/JPEGImages/2007_trainval.jpg", "VOC2012/JPEGImages/2012_trainval.jpg"]
    assert both.image_ids.tolist() == [1, 2] and both.image_folder == devkit
    assert [category.name for category in both.categories] == CLASSES  # as the development kit orders them
    test = read_annotations(data, "2007_test")
    assert test.file_names == ["VOC2007/JPEGImages/2007_test.jpg"]
    assert read_annotations(data, "2012_val").categories == test.categories == both.categories
    of_one_year = read_annotations(data, "2007_trainval+2007_test")
    assert [Path(name).stem for name in of_one_year.file_names] == ["2007_trainval", "2007_test"]
    # A split's own name is that of all years.
    assert len(read_annotations(data, "trainval")) == 2 and len(read_annotations(data, "test")) == 1


def test_one_year_alone_is_a_devkit_too(devkit: Path) -> None:
    shutil.rmtree(devkit / "VOC2012")
    for data in (devkit, devkit.parent):
        assert read_annotations(data, "2007_test").file_names == ["VOC2007/JPEGImages/2007_test.jpg"]


def test_a_year_that_is_not_there_is_named(devkit: Path) -> None:
    for split in ("2012_trainval+2010_trainval", "2012_test"):
        with pytest.raises(InputError, match=r"VOC201\d/ImageSets/Main/t\w+.txt: no such list, which the split"):
            read_annotations(devkit, split)
    with pytest.raises(InputError, match="names a split twice"):
        read_annotations(devkit, "2007_test+2007_test")
    with pytest.raises(InputError, match="no split '2007'"):
        read_annotations(devkit, "2007")
