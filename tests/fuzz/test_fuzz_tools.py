"""Whatever becomes of files that tools write, every reader gives clean annotations or InputError of one line."""

import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import tool_data
from coco_documents import assert_clean

from pipelines.readers.reading import read_document, read_source, read_tolerantly
from pipelines.readers.rows import BadRows
from pipelines.readers.splits import SplitFlags, find_both
from ssd.errors import InputError

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 0.5, 1.0, 1e308, float("nan"), float("inf"), 2**53 + 1, 10**400, "", " ", "1",
    "1.0", " 2 ", "true", "null", "[0, 0, 5, 5]", "(", "frame_1", "red", "a.jpg", "im000.jpg", "IM001.JPG",
    "..\\im001.jpg", "./im002.jpg", "x%2Fim003.jpg", "C:\\im000.jpg", "../im000.jpg", "\0", "\ud800", [], {},
    [None] * 4, [1, 2, 3], [[1, 2, 30, 2, 30, 40]], [[1, 2, "x", 2, 30, 10**400]], [[], 5],
    "/data/local-files/?d=set/im000.jpg", "my+im001.jpg?key=%", "a?=b.jpg",
    ["1", "2", "30", "40"], [0, 0, 1, 1], [-5, -5, -1, -1], {"id": 1},
]  # fmt: skip
BYTES = [
    b"",
    b"\0",
    b"\xff",
    b"\xfe\xff",
    b"0",
    b"9",
    b"-",
    b".",
    b"<",
    b"&",
    b'"',
    b"nan",
    b"\n",
    b" ",
    b"e9",
    b"\xba\xec",
]


def mutate_json(document: Any, draw: random.Random) -> None:
    for _ in range(draw.randint(1, 3)):
        table = document.get(draw.choice(["images", "annotations", "categories"]))
        if not isinstance(table, list) or not table:
            continue
        row = draw.randrange(len(table))
        what = draw.randrange(5)
        if what == 0:
            table[row] = copy.deepcopy(draw.choice(VALUES))
        elif what == 1:
            table.insert(row, copy.deepcopy(table[row]))
        elif what == 2:
            del table[row]
        elif isinstance(table[row], dict) and table[row]:
            key = draw.choice([*table[row], "segmentation"])
            table[row][key] = copy.deepcopy(draw.choice(VALUES))


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(content) + 1)
        content = content[:at] + draw.choice(BYTES) + content[at + draw.randint(0, 3) :]
    return content


def answer(folder: Path) -> str:
    """How the folder's splits are read."""
    try:
        sources = find_both(folder, SplitFlags(), SplitFlags())
    except InputError as error:
        assert len(str(error).splitlines()) == 1
        return "not found"
    answers = []
    for source in sources:
        refused: list[BadRows] = []
        try:
            assert_clean(read_source(source))
            answers.append("clean")
        except InputError as error:
            assert len(str(error).splitlines()) == 1 and ";" in str(error)
            str(error).encode()  # a console can print it
            answers.append("refused")
        try:
            assert_clean(read_tolerantly(read_document(source), source, refused.append))
        except InputError:
            pass
    return answers[0]


TOOLS = [
    tool_data.label_studio_coco, tool_data.voc_devkit, tool_data.label_img, tool_data.ultralytics, tool_data.darknet,
]  # fmt: skip


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__name__)
def test_any_damage_to_what_tools_write(tool: Any, tmp_path: Path) -> None:
    whole, spoiled = tmp_path / "whole", tmp_path / "spoiled"
    tool(whole)
    shutil.copytree(whole, spoiled)
    files = [
        path.relative_to(whole)
        for path in sorted(whole.rglob("*"))
        if path.is_file() and path.suffix not in (".jpg", ".png")
    ]
    draw = random.Random(7)
    answers = set()
    for _ in range(60):
        file = draw.choice(files)
        content = (whole / file).read_bytes()
        if file.suffix == ".json":
            document = json.loads(content)
            mutate_json(document, draw)
            content = json.dumps(document).encode()
        (spoiled / file).write_bytes(
            mutate_bytes(content, draw) if file.suffix != ".json" or draw.random() < 0.2 else content
        )
        answers.add(answer(spoiled))
        (spoiled / file).write_bytes((whole / file).read_bytes())
    assert "clean" in answers and len(answers) > 1
