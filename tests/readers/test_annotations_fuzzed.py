"""Whatever an annotation file holds, the answer is clean annotations or InputError."""

import copy
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from coco_documents import DOCUMENT, MASK, assert_clean, changed, with_boxes, write
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.readers.coco import read_annotations
from ssd.errors import InputError

FIELDS = [
    ("images",), ("categories",), ("annotations",),
    *[("images", 1, key) for key in DOCUMENT["images"][1]],
    *[("categories", 1, key) for key in DOCUMENT["categories"][1]],
    *[("annotations", 1, key) for key in DOCUMENT["annotations"][1]],
    *[("annotations", 1, "bbox", i) for i in range(4)],
    *[(key, 1) for key in DOCUMENT],
]  # fmt: skip
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([0, 1, 7, 70, 2**63, -(2**63), 10**400, 2**1024 - 1]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=5), st.sampled_from(["a.jpg", "..", "\ud800"])),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.sampled_from(["id", "name"]), values),
    max_leaves=5,
)
BYTES = json.dumps(changed("annotations", 2, "segmentation", to=MASK)).encode()
TOKENS = [b"[", b"]", b"{", b"}", b"0", b"-", b",", b'"', b"e9", b"NaN", b"null"]


@pytest.fixture(scope="module")
def fuzz_folder() -> Any:
    folder = Path(tempfile.mkdtemp())
    yield folder
    shutil.rmtree(folder)


def assert_clean_or_refused(folder: Path, document: object) -> None:
    write(folder, document)
    try:
        annotations = read_annotations(folder, "train")
    except InputError as error:
        assert len(str(error).splitlines()) == 1 and "instances_train.json" in str(error)
        str(error).encode()  # a console can print it
    else:
        assert_clean(annotations)


@settings(max_examples=400, deadline=None)
@given(changes=st.lists(st.tuples(st.sampled_from(FIELDS), VALUES), min_size=1, max_size=2))
def test_any_value_in_any_field(fuzz_folder: Path, changes: list[tuple[tuple[Any, ...], object]]) -> None:
    document: Any = copy.deepcopy(DOCUMENT)
    for path, value in changes:
        try:
            at = document
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            pass  # an earlier change took the place away
    assert_clean_or_refused(fuzz_folder, document)


@settings(max_examples=400, deadline=None)
@given(box=st.lists(st.floats(-300, 300) | NUMBERS, min_size=4, max_size=4))
def test_any_numbers_in_a_box(fuzz_folder: Path, box: list[float]) -> None:
    assert_clean_or_refused(fuzz_folder, with_boxes(box))


@settings(max_examples=400, deadline=None)
@given(at=st.integers(0, len(BYTES)), cut=st.integers(0, 5), put=st.binary(max_size=3) | st.sampled_from(TOKENS))
def test_any_damage_to_the_bytes(fuzz_folder: Path, at: int, cut: int, put: bytes) -> None:
    assert_clean_or_refused(fuzz_folder, BYTES[:at] + put + BYTES[at + cut :])


# --- whole data sets ---
