"""What means one thing only is read in whatever way tools write it, and counted; what means two things is refused."""

import copy
import json
import re
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tool_data import HEIGHT_PX, STEMS, WIDTH_PX, Document, document_of, draw, write_coco, write_json, write_voc

from pipelines.annotations import Annotations
from pipelines.categories import with_categories_of
from pipelines.readers.reading import read_source
from pipelines.readers.repairs import file_names
from pipelines.readers.splits import find_named
from ssd.errors import InputError
from ssd.views import ObjectParts


def read(folder: Path, split: str = "train") -> Annotations:
    return read_source(find_named(folder, split))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    return read(write_coco(tmp_path_factory.mktemp("clean")))


def assert_the_same(found: Annotations, clean: Annotations) -> None:
    assert found.fingerprint() == clean.fingerprint()
    assert np.array_equal(found.boxes_xywh_px, clean.boxes_xywh_px) and found.repairs == {}


def each(table: str, key: str, value: Callable[[Any], Any]) -> Callable[[Document, Path], None]:
    def change(document: Document, folder: Path) -> None:
        for row in document[table]:
            row[key] = value(row[key])

    return change


def without_sizes(document: Document, folder: Path) -> None:
    for row in document["images"]:
        del row["width"], row["height"]


def ids_as_text(document: Document, folder: Path) -> None:
    each("images", "id", "frame_{}".format)(document, folder)
    each("annotations", "image_id", "frame_{}".format)(document, folder)


def large_ids(document: Document, folder: Path) -> None:
    each("images", "id", lambda id: id + 10**17)(document, folder)
    each("annotations", "image_id", lambda id: str(id + 10**17))(document, folder)


def categories_by_name(document: Document, folder: Path) -> None:
    each("annotations", "category_id", {1: "red", 2: "green"}.get)(document, folder)


def with_empty_boxes(document: Document, folder: Path) -> None:
    document["annotations"].insert(0, {"id": 99, "image_id": 2, "category_id": 1, "bbox": []})
    document["annotations"].append({"id": 98, "image_id": 2, "category_id": None, "bbox": None})


def outlined(without_box: Callable[[dict[str, Any]], object]) -> Callable[[Document, Path], None]:
    """Two polygons an object, the second within the box of the first; every second object without its box."""

    def change(document: Document, folder: Path) -> None:
        for row in document["annotations"]:
            x, y, w, h = row["bbox"]
            row["segmentation"] = [[x + w, y, x, y + h / 2, x + 3, y + h], [x + 2, y + 2, x + 4, y + 2, x + 4, y + 4]]
            if row["id"] % 2:
                without_box(row)

    return change


VALUES: dict[str, tuple[Callable[[Document, Path], None], dict[str, int]]] = {
    "image_id 1.0": (each("annotations", "image_id", float), {"'image_id' in another type read": 8}),
    "width 96.0": (each("images", "width", float), {"'width' in another type read": 4}),
    "width ' 96 '": (each("images", "width", " {} ".format), {"'width' in another type read": 4}),
    "category_id '1'": (each("annotations", "category_id", str), {"'category_id' in another type read": 8}),
    "categories' id '1.0'": (each("categories", "id", "{}.0".format), {"ids of categories in another type read": 2}),
    "category by name": (categories_by_name, {"'category_id' in another type read": 8}),
    "iscrowd '0'": (each("annotations", "iscrowd", str), {"'iscrowd' in another type read": 8}),
    "iscrowd 'False'": (each("annotations", "iscrowd", lambda _: "False"), {"'iscrowd' in another type read": 8}),
    "bbox of text": (each("annotations", "bbox", lambda box: [*map(str, box)]), {"'bbox' in another type read": 8}),
    "bbox as text": (each("annotations", "bbox", str), {"'bbox' in another type read": 8}),
    "image ids as text": (
        ids_as_text,
        {"ids of images that are text or too large: numbered": 4, "'image_id' in another type read": 8},
    ),
    "ids too large": (
        large_ids,
        {"ids of images that are text or too large: numbered": 4, "'image_id' in another type read": 8},
    ),
    "no sizes": (without_sizes, {"sizes read from the images": 4}),
    "size 0": (each("images", "height", lambda _: 0), {"sizes read from the images": 4}),
    "annotation ids begin anew": (
        each("annotations", "id", lambda id: id % 2 + 1),
        {"ids of boxes that repeat or are text: numbered": 8},
    ),
    "annotation ids as text": (
        each("annotations", "id", "a{}".format), {"ids of boxes that repeat or are text: numbered": 8},
    ),
    "outlines, empty boxes": (
        outlined(lambda row: row.update(bbox=[])), {"boxes taken from the outlines of objects": 4},
    ),
    "outlines, no boxes": (
        outlined(lambda row: row.pop("bbox")), {"boxes taken from the outlines of objects": 4},
    ),
    "empty boxes": (with_empty_boxes, {"entries without a box dropped": 2}),
}  # fmt: skip


