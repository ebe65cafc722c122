"""What `summary` says of a model: shares of zeros by hand, and FLOPs as torch's own counter has them."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import main
from ssd.checkpoints import checkpoint
from ssd.compression.summary import TensorSummary, parts_of, summarize
from ssd.detectors.ssd300.anchors import IMAGE_SIZE_PX
from ssd.detectors.ssd300.model import SSD300


class Small(nn.Module):
    """A layer of each kind, one of which runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
        self.up, self.last = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        up = self.up(self.first(images))
        return self.last(up.permute(0, 2, 3, 1)) + self.last(images.permute(0, 2, 3, 1))


def counted_flops(model: nn.Module, *given: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(*given)
    return counter.get_total_flops()


def test_the_flops_are_those_of_torchs_counter() -> None:
    model, images = Small(), torch.zeros(2, 4, 10, 10)
    total = parts_of(summarize(model, lambda: model(images)))[-1]
    assert model.training
    assert total.flops == counted_flops(model, images) == total.nonzero_flops
    # By hand: 2 x 8 x 25 places x 18 weights; 2 x 8 x 25 inputs x 16 weights; 2 x 100 places, twice, x 20 weights.
    assert total.flops == 2 * (2 * 8 * 25 * 18 + 2 * 8 * 25 * 16 + 2 * 2 * 100 * 20)


def test_all_layers_of_ssd300_are_counted() -> None:
    """Also its heads, whose weights its forward pass joins."""
    model, images = SSD300("resnet18", 7), torch.zeros(1, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX)
    tensors = summarize(model, lambda: model.every_layer(images))
    *parts, total = parts_of(tensors)
    assert [part.name for part in parts] == ["trunk", "extra_blocks", "box_heads", "class_heads"]
    assert all(part.flops > 0 for part in parts) and sum(part.flops for part in parts) == total.flops
    assert total.flops == counted_flops(model, images)
    assert total.weights == total.nonzeros + sum(each.weights - each.nonzeros for each in tensors)
    assert [each.name for each in tensors] == [name for name, _ in model.named_parameters()]


def test_shares_of_zeros_by_hand() -> None:
    layer = nn.Conv2d(4, 8, 1)
    with torch.no_grad():
        layer.weight.fill_(1)[:2] = 0
        layer.weight[:, 3] = 0
        layer.bias.zero_()  # type: ignore[union-attr]
    weight, bias = summarize(layer, lambda: layer(torch.zeros(1, 4, 2, 2)))
    assert weight == TensorSummary("weight", (8, 4, 1, 1), 32, 18, 14 / 32, 0.25, 0.25, 256, 144)
    assert bias == TensorSummary("bias", (8,), 8, 0, 1.0, None, None, 0, 0)


def test_the_command_writes_what_it_shows(
    demo_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = checkpoint.load(demo_checkpoint)
    content["model"]["trunk.4.0.conv1.weight"][:16] = 0
    checkpoint.save(tmp_path / "sparse.pt", content)
    for name in ("summary.csv", "summary.json"):
        command = ["summary", "--checkpoint", str(tmp_path / "sparse.pt"), "--output", str(tmp_path / name)]
        assert main.main(command) == 0
    said = capsys.readouterr().out
    assert "trunk.4.0.conv1.weight" in said and "25.00" in said and "trunk.1.bias" not in said
    with (tmp_path / "summary.csv").open() as stream:
        rows = {row["name"]: row for row in csv.DictReader(stream)}
    assert rows.keys() >= {"trunk.1.bias", "box_heads.5.weight"} and len(rows) == len(dict(rows))
    found = rows["trunk.4.0.conv1.weight"]
    assert (found["shape"], found["zero_filters"], found["nonzeros"]) == ("64x64x3x3", "0.25", "27648")
    written = json.loads((tmp_path / "summary.json").read_text())
    assert [part["name"] for part in written["parts"]][-1] == "total"
    assert {each["name"] for each in written["tensors"]} == rows.keys()


# Small images, as large ones take long.
SMALL = ["--min-size", "96", "--max-size", "128"]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["ssd300", "--backbone", "resnet18"], {"trunk", "extra_blocks", "box_heads", "class_heads"}),
        (["retinanet_resnet18_fpn", *SMALL], {"backbone", "head"}),
        (["fcos_resnet18_fpn", *SMALL], {"backbone", "head"}),
        (["maskrcnn_resnet18_fpn", *SMALL], {"backbone", "rpn", "roi_heads"}),
        (["ssdlite320_mobilenet_v3_large"], {"backbone", "head"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_detector_is_summed_up_without_a_checkpoint(
    flags: list[str], parts: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "summary.json"
    assert main.main(["summary", "--detector", *flags, "--classes", "3", "--output", str(file)]) == 0
    written = json.loads(file.read_text())
    *found, total = written["parts"]
    assert {part["name"] for part in found} == parts and all(part["flops"] > 0 for part in found)
    assert total["weights"] == sum(math.prod(each["shape"]) for each in written["tensors"])
    said = capsys.readouterr().out
    assert "of an image of" in said and "…" not in said
    assert all(each["name"] in said for each in written["tensors"] if len(each["shape"]) > 1)


def test_the_classes_are_counted_without_the_background(tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    for words, classes in ((["--classes", "3"], 4), ([], 81)):
        assert (
            main.main(["summary", "--detector", "ssd300", "--backbone", "resnet18", "--output", str(file), *words]) == 0
        )
        shapes = {each["name"]: each["shape"] for each in json.loads(file.read_text())["tensors"]}
        assert shapes["class_heads.0.bias"] == [4 * classes]


@pytest.mark.parametrize(
    "name, tensor, filters",
    [
        ("yolov2-tiny-voc", "layers.14.conv.weight", 5 * 25),
        ("yolov2-tiny", "layers.14.conv.weight", 5 * 85),
        ("keypointrcnn_resnet18_fpn", "roi_heads.box_predictor.cls_score.weight", 2),
        ("fasterrcnn_resnet18_fpn", "roi_heads.box_predictor.cls_score.weight", 81),
    ],
)
def test_without_a_number_the_classes_are_the_detectors_own(
    name: str, tensor: str, filters: int, tmp_path: Path
) -> None:
    file = tmp_path / "summary.json"
    small = SMALL if "rcnn" in name else []
    assert main.main(["summary", "--detector", name, *small, "--output", str(file)]) == 0
    shapes = {each["name"]: each["shape"] for each in json.loads(file.read_text())["tensors"]}
    assert shapes[tensor][0] == filters


def test_bad_input_is_refused(demo_checkpoint: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    assert "ends in .json or .csv" in refusal("summary", "--checkpoint", demo_checkpoint, "--output", "summary.txt")
    assert "no such file" in refusal("summary", "--checkpoint", tmp_path / "none.pt")
    assert "pass one of them" in refusal("summary", "--all")
    both = ["summary", "--checkpoint", demo_checkpoint, "--detector", "ssd300"]
    assert "pass one of them" in refusal(*both)
    assert "--backbone: the checkpoint says" in refusal(*both[:3], "--backbone", "resnet18")
    assert "did you mean fcos_resnet18_fpn?" in refusal("summary", "--detector", "fcos_resnet18_fnp")
