"""The reader of PASCAL VOC folders: makes COCO's tables of them, for the strict reader to check as any others.

DIR/Annotations/*.xml, DIR/JPEGImages/*, and DIR/ImageSets/Main/{split}.txt with a name a line, without suffix. As VOC's
development kit defines them:

- Pixels count from 1 and the last one belongs to the box: xmin 1, xmax 1 is the image's first column. So a box goes
  from xmin - 1 to xmax, and is xmax - xmin + 1 wide.
- Objects marked `difficult` are not learned, and neither finding nor missing them counts: in COCO's terms, crowd
  regions.
- `truncated`, `occluded`, `pose` and the `part`s of objects mean nothing to a detector of boxes.

VOC has no ids: images are numbered from 1 as the split lists them, and categories by their names in order of the
alphabet, over all of DIR/Annotations, so that all splits agree. Of VOC's own twenty classes that is the order that its
development kit has them in.

Where no list says what is in a split, it is all XML files of a folder, in order of their names.
"""

import re
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from pipelines.readers.layouts.folders import images_in, key_of
from pipelines.readers.layouts.source import Source
from pipelines.readers.layouts.voc import list_of_year
from pipelines.readers.repairs.values import flag
from pipelines.readers.rows import Document, shown
from pipelines.readers.text import decode_xml, read_lines, stated_encoding

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_COLUMN = re.compile(r"[ \t,;]+[+-]?[01]$")
"""VOC's lists of a class say behind each name whether it is in the image: 1, -1, or 0 for difficult."""


_Parsed = dict[Path, dict[str, Element | str]]
"""By a folder of XML and the names of its files without suffix: their roots, or what is wrong with them."""


class _Year:
    """One VOC folder of a split: VOC2007, or all there is. parsed: what others have read, and what this one has."""

    def __init__(self, source: Source, year: str, split: str, repairs: Document, parsed: "_Parsed") -> None:
        self.prefix = f"{year}/" if year else ""
        root = source.image_folder / year
        self.list_file = list_of_year(source.image_folder, year, split) if year else source.file
        self.lists = source.lists or (self.list_file,)
        self.folder = root / "Annotations" if year else source.label_folder or source.file
        self.images = f"{year}/JPEGImages/" if year else ""
        self.document = repairs
        is_listed = self.list_file.suffix.lower() == ".txt"
        files = _xml_files(self.folder, nested=is_listed)
        self.files = {path.relative_to(self.folder).with_suffix("").as_posix(): path for path in files}
        if self.folder not in parsed:
            roots: dict[str, Element | str] = {}
            for stem, path in self.files.items():
                roots[stem], encoding = _parse(path)
                if encoding:
                    repairs.note(f"XML in {encoding} read", [self.place(stem)])
            parsed[self.folder] = roots
        self.roots = parsed[self.folder]

    def place(self, stem: str) -> str:
        inner = self.folder.name if self.list_file.suffix.lower() == ".txt" else ""
        return f"{self.prefix}{inner}{'/' if inner else ''}{stem}.xml"

    def stems(self) -> list[str]:
        """The names of the split's images, without suffix."""
        if self.list_file.suffix.lower() != ".txt":
            return list(self.files)
        lines = [line for file in self.lists for line in read_lines(file, self.document.note)]
        stems = [self._stem_of(line) for line in lines]
        if len(self.lists) > 1:
            self.document.note("lists of classes put together", [file.name for file in self.lists])
            return list(dict.fromkeys(stems))
        changed = [line for line, stem in zip(lines, stems, strict=True) if line != stem]
        self.document.note("lines of the list with a suffix, folder or column read", changed)
        return stems

    def _stem_of(self, line: str) -> str:
        """The name that a line of the list means: itself, or what is left of it without a column, folder or suffix."""
        if line in self.files or ".." in line.split("/"):
            return line
        bare = _COLUMN.sub("", line).strip("\"'")  # in which Datumaro sets names with spaces
        last = bare.replace("\\", "/").rpartition("/")[2]
        for name in (bare, str(Path(bare).with_suffix("")) if Path(bare).name else "", last, Path(last).stem):
            if name in self.files:
                return name
        return bare


def annotation_files(source: Source) -> list[Path]:
    """All that `read_document` reads: the lists and all XML files, of all splits."""
    if source.years:
        lists = [list_of_year(source.image_folder, year, split) for year, split in source.years]
    else:
        lists = [*source.lists] or ([source.file] if source.file.suffix.lower() == ".txt" else [])
    return [*lists, *(file for folder in source.class_folders for file in _xml_files(folder, nested=bool(lists)))]


def _xml_files(folder: Path, *, nested: bool) -> list[Path]:
    files = folder.rglob("*") if nested else folder.glob("*")
    return sorted(file for file in files if file.suffix.lower() == ".xml" and not file.name.startswith("._"))


