"""Bad input from outside ends in exit code 2 and one line that names the file or flag, before anything is written.

`refusal` asserts the code and the one line. What the annotation reader refuses in detail is in test_annotations.py.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

import main

Refusal = Callable[..., str]
Edit = Callable[[Path, str, Callable[[dict[str, Any]], None]], Path]
QUICK = "--backbone resnet18 --backbone-weights none --epochs 1 --bs 4 --device cpu --num-workers".split()
PATHS = ("dali", "no_dali")


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    """A run's folder that must still not be there when the test ends."""
    folder = tmp_path / "output"
    yield folder
    assert not folder.exists()


@pytest.fixture
def refused_training(refusal: Refusal, output: Path) -> Refusal:
    """(data, further flags ...) -> the line with which training on the torch path refuses them."""

    def run(data: Path, *flags: object) -> str:
        return refusal("--data", data, *QUICK, "0", "--output", output, "--data_pipeline", "no_dali", *map(str, flags))

    return run


@pytest.fixture
def refused_evaluation(refusal: Refusal) -> Refusal:
    """(data, checkpoint, further flags ...) -> the line with which `evaluate` on the torch path refuses them."""

    def run(data: Path, checkpoint: Path, *flags: object) -> str:
        fixed = ["--device", "cpu", "--num-workers", "0", "--data_pipeline", "no_dali"]
        return refusal("evaluate", "--data", data, "--checkpoint", checkpoint, *fixed, *map(str, flags))

    return run


# --- data folders and annotations ---


def test_no_such_folder(refused_training: Refusal, tmp_path: Path) -> None:
    assert str(tmp_path / "none") in refused_training(tmp_path / "none")
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in refused_training(tmp_path / "file")


def test_no_images(refused_training: Refusal, tmp_path: Path) -> None:
    assert f"{tmp_path}: no annotations were found" in refused_training(tmp_path)


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_no_annotations(split: str, refused_training: Refusal, data_copy: Path) -> None:
    file = data_copy / "annotations" / f"instances_{split}.json"
    file.unlink()
    assert str(file) in refused_training(data_copy)


def test_no_such_split(refused_training: Refusal, demo_data: Path) -> None:
    assert "'train2014'" in refused_training(demo_data, "--train-split", "train2014")
    assert "'val2014'" in refused_training(demo_data, "--val-split", "val2014")


@pytest.mark.parametrize("data_pipeline", PATHS)
def test_annotations_cut_short(data_pipeline: str, refused_training: Refusal, data_copy: Path) -> None:
    file = data_copy / "annotations" / "instances_train2017.json"
    file.write_text(file.read_text()[:2000])
    line = refused_training(data_copy, "--data_pipeline", data_pipeline)
    assert str(file) in line and "cut short" in line


def drop_category(document: dict[str, Any]) -> None:
    document["categories"] = [row for row in document["categories"] if row["id"] != 1]


def unknown_category(document: dict[str, Any]) -> None:
    document["annotations"][2]["category_id"] = 77


def absent_image(document: dict[str, Any]) -> None:
    document["images"][1]["file_name"] = "absent.jpg"


def image_outside(document: dict[str, Any]) -> None:
    document["images"][0]["file_name"] = "../val2017/not-" + document["images"][0]["file_name"]


def repeated_image_id(document: dict[str, Any]) -> None:
    document["images"][1]["id"] = document["images"][0]["id"]


def repeated_category_id(document: dict[str, Any]) -> None:
    document["categories"][1]["id"] = document["categories"][0]["id"]


def no_categories(document: dict[str, Any]) -> None:
    del document["categories"]


def no_box(document: dict[str, Any]) -> None:
    """And no outline, whose box would be taken."""
    del document["annotations"][0]["bbox"]
    document["annotations"][0].pop("segmentation", None)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (drop_category, "but no category has that id"),
        (unknown_category, "annotations[2] has category_id 77"),
        (absent_image, "'absent.jpg'"),
        (image_outside, "images[0] has file_name '../val2017/"),
        (repeated_image_id, "images[1] repeats 'id'"),
        (repeated_category_id, "categories[1] repeats 'id'"),
        (no_categories, "'categories' is missing"),
        (no_box, "annotations[0] has no 'bbox'"),
    ],
)
def test_wrong_annotations(
    change: Callable[[dict[str, Any]], None],
    named: str,
    refused_training: Refusal,
    data_copy: Path,
    edit_annotations: Edit,
) -> None:
    file = edit_annotations(data_copy, "train2017", change)
    line = refused_training(data_copy)
    assert line.startswith(f"error: {file}: ") and named in line


def test_splits_of_different_categories(refused_training: Refusal, data_copy: Path, edit_annotations: Edit) -> None:
    def rename(document: dict[str, Any]) -> None:
        document["categories"][0]["name"] = "zeppelin"

    file = edit_annotations(data_copy, "val2017", rename)
    line = refused_training(data_copy)
    assert str(file) in line and "instances_train2017.json" in line


