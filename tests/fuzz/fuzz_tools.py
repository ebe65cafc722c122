"""Fuzzing of all readers by what tools write: whatever becomes of it, they give clean annotations or InputError.

    python tests/fuzz/fuzz_tools.py --inputs 1000000 --forms coco voc yolo layouts

An input is a data set of a tool with a few changes: of values (coco, voc, yolo; COCO's with the normaliser, which mends
what the strict reader refuses), or of names, folders and whole files (layouts). Each depends on --seed and its number
alone: --first N goes on from there, and with --inputs 1 it repeats what was found. Exit code 1 tells of findings.
"""

import argparse
import collections
import copy
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import tool_data
from coco_documents import assert_clean

from pipelines.readers import headers
from pipelines.readers.reading import read_document, read_source, read_tolerantly
from pipelines.readers.rows import BadRows
from pipelines.readers.splits import SplitFlags, find_both
from ssd.errors import InputError

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 0.5, 1.0, 1e308, float("nan"), float("inf"), 2**53 + 1, 10**400, "", " ", "1",
    "1.0", " 2 ", "true", "null", "[0, 0, 5, 5]", "(", "frame_1", "red", "a.jpg", "im000.jpg", "IM001.JPG",
    "..\\im001.jpg", "./im002.jpg", "x%2Fim003.jpg", "C:\\im000.jpg", "../im000.jpg", "\0", "\ud800", [], {},
    "/data/local-files/?d=set/im000.jpg", "my+im001.jpg?key=%", "a?=b.jpg", [None] * 4, [1, 2, 3],
    ["1", "2", "30", "40"], [0, 0, 1, 1], [-5, -5, -1, -1], {"id": 1},
]  # fmt: skip
BYTES = [
    b"", b"\0", b"\xff", b"\xfe\xff", b"\xff\xfe", b"0", b"9", b"-", b".", b"<", b"&", b'"', b"nan", b"\n", b" ",
    b"e9", b"\xba\xec", b"]]>", b"<!--", b": ", b"- ", b"[", b"{", b"#", b"=", b"/", b"\\", b"..", b"\xe2\x80\xa8",
]  # fmt: skip
WORDS = [
    b"", b"0", b"1", b"-1", b"2", b"0.5", b"1.0", b"1.51", b"-0.2", b"97", b"nan", b"inf", b"1e308", b"1e-320",
    b"9" * 30, b"9" * 5000, b"0x1", b"1_0", b"\xd9\xa3", b"red", b"true", b"null", b"~", b"train", b"val", b"images",
    b"im000",
    b"im000.jpg", b"..", b"/", b"object", b"size", b"name", b"width", b"bndbox", b"xmin", b"names", b"path", b"nc",
    b"kpt_shape", b"!!python/object:os.system", b"*a", b"&a", b"{}", b"[[1]]", b"2024-01-01",
]  # fmt: skip
NAMES = [
    b"train", b"val", b"valid", b"test", b"images", b"labels", b"Annotations", b"ImageSets", b"JPEGImages", b"data",
    b"a b", b"\xff\xfe", b"e\xcc\x81", b".hidden", b"._im000.jpg", b"x" * 200, b"im000.jpg", b"im000.txt", b"im000.xml",
    b"train.txt", b"data.yaml", b"obj.data", b"classes.txt", b"instances_train.json", b"_annotations.coco.json",
    b"a%20b.jpg", b"a\\b.jpg", b"line\nline.xml", b"VOC2007", b"__MACOSX",
]  # fmt: skip
ENCODINGS = ("utf-16", "utf-16-be", "utf-8-sig", "utf-32", "utf-7", "cp1252")
Answers = collections.Counter[str]
OWN = str(Path(__file__).parents[2])
WITHIN_S = 300
"""A hang. Wall-clock time: a busy machine can hold up an input."""

VOC = [tool_data.label_img, tool_data.roboflow_voc, tool_data.label_studio_voc, tool_data.voc_devkit]
COCO = [tool for tool in tool_data.COCO_AND_VOC if tool not in VOC]
TOOLS: dict[str, list[Callable[[Path], None]]] = {
    "coco": COCO,
    "voc": VOC,
    "yolo": tool_data.YOLO,
    "layouts": [*COCO, *VOC, *tool_data.YOLO],
}


