"""SSD300: its size, its shapes, and the order in which it speaks of the default boxes."""

import os
import subprocess
import sys
from math import sqrt
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import ssd.detectors.ssd300.heads
from ssd.batch import Predictions
from ssd.detectors.ssd300.anchors import default_boxes_cxcywh
from ssd.detectors.ssd300.model import FEATURE_CHANNELS, SSD300
from ssd.detectors.ssd300.settings import BACKBONES

ROOT = Path(__file__).parents[2]


def on_meta(backbone: str, num_classes: int) -> SSD300:
    """A model of shapes without numbers, which costs nothing to run."""
    with torch.device("meta"):
        return SSD300(backbone, num_classes).eval()


@pytest.fixture(scope="module", params=["resnet18", "resnet50"])
def model(request: pytest.FixtureRequest) -> SSD300:
    torch.manual_seed(0)
    return SSD300(request.param, 4).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 300, 300, generator=torch.Generator().manual_seed(1))


def feature_maps(model: SSD300, images: Tensor) -> list[Tensor]:
    maps: list[Tensor] = []
    hooks = [part.register_forward_hook(lambda _, __, x: maps.append(x)) for part in (model.trunk, *model.extra_blocks)]
    model(images)
    for hook in hooks:
        hook.remove()
    return maps


# Size and shapes


def test_there_is_a_model_for_every_backbone_of_the_settings() -> None:
    assert set(FEATURE_CHANNELS) == set(BACKBONES)


@pytest.mark.parametrize(
    ("backbone", "gflop", "million_parameters"),
    [("resnet18", 15.6, 14.0), ("resnet34", 31.7, 20.0), ("resnet50", 40.3, 22.9)],
)
def test_cost_is_that_of_nvidias_models(backbone: str, gflop: float, million_parameters: float) -> None:
    """At 300 x 300 and 81 classes, as counted on NVIDIA's code. To the last digit stated: any other stride, channel
    count or bias would show."""
    model = on_meta(backbone, 81)
    with FlopCounterMode(display=False) as flops:
        model(torch.empty(1, 3, 300, 300, device="meta"))
    assert round(flops.get_total_flops() / 1e9, 1) == gflop
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == million_parameters


@pytest.mark.parametrize("backbone", BACKBONES)
def test_feature_maps(backbone: str) -> None:
    maps = feature_maps(on_meta(backbone, 2), torch.empty(1, 3, 300, 300, device="meta"))
    assert [tuple(m.shape[2:]) for m in maps] == [(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)]
    channels = {
        "resnet18": [256, 512, 512, 256, 256, 128],
        "resnet34": [256, 512, 512, 256, 256, 256],
    }.get(backbone, [1024, 512, 512, 256, 256, 256])
    assert [m.shape[1] for m in maps] == channels


@pytest.mark.parametrize("num_classes", [2, 4, 7, 21, 81, 91])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_prediction_shapes(backbone: str, num_classes: int) -> None:
    predictions = on_meta(backbone, num_classes)(torch.empty(3, 3, 300, 300, device="meta"))
    assert predictions.offsets.shape == (3, 8732, 4)
    assert predictions.logits.shape == (3, 8732, num_classes)


@pytest.mark.parametrize("size", [(300, 301), (299, 300), (512, 512), (38, 38)])
def test_another_image_size_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"300 x 300 .*{size[0]}, {size[1]}"):
        on_meta("resnet18", 2)(torch.empty(1, 3, *size, device="meta"))


# Order


def level_box_maps() -> list[Tensor]:
    """Six maps of shapes x 4 x H x W: at every shape, row and column the cxcywh of the box it stands for."""
    maps = []
    scales = (21, 45, 99, 153, 207, 261, 315)
    for level, (size, step) in enumerate(zip((38, 19, 10, 5, 3, 1), (8, 16, 32, 64, 100, 300), strict=True)):
        scale, between = scales[level], sqrt(scales[level] * scales[level + 1])
        shapes = [(scale, scale), (between, between)]
        for ratio in (2, 3) if level in (1, 2, 3) else (2,):
            shapes += [(scale * sqrt(ratio), scale / sqrt(ratio)), (scale / sqrt(ratio), scale * sqrt(ratio))]
        boxes_px = torch.empty(len(shapes), 4, size, size)
        boxes_px[:, 0] = (torch.arange(size) + 0.5) * step  # the centre's x grows with the column, the last dimension
        boxes_px[:, 1] = ((torch.arange(size) + 0.5) * step).unsqueeze(1)  # and its y with the row
        for shape, (width, height) in enumerate(shapes):
            boxes_px[shape, 2], boxes_px[shape, 3] = width, height
        maps.append((boxes_px / 300).clamp(max=1))
    return maps


