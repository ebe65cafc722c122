"""Filters of zeros taken out of torchvision's detectors change no output beyond rounding, frozen batch norm or not."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d
from torchvision_models import NUM_CLASSES

from ssd.cli.compression.thin import in_no_stream
from ssd.compression.summary import flops_by_weight
from ssd.compression.thinning.ranking import without_lowest
from ssd.compression.thinning.removal import thin
from ssd.detectors.channels import Stream, thinned
from ssd.detectors.table import detector_of
from ssd.detectors.torchvision.builders import build
from ssd.detectors.torchvision.channels.streams import streams_of
from ssd.detectors.torchvision.names import settings_of
from ssd.detectors.torchvision.settings import Settings
from ssd.detectors.torchvision.targets import targets_of

NAMES = [
    ("retinanet_resnet18_fpn", "imagenet"),
    ("fcos_resnet18_fpn", "none"),
    ("fasterrcnn_resnet18_fpn", "imagenet"),
    ("fasterrcnn_resnet18_fpn_v2", "none"),
    ("maskrcnn_resnet18_fpn_v2", "none"),
    ("keypointrcnn_resnet18_fpn", "imagenet"),
]


def settings_for(name: str, weights: str) -> Settings:
    return replace(settings_of(name, weights), short_sides_px=(96,), long_side_px=160)


@torch.no_grad()
def trained_looking(settings: Settings) -> Any:
    """With norms that do something, and biases."""
    torch.manual_seed(0)
    model = build(settings, NUM_CLASSES).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(-0.3, 0.3)
            module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            module.bias.uniform_(-0.2, 0.2)
    return model


@torch.no_grad()
def zero_filters(model: Any, share: float) -> None:
    for stream in streams_of(model):
        writers: list[Any] = [model.get_submodule(name) for name, _ in stream.writers]
        gone = torch.randperm(len(writers[0].weight))[: int(share * len(writers[0].weight))]
        for writer in writers:
            writer.weight[gone] = 0


@torch.no_grad()
def said(model: Any, images: Tensor) -> list[Tensor]:
    """What the layers say before anything is chosen of it."""
    maps = list(model.backbone(images).values())
    if hasattr(model, "head"):
        return [*maps, *model.head(maps).values()]
    pooled = torch.randn(5, 256, 7, 7, generator=torch.Generator().manual_seed(0))
    boxes = model.roi_heads["box_predictor"](model.roi_heads["box_head"](pooled))
    of_parts = [
        model.roi_heads[f"{part}_predictor"](model.roi_heads[f"{part}_head"](pooled))
        for part in ("mask", "keypoint")
        if f"{part}_head" in model.roi_heads
    ]
    return [*maps, *(each for part in model.rpn["head"](maps) for each in part), *boxes, *of_parts]


def assert_says_the_same(model: Any, smaller: Any) -> None:
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    for expected, found in zip(said(model, images), said(smaller, images), strict=True):
        # Sums in another order, through twenty layers.
        assert torch.allclose(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("name", "weights"), NAMES)
def test_the_smaller_model_says_the_same(name: str, weights: str) -> None:
    settings = settings_for(name, weights)
    model = trained_looking(settings)
    zero_filters(model, 0.5)
    found = thin(model, build(settings, NUM_CLASSES), streams_of(model))
    smaller: Any = found.model
    assert found.removed > 300
    assert_says_the_same(model, smaller)
    norms = [name for name, module in smaller.named_modules() if hasattr(module, "eps")]
    assert norms and all(smaller.get_submodule(name).eps == model.get_submodule(name).eps for name in norms)
    # What took no gradient takes none now, and the file can be read again.
    trains = {name: value.requires_grad for name, value in model.named_parameters()}
    assert {name: value.requires_grad for name, value in smaller.named_parameters()} == trains
    rebuilt = thinned(build(settings, NUM_CLASSES), smaller.channel_plan).eval()
    rebuilt.load_state_dict(smaller.state_dict())
    assert_says_the_same(smaller, rebuilt)


@pytest.mark.parametrize(
    "name", ["retinanet_resnet18_fpn_v2", "fcos_resnet18_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"]
)
def test_the_lowest_ranked_go_from_group_norms_and_depthwise_layers(name: str) -> None:
    settings = settings_for(name, "none")
    model = trained_looking(settings)
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    flops = flops_by_weight(model, lambda: said(model, images))
    streams = streams_of(model)
    zeroed = without_lowest(model, streams, flops, 0.7)
    smaller: Any = thin(zeroed, build(settings, NUM_CLASSES), streams).model
    assert sum(flops_by_weight(smaller, lambda: said(smaller, images)).values()) <= 0.7 * sum(flops.values())
    assert_says_the_same(zeroed, smaller)
    norms = [module for module in smaller.modules() if isinstance(module, nn.GroupNorm)]
    assert all(norm.num_channels == 8 * norm.num_groups for norm in norms)
    if norms:
        assert min(norm.num_groups for norm in norms) < 32
    assert all(each.groups in (1, each.in_channels) for each in smaller.modules() if isinstance(each, nn.Conv2d))


@torch.no_grad()
def test_part_of_a_group_of_a_norm_stays() -> None:
    """A filter changes what the norm makes of its neighbours; of a group of zeros only its shift is left."""
    settings = settings_for("retinanet_resnet18_fpn_v2", "none")
    model = trained_looking(settings)
    tower: Any = model.head.classification_head.conv[1]
    stream = next(each for each in streams_of(model) if each.writers[0][0] == "head.classification_head.conv.1.0")
    tower[0].weight[:12] = 0
    tower[1].bias[:12] = -0.1  # which the ReLU ends
    smaller: Any = thin(model, build(settings, NUM_CLASSES), [stream]).model
    assert smaller.head.classification_head.conv[1][0].out_channels == 248
    assert_says_the_same(model, smaller)


@pytest.mark.parametrize(("name", "weights"), [*NAMES[:3], *NAMES[4:]])
def test_all_that_is_left_learns(name: str, weights: str) -> None:
    settings = settings_for(name, weights)
    model = trained_looking(settings)
    zero_filters(model, 0.5)
    smaller: Any = thin(model, build(settings, NUM_CLASSES), streams_of(model)).model.train()
    batch = detector_of(settings).synthetic(settings, NUM_CLASSES, torch.device("cpu"), 2)
    losses = smaller(batch.images, targets_of(batch))
    torch.stack(list(losses.values())).sum().backward()
    before = {name: value.detach().clone() for name, value in smaller.named_parameters() if value.requires_grad}
    torch.optim.SGD(smaller.parameters(), lr=0.1).step()
    assert [name for name, value in before.items() if torch.equal(smaller.get_parameter(name), value)] == []


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("fasterrcnn_resnet50_fpn_v2", 43),  # 16 x 2 in blocks, stem and 4 stages, 2 of the RPN, 4 of the box head
        ("retinanet_resnext50_32x4d_fpn_v2", 13),  # stem, stages and towers: all else is in groups
        # 14 expansions, stem with block 1, 5 stages, the last, 8 squeezes; one of the RPN, two of the box head.
        ("fasterrcnn_mobilenet_v3_large_fpn", 14 + 1 + 5 + 1 + 8 + 3),
    ],
)
def test_streams_join_layers_of_as_many_channels(name: str, count: int) -> None:
    with torch.device("meta"):
        model: Any = build(settings_of(name, "none"), NUM_CLASSES)
    streams = streams_of(model)
    assert len(streams) == count
    for stream in streams:
        outs = {len(model.get_submodule(writer).weight) for writer, _ in stream.writers}
        ins = {model.get_submodule(reader).weight.shape[1] for reader in stream.readers}
        assert outs == ins and len(outs) == 1
        assert all(norm == "" or model.get_submodule(norm) for _, norm in stream.writers)


@torch.no_grad()
def test_what_cannot_go_alone_is_named() -> None:
    model: Any = nn.Sequential(nn.Conv2d(4, 8, 1, groups=2), nn.Conv2d(8, 2, 1), nn.Linear(2, 2))
    model[0].weight[3] = 0
    model[1].weight[0] = 0
    assert in_no_stream(model, [Stream([[("1", "")]], ["2"])]) == ["0"]