def mutate_json(document: Any, draw: random.Random) -> None:
    """One to three changes of rows or their values, in place."""
    for _ in range(draw.randint(1, 3)):
        table = document.get(draw.choice(["images", "annotations", "categories"]))
        if not isinstance(table, list) or not table:
            continue
        row = draw.randrange(len(table))
        what = draw.randrange(6)
        if what == 0:
            table[row] = copy.deepcopy(draw.choice(VALUES))
        elif what == 1:
            table.insert(row, copy.deepcopy(table[row]))
        elif what == 2:
            del table[row]
        elif isinstance(table[row], dict) and table[row]:
            key = draw.choice(list(table[row]))
            table[row][key] = copy.deepcopy(draw.choice(VALUES))
            if what == 5:
                del table[row][key]


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(content) + 1)
        content = content[:at] + draw.choice(BYTES) + content[at + draw.randint(0, 3) :]
    return content


def mutate_text(content: bytes, draw: random.Random) -> bytes:
    """One to three words replaced, or lines doubled, dropped or moved."""
    for _ in range(draw.randint(1, 3)):
        words = list(re.finditer(rb"[\w.-]+", content))
        lines = content.splitlines(keepends=True)
        if words and draw.random() < 0.7:
            word = draw.choice(words)
            content = content[: word.start()] + draw.choice(WORDS) + content[word.end() :]
        elif lines:
            line = lines.pop(draw.randrange(len(lines)))
            for _ in range(draw.randrange(3)):
                lines.insert(draw.randint(0, len(lines)), line)
            content = b"".join(lines)
    return content


def mutate_file(content: bytes, draw: random.Random) -> bytes:
    """An annotation file's content with a few changes; JSON is changed by its values for the most part."""
    what = draw.random()
    if what < 0.1:
        return mutate_bytes(content, draw)
    if what < 0.13:
        return content.decode("latin-1").encode(draw.choice(ENCODINGS), "replace")
    try:
        document = json.loads(content)
    except ValueError:
        return mutate_text(content, draw)
    if not isinstance(document, dict):
        return mutate_text(content, draw)
    mutate_json(document, draw)
    return json.dumps(document).encode()


def mutate_layout(folder: Path, draw: random.Random) -> None:
    """One to three changes on the disk: an entry goes, has another name, is doubled, is cut, or is of another kind."""
    for _ in range(draw.randint(1, 3)):
        walk = os.walk(os.fsencode(folder))
        entries = sorted(os.path.join(at, name) for at, folders, files in walk for name in (*folders, *files))
        if not entries:
            return
        entry = draw.choice(entries)
        name = draw.choice(NAMES) if draw.random() < 0.6 else os.path.basename(draw.choice(entries)).swapcase()
        other = os.path.join(os.path.dirname(draw.choice(entries)), name)
        what = draw.randrange(7)
        if what <= 1 and not os.path.lexists(other) and not other.startswith(entry + b"/"):
            os.rename(entry, other)
        elif what == 2 and os.path.isfile(entry) and not os.path.lexists(other):
            shutil.copyfile(entry, other)
        elif what == 3 and os.path.isfile(entry):
            with open(entry, "r+b") as stream:
                stream.truncate(draw.randrange(200))
        elif what >= 4:
            if os.path.isdir(entry) and not os.path.islink(entry):
                shutil.rmtree(entry)
            else:
                os.unlink(entry)
            if what == 5:
                os.mkdir(entry)
            elif what == 6:
                os.symlink(os.path.relpath(draw.choice(entries), os.path.dirname(entry)), entry)


