"""What annotation tools export is read with no other flag than --data."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tool_data
from tool_data import (
    BOXES_XYWH_PX,
    COCO_AND_VOC,
    HELD_OUT,
    NAMES,
    YOLO,
    document_of,
    draw,
    write_coco,
    write_json,
    write_voc,
)

from pipelines.readers.layouts.source import Form
from pipelines.readers.reading import read_document, read_source
from pipelines.readers.splits import SplitFlags, find_both, find_named, find_sources, find_split, held_out_text
from ssd.errors import InputError

NONE = SplitFlags()


@pytest.mark.parametrize("layout", [*COCO_AND_VOC, *YOLO], ids=lambda layout: layout.__name__)
def test_the_data_folder_alone_is_enough(layout: Callable[[Path], None], tmp_path: Path) -> None:
    layout(tmp_path)
    train, val = map(read_source, find_both(tmp_path, NONE, NONE))
    years = 2 if layout is tool_data.voc_devkit else 1
    counts = (5, 1) if layout in HELD_OUT else (4 * years, 2 * years)
    assert (len(train), len(val)) == counts
    assert {Path(name).stem for name in train.file_names}.isdisjoint({Path(name).stem for name in val.file_names})
    for split in (train, val):
        assert np.allclose(split.boxes_xywh_px, BOXES_XYWH_PX * len(split), atol=1e-4)
        names = [split.categories[label - 1].name for label in split.labels.tolist()]
        assert names == [*NAMES] * len(split)
        assert all((split.image_folder / name).is_file() for name in split.file_names)
        assert split.repairs == {}


def test_a_split_is_found_by_its_name_and_what_is_there_is_listed(tmp_path: Path) -> None:
    tool_data.roboflow(tmp_path)
    assert list(find_sources(tmp_path)) == ["train", "valid"]
    assert find_named(tmp_path, "valid").file == tmp_path / "valid" / "_annotations.coco.json"
    with pytest.raises(InputError) as refused:
        find_named(tmp_path, "val")
    message = str(refused.value)
    assert "no split 'val'" in message and "\n" not in message
    assert "'train' (COCO, train/_annotations.coco.json)" in message and "--val-split" in message


def test_coco_s_own_place_is_taken_without_a_look_at_the_rest(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        write_coco(tmp_path, images=split, annotations=f"annotations/instances_{split}.json")
    for other in ("train.json", "captions_train2017.json", "person_keypoints_val2017.json"):
        write_json(tmp_path / "annotations" / other, document_of(["elsewhere"]))
    train, val = find_both(tmp_path, NONE, NONE)
    assert (train.split, val.split) == ("train2017", "val2017") and not train.part
    assert train.file.name == "instances_train2017.json" and train.image_folder == tmp_path / "train2017"


def test_train_json_beside_instances_train(tmp_path: Path) -> None:
    write_coco(tmp_path)
    write_json(tmp_path / "annotations" / "train.json", document_of(["elsewhere"]))
    assert find_both(tmp_path, NONE, NONE)[0].file.name == "instances_train.json"


def test_the_held_out_share_is_stated_and_always_the_same(tmp_path: Path) -> None:
    stems = [f"im{i:03d}" for i in range(50)]
    write_json(tmp_path / "labels.json", document_of(stems))
    for stem in stems:
        (tmp_path / f"{stem}.jpg").touch()
    sources = find_both(tmp_path, NONE, NONE)
    assert [source.name for source in sources] == ["labels:train", "labels:val"]
    assert "20% of the images of 'labels'" in held_out_text(sources[0])
    train, val = map(read_source, sources)
    assert (len(train), len(val)) == (40, 10)
    assert sorted(train.file_names + val.file_names) == [f"{stem}.jpg" for stem in stems]
    # By name: in another order the same images are held out.
    write_json(tmp_path / "labels.json", document_of(stems[::-1]))
    assert set(read_source(find_named(tmp_path, "labels:val")).file_names) == set(val.file_names)
    assert len(read_source(find_named(tmp_path, "labels"))) == 50


@pytest.mark.parametrize("split", ["train", "val"])
def test_nothing_is_held_out_where_annotations_of_another_split_lack(split: str, tmp_path: Path) -> None:
    write_coco(tmp_path)
    file = tmp_path / "annotations" / f"instances_{split}.json"
    file.unlink()
    with pytest.raises(InputError, match=f"{file}: no such annotation file, but .*images/{split} is; put"):
        find_both(tmp_path, NONE, NONE)


def test_a_folder_of_a_split_without_label_files_is_named(tmp_path: Path) -> None:
    tool_data.write_yolo(tmp_path)
    shutil.rmtree(tmp_path / "labels" / "train")
    with pytest.raises(InputError, match="images/train: no label files of its images were found; add them"):
        find_both(tmp_path, NONE, NONE)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("layout", [tool_data.ultralytics, tool_data.darknet], ids=lambda layout: layout.__name__)
def test_a_stated_split_that_is_not_there(layout: Callable[[Path], None], split: str, tmp_path: Path) -> None:
    """Without its images to train on, a set is refused. Exports state splits to judge by that they do not have: then a
    share is held out."""
    layout(tmp_path)
    if layout is tool_data.darknet:
        file, stated = "obj.data", f"data/{({'train': 'train', 'val': 'valid'})[split]}.txt"
        (tmp_path / Path(stated).name).unlink()
    else:
        file, stated = "data.yaml", f"images/{split}"
        shutil.rmtree(tmp_path / stated)
    train, val = find_both(tmp_path, NONE, NONE)
    if split == "val":
        assert (train.name, val.name) == ("train:train", "train:val")
        assert len(read_source(train)) + len(read_source(val)) == 4
        name = Path(stated).stem
        refused = find_named(tmp_path, name)
    else:
        assert not val.part and len(read_source(val)) == 2
        refused = train
    with pytest.raises(InputError, match=f"{file}: its '{Path(stated).stem}' is '{stated}', which is not there; put"):
        read_source(refused)


def test_a_split_of_several_folders_needs_them_all(tmp_path: Path) -> None:
    tool_data.ultralytics(tmp_path)
    text = "train: [images/train, images/more]\nval: images/val\ntest: images/test\nnames: [red, green]\n"
    (tmp_path / "data.yaml").write_text(text)
    train, val = find_both(tmp_path, NONE, NONE)
    assert len(read_source(val)) == 2  # that there is no test split harms nobody
    with pytest.raises(InputError, match="its 'train' is 'images/more', which is not there"):
        read_source(train)


def test_names_that_do_not_tell_are_not_guessed(tmp_path: Path) -> None:
    for name in ("north", "south"):
        write_json(tmp_path / f"{name}.json", document_of([name]))
        draw(tmp_path / f"{name}.jpg")
    with pytest.raises(InputError, match="do not tell which one is to train on; pass --train-split .*'north'.*'south'"):
        find_both(tmp_path, NONE, NONE)
    train, val = find_both(tmp_path, NONE, SplitFlags("south"))
    assert (train.name, val.name) == ("north", "south")


@pytest.mark.parametrize(
    ("copied", "to", "refused"),
    [
        ("val/export.json", "val/before.json", "'train/export'.*'val/before'.*'val/export'"),
        ("val/export.json", "test/export.json", ""),
        ("train/export.json", "val/train.json", "'train/export'.*'val/export'.*'val/train'"),
    ],
)
def test_folders_name_splits_where_nothing_else_does(copied: str, to: str, refused: str, tmp_path: Path) -> None:
    """A folder of two files does not tell which one is the split, whatever other folders there are, nor one whose file
    says another split."""
    tool_data.named_by_folders_alone(tmp_path)
    draw(tmp_path / "test" / "pictures" / "more.jpg")
    write_json(tmp_path / "test" / "export.json", document_of(["more"]))
    assert list(find_sources(tmp_path)) == ["test", "train", "val"]
    shutil.copy(tmp_path / copied, tmp_path / to)
    if refused:
        with pytest.raises(InputError, match=f"do not tell which one is to train on; .*{refused}"):
            find_both(tmp_path, NONE, NONE)
    else:
        train, val = find_both(tmp_path, NONE, NONE)
        assert (train.file.parent.name, val.file.parent.name) == ("train", "val")
    assert find_named(tmp_path, "train/export").file == tmp_path / "train" / "export.json"


@pytest.mark.parametrize(
    ("split", "other"), [("test", "eval/results.json"), ("valid", "val/predictions.json"), ("val", "val2017/old.json")]
)
def test_a_folder_takes_no_precedence_over_a_name(split: str, other: str, tmp_path: Path) -> None:
    write_coco(tmp_path, annotations="annotations/{split}.json")
    (tmp_path / "annotations" / "val.json").rename(tmp_path / "annotations" / f"{split}.json")
    (tmp_path / "images" / "val").rename(tmp_path / "images" / split)
    write_json(tmp_path / other, document_of(["x"]))
    train, val = find_both(tmp_path, NONE, NONE)
    assert (train.name, val.name) == ("train", split)


def test_nothing_is_held_out_of_a_folder_s_split_where_another_folder_lacks_its_file(tmp_path: Path) -> None:
    tool_data.named_by_folders_alone(tmp_path)
    (tmp_path / "val" / "export.json").unlink()
    with pytest.raises(InputError, match=r"no such annotation file, but .*val is"):
        find_both(tmp_path, NONE, NONE)


def test_a_folder_without_annotations_is_refused(tmp_path: Path) -> None:
    draw(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="no annotations were found.*--train-annotations"):
        find_both(tmp_path, NONE, NONE)
    with pytest.raises(InputError, match="no such data folder"):
        find_both(tmp_path / "nowhere", NONE, NONE)


@pytest.mark.parametrize("name", ["annotations", "Annotations", "labels", "data.yaml"])
def test_the_folder_above_that_of_the_images_is_told(name: str, tmp_path: Path) -> None:
    draw(tmp_path / "images" / "a.jpg")
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"no annotations were found.*{tmp_path} has '{name}' beside it: pass that"):
        find_both(tmp_path / "images", NONE, NONE)


def notes_beside(folder: Path) -> None:
    (folder / "notes.txt").write_text("of Monday")
    (folder / "preview.png").write_bytes(b"")


def scripts_beside(folder: Path) -> None:
    (folder / "scripts").mkdir()


@pytest.mark.parametrize("beside", [lambda folder: None, notes_beside, scripts_beside])
@pytest.mark.parametrize("name", ["My Project.v1i.coco", "data", "images", "train"])
@pytest.mark.parametrize("layout", [tool_data.roboflow, tool_data.ultralytics, tool_data.roboflow_voc])
def test_a_folder_that_an_archive_was_unpacked_to_may_have_any_name(
    layout: Callable[[Path], None], name: str, beside: Callable[[Path], None], tmp_path: Path
) -> None:
    layout(tmp_path / name)
    beside(tmp_path)
    train, val = map(read_source, find_both(tmp_path, NONE, NONE))
    assert (len(train), len(val)) == (4, 2)


def test_of_two_data_sets_none_is_chosen(tmp_path: Path) -> None:
    for name in ("one", "two"):
        tool_data.roboflow(tmp_path / name)
    with pytest.raises(InputError, match="its splits' names do not tell which one is to train on"):
        find_both(tmp_path, NONE, NONE)


BROKEN_FILES = {
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "is a pointer of Git LFS"),
    "nothing": (b"", "is empty; fetch it again"),
    "an error page": (b"\n<!DOCTYPE html><html>", "holds HTML or XML, perhaps an error page"),
    "a comment": (b'// from the tool\n{"images": []}', "begins with what is no JSON; take out what stands before"),
    "text of Python": (b"{'images': []}", "holds Python's text of a dictionary, not JSON"),
    "JSON twice": (b'"{\\"images\\": []}"', "holds JSON that was written as a text once more"),
    "an archive": (b"\x1f\x8b\x08\0", "is an archive, whatever its name says"),
    "a list": (b'[{"images": [], "annotations": []}]', "is a list around COCO's object; take it out"),
}


@pytest.mark.parametrize("what", BROKEN_FILES)
@pytest.mark.parametrize("layout", [write_coco, tool_data.roboflow])
def test_a_file_that_is_there_is_said_to_be_broken_not_missing(
    layout: Callable[[Path], object], what: str, tmp_path: Path
) -> None:
    layout(tmp_path)
    content, reason = BROKEN_FILES[what]
    file = next(path for path in sorted(tmp_path.rglob("*.json")) if "val" in str(path.relative_to(tmp_path)))
    file.write_bytes(content)
    with pytest.raises(InputError) as refused:
        find_both(tmp_path, NONE, NONE)
    assert f"{file}: {reason}" in str(refused.value) and str(refused.value).count(";") == 1


def test_a_broken_file_alone_is_said_to_be_broken(tmp_path: Path) -> None:
    draw(tmp_path / "a.jpg")
    (tmp_path / "result.json").write_bytes(BROKEN_FILES["Git LFS"][0])
    with pytest.raises(
        InputError, match=r"result.json is a pointer of Git LFS, not the file itself\); run git lfs pull"
    ):
        find_both(tmp_path, NONE, NONE)


OTHER_TOOLS: dict[str, tuple[str, str, str]] = {
    "VIA": ("via.json", '{"a.jpg123": {"filename": "a.jpg", "size": 123, "regions": []}}', "via.json is VIA's own"),
    "LabelMe": ("a.json", '{"version": "5", "shapes": [], "imagePath": "a.jpg"}', "a.json is LabelMe's"),
    "Label Studio": ("p.json", '[{"id": 1, "annotations": [{"result": []}]}]', "p.json is Label Studio's own"),
    "CreateML": (
        "m.json", '[{"image": "a.jpg", "annotations": [{"coordinates": {"x": 1}}]}]', "m.json is CreateML's",
    ),
    "CVAT": (
        "all/annotations.xml", "<?xml version='1.0'?><annotations><version>1.1</version></annotations>",
        "all/annotations.xml is 'CVAT for images'",
    ),
    "Supervisely": ("meta.json", '{"classes": [{"title": "red", "shape": "rectangle"}]}', "meta.json is Supervisely's"),
    "Datumaro": ("default.json", '{"dm_format_version": "1.0", "media_type": 2}', "default.json is Datumaro's own"),
    "a table": ("_annotations.csv", "filename,width,height", "_annotations.csv is a table); export COCO, VOC or YOLO"),
    "an archive": ("export.zip", "PK", "export.zip is an archive); unpack it"),
    "whatever": ("notes.txt", "seen on Monday", "(such as notes.txt); pass the folder that has them"),
}  # fmt: skip


@pytest.mark.parametrize("tool", OTHER_TOOLS)
def test_files_that_are_no_annotations_are_listed_with_what_to_export(tool: str, tmp_path: Path) -> None:
    name, content, told = OTHER_TOOLS[tool]
    draw(tmp_path / "a.jpg")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as refused:
        find_both(tmp_path, NONE, NONE)
    message = str(refused.value)
    assert "no annotations were found" in message and "1 .jpg" in message and told in message
    assert message.count(";") == 1 and "\n" not in message


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    file = tmp_path / "set.zip"
    file.write_bytes(b"PK")
    with pytest.raises(InputError, match=r"set\.zip: an archive, not a data folder; unpack it and pass the folder"):
        find_both(file, NONE, NONE)
    with pytest.raises(InputError, match="a file, not a data folder; pass the folder that it lies in"):
        find_named(file.rename(tmp_path / "boxes.json"), "train")


def test_a_json_of_something_else_hides_no_labels(tmp_path: Path) -> None:
    tool_data.ultralytics(tmp_path)
    (tmp_path / "info.json").write_text('{"name": "shapes", "images": 6, "annotations": ["some"]}')
    assert {source.form for source in find_sources(tmp_path).values()} == {Form.YOLO}


def test_a_json_of_the_split_to_judge_by_alone_hides_no_labels(tmp_path: Path) -> None:
    """As evaluators of COCO's metrics want it beside YOLO's labels, which number the classes from 0."""
    tool_data.ultralytics(tmp_path)
    write_json(tmp_path / "annotations" / "instances_val.json", document_of(tool_data.STEMS["val"]))
    train, val = find_both(tmp_path, NONE, NONE)
    assert (train.form, val.form) == (Form.YOLO, Form.YOLO) and find_named(tmp_path, val.name) == val
    assert find_both(tmp_path, SplitFlags(train.name), SplitFlags(val.name)) == (train, val)
    assert find_named(tmp_path, "val").form is Form.COCO  # who names it means it
    named = find_both(tmp_path, NONE, SplitFlags(annotations="annotations/instances_val.json"))
    assert [source.form for source in named] == [Form.YOLO, Form.COCO]


def test_a_file_whose_images_are_no_list_is_named(tmp_path: Path) -> None:
    document = document_of(["a"])
    document["images"] = dict(enumerate(document["images"]))
    document["annotations"] = dict(enumerate(document["annotations"]))
    write_json(tmp_path / "boxes.json", document)
    with pytest.raises(InputError, match=r"boxes\.json: 'images' is not a list"):
        read_source(find_named(tmp_path, "boxes"))


def test_files_and_folders_can_be_named(tmp_path: Path) -> None:
    write_coco(tmp_path / "set", images="pixels/of {split}", annotations="boxes/{split}-final.json")
    flags = [
        SplitFlags(annotations=f"boxes/{split}-final.json", images=f"pixels/of {split}") for split in ("train", "val")
    ]
    train, val = map(read_source, find_both(tmp_path / "set", *flags))
    assert (len(train), len(val)) == (4, 2)
    elsewhere = tmp_path / "elsewhere.json"
    write_json(elsewhere, document_of(["im100"]))
    source = find_split(tmp_path / "set", SplitFlags(annotations=str(elsewhere), images="pixels/of val"))
    assert source.form is Form.COCO and read_source(source).file_names == ["im100.jpg"]
    with pytest.raises(InputError, match=r"no\.json: no such annotation file; pass --train-annotations"):
        find_split(tmp_path / "set", SplitFlags(annotations="no.json"))
    with pytest.raises(InputError, match="no such image folder; pass --train-images"):
        find_split(tmp_path / "set", SplitFlags(annotations=str(elsewhere), images="nowhere"))


def test_images_without_xml_are_counted(tmp_path: Path) -> None:
    tool_data.label_img(tmp_path)
    draw(tmp_path / "im900.jpg")
    split = read_source(find_named(tmp_path, "all"))
    assert len(split) == 6 and split.mended == {"images without XML left out": 1}


def test_voc_splits_without_lists_agree_on_their_classes(tmp_path: Path) -> None:
    tool_data.roboflow_voc(tmp_path)
    (tmp_path / "train" / "im000.xml").write_text(tool_data.xml_of("im000", ("amber", "green")))
    train, val = map(read_source, find_both(tmp_path, NONE, NONE))
    assert train.categories == val.categories == ((1, "amber"), (2, "green"), (3, "red"))


def voc_lists(root: Path, folder: str) -> Path:
    write_voc(root)
    lists = root / folder
    lists.mkdir(exist_ok=True, parents=True)
    for file in (root / "ImageSets" / "Main").iterdir():
        file.rename(lists / file.name)
    shutil.rmtree(root / "ImageSets" / "Main")
    if not any((root / "ImageSets").iterdir()):
        (root / "ImageSets").rmdir()
    return lists


def yolo_lists(root: Path, folder: str) -> Path:
    tool_data.label_studio_yolo(root)
    lists = root / folder
    lists.mkdir(exist_ok=True)
    line = {".": "images/{}.jpg", "ImageSets": "/home/me/set/images/{}.jpg"}.get(folder, "{}")
    for split, stems in tool_data.STEMS.items():
        (lists / f"{split}.txt").write_text("".join(f"{line.format(stem)}\n" for stem in stems))
    return lists


def label_img_lists(root: Path, folder: str) -> Path:
    tool_data.label_img(root)
    lists = root / folder
    lists.mkdir(exist_ok=True, parents=True)
    for split, stems in tool_data.STEMS.items():
        (lists / f"{split}.txt").write_text("\n".join(stems))
    return lists


@pytest.mark.parametrize("folder", [".", "ImageSets", "imagesets/main", "lists"])
@pytest.mark.parametrize("layout", [voc_lists, yolo_lists, label_img_lists])
def test_lists_of_one_s_own_share_out_the_images(
    layout: Callable[[Path, str], Path], folder: str, tmp_path: Path
) -> None:
    if layout is yolo_lists:
        folder = folder.replace("imagesets/main", "imagesets")
    lists = layout(tmp_path, folder)
    flags = [NONE, NONE]
    if folder == "lists":  # which are there for those who name them
        flags = [SplitFlags(annotations=str(lists / f"{split}.txt")) for split in ("train", "val")]
    train, val = map(read_source, find_both(tmp_path, *flags))
    assert [Path(name).stem for name in train.file_names] == tool_data.STEMS["train"]
    assert [Path(name).stem for name in val.file_names] == tool_data.STEMS["val"]
    assert len(train.labels) == 8 and train.categories == val.categories
    assert [category.name for category in train.categories] == sorted(NAMES, reverse=layout is yolo_lists)
    is_moved = layout is yolo_lists and folder == "ImageSets"
    assert train.mended.get("paths of another place found in the data folder", 0) == 4 * is_moved


def test_paths_into_the_data_folder_may_go_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absolute ones though the data folder is named by a relative path, through links, and with '..'."""
    tool_data.yolo_lists(tmp_path / "set")
    draw(tmp_path / "set" / "pictures" / "b.jpg")
    (tmp_path / "set" / "images").rename(tmp_path / "elsewhere")
    (tmp_path / "set" / "images").symlink_to(tmp_path / "elsewhere")
    lines = [
        str(tmp_path / "set" / "images" / "train" / "im000.jpg"), "images/../images/train/im001.jpg",
        "./PICTURES/b.JPG", "images/train/gone.jpg", "x" * 300,
    ]  # fmt: skip
    (tmp_path / "set" / "train.txt").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    document = read_document(find_named(Path("set"), "train"))
    names = [row["file_name"] for row in document.tables["images"]]
    assert names == ["images/train/im000.jpg", "images/train/im001.jpg", "pictures/b.jpg", "gone.jpg", "x" * 300]
    assert len(document.tables["annotations"]) == 4
    assert document.repairs["file names in another spelling found"] == ["./PICTURES/b.JPG"]
    assert "paths of another place found in the data folder" not in document.repairs