def read_document(source: Source) -> Document:
    """The split as the content of a COCO annotation file.

    Each row says in 'place' which file it is from, and in 'problem' what is wrong with it where it cannot be read.
    Raises InputError where a list itself cannot be read.
    """
    document = Document({}, source.file, source.image_folder)
    parsed: _Parsed = {}
    years = [_Year(source, year, split, document, parsed) for year, split in source.years or (("", ""),)]
    category_ids = _category_ids(source, years)
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for year, stem in [(each, stem) for each in years for stem in each.stems()]:
        place = year.place(stem)
        root = year.roots.get(stem, "is missing")
        if isinstance(root, str):
            images.append({"place": place, "problem": root})
            continue
        image_id, name = len(images) + 1, f"{year.images}{_file_name(root, stem)}"
        images.append({"place": place, "id": image_id, "file_name": name, **_size_px(root)})
        for number, element in enumerate(root.findall("object"), 1):
            box = _box(element, category_ids)
            if _text(element, "difficult") not in ("", "0", "1") and "problem" not in box:
                document.note("'difficult' as a word or 1.0 read", [f"{place}, object {number}"])
            boxes.append({"place": f"{place}, object {number}", "id": len(boxes) + 1, "image_id": image_id, **box})
    # Without a list, and where no other split may have images in the same folder.
    if source.file == source.label_folder and (source.file == source.image_folder or len(source.class_folders) == 1):
        stems = {key_of(stem) for year in years for stem in year.files}
        unlabelled = [image.name for image in images_in(source.image_folder) if key_of(image.stem) not in stems]
        document.note("images without XML left out", unlabelled)
    categories = [{"id": id, "name": name} for name, id in category_ids.items()]
    document.tables = {"images": images, "annotations": boxes, "categories": categories}
    return document


def _category_ids(source: Source, years: list[_Year]) -> dict[str, int]:
    """By the names of the objects of all splits."""
    roots = [root for each in {year.folder: year for year in years}.values() for root in each.roots.values()]
    read = {year.folder for year in years}
    for folder in source.class_folders:
        if folder not in read:
            roots += [_parse(file)[0] for file in _xml_files(folder, nested=source.file.suffix.lower() == ".txt")]
    names = {name for root in roots if isinstance(root, Element) for name in _object_names(root)}
    return {name: number for number, name in enumerate(sorted(names), 1)}


class _Unsafe(Exception):
    """XML with declarations of its own, which may make gigabytes of a few bytes or name files of this machine."""


def _parse(path: Path) -> tuple[Element | str, str]:
    """The XML's root, or what is wrong with it, and the encoding where it is not UTF-8 without a byte order mark."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return f"cannot be read ({error.strerror})", ""
    try:
        return _root_of(content), stated_encoding(content)
    except _Unsafe:
        return _UNSAFE, ""
    except (expat.ExpatError, ValueError, LookupError) as error:
        first = _complaint(error)
    try:  # once more, in case that it is a matter of the encoding
        text, encoding = decode_xml(content)
        return _root_of(text.encode()), encoding if encoding != "UTF-8" else "UTF-8 that says to be something else"
    except _Unsafe:
        return _UNSAFE, ""
    except (expat.ExpatError, ValueError, LookupError):
        return first, ""


_UNSAFE = "has a DOCTYPE with declarations of its own, which annotations need not have and which are not read"


def _complaint(error: Exception) -> str:
    if isinstance(error, expat.ExpatError):
        what = expat.errors.messages[error.code]
        return f"is not valid XML at line {error.lineno}, column {error.offset + 1} ({what})"
    return f"cannot be read as text ({error}); save it as UTF-8"  # an encoding that expat or Python does not know


def _root_of(content: bytes) -> Element | str:
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse_declarations
    parser.Parse(content, True)
    root: Element = builder.close()
    if root.tag != "annotation":
        return f"holds a {shown(root.tag)}, not an 'annotation'"
    others = [child.tag for child in root if child.tag != "object" and child.tag.lower() in ("object", "objects")]
    return f"has {shown(others[0])} where VOC has an 'object' each" if others else root


def _refuse_declarations(name: str, system_id: str | None, public_id: str | None, has_internal_subset: int) -> None:
    """A DOCTYPE alone declares nothing, and what it refers to elsewhere is never fetched."""
    if has_internal_subset:
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


def _difficult(element: Element) -> Any:
    """1 or 0, or the text that means neither; tools of other programs write it in many ways."""
    text = _text(element, "difficult")
    value = flag(text)
    return 0 if value is None or text.lower() == "unspecified" else value


def _box(element: Element, category_ids: dict[str, int]) -> dict[str, Any]:
    """An object's category, box and whether it is to be ignored, or what is wrong with it."""
    name = _text(element, "name")
    if not name:
        return {"problem": "has no 'name'"}
    if (difficult := _difficult(element)) not in (0, 1):
        return {"problem": f"has a 'difficult' {shown(difficult)}, which is neither 0 nor 1"}
    row = {"category_id": category_ids[name], "iscrowd": difficult}
    corners = element.find("bndbox")
    if corners is not None and _is_blank(corners) and not _has_outline(element):
        return {**row, "bbox": None}  # which is counted and dropped
    try:
        left, top, right, bottom = (float(_text(element, f"bndbox/{corner}")) for corner in _CORNERS)
    except ValueError:
        return {"problem": f"has no 'bndbox' with numbers for {', '.join(_CORNERS)}"}
    bbox = [left - 1, top - 1, right - left + 1, bottom - top + 1]
    return {**row, "bbox": bbox}


def _is_blank(element: Element) -> bool:
    """Whether it states nothing, whatever the names of what is in it: a box under other names is one."""
    return not any(each.attrib or (each.text or "").strip() for each in element.iter())


def _has_outline(element: Element) -> bool:
    return any(element.find(name) is not None for name in ("polygon", "robndbox", "segmentation"))