def answer(folder: Path) -> str:
    """How the folder's splits are read. Raises whatever is no InputError, and AssertionError for one that is none."""
    try:
        sources = find_both(folder, SplitFlags(), SplitFlags())
    except InputError as error:
        _assert_one_line(error)
        return "not found"
    answers = []
    for source in sources:
        refused: list[BadRows] = []
        try:
            assert_clean(read_source(source))
            answers.append("clean")
            continue
        except InputError as error:
            _assert_one_line(error)
            assert ";" in str(error), f"no remedy: {error}"
            answers.append("refused")
        try:
            document = read_document(source)
            annotations = read_tolerantly(document, source, refused.append)
        except InputError as error:
            _assert_one_line(error)
        else:
            assert_clean(annotations)
            assert all(0 <= row < len(document.tables[bad.table]) for bad in refused for row in bad.problems)
    return answers[0]


def _assert_one_line(error: InputError) -> None:
    assert len(str(error).splitlines()) == 1, f"several lines: {error}"
    str(error).encode("utf-8", "surrogateescape")  # names of files may be no UTF-8; all else a console can print


class Spoiled:
    """A tool's data set on the disk, spoiled for an input and mended behind it."""

    def __init__(self, tool: Callable[[Path], None], folder: Path) -> None:
        tool(folder)
        self.folder = folder
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        self.whole = {path: path.read_bytes() for path in files}
        self.annotations = [path for path in files if path.suffix not in (".jpg", ".png")]

    def answer_to(self, draw: random.Random, layout: bool) -> str:
        changed: dict[Path, bytes] = self.whole
        try:
            if layout:
                mutate_layout(self.folder, draw)
            else:
                changed = {file: self.whole[file] for file in draw.choices(self.annotations, k=draw.randint(1, 2))}
                for file, content in changed.items():
                    file.write_bytes(mutate_file(content, draw))
            return answer(self.folder)
        finally:
            if layout:
                shutil.rmtree(self.folder)
            for file, content in changed.items():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)


def fuzz(form: str, *, inputs: int, seed: int, first: int, folder: Path) -> tuple[Answers, dict[str, str]]:
    """How many inputs had which answer, and what was found: where in the code -> the first input that leads there."""
    spoiled = [Spoiled(tool, folder / f"{form}-{tool.__name__}") for tool in TOOLS[form]]
    answers: Answers = collections.Counter()
    found: dict[str, str] = {}
    start_s = time.monotonic()
    for number in range(first, first + inputs):
        draw = random.Random(f"{seed} {form} {number}")
        chosen = draw.choice(spoiled)
        signal.alarm(WITHIN_S)
        try:
            answers[chosen.answer_to(draw, layout=form == "layouts")] += 1
        except Exception as error:
            answers["FOUND"] += 1
            frames = traceback.extract_tb(error.__traceback__)
            where = [frame for frame in frames if OWN in frame.filename][-1]
            place = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
            if place not in found:
                again = f"--forms {form} --seed {seed} --first {number} --inputs 1"
                found[place] = f"{again} ({chosen.folder.name}): {ascii(str(error))[:300]}"
                print(f"{place}: {found[place]}", flush=True)
        finally:
            signal.alarm(0)
        if (done := number + 1 - first) % 10_000 == 0 or done == inputs:
            rate = done / (time.monotonic() - start_s)
            print(f"{form}: {done} inputs to {number}, {rate:.0f} a second: {dict(answers.most_common())}", flush=True)
    return answers, found


class InTurn:
    """A pool of threads without any: to hand six images to threads takes longer than to read them."""

    def __init__(self, threads: int) -> None:
        self.map = map

    def shutdown(self, **how: bool) -> None:
        pass


def _took_too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"no answer within {WITHIN_S} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=250_000, help="of each form (default: %(default)s)")
    parser.add_argument("--forms", nargs="+", choices=list(TOOLS), default=list(TOOLS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first input")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, _took_too_long)
    headers.ThreadPoolExecutor = InTurn  # type: ignore[misc]
    told = {"inputs": options.inputs, "seed": options.seed, "first": options.first}
    memory = Path("/dev/shm")  # no input waits for a disk
    with tempfile.TemporaryDirectory(prefix="ssd-fuzz-", dir=memory if memory.is_dir() else None) as folder:
        found = [fuzz(form, **told, folder=Path(folder))[1] for form in options.forms]
    print(f"{sum(map(len, found))} findings")
    return int(any(found))


if __name__ == "__main__":
    sys.exit(main())
