"""Coverage-guided fuzzing of the annotation reader: whatever a file holds, it gives clean annotations or InputError.

    pip install -e '.[dev,fuzz]'
    python tests/fuzz/fuzz_annotations.py --inputs 1000000

Atheris keeps the inputs that reach new lines of the reader and mutates those further. Most mutations change values of a
valid document, because a random byte seldom gets past the JSON parser; the rest are libFuzzer's own, of bytes.
"""

import argparse
import collections
import copy
import io
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

with atheris.instrument_imports(
    include=[
        "pipelines.readers.coco",
        "pipelines.readers.rows",
        "pipelines.readers.json_stream",
        "pipelines.readers.reading",
        "pipelines.readers.repairs",
    ]
):
    from pipelines.annotations import Annotations
    from pipelines.readers.coco import annotations_of, parse_document
    from pipelines.readers.reading import read_tolerantly
    from pipelines.readers.rows import BadRows, Document
from coco_documents import DOCUMENT, MASK, assert_clean, changed, with_boxes, write

from pipelines.readers.layouts.source import Form, Source
from ssd.errors import InputError

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 7, 9, 70, 3, 90, 0.5, -0.5, 0.1, 1e-9, 1e308, -1e308, float("nan"), float("inf"),
    "1", "1.0", " 70 ", "70.0", "1e3", "true", "null", "[0, 0, 5, 5]", "frame_1", 70.0, 3.0, [None] * 4,
    ["0", "0", "5", "5"], "./a.jpg", "A.JPG", "b%2Ejpg", "train/a.jpg", "c.png", "C:\\a.jpg", "http://h/a.jpg",
    2**31, 2**53, 2**53 + 1, 2**63, -(2**63), 2**64, 10**400, 65535, 65536, "", " ", "a.jpg", "b.jpg", "c.jpg", "..",
    "../a.jpg", "/a.jpg", "sub/a.jpg", "a.jpg/b.jpg", "x\\a.jpg", "\0", "\ud800", "x" * 300, [], {}, [0, 0, 5, 5],
    [1, 2, 3], [[1, 2, 3, 4]], {"id": 1, "name": "x"},
]  # fmt: skip
KEYS = ["id", "name", "file_name", "width", "height", "image_id", "category_id", "bbox", "area", "iscrowd", "images"]
SEEDS = [DOCUMENT, changed("annotations", 2, "segmentation", to=MASK), with_boxes([0, 0, 0, 5], [-5, 0, 10, 10])]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) under a JSON value."""
    found: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        at = pending.pop()
        keys = list(at) if isinstance(at, dict) else range(len(at)) if isinstance(at, list) else ()
        found += [(at, key) for key in keys]
        pending += [at[key] for key in keys]
    return found


def mutate_json(document: Any, draw: random.Random) -> None:
    """One to three changes in place: a value replaced, nudged, removed, doubled or added."""
    for _ in range(draw.randint(1, 3)):
        choices = places(document)
        if not choices:
            return
        container, key = draw.choice(choices)
        value = container[key]
        what = draw.randrange(7)
        if what == 0 and type(value) in (int, float):
            container[key] = round(draw.uniform(-300, 300), draw.randint(0, 3))
        elif what <= 1:
            container[key] = copy.deepcopy(draw.choice(VALUES))
        elif what <= 3 and type(value) in (int, float) and abs(value) < 1e300:
            container[key] = value + draw.choice([-1, 1, 0.5, -0.05, 10, 1000])
        elif what == 4:
            del container[key]
        elif isinstance(container, list) and len(container) < 50:
            container.insert(draw.randint(0, len(container)), copy.deepcopy(value))
        elif isinstance(container, dict):
            container[draw.choice(KEYS)] = copy.deepcopy(draw.choice(VALUES))


def mutate(content: bytes, max_size: int, seed: int) -> bytes:
    draw = random.Random(seed)
    if draw.random() < 0.9:
        try:
            # Every other time from a valid document, or the heap of damages would hide what one alone does.
            document = copy.deepcopy(draw.choice(SEEDS)) if draw.random() < 0.5 else json.loads(content)
            mutate_json(document, draw)
            mutated = json.dumps(document).encode()
            if len(mutated) <= max_size:
                return mutated
        except (ValueError, RecursionError):
            pass
    return atheris.Mutate(content, max_size)


class Target:
    """What each input goes through; counts the answers and tells of them after the last."""

    def __init__(self, folder: Path, inputs: int):
        self.folder, self.inputs = folder, inputs
        self.file = folder / "annotations" / "instances_train.json"
        self.answers: collections.Counter[str] = collections.Counter()
        self.number, self.start_s = 0, time.monotonic()

    def __call__(self, content: bytes) -> None:
        self.answers[self._answer(content)] += 1
        self.number += 1
        if self.number in (self.inputs, self.inputs // 2):
            elapsed_s = time.monotonic() - self.start_s
            print(f"{self.number} inputs in {elapsed_s:.0f} s: {dict(self.answers.most_common())}", flush=True)

    def _answer(self, content: bytes) -> str:
        try:
            document = parse_document(io.BytesIO(content), self.file)
        except InputError as error:
            self._assert_one_line(error)
            return "no JSON object"
        refused: list[BadRows] = []
        try:
            assert_clean(annotations_of(document, self.file, self.folder / "train"))
            return "clean"
        except BadRows as error:
            self._assert_one_line(error)
            answer = f"refused: {error.defect}"
        except InputError as error:
            self._assert_one_line(error)
            return "refused: not the lists of a data set"
        try:
            mended = Document(document, self.file, self.folder / "train")
            source = Source("train", Form.COCO, self.file, self.folder / "train")
            annotations: Annotations = read_tolerantly(mended, source, refused.append)
        except InputError as error:
            self._assert_one_line(error)
        else:
            assert_clean(annotations)
        for bad in refused:
            assert bad.problems and all(0 <= row < len(mended.tables[bad.table]) for row in bad.problems)
        return answer

    def _assert_one_line(self, error: InputError) -> None:
        assert len(str(error).splitlines()) == 1 and "instances_train.json" in str(error)
        str(error).encode()  # a console can print it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ssd-fuzz-"))
    write(folder, DOCUMENT)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, document in enumerate(SEEDS):
        (corpus / str(number)).write_text(json.dumps(document))
    flags = [f"-runs={options.inputs}", f"-seed={options.seed}", "-max_len=8192", f"-artifact_prefix={folder}/"]
    # Wall-clock time, and a busy machine can hold up an input for minutes; atheris itself keeps 2 kB of each input.
    flags += ["-timeout=1200", "-rss_limit_mb=8192", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], Target(folder, options.inputs), custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