def test_encodings_of_lists_names_and_xml_are_counted(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc", encoding="utf-8-sig")
    (tmp_path / "voc" / "ImageSets" / "Main" / "train.txt").write_text("im000\nim001\n", encoding="utf-16")
    split = read_source(find_named(tmp_path / "voc", "train"))
    assert split.mended == {"UTF-16 read": 1, "XML in UTF-8 with a byte order mark read": 6}
    tool_data.ultralytics(tmp_path / "yolo")
    (tmp_path / "yolo" / "data.yaml").write_text(
        "train: images/train\nval: images/val\nnames: [红, 绿]\n", encoding="gbk"
    )
    split = read_source(find_named(tmp_path / "yolo", "train"))
    assert split.mended == {"GBK read": 1} and [category.name for category in split.categories] == ["红", "绿"]


def test_a_yaml_of_both_splits_can_be_named(tmp_path: Path) -> None:
    tool_data.ultralytics(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "data.yaml").rename(tmp_path / "config" / "shapes.yaml")
    assert list(find_sources(tmp_path)) == ["train", "val"]
    both = (SplitFlags(annotations="config/shapes.yaml", role=role) for role in ("train", "val"))
    train, val = map(read_source, find_both(tmp_path, *both))
    assert (len(train), len(val)) == (4, 2) and train.categories == ((0, "red"), (1, "green"))
    (tmp_path / "notes.txt").write_text("of no images")
    with pytest.raises(InputError, match="nor a list of images, data.yaml or split of"):
        find_split(tmp_path, SplitFlags(annotations="notes.txt"))


def test_lists_of_a_class_and_hidden_files_are_no_splits(tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "._train.txt").write_bytes(b"\0\5\x16\7Mac OS X")
    (tmp_path / "ImageSets" / "Main" / "red_train.txt").write_text("im000  1\nim001 -1\n")
    assert list(find_sources(tmp_path)) == ["train", "val"]
    assert read_source(find_named(tmp_path, "red_train")).file_names == ["im000.jpg", "im001.jpg"]


def test_a_file_with_a_line_break_in_its_name_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a\nb.txt").write_text("x")
    with pytest.raises(InputError) as refused:
        find_both(tmp_path, SplitFlags(), SplitFlags())
    assert "such as 'a\\nb.txt'" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("aim", ["nowhere", "obj.data"])
def test_a_link_that_leads_nowhere_is_no_file(aim: str, tmp_path: Path) -> None:
    (tmp_path / "obj.data").symlink_to(aim)
    with pytest.raises(InputError, match="no annotations were found"):
        find_both(tmp_path, SplitFlags(), SplitFlags())


def test_a_refusal_is_one_line_whatever_it_names() -> None:
    assert str(InputError("line\nline.xml is not valid XML")) == r"line\nline.xml is not valid XML"
