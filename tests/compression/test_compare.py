"""Detectors side by side: sizes and speeds by hand, refusals, and the command on small files of all kinds."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_files import SIDE_PX, write_small_onnx
from PIL import Image

import main
from ssd.checkpoints import checkpoint
from ssd.compression.comparison import runtimes
from ssd.compression.comparison.compare import notes_on
from ssd.compression.comparison.figures import Compared, frontier
from ssd.compression.comparison.onnx_sizes import _products, onnx_sizes
from ssd.compression.comparison.subjects import Size, Subject, load_subjects
from ssd.compression.comparison.timing import in_turns
from ssd.config import Config
from ssd.detectors.names import settings_named
from ssd.detectors.table import detector_of, to_dict
from ssd.errors import InputError


def test_speeds_are_medians_of_rounds_and_of_their_ratios() -> None:
    # Of each call its seconds; the machine is slow in the third round, for all.
    takes = iter([9.0, 9.0, 2.0, 1.0, 20.0, 10.0, 2.0, 0.5])
    now = 0.0

    def run() -> None:
        nonlocal now
        now += next(takes)

    found = in_turns({"a": run, "b": run}, batch_size=4, warmup_rounds=1, rounds=3, clock=lambda: now)
    assert found["a"] == (1e3 * 2 / 4, 1.0)
    assert found["b"] == (1e3 * 1 / 4, 2.0)


def test_the_frontier_has_what_nothing_is_better_than() -> None:
    points = [(3.0, 0.5), (1.0, 0.2), (2.0, 0.1), (2.5, 0.5), (4.0, 0.6)]
    assert frontier(points) == [(1.0, 0.2), (2.5, 0.5), (4.0, 0.6)]
    assert frontier([]) == []


def test_the_sizes_of_a_file_by_hand(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    file = write_small_onnx(tmp_path / "small.onnx")
    # Places of the output x weights: 4 x 4 x 8 of 3 x 4 x 4; 4 x 4 x 8 of 8 x 9; 2 x 2 x 5 of 8, of two parts.
    flops = 2 * (128 * 48 + 128 * 72 + 20 * 8)
    weights = 8 * 48 + 8 * 72 + 5 * 8
    assert onnx_sizes(file, SIDE_PX, SIDE_PX) == (weights, weights, flops, flops)


def test_products_of_a_deconvolution_by_hand() -> None:
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    # Each of 2 x 2 places of a cell is reached by one of a kernel's: 3 channels in, whatever goes out.
    assert _products(node, np.zeros((3, 5, 2, 2))) == 3
    grouped = onnx.helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], group=3)
    assert _products(grouped, np.zeros((3, 1, 4, 4))) == 4


def write_checkpoint(file: Path, like: Path, **changes: Any) -> Path:
    checkpoint.save(file, {**checkpoint.load(like), **changes})
    return file


def test_bad_input(demo_checkpoint: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    def refused(*files: Path, more: tuple[str, ...] = ()) -> str:
        return refusal("compare", *files, "--data", "demo", "--output", tmp_path / "out", "--runtimes", "eager", *more)

    content = checkpoint.load(demo_checkpoint)
    renamed = [(number, f"a {name}") for number, name in content["categories"]]
    other = write_checkpoint(tmp_path / "other.pt", demo_checkpoint, categories=renamed)
    said = refused(demo_checkpoint, other)
    assert "detects a balloon" in said and "trained on the same categories" in said
    assert "given more than once" in refused(demo_checkpoint, demo_checkpoint)
    assert "no such file" in refused(tmp_path / "none.pt")
    assert "no such data folder" in refused(demo_checkpoint, more=("--data", str(tmp_path / "no data")))
    assert not (tmp_path / "out").exists()
    if runtimes.importlib.util.find_spec("openvino") is None:
        assert "openvino is not installed" in refused(demo_checkpoint, more=("--runtimes", "openvino"))


def test_files_are_called_by_what_tells_them_apart(demo_checkpoint: Path, tmp_path: Path) -> None:
    files = [tmp_path / run / "best.pt" for run in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        shutil.copy(demo_checkpoint, file)
    assert [each.name for each in load_subjects(files)] == ["a/best.pt", "b/best.pt"]


def test_why_a_file_cannot_be_exported_is_kept(tmp_path: Path) -> None:
    """And that a detector of several passes is judged in one."""
    settings = settings_named("e2e_mask_rcnn_X-152-32x8d-FPN-IN5k_1.44x")
    subject = Subject("x152.pt", tmp_path / "x152.pt", settings, [(1, "a")], {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtimes, "export", _refuse)
        assert runtimes.onnx_of(subject, tmp_path, Config()) == (None, "x152: no votes; pass --set")
    found = Compared(subject.name, subject.title, Size(10, 10, 1, 1, 1, 1), {}, {}, {})
    (note,) = notes_on([subject], [found], [Config()])
    assert note.startswith("x152.pt is judged in one pass") and "main.py evaluate" in note
    (note,) = notes_on(
        [subject._replace(settings=Config().detector)], [found._replace(size=Size(10, 5, 1, 1, 1, 1))], [Config()]
    )
    assert "50% zeros" in note


def _refuse(*given: Any) -> str:
    raise InputError("x152: no votes; pass --set")


@pytest.fixture(scope="module")
def one_export() -> Iterator[None]:
    """Files are exported once, which takes seconds, and copied after that."""
    export, made = runtimes.export, {}

    def once(source: Path, target: Path, form: str, config: Any, *words: Any) -> str:
        if source not in made:
            made[source] = export(source, target, form, config, *words), target.read_bytes()
        target.write_bytes(made[source][1])
        return made[source][0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssd.inference.export.export", once)
        patch.setattr(runtimes, "export", once)
        yield


@pytest.mark.slow
def test_the_commands_from_a_checkpoint_to_the_page(
    one_export: None, demo_data: Path, demo_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    thin, int8, output = tmp_path / "thin.pt", tmp_path / "int8.onnx", tmp_path / "out"
    assert main.main(["thin", "--checkpoint", str(demo_checkpoint), "--output", str(thin), "--flops", "0.1"]) == 0
    data = ["--data", str(demo_data), "--data_pipeline", "no_dali", "--num-workers", "0"]
    few = ["--max-per-class", "20", "--max-per-image", "20"]
    command = ["export", "--checkpoint", str(thin), "--output", str(int8), "--int8", *data, *few]
    assert main.main([*command, "--calibration-images", "4"]) == 0
    said = capfd.readouterr().out
    assert "calibrating on 4 images" in said and "of the file in float32" in said
    # Of a detector that has not been trained: many of its boxes are nearly as good as others.
    assert max(map(float, re.findall(r"([\d.]+)% of its surest", said))) > 80

    files = [str(thin), str(int8)]
    command = ["compare", *files, *data, *few, "--output", str(output), "--device", "cpu"]
    assert main.main([*command, "--batch-sizes", "1", "--rounds", "1", "--warmup-rounds", "0", "--no-memory"]) == 0
    found = json.loads((output / "comparison.json").read_text())
    thinned, quantised = found["files"]
    assert thinned["name"] == "thin.pt" and quantised["name"] == "int8.onnx"
    assert quantised["size"]["bytes_raw"] < 0.6 * thinned["size"]["bytes_raw"]
    assert quantised["size"]["flops"] == thinned["size"]["flops"]
    assert thinned["speeds"].keys() == {"eager", "onnxruntime"} and quantised["speeds"].keys() == {"onnxruntime"}
    assert thinned["speeds"]["eager"]["batch_1"]["times_as_fast"] == 1
    assert quantised["speeds"]["onnxruntime"]["batch_1"]["milliseconds_per_image"] > 0
    assert {"AP", "AP50", "APs"} <= thinned["metrics"].keys() and found["images"] == 5
    page = (output / "comparison.html").read_text()
    assert len(re.findall('src="data:image/(?:png|jpeg);base64,', page)) == 2 and "int8.onnx" in page
    assert not re.findall('(?:src|href)="(?!data:)', page)
    for name, width in (("frontier.png", 500), ("detections.jpg", 600)):
        with Image.open(output / name) as picture:
            assert picture.width > width, name


@pytest.mark.slow
def test_a_compiled_model_is_timed(demo_data: Path, demo_checkpoint: Path, tmp_path: Path) -> None:
    command = [
        "compare",
        str(demo_checkpoint),
        "--data",
        str(demo_data),
        "--data_pipeline",
        "no_dali",
        "--num-workers",
        "0",
    ]
    command += ["--runtimes", "eager", "compiled", "--batch-sizes", "1", "--rounds", "1", "--warmup-rounds", "1"]
    assert main.main([*command, "--device", "cpu", "--no-memory", "--output", str(tmp_path / "out")]) == 0
    (found,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["files"]
    assert found["speeds"].keys() == {"eager", "compiled"}
    assert found["speeds"]["compiled"]["batch_1"]["milliseconds_per_image"] > 0


@pytest.mark.slow
def test_keypoints_are_compared_with_those_of_the_split(demo_data: Path, demo_checkpoint: Path, tmp_path: Path) -> None:
    """Also where the first file finds boxes only."""
    from pipelines.readers.coco import read_annotations
    from ssd.views import ObjectParts

    settings = replace(settings_named("keypointrcnn_resnet18_fpn"), short_sides_px=(64,), long_side_px=64)
    split = read_annotations(demo_data, "val2017", ObjectParts(keypoints=True))
    assert split.keypoints is not None
    settings = detector_of(settings).with_skeleton(settings, split.keypoints.skeleton)
    torch.manual_seed(0)
    content = torch.load(demo_checkpoint, weights_only=True)
    model = detector_of(settings).build(settings, split.num_classes)
    content |= {"detector": to_dict(settings), "model": model.state_dict()}
    checkpoint.save(tmp_path / "points.pt", content)
    command = ["compare", str(demo_checkpoint), str(tmp_path / "points.pt"), "--data", str(demo_data)]
    command += [
        "--data_pipeline",
        "no_dali",
        "--num-workers",
        "0",
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "out"),
    ]
    command += ["--runtimes", "eager", "--batch-sizes", "1", "--rounds", "1", "--warmup-rounds", "0", "--no-memory"]
    assert main.main([*command, "--score-threshold", "0.01", "--max-per-image", "10"]) == 0
    boxes, points = json.loads((tmp_path / "out" / "comparison.json").read_text())["files"]
    assert "keypoints_AP" in points["metrics"] and "keypoints_AP" not in boxes["metrics"]


@pytest.mark.slow
def test_peak_memory_is_that_of_the_detector(demo_checkpoint: Path) -> None:
    """Of a model of 29 MB: its weights, and the maps of two images, but neither torch nor this process."""
    from ssd.compression.comparison.memory import peak_bytes
    from ssd.detectors.ssd300.settings import SSD300Settings

    config = Config(detector=SSD300Settings(backbone="resnet18"))
    peak = peak_bytes("eager", demo_checkpoint, None, config, torch.device("cpu"), 2)
    assert peak is not None and 30e6 < peak < 800e6
