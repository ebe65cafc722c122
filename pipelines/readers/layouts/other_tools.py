"""What lies in a folder in which no annotations were found: its files, and what to export from the tool they are of."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from pipelines.readers.layouts.coco import folders_below
from ssd.images import SUFFIXES
from ssd.storage.yaml_lines import in_a_line

_BEGINNING_BYTES = 2**14
_MOST_FILES = 2000
"""That are counted: a data set's folders may hold millions, and a few tell what it is."""
_MOST_KINDS = 4
_MOST_LOOKED_INTO = 20
_IMAGE_SUFFIXES = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes}
PASS_FOLDER = "pass the folder that has them, or --train-annotations and --val-annotations"
UNPACK = "unpack it"


class Tool(NamedTuple):
    """What writes files that no reader takes."""

    suffixes: tuple[str, ...]
    beginning: str
    """A pattern that is found near the beginning of its files."""
    name: str
    remedy: str


_ANY_FORM = "export COCO, VOC or YOLO"
_TOOLS = (
    Tool((".json",), r'"imagePath"\s*:|"shapes"\s*:\s*\[', "LabelMe's", "convert it and the others to COCO or YOLO"),
    Tool((".json",), r'"_via_|"regions"\s*:', "VIA's own", "export COCO from VIA"),
    Tool((".json",), r'^\[.*"coordinates"\s*:', "CreateML's", _ANY_FORM),
    Tool((".json",), r'^\[\s*\{\s*"(?:info|licenses|images|categories)"', "a list around COCO's object", "take it out"),
    Tool((".json",), r'^\[.*"(?:annotations|completions)"\s*:', "Label Studio's own", _ANY_FORM),
    Tool((".json",), r'"classTitle"\s*:|"classes"\s*:\s*\[\s*\{\s*"title"', "Supervisely's own", _ANY_FORM),
    Tool((".json",), r'"dm_format_version"|"media_type"\s*:', "Datumaro's own", _ANY_FORM),
    Tool((".json",), r'^\[.*"bbox"\s*:', "a list of detections", PASS_FOLDER),
    Tool((".xml",), r"<annotations[\s>]", "'CVAT for images'", _ANY_FORM),
    Tool((".csv", ".parquet", ".jsonl"), "", "a table", _ANY_FORM),
    Tool((".record", ".tfrecord"), "", "TensorFlow's", _ANY_FORM),
    Tool((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"), "", "an archive", UNPACK),
)


def what_is_there(folder: Path) -> tuple[str, str]:
    """The files, and what to do: ("40 .jpg, 1 .json (regions.json is VIA's own)", "export COCO from VIA")."""
    files = _files_below(folder)
    if not files:
        return "no files at all", PASS_FOLDER
    kinds = Counter(file.suffix.lower() or "without a suffix" for file in files)
    listed = ", ".join(f"{count} {in_a_line(kind)}" for kind, count in kinds.most_common(_MOST_KINDS))
    if len(kinds) > _MOST_KINDS or len(files) == _MOST_FILES:
        listed += " and others"
    known = {suffix for tool in _TOOLS for suffix in tool.suffixes}
    for file in [file for file in files if file.suffix.lower() in known][:_MOST_LOOKED_INTO]:
        if tool := tool_of(file):
            return f"{listed} ({in_a_line(str(file.relative_to(folder)))} is {tool.name})", tool.remedy
    for file in [file for file in files if file.suffix.lower() == ".json"][:_MOST_LOOKED_INTO]:
        if reason := why_no_coco(file):
            what, _, remedy = reason.partition("; ")
            return f"{listed} ({in_a_line(str(file.relative_to(folder)))} {what})", remedy
    example = next((file for file in files if file.suffix.lower() not in _IMAGE_SUFFIXES), files[0])
    return f"{listed} (such as {in_a_line(str(example.relative_to(folder)))})", _folder_above(folder) or PASS_FOLDER


_OF_ANNOTATIONS = ("annotations", "labels", "data.yaml")


def _folder_above(folder: Path) -> str:
    """What to do where somebody has passed the folder of the images alone; '' where that cannot be seen."""
    above = Path(os.path.abspath(folder)).parent
    try:
        beside = sorted(name for name in os.listdir(above) if name.lower() in _OF_ANNOTATIONS)
    except OSError:
        return ""
    return f"{above} has {beside[0]!r} beside it: pass that folder" if beside else ""


def tool_of(file: Path) -> Tool | None:
    """None for a file of which nothing is known."""
    tools = [tool for tool in _TOOLS if file.suffix.lower() in tool.suffixes]
    start = _beginning(file) if any(tool.beginning for tool in tools) else ""
    return next((tool for tool in tools if re.search(tool.beginning, start, re.DOTALL)), None)


_NOT_JSON = (
    (r"version https://git-lfs", "is a pointer of Git LFS, not the file itself; run git lfs pull"),
    (r"<(?:!doctype|html|\?xml)", "holds HTML or XML, perhaps an error page; fetch it again"),
    (r"\x1f\x8b|PK\x03\x04", "is an archive, whatever its name says; unpack it"),
    (r"\[", "holds a list, where COCO has an object with images, annotations and categories; export COCO"),
    (r'"\{', "holds JSON that was written as a text once more; write its content"),
    (r"\{\s*'", "holds Python's text of a dictionary, not JSON; write it with json.dump"),
    (r"(?!\{)", "begins with what is no JSON; take out what stands before its first {"),
)


def why_no_coco(file: Path) -> str:
    """What is wrong with a file that should be COCO's and does not begin so, and what to do; "" where it does."""
    try:
        if os.path.getsize(file) == 0:
            return "is empty; fetch it again"
    except OSError:
        return ""
    start = _beginning(file)
    found = next((reason for pattern, reason in _NOT_JSON if re.match(pattern, start, re.IGNORECASE)), "")
    tool = tool_of(file) if found else None
    return f"is {tool.name}; {tool.remedy}" if tool else found


def _beginning(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            content = stream.read(_BEGINNING_BYTES).replace(b"\0", b"")  # of UTF-16
    except OSError:
        return ""
    return content.lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n").decode("latin-1")


def _files_below(folder: Path) -> list[Path]:
    """The first of them, down to the third folder."""
    files: list[Path] = []
    for inner in folders_below(folder, depth=2):
        try:
            names = sorted(name for name in os.listdir(inner) if not name.startswith("."))
        except OSError:
            continue
        files += [file for name in names[:_MOST_FILES] if (file := inner / name).is_file()]
        if len(files) >= _MOST_FILES:
            break
    return files[:_MOST_FILES]