@pytest.mark.parametrize("what", VALUES)
def test_values_in_another_type(what: str, tmp_path: Path, clean: Annotations) -> None:
    change, mended = VALUES[what]
    split = read(write_coco(tmp_path, change))
    assert_the_same(split, clean)
    counts = {what: count for what, count in split.mended.items() if count != 0}
    if what == "annotation ids begin anew":  # the first two of which are right as they are
        assert 0 < counts.pop("ids of boxes that repeat or are text: numbered") <= 8 and not counts
    else:
        assert counts == mended
    assert split.mended_text.startswith(str(split.file))


def test_an_entry_with_an_area_has_lost_its_box(tmp_path: Path) -> None:
    def change(document: Document, folder: Path) -> None:
        document["annotations"][0] |= {"bbox": None, "area": 2120}
        document["annotations"][1] |= {"bbox": [], "area": 0}

    split = read(write_coco(tmp_path, change))
    assert split.mended == {"entries with an area and no box dropped": 1, "entries without a box dropped": 1}


@pytest.mark.parametrize(("first", "shown"), [(0, "begin at 0, and the ids at 1"), (2, "begin at 2, and the ids at 1")])
def test_ids_that_are_all_one_off_are_not_to_be_removed(first: int, shown: str, tmp_path: Path) -> None:
    change = each("annotations", "image_id", lambda id: id - 1 + first)
    with pytest.raises(InputError, match=f"no image has that id .do all {shown}. Then shift them, and remove none"):
        read(write_coco(tmp_path, change))


def test_accents_of_names_may_stand_in_their_letters_or_behind_them(tmp_path: Path) -> None:
    names = iter([unicodedata.normalize(form, "Café") for form in ("NFC", "NFD")])

    def change(document: Document, folder: Path) -> None:
        document["categories"][0]["name"] = next(names)

    folder = write_coco(tmp_path, change)
    train, val = read(folder), read(folder, "val")
    assert train.categories != val.categories
    val = with_categories_of(train, val)
    assert val.categories == train.categories and val.labels.tolist() == [1, 2] * 2


@pytest.mark.parametrize(
    ("name", "hindrance"),
    [
        ("gone.jpg", "'gone.jpg' is not there"),
        ("\ud800.jpg", r"'\ud800.jpg' is not there"),
        ("\0.jpg", r"'\x00.jpg' is not there"),
        ("broken.jpg", "'broken.jpg' cannot be read ("),
    ],
    ids=ascii,
)
def test_what_hinders_the_reading_of_a_size_is_named(tmp_path: Path, name: str, hindrance: str) -> None:
    file = write_coco(tmp_path, without_sizes) / "annotations" / "instances_train.json"
    (tmp_path / "images" / "train" / "broken.jpg").write_bytes(b"no image")
    document = json.loads(file.read_text())
    document["images"][1]["file_name"] = name
    file.write_text(json.dumps(document))  # in which half of a surrogate pair is ASCII
    with pytest.raises(InputError) as refused:
        read(tmp_path)
    assert f"images[1] states no size, and its image {hindrance}" in str(refused.value)
    str(refused.value).encode()  # a console can print it