def test_predictions_stand_in_the_order_of_the_default_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each head is made to say, wherever it looks, the default box there; so the model must say all default boxes."""
    num_classes = 7  # not 4, so that values of a class and of a box cannot be mistaken for each other
    model = SSD300("resnet18", num_classes).eval()
    said: list[torch.Tensor] = []
    for level, boxes in enumerate(level_box_maps()):
        shapes, _, height, width = boxes.shape
        says_box = boxes.reshape(1, shapes * 4, height, width).repeat(2, 1, 1, 1)
        # Classes 0 to 3 say the box, 4 the level, 5 the shape, 6 always 1.
        others = torch.stack([torch.full((shapes,), level), torch.arange(shapes), torch.ones(shapes)], dim=1)
        says_class = torch.cat([boxes, others[:, :, None, None].expand(shapes, 3, height, width)], dim=1)
        says_class = says_class.reshape(1, shapes * num_classes, height, width).repeat(2, 1, 1, 1)
        says_box[1] += 2  # the second image says something else
        says_class[1] += 2
        said.append(torch.cat([says_box, says_class], dim=1))
    says = iter(said)
    monkeypatch.setattr(ssd.detectors.ssd300.heads, "F", SimpleNamespace(conv2d=lambda *_, **__: next(says)))
    with torch.no_grad():
        predictions = model(torch.zeros(2, 3, 300, 300))

    expected = default_boxes_cxcywh()
    # Both go to float32 from numbers of the same formula: roundings of numbers up to 1, up to 3 in the second image.
    torch.testing.assert_close(predictions.offsets[0], expected, rtol=0, atol=2e-7)
    torch.testing.assert_close(predictions.offsets[1], expected + 2, rtol=0, atol=1e-6)
    torch.testing.assert_close(predictions.logits[0, :, :4], expected, rtol=0, atol=2e-7)
    torch.testing.assert_close(predictions.logits[1, :, :4], expected + 2, rtol=0, atol=1e-6)
    counts = torch.tensor([4 * 38**2, 6 * 19**2, 6 * 10**2, 6 * 5**2, 4 * 3**2, 4])
    assert torch.equal(predictions.logits[0, :, 4], torch.arange(6.0).repeat_interleave(counts))
    assert predictions.logits[0, -4:, 5].tolist() == [0, 1, 2, 3]  # one cell: the four shapes
    assert torch.equal(predictions.logits[0, :, 6], torch.ones(8732))


@pytest.mark.parametrize(
    ("level", "shape", "row", "column"), [(0, 3, 37, 0), (1, 5, 2, 18), (2, 0, 9, 4), (5, 2, 0, 0)]
)
def test_one_cell_of_a_map_moves_its_own_boxes_only(level: int, shape: int, row: int, column: int) -> None:
    """The real heads, looking only through the middle of their 3 x 3 kernels, on maps that are 0 but for one cell."""
    sizes, shapes = (38, 19, 10, 5, 3, 1), (4, 6, 6, 6, 4, 4)
    start = sum(n * size**2 for n, size in zip(shapes[:level], sizes[:level], strict=True))
    model = SSD300("resnet18", 3).eval()
    for head in (*model.box_heads, *model.class_heads):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    with torch.no_grad():
        model.box_heads[level].weight[shape * 4 + 2, 0, 1, 1] = 1  # the width of one shape, from channel 0
        model.class_heads[level].weight[shape * 3 + 1, 0, 1, 1] = 1  # class 1 of one shape

    def one_cell(_: nn.Module, __: object, output: Tensor) -> Tensor:
        output = torch.zeros_like(output)
        output[0, 0, row, column] = 1
        return output

    (model.trunk, *model.extra_blocks)[level].register_forward_hook(one_cell)
    with torch.no_grad():
        predictions = model(torch.zeros(1, 3, 300, 300))
    default = start + shape * sizes[level] ** 2 + row * sizes[level] + column
    assert predictions.offsets.nonzero().tolist() == [[0, default, 2]]
    assert predictions.logits.nonzero().tolist() == [[0, default, 1]]


# Numbers


def tolerance_of(predictions: Predictions) -> float:
    """Another batch size or memory format may choose another convolution algorithm: roundings, relative to the largest
    value, through up to fifty layers."""
    return 1e-5 * max(float(part.abs().max()) for part in predictions)


@torch.no_grad()
def test_batched_equals_single(model: SSD300, images: Tensor) -> None:
    batched = model(images)
    singly = [model(image.unsqueeze(0)) for image in images]
    tolerance = tolerance_of(batched)
    torch.testing.assert_close(torch.cat([p.offsets for p in singly]), batched.offsets, rtol=0, atol=tolerance)
    torch.testing.assert_close(torch.cat([p.logits for p in singly]), batched.logits, rtol=0, atol=tolerance)
    assert (batched.logits[0] - batched.logits[1]).abs().max() > 100 * tolerance  # the two images differ


@torch.no_grad()
def test_memory_format_changes_nothing(model: SSD300, images: Tensor) -> None:
    contiguous = model(images)
    tolerance = tolerance_of(contiguous)
    model.to(memory_format=torch.channels_last)
    try:
        last = model(images.to(memory_format=torch.channels_last))
    finally:
        model.to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(last.offsets, contiguous.offsets, rtol=0, atol=tolerance)
    torch.testing.assert_close(last.logits, contiguous.logits, rtol=0, atol=tolerance)


def test_every_parameter_learns(images: Tensor) -> None:
    torch.manual_seed(2)
    model = SSD300("resnet18", 3)
    predictions = model(images)
    (predictions.offsets.square().sum() + predictions.logits.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_importing_and_building_downloads_nothing(tmp_path: Path) -> None:
    code = (
        "import socket\n"
        "def refuse(*_, **__): raise AssertionError('the network was used')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
        "import ssd.detectors.ssd300.model\n"
        "ssd.detectors.ssd300.model.SSD300('resnet18', 2)\n"
        "print('built')\n"
    )
    # An empty cache, so that weights of an earlier download cannot hide one.
    environment = {**os.environ, "TORCH_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "built\n"), done.stderr
    assert list(tmp_path.iterdir()) == []
