"""Small data sets as annotation tools write them, for tests: drawn images of two boxes each, in every tool's layout."""

import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH_PX, HEIGHT_PX = 96, 64
NAMES = ("red", "green")
BOXES_XYWH_PX = ([10, 8, 32, 24], [50, 30, 26, 20])
Document = dict[str, Any]
STEMS = {"train": ["im000", "im001", "im002", "im003"], "val": ["im100", "im101"]}


def draw(file: Path, **options: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((HEIGHT_PX, WIDTH_PX, 3), 90, dtype=np.uint8)
    pixels[:, :, 2] = zlib.crc32(file.stem.encode()) % 100
    pixels[0, :, 0] = zlib.crc32(file.stem[::-1].encode()) % 200  # no two are alike
    for (x, y, w, h), colour in zip(BOXES_XYWH_PX, ((200, 0, 0), (0, 200, 0)), strict=True):
        pixels[y : y + h, x : x + w] = colour
    Image.fromarray(pixels).save(file, **options)


def document_of(stems: Iterable[str], first_id: int = 1) -> Document:
    """What COCO's file of these images holds."""
    images = [
        {"id": i, "file_name": f"{stem}.jpg", "width": WIDTH_PX, "height": HEIGHT_PX}
        for i, stem in enumerate(stems, first_id)
    ]
    boxes = [
        {"id": 2 * k + c, "image_id": image["id"], "category_id": c + 1, "bbox": list(box), "iscrowd": 0}
        for k, image in enumerate(images, first_id)
        for c, box in enumerate(BOXES_XYWH_PX)
    ]
    categories = [{"id": c, "name": name} for c, name in enumerate(NAMES, 1)]
    return {"images": images, "annotations": boxes, "categories": categories}


def write_json(file: Path, document: Document, encoding: str = "utf-8") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, ensure_ascii=False), encoding=encoding)


def write_coco(
    root: Path,
    change: Callable[[Document, Path], object] = lambda document, folder: None,
    *,
    images: str = "images/{split}",
    annotations: str = "annotations/instances_{split}.json",
) -> Path:
    """change: of each split's document and image folder."""
    for split, stems in STEMS.items():
        folder = root / images.format(split=split)
        for stem in stems:
            draw(folder / f"{stem}.jpg")
        document = document_of(stems)
        change(document, folder)
        write_json(root / annotations.format(split=split), document)
    return root


def object_xml(name: str, box: Iterable[float]) -> str:
    x, y, w, h = box
    corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
    inside = "".join(f"<{corner}>{value}</{corner}>" for corner, value in corners.items())
    return f"<object><name>{name}</name><difficult>0</difficult><bndbox>{inside}</bndbox></object>"


def xml_of(stem: str, names: Iterable[str] = NAMES) -> str:
    size = f"<size><width>{WIDTH_PX}</width><height>{HEIGHT_PX}</height><depth>3</depth></size>"
    objects = "".join(map(object_xml, names, BOXES_XYWH_PX))
    return f"<annotation><filename>{stem}.jpg</filename>{size}{objects}</annotation>"


def write_voc(
    root: Path,
    change: Callable[[str], str] = lambda xml: xml,
    *,
    suffix: str = "jpg",
    names: Iterable[str] = NAMES,
    line: str = "{stem}",
    encoding: str = "utf-8",
) -> Path:
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for split, stems in STEMS.items():
        for stem in stems:
            draw(root / "JPEGImages" / f"{stem}.{suffix}", format={"png": "PNG"}.get(suffix, "JPEG"))
            (root / "Annotations" / f"{stem}.xml").write_bytes(change(xml_of(stem, names)).encode(encoding))
        lines = "".join(f"{line.format(stem=stem)}\n" for stem in stems)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(lines)
    return root