def test_names_that_are_numbers_become_text(tmp_path: Path) -> None:
    split = read(write_coco(tmp_path, each("categories", "name", lambda name: len(name))))
    assert [category.name for category in split.categories] == ["3", "5"]


def test_what_a_clean_file_needs_is_nothing(clean: Annotations) -> None:
    assert clean.mended == {} and clean.mended_text == ""


def test_mending_is_left_out_where_the_strict_reader_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.readers import reading

    for name in ("repair_file_names", "repair_values", "repair_sizes"):
        monkeypatch.setattr(reading, name, None)
    assert len(read(write_coco(tmp_path))) == 4


REFUSED: list[tuple[Callable[[Document, Path], None], str]] = [
    (each("images", "width", lambda _: 96.5), "has 'width' 96.5, which is not an integer"),
    (each("categories", "name", lambda _: 10**400), "has 'name' 1000"),  # beyond any float
    (each("images", "width", lambda _: "wide"), "has 'width' 'wide', which is not an integer"),
    (each("images", "id", lambda _: 7), "images[1] repeats 'id' 7"),
    (each("images", "id", lambda id: True), "has 'id' True, which is not an integer"),
    (each("annotations", "iscrowd", lambda _: 2), "neither 0 nor 1"),
    (each("annotations", "bbox", lambda box: box[:3]), "which is not a list of 4 numbers"),
    (each("annotations", "bbox", lambda box: [*box[:3], "wide"]), "which is not a list of 4 numbers"),
    (outlined(lambda row: row.update(bbox=[], segmentation={"size": [64, 96], "counts": [0, 6144]})), "has 'bbox' []"),
    (outlined(lambda row: row.update(bbox=None, segmentation=[[1, 2, 3, 4, 5]])), "has 'bbox' None"),
    (outlined(lambda row: row.update(bbox="", segmentation=[[1, 2, 3, 4, 5, float("nan")]])), "has 'bbox' ''"),
    (each("annotations", "category_id", lambda _: "blue"), "has 'category_id' 'blue', which is not an integer"),
]


def test_boxes_of_outlines_are_the_same_for_a_detector_of_masks(tmp_path: Path, clean: Annotations) -> None:
    source = find_named(write_coco(tmp_path, outlined(lambda row: row.update(bbox=[]))), "train")
    split = read_source(source, ObjectParts(masks=True))
    assert np.array_equal(split.boxes_xywh_px, clean.boxes_xywh_px) and split.masks is not None


