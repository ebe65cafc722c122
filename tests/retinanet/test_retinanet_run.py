"""detectron2's RetinaNet through the commands: training on both data paths, resuming, prediction, files, thinning."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_equal_runs, last_of, log_of, write_small_data
from torch import Tensor, nn
from torchvision_models import NUM_CLASSES, assert_same_detections, batch_of, eval_batch

import main
import ssd
from ssd.batch import Detections, of_boxes
from ssd.checkpoints import checkpoint, conversion
from ssd.compression.thinning.removal import thin
from ssd.config import Thresholds
from ssd.detectors.channels import thinned
from ssd.detectors.retinanet.detector import RETINANET
from ssd.detectors.retinanet.model import build
from ssd.detectors.retinanet.settings import RetinaNetSettings
from ssd.detectors.torchvision.postprocess import without_empty
from ssd.detectors.torchvision.targets import targets_of
from ssd.images import normalise

# Images of 64 x 96 pixels at most: the smallest runs there are.
FLAGS = (
    "--detector retinanet_r18_fpn_2x --backbone-weights none --min-size 48 64 --max-size 96 --bs 2 --lr 0.05 "
    "--warmup 0 --clip-norm 10 --seed 3 --device cpu --num-workers 1 --log-interval 1 --evaluation"
).split()
SETTINGS = RetinaNetSettings("retinanet_r18_fpn")
THRESHOLDS = Thresholds(0.05, 0.5, 300, 60)


def run(*arguments: object) -> None:
    assert main.main([str(argument) for argument in arguments]) == 0


def losses_in(folder: Path) -> list[dict[str, float]]:
    lines = log_of(folder, "train")
    return [{key: value for key, value in line.items() if key.endswith("loss")} for line in lines]


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit_and_its_files_serve(tmp_path: Path) -> None:
    """In the middle of its second epoch of three steps, with a moving average; by both data paths; and what comes out
    is judged, predicts, and becomes a .pkl with the same weights."""
    data = write_small_data(tmp_path / "demo")
    flags = [*FLAGS, "--data", data, "--epochs", 2, "--ema", 0.9]
    whole, again = tmp_path / "whole", tmp_path / "again"
    every_step = ["--checkpoint-every", "1 steps", "--keep-checkpoints", 99]
    run(*flags, *every_step, "--data_pipeline", "no_dali", "--output", whole)
    middle = whole / "checkpoints" / "step-00000004.pt"
    run(*flags, "--data_pipeline", "no_dali", "--no-plots", "--output", again, "--resume", middle)
    assert_equal_runs(last_of(whole), last_of(again))
    losses = losses_in(whole)
    assert losses[4:] == losses_in(again) and losses[0].keys() == {
        "loss",
        "classification_loss",
        "bbox_regression_loss",
    }
    normalisers = [
        checkpoint.load_run(whole / "checkpoints" / f"step-{step:08}.pt")["trained_model"]["loss_normaliser.mean"]
        for step in (1, 4, 6)
    ]
    assert 100 > normalisers[0] > normalisers[1] > normalisers[2] > 40

    other = tmp_path / "dali"
    run(*flags[:-4], "--epochs", 1, "--data_pipeline", "dali", "--no-plots", "--output", other)
    assert losses_in(other)[0]["loss"] == pytest.approx(losses[0]["loss"], rel=1e-4)

    file, pkl = whole / "checkpoints" / "last.pt", tmp_path / "model.pkl"
    settings = checkpoint.settings_of(checkpoint.load(file))
    assert settings == RetinaNetSettings(
        "retinanet_r18_fpn_2x", "batch", trainable_layers=5, short_sides_px=(48, 64), long_side_px=96
    )
    assert json.loads((whole / "config.json").read_text())["settings"]["detector"] == "retinanet_r18_fpn"
    assert (whole / "report.html").is_file()
    run("convert", file, pkl)
    of_run = checkpoint.load(file)["model"]
    for name, value in conversion.load(pkl)["model"].items():
        own = of_run[name] if name != "loss_normaliser.mean" else torch.tensor(100.0)
        torch.testing.assert_close(value, own, rtol=2e-7 if "body.conv1" in name else 0, atol=0)
    common = ["--device", "cpu", "--num-workers", 0, "--data_pipeline", "no_dali", "--score-threshold", 0]
    run("evaluate", "--data", data, "--checkpoint", file, *common, "--json", tmp_path / "metrics.json")
    assert 0 <= json.loads((tmp_path / "metrics.json").read_text())["AP"] <= 1
    (found,) = ssd.load(file, device="cpu", score=0.0)(next((data / "val2017").glob("*.jpg")))
    assert len(found.boxes_ltrb_px) and set(found.names) <= {name for _, name in ssd.load(file).categories}


def with_opinions(model: Any) -> Any:
    """Logits and offsets that differ as much as those of one that has learned."""
    with torch.no_grad():
        said = model.outputs(batch_of().images)
        model.head.classification_head.cls_logits.weight *= 1.5 / said.logits.std()
        model.head.classification_head.cls_logits.bias.fill_(-2)
        model.head.regression_head.bbox_reg.weight *= 0.5 / said.offsets.std()
    return model


@torch.no_grad()
def test_the_exported_module_finds_the_same() -> None:
    """Its graph is torchvision's RetinaNet's, which has a test as a file, but for what comes last."""
    torch.manual_seed(0)
    model = with_opinions(build(SETTINGS, NUM_CLASSES).eval())
    assert RETINANET.exportable is not None
    exported = RETINANET.exportable(model, SETTINGS, THRESHOLDS)
    assert "with antialiasing" in exported.input_text
    batch = batch_of((1, 1), 192, 160)
    images = torch.randint(256, batch.images.shape, dtype=torch.uint8)
    found = exported.module(images, batch.sizes_px)
    finished = normalise(images)
    for image, (width, height) in zip(finished, batch.sizes_px.tolist(), strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    expected = RETINANET.detect(SETTINGS, THRESHOLDS)(model, eval_batch(batch._replace(images=finished)))
    assert_same_detections(list(found.values()), expected)


class WithoutEmpty(nn.Module):
    def forward(self, boxes_ltrb: Tensor, scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return of_boxes(without_empty(Detections(boxes_ltrb, scores, labels, (scores > 0).sum(dim=1))))


def test_leaving_out_empty_boxes_has_a_form_in_onnx(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    corners = torch.rand(2, 9, 2)
    inputs = (torch.cat([corners, corners + (torch.rand(2, 9, 2) - 0.3).clamp(min=0)], dim=2), torch.rand(2, 9))
    inputs = (*inputs, torch.randint(1, 5, (2, 9)))
    converted = torch.onnx.export(WithoutEmpty().eval(), inputs, dynamo=True)
    assert converted is not None
    converted.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    found = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    expected = list(WithoutEmpty()(*inputs).values())
    assert 0 < expected[3].sum() < 18
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(own), other)


def test_filters_of_zeros_can_go() -> None:
    """The smaller model says the same, has a file, learns, and keeps what its losses are divided by."""
    torch.manual_seed(0)
    model = with_opinions(build(SETTINGS, NUM_CLASSES).eval())
    assert RETINANET.streams is not None
    model.loss_normaliser.mean.fill_(42)
    with torch.no_grad():
        for stream in RETINANET.streams(model):
            for writer, _ in stream.writers:
                layer = model.get_submodule(writer)
                layer.weight[: len(layer.weight) // 2] = 0
    found = thin(model, build(SETTINGS, NUM_CLASSES), RETINANET.streams(model))
    smaller: Any = found.model.eval()
    assert found.removed > 300 and smaller.backbone.fpn.extra_blocks.p6.in_channels == 256
    images = batch_of().images
    with torch.no_grad():
        for expected, own in zip(model.outputs(images)[:2], smaller.outputs(images)[:2], strict=True):
            assert torch.allclose(own, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    assert smaller.loss_normaliser.mean == 42
    thinned(build(SETTINGS, NUM_CLASSES), smaller.channel_plan).load_state_dict(smaller.state_dict())
    torch.stack(list(smaller.train()(images, targets_of(batch_of())).values())).sum().backward()
    learning = {name: value.grad for name, value in smaller.named_parameters() if value.requires_grad}
    assert [name for name, gradient in learning.items() if gradient is None or not gradient.any()] == []


def test_batches_out_of_nothing_train() -> None:
    settings = replace(SETTINGS, short_sides_px=(64,), long_side_px=96)
    with torch.device("meta"):
        model = build(settings, NUM_CLASSES)
    batch: Any = RETINANET.synthetic(settings, NUM_CLASSES, torch.device("cpu"), 2)
    assert batch.images.shape == (2, 3, 64, 96) and RETINANET.input_size_px(settings) == (85, 64)
    assert batch.sizes_px.tolist() == [[85, 64]] * 2 and len(batch.boxes_ltrb_px) == int(batch.counts.sum())
    boxes, scores = RETINANET.trace(model, batch.images.to("meta"))
    assert boxes.shape == (2, 5000, 4) and scores.shape == (2, 5000)


def test_bad_names_and_settings_are_named(refusal: Callable[..., str], tmp_path: Path) -> None:
    named = ["--data", "x", "--detector", "retinanet_r50_fpn_1x"]
    assert "did you mean retinanet_r50_fpn_1x?" in refusal("--data", "x", "--detector", "retinanet_r50_fpn_1y")
    assert "--max-size 300: is less than --min-size 600" in refusal(*named, "--min-size", "600", "--max-size", "300")
    assert "--divisor 48" in refusal(*named, "--divisor", "48")
    assert "images of many shapes" in refusal(*named, "--compile", "--device", "cpu")
    said = refusal("--data", "x", "--detector", "ssd300", "--stride-in", "1x1")
    assert "that is an option of other detectors, such as --detector retinanet_r50_fpn" in said
    (tmp_path / "x.pkl").write_bytes(b"cos\nsystem\n(S'exit'\ntR.")
    assert "it names 'os.system'" in refusal("convert", tmp_path / "x.pkl", tmp_path / "y.pt")
