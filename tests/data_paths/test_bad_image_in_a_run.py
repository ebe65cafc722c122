"""An image that goes bad ends the run by name, and with --on-bad-image skip the next attempt does without it."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dirty_data import NAMES, edit, write_clean_data
from runs import last_of, log_of
from two_ranks import on_two_ranks

import main
from pipelines.readers import scan
from pipelines.readers.scan import read_usable, verdicts_file
from pipelines.readers.splits import find_named
from ssd.distributed import Ranks


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Of four images, to train on and to judge by."""

    def shorten(document: dict[str, Any]) -> None:
        document.update(images=document["images"][:4], annotations=document["annotations"][:8])

    folder = write_clean_data(tmp_path / "data")
    for split in ("train", "val"):
        edit(folder, shorten, split)
    return folder


def spoil(file: Path) -> None:
    """As a failing disk does it: with its size and its time as they were."""
    before = os.stat(file)
    file.write_bytes(bytes(before.st_size))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.slow
@pytest.mark.parametrize("data_pipeline", ["dali", "no_dali"])
def test_the_next_attempt_does_without_it(
    data_pipeline: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if data_pipeline == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    output, spoilt = tmp_path / "run", data / "train" / "c.jpg"
    flags = ["--data", str(data), "--train-split", "train", "--val-split", "val", "--data_pipeline", data_pipeline]
    flags += "--device cpu --num-workers 0 --backbone resnet18 --backbone-weights none --bs 2 --seed 1".split()
    flags += ["--output", str(output), "--resume", "auto", "--log-interval", "1", "--evaluation"]
    skip = [*flags, "--on-bad-image", "skip"]
    assert main.main([*skip, "--epochs", "1"]) == 0
    before = last_of(output)
    spoil(spoilt)
    assert main.main([*skip, "--epochs", "2"]) == 2
    assert f"error: {spoilt}: cannot be read as an image" in capfd.readouterr().err
    assert main.main([*flags, "--epochs", "2"]) == 2  # the same again, without leave to do without it
    assert f"error: {spoilt}" in capfd.readouterr().err
    assert main.main([*skip, "--epochs", "2"]) == 0
    said = capfd.readouterr().out
    how = "resuming after epoch 1: other images than then can be used; the images come in a new order"
    assert f"note: {how}" in said and "unreadable images left out: 1" in said
    (resumed,) = log_of(output, "resumed")[-1:]
    assert resumed["how"] == how and resumed["step"] == before["step"]
    after = last_of(output)
    assert after["epoch"] == 2 and after["annotations"] == before["annotations"] and after["data"] != before["data"]

    # What is not a matter of the images is refused as ever.
    edit(data, lambda document: document["annotations"].pop())
    assert main.main([*skip, "--epochs", "3"]) == 2
    assert "--resume-anyway" in capfd.readouterr().err


def test_the_verdict_on_an_image_that_went_bad_is_dropped(data: Path) -> None:
    alone = Ranks(0, 0, 1, torch.device("cpu"))
    usable = read_usable(find_named(data, "train"), alone)
    spoil(data / "train" / "c.jpg")
    assert read_usable(find_named(data, "train"), alone).file_names == NAMES[:4]  # nothing tells of it
    with pytest.raises(scan.InputError, match="c.jpg: cannot be read"):
        scan.read_image(usable, 2)
    assert set(json.loads(verdicts_file(data / "train").read_text())["verdicts"]) == {"a.jpg", "b.jpg", "d.jpg"}
    assert read_usable(find_named(data, "train"), alone).left_out == {"unreadable": ["c.jpg"]}


def reads(ranks: Any, data: Path, cache: Path) -> tuple[list[str], dict[str, list[str]], int, bool]:
    """The usable images and those left out on a rank, how often it parsed, and whether it owns its arrays."""
    os.environ["XDG_CACHE_HOME"] = str(cache)
    parsed = 0
    read_document = scan.read_document

    def counting(*arguments: Any) -> Any:
        nonlocal parsed
        parsed += 1
        return read_document(*arguments)

    scan.read_document = counting
    usable = read_usable(find_named(data, "train"), ranks)
    assert isinstance(usable.boxes_ltrb, np.ndarray)
    return usable.file_names, usable.left_out, parsed, usable.boxes_ltrb.flags.writeable


def test_a_host_parses_once(data: Path, tmp_path: Path) -> None:
    (data / "train" / "b.jpg").unlink()
    (data / "train" / "c.jpg").write_bytes(b"garbage")
    first, second = on_two_ranks(reads, data, tmp_path / "cache")
    assert first[:2] == second[:2] == (["a.jpg", "d.jpg"], first[1])
    assert first[1] == {"missing": ["b.jpg"], "unreadable": ["c.jpg"]}
    assert (first[2], second[2]) == (1, 0) and not first[3] and not second[3]