@pytest.mark.parametrize(("change", "complaint"), REFUSED, ids=[complaint for _, complaint in REFUSED])
def test_what_means_nothing_is_refused(
    change: Callable[[Document, Path], None], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as refused:
        read(write_coco(tmp_path, change))
    assert complaint in str(refused.value)


def test_a_number_is_not_taken_for_an_id_that_was_given_anew(tmp_path: Path) -> None:
    """Images a, b are numbered 1, 2. A box of image 2 is of neither."""

    def change(document: Document, folder: Path) -> None:
        ids_as_text(document, folder)
        document["annotations"][3]["image_id"] = 2

    with pytest.raises(InputError, match=r"annotations\[3\] has 'image_id' 2, which is no id"):
        read(write_coco(tmp_path, change))


def test_places_are_those_of_the_file_although_entries_were_dropped(tmp_path: Path) -> None:
    def change(document: Document, folder: Path) -> None:
        with_empty_boxes(document, folder)
        document["annotations"][5]["bbox"] = [1, 2]

    with pytest.raises(InputError, match=r"annotations\[5\] has 'bbox' \[1, 2\]"):
        read(write_coco(tmp_path, change))


# --- names of files ---


def renamed(stated: Callable[[str, str], str], stored: Callable[[str], str]) -> Callable[[Document, Path], None]:
    def change(document: Document, folder: Path) -> None:
        for row in document["images"]:
            name = row["file_name"]
            target = folder / stored(name)
            target.parent.mkdir(exist_ok=True)
            (folder / name).rename(target)
            row["file_name"] = stated(name, folder.name)

    return change


def same(name: str, split: str = "") -> str:
    return name


FORMS: dict[str, tuple[Callable[[str, str], str], Callable[[str], str]]] = {
    "./im.jpg": (lambda n, s: f"./{n}", same),
    "day1\\im.jpg": (lambda n, s: f"day1\\{n}", lambda n: f"day1/{n}"),
    "the split's folder in front": (lambda n, s: f"{s}/{n}", same),
    "images/ in front": (lambda n, s: f"images/{n}", same),
    "a path of another machine": (lambda n, s: f"C:\\Users\\me\\set\\{n}", same),
    "an absolute path": (lambda n, s: f"/home/me/set/{n}", same),
    "a folder above": (lambda n, s: f"../pictures/{n}", same),
    "an address": (lambda n, s: f"https://host.example/upload/{n}", same),
    "an address with a key": (lambda n, s: f"https://host.example/upload/{n}?sig=a%2Fb&time=1", same),
    "Label Studio's local files": (lambda n, s: f"/data/local-files/?d=set%2F{n}", same),
    "a question mark": (lambda n, s: f"./why?{n}", lambda n: f"why?{n}"),
    "+ for a space": (lambda n, s: f"my+{n}", lambda n: f"my {n}"),
    "im.jpg for im.JPG": (same, lambda n: n.replace("jpg", "JPG")),
    "IM.jpg for im.jpg": (lambda n, s: n.upper(), same),
    "im.jpg for im.png": (same, lambda n: n.replace("jpg", "png")),
    "im for im.jpg": (lambda n, s: n.removesuffix(".jpg"), same),
    "%20 for a space": (lambda n, s: n.replace("im", "my%20im"), lambda n: n.replace("im", "my im")),
    "composed for decomposed": (lambda n, s: f"Ä{n}", lambda n: unicodedata.normalize("NFD", f"Ä{n}")),
    "decomposed for composed": (lambda n, s: unicodedata.normalize("NFD", f"Ä{n}"), lambda n: f"Ä{n}"),
    "white space": (lambda n, s: f" {n}\n", same),
}


@pytest.mark.parametrize("form", FORMS)
def test_names_in_another_spelling(form: str, tmp_path: Path, clean: Annotations) -> None:
    split = read(write_coco(tmp_path, renamed(*FORMS[form])))
    assert all((split.image_folder / name).is_file() for name in split.file_names)
    assert np.array_equal(split.boxes_ltrb, clean.boxes_ltrb)
    assert [re.sub(r"\D", "", name)[-3:] for name in split.file_names] == ["000", "001", "002", "003"]
    # In 'train/im.jpg' another folder is meant, and the name is right.
    assert split.mended in ({file_names.WHAT: 4}, {}) and (split.mended or form == "the split's folder in front")


def test_two_names_do_not_lead_to_one_file(tmp_path: Path) -> None:
    document = document_of(["a", "b"])
    document["images"][0]["file_name"], document["images"][1]["file_name"] = "night/a.jpg", "day/a.jpg"
    draw(tmp_path / "images" / "train" / "a.jpg")
    write_json(tmp_path / "annotations" / "instances_train.json", document)
    with pytest.raises(InputError, match="image 'night/a.jpg' and 1 more not found"):
        read(tmp_path)


def test_a_spelling_that_fits_two_files_leads_to_none(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpeg"):
        draw(tmp_path / "images" / "train" / name)
    write_json(tmp_path / "annotations" / "instances_train.json", document_of(["a"]))
    with pytest.raises(InputError, match=r"'a.jpg' not found in .*, which has 2 entries, such as 'a.jpeg'; name the"):
        read(tmp_path)


@pytest.mark.parametrize("flat", [False, True])
def test_images_in_folders_that_are_not_stated(flat: bool, tmp_path: Path, clean: Annotations) -> None:
    """Both splits have images of the same names."""
    for split in ("train", "val"):
        write_json(tmp_path / f"{split}.json", document_of(STEMS["train"]))
        for i, stem in enumerate(STEMS["train"]):
            draw(tmp_path / f"{split}_pictures" / ("" if flat else f"day {i % 2}") / f"{stem}.jpg")
    split = read(tmp_path)
    assert_the_same(replace(split, file_names=clean.file_names), clean)
    where = [f"train_pictures/{'' if flat else f'day {i % 2}/'}{stem}.jpg" for i, stem in enumerate(STEMS["train"])]
    assert split.file_names == where and split.mended == {file_names.WHAT_ELSEWHERE: 4}


def test_images_of_another_split_are_not_taken(tmp_path: Path) -> None:
    """Those to train on are not there, and those to judge by have the same names."""
    write_json(tmp_path / "train.json", document_of(STEMS["train"]))
    for stem in STEMS["train"]:
        draw(tmp_path / "pictures" / "validation" / f"{stem}.jpg")
    with pytest.raises(InputError, match="'im000.jpg' and 3 more not found"):
        read(tmp_path)


def test_one_missing_image_is_not_looked_for_in_other_folders(tmp_path: Path) -> None:
    write_coco(tmp_path)
    file = tmp_path / "images" / "train" / "im000.jpg"
    (tmp_path / "images" / "train" / "others").mkdir()
    file.rename(file.parent / "others" / file.name)
    with pytest.raises(InputError, match="image 'im000.jpg' not found"):
        read(tmp_path)


def test_voc_in_folders_of_any_names(tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "Annotations").rename(tmp_path / "my xml")
    (tmp_path / "JPEGImages").rename(tmp_path / "my pictures")
    shutil.rmtree(tmp_path / "ImageSets")
    split = read(tmp_path, "my xml")
    assert len(split) == 6 and split.file_names[0] == "my pictures/im000.jpg"


# --- encodings ---


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "gbk", "cp1252"])
def test_json_in_other_encodings(encoding: str, tmp_path: Path, clean: Annotations) -> None:
    name = "Äpfel" if encoding == "cp1252" else "红苹果"
    write_coco(tmp_path)
    document = copy.deepcopy(json.loads((tmp_path / "annotations" / "instances_train.json").read_text()))
    document["categories"][0]["name"] = name
    write_json(tmp_path / "annotations" / "instances_train.json", document, encoding)
    split = read(tmp_path)
    assert split.categories[0].name == name and split.fingerprint() == clean.fingerprint()
    assert len(split.mended) == 1


