"""The thousand difficult images of Pillow's own tests through the check and both data paths.

    pip download --no-deps --no-binary :all: pillow
    PILLOW_SDIST=pillow-13.0.0.tar.gz python -m pytest -s tests/readers/test_difficult_images.py

Each path runs in processes of its own: what is asked first is that no file takes one down.
"""

import collections
import json
import os
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import main
from pipelines.readers.image_files import Flaw

SDIST = os.environ.get("PILLOW_SDIST")
PATHS = ("dali", "no_dali")
ROOT = Path(main.__file__).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SDIST is None, reason="PILLOW_SDIST does not name Pillow's source distribution"),
]


def size_px(file: Path) -> tuple[int, int]:
    """As Pillow sees it, with all the formats it has; any size where it sees none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file) as image:
                width, height = image.size
    except (OSError, ValueError, NotImplementedError, Image.DecompressionBombError):  # what these files come to
        return 100, 100
    return min(max(width, 1), 65_535), min(max(height, 1), 65_535)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of the split 'train': every file an image, with one box."""
    folder = tmp_path_factory.mktemp("difficult")
    with tarfile.open(str(SDIST)) as archive:
        members = [member for member in archive.getmembers() if member.isfile() and "/Tests/images/" in member.name]
        archive.extractall(folder / "sdist", members, filter="data")
    (images,) = (folder / "sdist").glob("*/Tests/images")
    images.rename(folder / "train")
    names = sorted(str(file.relative_to(folder / "train")) for file in (folder / "train").rglob("*") if file.is_file())
    sizes_px = [size_px(folder / "train" / name) for name in names]
    document = {
        "images": [
            {"id": i, "file_name": name, "width": width, "height": height}
            for i, (name, (width, height)) in enumerate(zip(names, sizes_px, strict=True))
        ],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [0, 0, *size]} for i, size in enumerate(sizes_px)
        ],
    }
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(document))
    return folder


def num_images(data: Path) -> int:
    return len(json.loads((data / "annotations" / "instances_train.json").read_text())["images"])


def run(code: list[str], data: Path) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, which must not die of a signal."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(data / "cache")}
    done = subprocess.run([sys.executable, *code], env=environment, capture_output=True, text=True)
    assert done.returncode >= 0, f"died of signal {-done.returncode}: {done.stdout[-500:]} {done.stderr[-2000:]}"
    return done


@pytest.fixture(scope="module")
def findings(data: Path) -> dict[str, list[dict[str, str]]]:
    """What the check lists: what -> items."""
    flags = ["--data", str(data), "--train-split", "train", "--val-split", "train", "--json", str(data / "found.json")]
    done = run([str(ROOT / "main.py"), "check", *flags], data)
    assert done.returncode == 1, done.stderr
    found = json.loads((data / "found.json").read_text())["splits"]["train"]["findings"]
    return {kind["what"]: kind["items"] for kind in found}


@pytest.fixture(scope="module")
def flawed(findings: dict[str, list[dict[str, str]]]) -> dict[str, list[str]]:
    """Flaw -> the images that have it."""
    flaws = {flaw: [item["where"] for item in findings.get(f"{flaw} images", [])] for flaw in Flaw}
    return {flaw: names for flaw, names in flaws.items() if names}


def test_the_check_says_something_of_each(data: Path, findings: Any, flawed: dict[str, list[str]]) -> None:
    count = num_images(data)
    print(f"\n{count} files:", {what: len(items) for what, items in findings.items()})
    assert count > 1000
    assert {"truncated", "unreadable", "damaged", "unsupported"} <= set(flawed)
    assert len(sum(flawed.values(), [])) == len(set(sum(flawed.values(), []))) < count - 400
    for name in ("exif_typeerror.jpg", "hopper.jpg", "pil_sample_cmyk.jpg", "sugarshack.mpo"):
        assert all(name not in names for names in flawed.values())


READ_ALL = """
import sys
from pathlib import Path
import numpy as np, torch
import pipelines
from pipelines.readers.scan import read_usable
from pipelines.readers.splits import find_named
from ssd.detectors.ssd300.settings import SSD300Settings
from ssd.detectors.table import view_of
from ssd.distributed import Ranks

data, name = Path(sys.argv[1]), sys.argv[2]
here, view = Ranks(0, 0, 1, torch.device("cpu")), view_of(SSD300Settings())
usable = read_usable(find_named(data, "train"), here)
judged = np.zeros((len(usable), 3, 300, 300), dtype=np.float16)
for batch in pipelines.build_eval(name, usable, batch_size=32, num_workers=2, ranks=here, view=view):
    judged[batch.indices] = batch.images
np.save(data / f"{name}.npy", judged)
loader = pipelines.build_train(name, usable, batch_size=32, num_workers=2, seed=1, ranks=here, view=view)
batches = loader.batches(0)
for _ in range(3 * loader.steps_per_epoch):
    assert bool(next(batches).images.isfinite().all())
print(len(usable))
"""


def test_both_paths_read_the_rest_alike(data: Path, flawed: dict[str, list[str]]) -> None:
    for name in PATHS:
        done = run(["-c", READ_ALL, str(data), name], data)
        assert done.returncode == 0, done.stderr
    dali, torch_path = (np.load(data / f"{name}.npy").astype(np.float32) for name in PATHS)
    assert len(dali) == num_images(data) - len(sum(flawed.values(), []))
    differences = np.abs(dali - torch_path).reshape(len(dali), -1).max(axis=1)
    print(f"\n{len(dali)} images through both paths; they differ in", int((differences > 0).sum()))
    # One level of 256 in a CMYK image; normalised, a level is at most 1 / 255 / 0.224.
    assert differences.max() <= 1.1 / 255 / 0.224


# Tells each file's answer as it comes: if the process dies, the last line says before which file.
READ_EACH = """
import sys
from pathlib import Path
import torch
import pipelines
from pipelines.readers.coco import read_annotations
from ssd.detectors.ssd300.settings import SSD300Settings
from ssd.detectors.table import view_of
from ssd.distributed import Ranks
from ssd.errors import InputError

data, name, wanted = Path(sys.argv[1]), sys.argv[2], set(Path(sys.argv[3]).read_text().splitlines())
here, view = Ranks(0, 0, 1, torch.device("cpu")), view_of(SSD300Settings())
annotations = read_annotations(data, "train")
for file in sorted(wanted):
    print("START", file, flush=True)
    alone = annotations.without({other: "not asked for" for other in annotations.file_names if other != file})
    try:
        for _ in pipelines.build_eval(name, alone, batch_size=1, num_workers=0, ranks=here, view=view):
            pass
        print("READ", file, flush=True)
    except InputError as error:
        assert file in str(error), error
        print("REFUSED", file, flush=True)
"""


@pytest.mark.parametrize("name", PATHS)
def test_each_bad_image_alone_is_refused_by_name(name: str, data: Path, flawed: dict[str, list[str]]) -> None:
    bad = sum(flawed.values(), [])
    (data / "bad.txt").write_text("\n".join(bad))
    done = run(["-c", READ_EACH, str(data), name, str(data / "bad.txt")], data)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
    answers = [line.split(" ", 1) for line in done.stdout.splitlines() if not line.startswith("START")]
    print(f"\n{name}:", dict(collections.Counter(answer for answer, _ in answers)))
    assert len(answers) == len(bad)
    read = {file for answer, file in answers if answer == "READ"}
    # DALI's decoder overlooks damages that libjpeg or Pillow tell of; the torch path and the check are one decoder.
    assert read <= (set() if name == "no_dali" else set(bad))
