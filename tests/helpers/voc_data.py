"""Writes VOC folders, for tests: one of a few words, or one with what a COCO folder holds."""

import json
import shutil
from pathlib import Path
from typing import Any

XML = """<annotation>
  <folder>somewhere</folder><filename>{name}.jpg</filename>
  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>
  {objects}
</annotation>
"""
OBJECT = """<object>
    <name>{name}</name><pose>Left</pose><truncated>1</truncated><difficult>{difficult}</difficult>
    <bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
  </object>"""


def object_xml(name: str, xmin: object, ymin: object, xmax: object, ymax: object, difficult: object = 0) -> str:
    return OBJECT.format(name=name, xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax, difficult=difficult)


def image_xml(name: str, *objects: str, width: object = 100, height: object = 50) -> str:
    return XML.format(name=name, width=width, height=height, objects="\n  ".join(objects))


def write_voc(folder: Path, splits: dict[str, list[str]], xml: dict[str, str]) -> Path:
    """splits: names of images by split; xml: by name. The images are empty files, which the reader does not open."""
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    for name, text in xml.items():
        (folder / "Annotations" / f"{name}.xml").write_text(text)
        (folder / "JPEGImages" / f"{name}.jpg").touch()
    for split, names in splits.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return folder


def voc_of_coco(coco: Path, splits: dict[str, str], folder: Path) -> Path:
    """What a COCO folder holds as a VOC folder; splits: COCO's name of a split by VOC's."""
    lists: dict[str, list[str]] = {}
    xml: dict[str, str] = {}
    images: dict[str, Path] = {}
    for split, coco_split in splits.items():
        document: dict[str, Any] = json.loads((coco / "annotations" / f"instances_{coco_split}.json").read_text())
        names = {category["id"]: category["name"] for category in document["categories"]}
        lists[split] = []
        for image in document["images"]:
            stem = f"{split}-{Path(image['file_name']).stem}"
            objects = []
            for box in (box for box in document["annotations"] if box["image_id"] == image["id"]):
                x, y, width, height = box["bbox"]
                corners = (x + 1, y + 1, x + width, y + height)  # counted from 1, the last pixel inside
                objects.append(object_xml(names[box["category_id"]], *corners, difficult=box.get("iscrowd", 0)))
            lists[split].append(stem)
            xml[stem] = image_xml(stem, *objects, width=image["width"], height=image["height"])
            images[stem] = next(path for path in coco.rglob(image["file_name"]) if coco_split in path.parts)
    write_voc(folder, lists, xml)
    for stem, path in images.items():
        shutil.copyfile(path, folder / "JPEGImages" / f"{stem}.jpg")
    return folder
