"""One rank of a host parses, and all have the same annotations, over the same memory."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from two_ranks import on_two_ranks

from pipelines.annotations import Annotations
from pipelines.readers.coco import read_annotations
from pipelines.readers.once_a_host import read_once_a_host
from ssd.errors import InputError


def read(ranks: Any, data: Path, temporary: Path) -> tuple[Annotations, bool, bool, list[str]]:
    """The split, whether this rank parsed it, whether its boxes lie in a file's pages, and the files left."""
    parsed = False

    def parse() -> Annotations:
        nonlocal parsed
        parsed = True
        return read_annotations(data, "train2017")

    os.environ["TMPDIR"] = str(temporary)
    split = read_once_a_host(parse, ranks)
    address = split.boxes_ltrb.__array_interface__["data"][0]
    with open("/proc/self/maps") as maps:
        spans = [line.split(maxsplit=5) for line in maps if "ssd-annotations-" in line]
    ends = [tuple(int(end, 16) for end in span[0].split("-")) for span in spans]
    is_mapped = any(first <= address < last for first, last in ends)
    return split, parsed, is_mapped, [path.name for path in temporary.iterdir()]


def assert_equal_fields(split: Annotations, expected: Annotations) -> None:
    for field in dataclasses.fields(Annotations):
        ours, theirs = getattr(split, field.name), getattr(expected, field.name)
        if isinstance(theirs, np.ndarray):
            np.testing.assert_array_equal(ours, theirs, strict=True)
        else:
            assert ours == theirs, field.name


def test_ranks_of_one_host(demo_data: Path, tmp_path: Path) -> None:
    expected = read_annotations(demo_data, "train2017")
    (first, first_parsed, _, _), (second, second_parsed, _, _) = told = on_two_ranks(read, demo_data, tmp_path)
    assert first_parsed and not second_parsed
    for split, _, is_mapped, _ in told:
        assert_equal_fields(split, expected)
        assert split.fingerprint() == expected.fingerprint()
        assert is_mapped
    assert list(tmp_path.iterdir()) == []


def test_each_host_reads_its_own(demo_data: Path, tmp_path: Path) -> None:
    told = on_two_ranks(read, demo_data, tmp_path, hosts=2)
    assert [parsed for _, parsed, _, _ in told] == [True, True]


def test_a_split_without_boxes(
    data_copy: Path, edit_annotations: Callable[[Path, str, Callable[[dict[str, Any]], None]], Path], tmp_path: Path
) -> None:
    """Its arrays have no bytes, and no file of no bytes can be mapped."""
    edit_annotations(data_copy, "train2017", lambda document: document["annotations"].clear())
    for split, *_ in on_two_ranks(read, data_copy, tmp_path):
        assert split.boxes_ltrb.shape == (0, 4) and len(split) == 12


def refused(ranks: Any, data: Path) -> str:
    try:
        read_once_a_host(lambda: read_annotations(data, "no such split"), ranks)
    except InputError as error:
        return str(error)
    return ""


def test_all_ranks_hear_of_what_is_wrong(demo_data: Path) -> None:
    first, second = on_two_ranks(refused, demo_data)
    assert "no images for split 'no such split'" in first and second == first