@pytest.mark.parametrize("data_pipeline", PATHS)
def test_nothing_to_learn(
    data_pipeline: str, refused_training: Refusal, data_copy: Path, edit_annotations: Edit
) -> None:
    file = edit_annotations(data_copy, "train2017", lambda document: document["annotations"].clear())
    assert str(file) in refused_training(data_copy, "--data_pipeline", data_pipeline)


@pytest.mark.parametrize("data_pipeline", PATHS)
def test_bad_boxes_are_counted_in_one_warning(
    data_pipeline: str,
    data_copy: Path,
    edit_annotations: Edit,
    demo_checkpoint: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def spoil(document: dict[str, Any]) -> None:
        boxes = [row["bbox"] for row in document["annotations"] if not row["iscrowd"]]
        boxes[0][0] = float("nan")
        boxes[1][2] = 0
        boxes[2][3] = -5
        boxes[3][0] = 10_000
        boxes[4][2] = 10_000

    file = edit_annotations(data_copy, "val2017", spoil)
    flags = ["--checkpoint", str(demo_checkpoint), "--data_pipeline", data_pipeline, "--num-workers", "1"]
    json_file = tmp_path / "metrics.json"
    assert main.main(["evaluate", "--data", str(data_copy), *flags, "--device", "cpu", "--json", str(json_file)]) == 0
    assert capfd.readouterr().err == (
        f"warning: {file}: boxes that are not finite dropped: 1, zero-size boxes dropped: 1, "
        "boxes of negative size (corners exchanged?) dropped: 1, "
        "boxes outside the image dropped: 1, boxes clipped to the image: 1\n"
    )
    metrics = json.loads(json_file.read_text())
    assert 0 <= metrics["AP"] <= 1 and set(metrics["per_class"]) >= {"balloon", "mushroom"}


# --- images ---


def spoil_images(data: Path, split: str, content: bytes) -> list[str]:
    files = sorted((data / split).glob("*.jpg"))
    for file in files:
        file.write_bytes(content if content else file.read_bytes()[:300])
    return [str(file) for file in files]


@pytest.mark.parametrize("content", [b"not a JPEG", b""], ids=["garbage", "cut"])
@pytest.mark.parametrize(("data_pipeline", "num_workers"), [("no_dali", "0"), ("dali", "2")])
def test_unreadable_training_image(
    content: bytes, data_pipeline: str, num_workers: str, data_copy: Path, tmp_path: Path, refusal: Refusal
) -> None:
    files = spoil_images(data_copy, "train2017", content)
    output = tmp_path / "output"
    line = refusal(
        "--data", data_copy, *QUICK, num_workers, "--output", output, "--data_pipeline", data_pipeline, "--seed", "1"
    )
    assert any(file in line for file in files), line
    assert not (output / "results.json").exists() and not (output / "checkpoints").exists()


@pytest.mark.parametrize("data_pipeline", PATHS)
def test_unreadable_evaluation_image(
    data_pipeline: str, data_copy: Path, demo_checkpoint: Path, tmp_path: Path, refused_evaluation: Refusal
) -> None:
    files = spoil_images(data_copy, "val2017", b"not a JPEG")
    json_file = tmp_path / "metrics.json"
    flags = ["--data_pipeline", data_pipeline, "--ebs", "4", "--json", json_file]
    line = refused_evaluation(data_copy, demo_checkpoint, *flags)
    assert any(file in line for file in files), line
    assert not json_file.exists()


@pytest.mark.parametrize(
    ("data_pipeline", "content"),
    [("no_dali", b"not a JPEG"), ("dali", b"not a JPEG"), ("dali", b"\xff\xd8"), ("dali", b"")],
    ids=["no_dali", "dali garbage", "dali start of image", "dali cut"],
)
def test_unreadable_image_with_workers(
    data_pipeline: str, content: bytes, data_copy: Path, demo_checkpoint: Path
) -> None:
    """In a new process: DALI 2.4 often crashes on a header it cannot parse in a batch of 32, and torch's worker
    processes linger for seconds after an error, unless the process that started them ends."""
    files = spoil_images(data_copy, "val2017", content)
    flags = ["--data", str(data_copy), "--checkpoint", str(demo_checkpoint), "--data_pipeline", data_pipeline]
    command = [sys.executable, main.__file__, "evaluate", *flags, "--device", "cpu", "--num-workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert any(file in done.stderr.splitlines()[-1] for file in files), done.stderr


# --- checkpoints and weights ---


def test_missing_checkpoints(
    refused_training: Refusal, refused_evaluation: Refusal, demo_data: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "none.pt"
    assert str(missing) in refused_training(demo_data, "--resume", missing)
    assert str(missing) in refused_training(demo_data, "--checkpoint", missing)
    assert str(missing) in refused_training(demo_data, "--backbone-weights", missing)
    assert str(missing) in refused_evaluation(demo_data, missing)


def test_corrupt_checkpoints(
    refused_training: Refusal, refused_evaluation: Refusal, demo_data: Path, demo_checkpoint: Path, tmp_path: Path
) -> None:
    file = tmp_path / "corrupt.pt"
    data = demo_checkpoint.read_bytes()
    for damaged in (data[: len(data) // 2], data[:100_000] + b"?" + data[100_001:], b"hello"):
        file.write_bytes(damaged)
        assert str(file) in refused_training(demo_data, "--resume", file)
        assert str(file) in refused_training(demo_data, "--checkpoint", file)
        assert str(file) in refused_training(demo_data, "--backbone-weights", file)
        assert str(file) in refused_evaluation(demo_data, file)


def test_checkpoint_of_another_number_of_classes(
    refused_training: Refusal,
    refused_evaluation: Refusal,
    data_copy: Path,
    demo_run_checkpoint: Path,
    edit_annotations: Edit,
) -> None:
    def with_a_zeppelin(document: dict[str, Any]) -> None:
        document["categories"].append({"id": 99, "name": "zeppelin"})
        document["annotations"][0]["category_id"] = 99  # without a box it would not matter to an evaluation

    for split in ("train2017", "val2017"):
        edit_annotations(data_copy, split, with_a_zeppelin)
    for line in (
        refused_evaluation(data_copy, demo_run_checkpoint),
        refused_training(data_copy, "--resume", demo_run_checkpoint, "--seed", "1"),
    ):
        assert str(demo_run_checkpoint) in line and "trained on 6 categories" in line and "has 7" in line


def test_checkpoint_of_another_backbone(refused_training: Refusal, demo_data: Path, demo_run_checkpoint: Path) -> None:
    for flag in ("--resume", "--checkpoint"):
        line = refused_training(demo_data, flag, demo_run_checkpoint, "--backbone", "resnet34", "--seed", "1")
        assert str(demo_run_checkpoint) in line and "--backbone resnet18" in line


def test_resuming_from_a_checkpoint_without_the_optimizer(
    refused_training: Refusal, demo_data: Path, demo_checkpoint: Path
) -> None:
    assert str(demo_checkpoint) in refused_training(demo_data, "--resume", demo_checkpoint)


@pytest.mark.parametrize("engine", ["faster", "pycocotools"])
def test_a_detector_that_finds_nothing(
    engine: str, refused_evaluation: Refusal, demo_data: Path, demo_checkpoint: Path, tmp_path: Path
) -> None:
    json_file = tmp_path / "metrics.json"
    flags = ["--score-threshold", "0.999", "--eval-engine", engine, "--json", json_file]
    line = refused_evaluation(demo_data, demo_checkpoint, *flags)
    assert str(demo_checkpoint) in line and "nothing in 5 images of val2017" in line and "--score-threshold" in line
    assert not json_file.exists()


def test_imagenet_weights_offline(
    refused_training: Refusal, demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*arguments: Any, **options: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("torch.hub.urlopen", offline)
    line = refused_training(demo_data, "--backbone-weights", "imagenet")
    assert "--backbone-weights imagenet" in line and "--backbone-weights none" in line


# --- flags that the machine or the disk contradicts ---


def test_fp16_and_bf16(refused_training: Refusal, demo_data: Path) -> None:
    line = refused_training(demo_data, "--fp16", "--bf16")
    assert "--fp16" in line and "--bf16" in line


def test_no_gpu(refused_training: Refusal, demo_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    line = refused_training(demo_data, "--device", "cuda")
    assert "--device cuda" in line and "--device cpu" in line


def test_more_ranks_than_gpus(refused_training: Refusal, demo_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert "local rank 2" in refused_training(demo_data, "--device", "auto", "--local_rank", "2")


def test_dali_not_installed(refused_training: Refusal, demo_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipelines.dali

    # Imported or not, the module must be looked for again; monkeypatch puts back what was there.
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.delitem(sys.modules, "pipelines.dali.loaders", raising=False)
    monkeypatch.delattr(pipelines.dali, "loaders", raising=False)
    line = refused_training(demo_data, "--data_pipeline", "dali")
    assert "--data_pipeline dali" in line and "--data_pipeline no_dali" in line and "pip install nvidia-dali" in line


def test_the_output_folder_holds_a_run(refusal: Refusal, demo_data: Path, tmp_path: Path) -> None:
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    last.parent.mkdir(parents=True)
    last.write_text("weights of a week")
    line = refusal("--data", demo_data, *QUICK, "0", "--output", tmp_path / "run", "--data_pipeline", "no_dali")
    assert f"--output {tmp_path / 'run'}" in line and "--resume auto" in line
    assert last.read_text() == "weights of a week"
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == [last]


def test_the_output_folder_is_a_file(refusal: Refusal, demo_data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        line = refusal("--data", demo_data, *QUICK, "0", "--output", place, "--data_pipeline", "no_dali")
        assert f"--output {place}" in line
    assert (tmp_path / "file").read_text() == "mine"


def test_the_json_file_cannot_be_written(
    refused_evaluation: Refusal, demo_data: Path, demo_checkpoint: Path, tmp_path: Path
) -> None:
    for place in (tmp_path / "none" / "metrics.json", tmp_path):
        assert f"--json {place}" in refused_evaluation(demo_data, demo_checkpoint, "--json", place)


def test_the_seed_of_a_torch_generator_has_64_bits(refused_training: Refusal, demo_data: Path) -> None:
    assert "--seed" in refused_training(demo_data, "--seed", 2**64)
