"""Quantised files run, are smaller, and find what the float ones find; what costs too much stays in float32."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from exported_files import CELLS, SIDE_PX, write_small_onnx
from square_view import VIEW

from ssd.batch import Detections, EvalBatch, whole
from ssd.errors import InputError
from ssd.images import normalise
from ssd.inference.exported import feed_of, load_exported, pixels_of
from ssd.inference.int8 import _layers_of, agreement, to_int8
from ssd.keypoints import Skeleton

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def batches(count: int = 4, brightest: int = 255) -> list[EvalBatch]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, brightest + 1, (count, 2, 3, SIDE_PX, SIDE_PX), generator=generator)
    return [
        EvalBatch(normalise(each.to(torch.uint8)), whole(each), torch.arange(2)) for each in pixels
    ]  # fmt: skip


def convolutions_in_8_bits(file: Path) -> list[str]:
    """Those whose input comes of 8 bits, in order."""
    graph = onnx.load(file).graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    return [
        node.name for node in graph.node if node.op_type == "Conv" and made_by.get(node.input[1]) == "DequantizeLinear"
    ]


def test_the_pixels_of_a_batch_come_back_exactly() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    for view in (VIEW, VIEW._replace(mean=(0.5, 0.4, 0.3), std=(1 / 255, 1 / 255, 0.2))):
        batch = EvalBatch(normalise(pixels, view.mean, view.std), whole(pixels), torch.arange(1))
        assert torch.equal(pixels_of(batch, view), pixels)


def test_a_file_in_8_bits_finds_the_same(tmp_path: Path) -> None:
    source, target = write_small_onnx(tmp_path / "float.onnx"), tmp_path / "int8.onnx"
    said: list[str] = []
    assert to_int8(source, target, batches(), said.append) >= 0.95
    assert convolutions_in_8_bits(target) == ["conv_first", "conv_second"]
    before, after = load_exported(source), load_exported(target)
    assert after.categories == [(7, "kite")] and after.settings == before.settings and after.about == before.about
    for batch in batches():
        a, b = before.detect(batch), after.detect(batch)
        assert a.counts.tolist() == b.counts.tolist() == [CELLS, CELLS]
        # A sigmoid's slope is 1/4, and what goes in is of a range of some 16: of weights in 127 steps, twice.
        torch.testing.assert_close(b.scores, a.scores, rtol=0, atol=0.1)
        # What is beyond the mean of the ranges is cut.
        torch.testing.assert_close(b.boxes_ltrb, a.boxes_ltrb, rtol=0, atol=0.03)
        assert (b.scores != a.scores).any()
    assert len(said) == 2 and said[-1] == "written: all convolutions but the heads in 8 bits"


def test_scores_beside_large_boxes_are_kept(tmp_path: Path) -> None:
    """One scale is for all that a convolution says: in 8 bits, beside boxes a thousand times as large, a score would be
    one number. So what predicts is in float32."""
    source, target = write_small_onnx(tmp_path / "float.onnx", box_scale=1000), tmp_path / "int8.onnx"
    assert to_int8(source, target, batches(), lambda text: None) >= 0.95


def test_one_bright_batch_does_not_make_the_steps_of_all_coarse(tmp_path: Path) -> None:
    """A range is the mean of the batches' ranges: of seven of a tenth and one of 1 that is 0.21."""
    source, target = write_small_onnx(tmp_path / "float.onnx"), tmp_path / "int8.onnx"
    steps = []
    for calibration in (batches(7, brightest=25), [*batches(7, brightest=25), *batches(1)]):
        to_int8(source, target, calibration, lambda text: None)
        graph = onnx.load(target).graph
        values = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
        (quantised,) = (each for each in graph.node if each.op_type == "QuantizeLinear" and each.input[0] == "pixels")
        steps.append(float(values[quantised.input[1]]))
    assert steps == pytest.approx([25 / 255 / 255, (7 * 25 + 255) / 8 / 255 / 255], rel=0.01)


def found(*rows: tuple[list[float], int, float]) -> Detections:
    boxes, labels, scores = zip(*rows, strict=True)
    count = torch.tensor([len(rows)])
    return Detections(torch.tensor([boxes]), torch.tensor([scores]), torch.tensor([labels]), count)