def write_yolo_labels(folder: Path, stems: Iterable[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for c, (x, y, w, h) in enumerate(BOXES_XYWH_PX):
        lines.append(f"{c} {(x + w / 2) / WIDTH_PX} {(y + h / 2) / HEIGHT_PX} {w / WIDTH_PX} {h / HEIGHT_PX}")
    for stem in stems:
        (folder / f"{stem}.txt").write_text("\n".join(lines) + "\n")


# --- the layouts: each writes a data set that --data alone leads to ---


def roboflow(root: Path) -> None:
    def with_parent(document: Document, folder: Path) -> None:
        document["categories"].insert(0, {"id": 0, "name": "shapes", "supercategory": "none"})

    write_coco(root, with_parent, images="{split}", annotations="{split}/_annotations.coco.json")
    (root / "val").rename(root / "valid")
    (root / "README.roboflow.txt").write_text("exported")


def fiftyone(root: Path) -> None:
    write_coco(root, images="{split}/data", annotations="{split}/labels.json")


def fiftyone_of_one_split(root: Path) -> None:
    stems = [*STEMS["train"], *STEMS["val"]]
    for stem in stems:
        draw(root / "data" / f"{stem}.jpg")
    write_json(root / "labels.json", document_of(stems))


def label_studio_coco(root: Path) -> None:
    stems = [*STEMS["train"], *STEMS["val"]]
    document = document_of(stems, first_id=0)
    for image in document["images"]:
        draw(root / "images" / image["file_name"])
        image["file_name"] = f"images\\{image['file_name']}"
    write_json(root / "result.json", document)


def cvat_coco(root: Path) -> None:
    stems = [*STEMS["train"], *STEMS["val"]]
    for stem in stems:
        draw(root / "images" / "default" / f"{stem}.jpg")
    write_json(root / "annotations" / "instances_default.json", document_of(stems))


def flat_with_one_json(root: Path) -> None:
    stems = [*STEMS["train"], *STEMS["val"]]
    for stem in stems:
        draw(root / f"{stem}.jpg")
    write_json(root / "my labels.json", document_of(stems))


def plain_names(root: Path) -> None:
    write_coco(root, annotations="annotations/{split}.json")


def named_by_folders_alone(root: Path) -> None:
    write_coco(root, images="{split}/pictures", annotations="{split}/export.json")


def in_a_folder_of_its_own(root: Path) -> None:
    write_coco(root / "shapes-v3", annotations="annotations/{split}.json")
    (root / "__MACOSX").mkdir()


def label_img(root: Path) -> None:
    for stem in (*STEMS["train"], *STEMS["val"]):
        draw(root / f"{stem}.jpg")
        (root / f"{stem}.xml").write_text(xml_of(stem))


def roboflow_voc(root: Path) -> None:
    for split, stems in (("train", STEMS["train"]), ("valid", STEMS["val"])):
        for stem in stems:
            draw(root / split / f"{stem}.jpg")
            (root / split / f"{stem}.xml").write_text(xml_of(stem))


def label_studio_voc(root: Path) -> None:
    write_voc(root)
    (root / "JPEGImages").rename(root / "images")
    shutil.rmtree(root / "ImageSets")


def voc_devkit(root: Path) -> None:
    write_voc(root / "VOCdevkit" / "VOC2007")
    write_voc(root / "VOCdevkit" / "VOC2012", lambda xml: re.sub("im(\\d)", r"later\1", xml))
    for file in sorted((root / "VOCdevkit" / "VOC2012").rglob("im*")):
        file.rename(file.with_name(file.name.replace("im", "later")))
    for file in (root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main").iterdir():
        file.write_text(file.read_text().replace("im", "later"))


def write_yolo(root: Path, images: str = "images/{split}", labels: str = "labels/{split}") -> None:
    for split, stems in STEMS.items():
        for stem in stems:
            draw(root / images.format(split=split) / f"{stem}.jpg")
        write_yolo_labels(root / labels.format(split=split), stems)


def ultralytics(root: Path) -> None:
    write_yolo(root)
    (root / "data.yaml").write_text(
        "path: ../datasets/shapes  # of another machine\ntrain: images/train\nval: images/val\n"
        "names:\n  0: red\n  1: green\n"
    )


def roboflow_yolo(root: Path) -> None:
    write_yolo(root, "{split}/images", "{split}/labels")
    (root / "data.yaml").write_text("train: ../train/images\nval: ../val/images\n\nnc: 2\nnames: ['red', 'green']\n")


def yolo_lists(root: Path) -> None:
    write_yolo(root)
    for split, stems in STEMS.items():
        (root / f"{split}.txt").write_text("".join(f"./images/{split}/{stem}.jpg\n" for stem in stems))
    (root / "dataset.yaml").write_text("path: .\ntrain: train.txt\nval: val.txt\nnc: 2\nnames: [red, green]\n")


def label_studio_yolo(root: Path) -> None:
    for stems in STEMS.values():
        for stem in stems:
            draw(root / "images" / f"{stem}.jpg")
        write_yolo_labels(root / "labels", stems)
    (root / "classes.txt").write_text("red\ngreen\n")
    (root / "notes.json").write_text(
        '{"categories": [{"id": 0, "name": "red"}, {"id": 1, "name": "green"}], "info": {}}'
    )


def darknet(root: Path) -> None:
    for split, stems in STEMS.items():
        for stem in stems:
            draw(root / "obj_train_data" / f"{stem}.jpg")
        write_yolo_labels(root / "obj_train_data", stems)
        name = {"train": "train", "val": "valid"}[split]
        (root / f"{name}.txt").write_text("".join(f"data/obj_train_data/{stem}.jpg\n" for stem in stems))
    (root / "obj.names").write_text("red\ngreen\n")
    (root / "obj.data").write_text(
        "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n"
    )


def darknet_labels_beside_images(root: Path) -> None:
    write_yolo(root, "{split}", "{split}")
    (root / "classes.txt").write_text("red\ngreen\n")


YOLO = [ultralytics, roboflow_yolo, yolo_lists, label_studio_yolo, darknet, darknet_labels_beside_images]
COCO_AND_VOC = [
    roboflow, fiftyone, fiftyone_of_one_split, label_studio_coco, cvat_coco, flat_with_one_json, plain_names,
    named_by_folders_alone, in_a_folder_of_its_own, label_img, roboflow_voc, label_studio_voc, voc_devkit,
]  # fmt: skip
HELD_OUT = {
    label_studio_yolo, fiftyone_of_one_split, label_studio_coco, cvat_coco, flat_with_one_json, label_img,
    label_studio_voc,
}  # fmt: skip
