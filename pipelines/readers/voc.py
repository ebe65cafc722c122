"""The reader of PASCAL VOC folders: makes COCO's tables of them, for the strict reader to check as any others.

DIR/Annotations/*.xml, DIR/JPEGImages/*, and DIR/ImageSets/Main/{split}.txt with a name a line, without suffix. As VOC's
development kit defines them:

- Pixels count from 1 and the last one belongs to the box: xmin 1, xmax 1 is the image's first column. So a box goes
  from xmin - 1 to xmax, and is xmax - xmin + 1 wide.
- Objects marked `difficult` are not learned, and neither finding nor missing them counts: in COCO's terms, crowd
  regions.
- `truncated`, `occluded`, `pose` and the `part`s of objects mean nothing to a detector of boxes.

VOC has no ids: images are numbered from 1 as the split lists them, and categories by their names in order of the
alphabet, over all of DIR/Annotations, so that all splits agree.
"""

import os
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from pipelines.readers.rows import shown
from ssd.errors import InputError

_LISTS = Path("ImageSets", "Main")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def is_voc(data_folder: Path) -> bool:
    return os.path.isdir(data_folder / _LISTS)


def find_split(data_folder: Path, split: str) -> tuple[Path, Path]:
    """The image folder and the list of a split such as 'train'. Raises InputError that says where it looked."""
    images, annotations = data_folder / "JPEGImages", data_folder / "Annotations"
    for folder in (images, annotations):
        if not os.path.isdir(folder):
            raise InputError(f"{folder}: no such folder; a VOC data set has JPEGImages, Annotations and ImageSets/Main")
    file = data_folder / _LISTS / f"{split}.txt"
    if not os.path.isfile(file):
        raise InputError(
            f"{file}: no such list; name the images of split '{split}' there, or name the splits with --train-split "
            "and --val-split"
        )
    return images, file


def object_files(file: Path) -> list[Path]:
    """The XML files of the data set of this list, of all its splits."""
    return sorted((file.parents[2] / "Annotations").rglob("*.xml"))


def read_document(file: Path) -> dict[str, Any]:
    """The split that this list names, as the content of a COCO annotation file.

    Each row says in 'place' which file it is from, and in 'problem' what is wrong with it where it cannot be read.
    Raises InputError where the list itself cannot be read.
    """
    folder = file.parents[2] / "Annotations"
    roots = {path.relative_to(folder).with_suffix("").as_posix(): _parse(path) for path in object_files(file)}
    names = {name for root in roots.values() if isinstance(root, Element) for name in _object_names(root)}
    category_ids = {name: number for number, name in enumerate(sorted(names), 1)}
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for image_id, stem in enumerate(_names_listed(file), 1):
        place = f"Annotations/{stem}.xml"
        root = roots.get(stem, "is missing")
        if isinstance(root, str):
            images.append({"place": place, "problem": root})
            continue
        images.append({"place": place, "id": image_id, "file_name": _file_name(root, stem), **_size_px(root)})
        for number, element in enumerate(root.findall("object"), 1):
            box = _box(element, category_ids)
            boxes.append({"place": f"{place}, object {number}", "id": len(boxes) + 1, "image_id": image_id, **box})
    categories = [{"id": id, "name": name} for name, id in category_ids.items()]
    return {"images": images, "annotations": boxes, "categories": categories}


def _names_listed(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check the file and its permissions") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    return [line.strip() for line in lines if line.strip()]


class _Unsafe(Exception):
    """XML with declarations of its own, which may make gigabytes of a few bytes or name files of this machine."""


def _parse(path: Path) -> Element | str:
    """The XML's root, or what is wrong with it."""
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse_declarations
    try:
        parser.Parse(path.read_bytes(), True)
        root: Element = builder.close()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except expat.ExpatError as error:
        what = expat.errors.messages[error.code]
        return f"is not valid XML at line {error.lineno}, column {error.offset + 1} ({what})"
    except (ValueError, LookupError) as error:  # an encoding that expat or Python does not know
        return f"cannot be read as text ({error}); save it as UTF-8"
    except _Unsafe:
        return "has a DOCTYPE, which annotations need not have and which is not read"
    return root if root.tag == "annotation" else f"holds a {shown(root.tag)}, not an 'annotation'"


def _refuse_declarations(*_: Any) -> None:
    raise _Unsafe


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _object_names(root: Element) -> set[str]:
    return {_text(element, "name") for element in root.findall("object")} - {""}


def _file_name(root: Element, stem: str) -> str:
    """{stem}.jpg, unless the XML names the same file with another suffix."""
    stated = _text(root, "filename").replace("\\", "/").rpartition("/")[2]
    suffix = Path(stated).suffix if Path(stated).stem == Path(stem).name else ""
    return stem + (suffix or ".jpg")


def _size_px(root: Element) -> dict[str, Any]:
    """Width and height where the XML has them: integers, or the text that is none."""
    texts = {side: _text(root, f"size/{side}") for side in ("width", "height")}
    return {side: int(text) if text.isdecimal() and len(text) < 10 else text for side, text in texts.items() if text}


def _box(element: Element, category_ids: dict[str, int]) -> dict[str, Any]:
    """An object's category, box and whether it is to be ignored, or what is wrong with it."""
    name = _text(element, "name")
    if not name:
        return {"problem": "has no 'name'"}
    difficult = _text(element, "difficult") or "0"
    if difficult not in ("0", "1"):
        return {"problem": f"has a 'difficult' {shown(difficult)}, which is neither 0 nor 1"}
    try:
        left, top, right, bottom = (float(_text(element, f"bndbox/{corner}")) for corner in _CORNERS)
    except ValueError:
        return {"problem": f"has no 'bndbox' with numbers for {', '.join(_CORNERS)}"}
    bbox = [left - 1, top - 1, right - left + 1, bottom - top + 1]
    return {"category_id": category_ids[name], "bbox": bbox, "iscrowd": int(difficult)}