def test_agreement_by_hand() -> None:
    one = found(([0, 0, 0.5, 0.5], 1, 0.9), ([0.5, 0.5, 1, 1], 2, 0.8), ([0, 0.5, 0.5, 1], 1, 0.1))
    assert agreement([one], [one]) == 1
    # The first has a partner of IoU 0.8; the second's has another label; the third is not confident.
    other = found(([0, 0, 0.5, 0.4], 1, 0.7), ([0.5, 0.5, 1, 1], 1, 0.6))
    assert agreement([one], [other]) == agreement([other], [one]) == 2 / 4
    # Where none is confident, the best count: one of three and one of two have a partner.
    unsure = [each._replace(scores=each.scores / 10) for each in (one, other)]
    assert agreement(unsure[:1], unsure[1:]) == 2 / 5


def test_masks_and_points_have_to_agree_too() -> None:
    one = found(([0, 0, 0.5, 0.5], 1, 0.9), ([0.5, 0.5, 1, 1], 2, 0.8))
    masks = torch.zeros(1, 2, 2, 2)
    masks[..., 0] = 1.0
    other_masks = masks.clone()
    other_masks[0, 1] = torch.tensor([[0, 1], [0.0, 1]])  # the other half
    assert agreement([one._replace(masks=masks)], [one._replace(masks=other_masks)]) == 1 / 2
    assert agreement([one._replace(masks=masks)], [one]) == 1  # of which one says nothing
    points = torch.full((1, 2, 3, 3), 0.2)
    other_points = points.clone()
    other_points[0, 0, :, 0] += 0.04  # of 0.05 that are allowed
    other_points[0, 1, :, 0] += 0.06
    with_points = [one._replace(keypoints=points)], [one._replace(keypoints=other_points)]
    assert agreement(*with_points) == agreement(*with_points, Skeleton(("a", "b", "c"))) == 1 / 2
    # The second one's label is 2. Where only the first's has points, those of the second mean nothing.
    assert agreement(*with_points, Skeleton(("a", "b", "c"), labels=(1,))) == 1
    assert agreement(*with_points, Skeleton(("a", "b", "c"), labels=(2,))) == 1 / 2


def test_what_chooses_boxes_is_a_head_though_convolutions_look_into_them() -> None:
    helper = onnx.helper
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["maps"], "body"),
        helper.make_node("Conv", ["maps", "w"], ["boxes"], "proposals"),
        helper.make_node("RoiAlign", ["maps", "boxes", "image"], ["looks"], "look"),
        helper.make_node("Relu", ["looks"], ["positive"], "between"),
        helper.make_node("Conv", ["positive", "w"], ["masks"], "mask"),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    assert _layers_of(model) == (["body", "proposals", "mask"], {"proposals", "mask"}, ["between"])


def test_bad_input(demo_checkpoint: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    command = ("export", "--checkpoint", demo_checkpoint, "--output", tmp_path / "x.onnx")
    assert "--data is missing" in refusal(*command, "--int8")
    assert "--data is for --int8" in refusal(*command, "--data", "demo")
    assert "--int8 writes ONNX" in refusal(*command, "--int8", "--data", "demo", "--format", "torch")
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refusal(*command, "--int8", "--data", tmp_path / "empty")
    (tmp_path / "no.onnx").write_bytes(b"no")
    with pytest.raises(InputError, match="not a file that onnxruntime can run"):
        load_exported(tmp_path / "no.onnx")
    other = onnx.load(write_small_onnx(tmp_path / "other.onnx"))
    del other.metadata_props[:]
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(InputError, match="not written by main.py export"):
        load_exported(tmp_path / "other.onnx")


def test_a_feed_has_what_the_file_takes() -> None:
    (batch,) = batches(1)
    feed = feed_of(pixels_of(batch, VIEW), batch.placed_ltrb_px, ["images", "sizes_px"])
    assert feed["images"].shape == (2, 3, SIDE_PX, SIDE_PX) and feed["sizes_px"].tolist() == [[SIDE_PX, SIDE_PX]] * 2