XML_KINDS: dict[str, tuple[str, str, tuple[str, str]]] = {
    "GBK": ('<?xml version="1.0" encoding="GBK"?>', "gbk", ("红", "绿")),
    "GBK without a word": ("", "gbk", ("红苹果", "绿")),
    "Latin-1 without a word": ("", "latin-1", ("Äpfel", "Öl")),
    "Latin-1": ('<?xml version="1.0" encoding="ISO-8859-1"?>', "latin-1", ("Äpfel", "Öl")),
    "UTF-8 that says GBK": ('<?xml version="1.0" encoding="gb2312"?>', "utf-8", ("Größe", "é")),
    "a byte order mark": ("", "utf-8-sig", ("红", "绿")),
    "UTF-16": ("", "utf-16", ("红", "绿")),
    "UTF-16 without a mark": ("", "utf-16-le", ("红", "绿")),
    "DOCTYPE": ('<?xml version="1.0"?><!DOCTYPE annotation>', "utf-8", ("red", "green")),
}


@pytest.mark.parametrize("kind", XML_KINDS)
def test_xml_in_other_encodings(kind: str, tmp_path: Path, clean: Annotations) -> None:
    start, encoding, names = XML_KINDS[kind]
    split = read(write_voc(tmp_path, lambda xml: start + xml, names=names, encoding=encoding))
    assert sorted(category.name for category in split.categories) == sorted(names)
    assert len(split) == 4 and np.array_equal(split.boxes_ltrb, clean.boxes_ltrb)


# --- VOC ---

VOC_KINDS: dict[str, dict[str, Any]] = {
    "size 0": {"change": lambda x: re.sub(r"<(width|height)>\d+<", r"<\1>0<", x)},
    "no size": {"change": lambda x: re.sub(r"<size>.*</size>", "", x)},
    "size 96.0": {"change": lambda x: re.sub(r"<(width|height)>(\d+)<", r"<\1>\2.0<", x)},
    "png, filename without suffix": {"suffix": "png", "change": lambda x: x.replace(".jpg", "")},
    "png, filename says jpg": {"suffix": "png"},
    "JPG, filename says jpg": {"suffix": "JPG"},
    "list with 1": {"line": "{stem}  1"},
    "list with -1": {"line": "{stem} -1"},
    "list with suffixes": {"line": "{stem}.jpg"},
    "list with paths": {"line": "data/obj/{stem}.png"},
    "list with Windows' line ends": {"line": "{stem}\r"},
    "difficult 0.0": {"change": lambda x: x.replace("<difficult>0<", "<difficult>0.0<")},
    "difficult no": {"change": lambda x: x.replace("<difficult>0<", "<difficult>no<")},
    "objects with an empty box": {
        "change": lambda x: x.replace("</annotation>", "<object><name>red</name><bndbox/></object></annotation>")
    },
    "difficult Unspecified": {"change": lambda x: x.replace("<difficult>0<", "<difficult>Unspecified<")},
}


@pytest.mark.parametrize("kind", VOC_KINDS)
def test_voc_as_tools_write_it(kind: str, tmp_path: Path, clean: Annotations) -> None:
    split = read(write_voc(tmp_path, **VOC_KINDS[kind]))
    assert len(split) == 4 and np.array_equal(split.boxes_ltrb, clean.boxes_ltrb)
    assert split.sizes_px.tolist() == [[WIDTH_PX, HEIGHT_PX]] * 4 and split.repairs == {}


@pytest.mark.parametrize(
    ("element", "complaint"),
    [
        ("<bndbox/><polygon><x1>3</x1></polygon>", "has no 'bndbox' with numbers"),
        ("", "has no 'bndbox' with numbers"),
        ("<bndbox><xmin>3</xmin></bndbox>", "has no 'bndbox' with numbers"),
        ("<difficult>2</difficult><bndbox/>", "has a 'difficult' 2, which is neither 0 nor 1"),
    ],
)
def test_objects_of_voc_that_mean_something_else_are_refused(element: str, complaint: str, tmp_path: Path) -> None:
    whole = f"<object><name>red</name>{element}</object></annotation>"
    with pytest.raises(InputError, match=rf"im000\.xml, object 3 {complaint}"):
        read(write_voc(tmp_path, lambda xml: xml.replace("</annotation>", whole)))


@pytest.mark.parametrize("line", ["/", "."])
def test_a_line_of_a_list_that_is_no_name_is_refused(line: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is missing"):
        read(write_voc(tmp_path, line=line))


def test_files_that_are_all_refused_are_named_and_not_the_categories_they_would_have(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Annotations/im000\.xml is not valid XML at line 1"):
        read(write_voc(tmp_path, lambda xml: xml.replace("</annotation>", "")))
