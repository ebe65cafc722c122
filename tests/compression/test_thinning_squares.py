"""Filters taken out of torchvision's SSDs: VGG16 with its scaled map, and MobileNetV3 with its depthwise layers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision_models import NUM_CLASSES

from ssd.compression.summary import flops_by_weight
from ssd.compression.thinning.ranking import without_lowest
from ssd.compression.thinning.removal import thin
from ssd.detectors.channels import thinned
from ssd.detectors.torchvision.square.detector import TORCHVISION_SSD
from ssd.detectors.torchvision.square.model import SSD, build
from ssd.detectors.torchvision.square.settings import MOBILENET, NAMES, VGG, settings_of
from ssd.detectors.torchvision.square.streams import streams_of


@torch.no_grad()
def trained_looking(name: str) -> SSD:
    torch.manual_seed(0)
    model = build(settings_of(name, "none"), NUM_CLASSES).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(-0.3, 0.3)
            module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return model


def images_of(name: str, count: int = 1) -> Tensor:
    side = TORCHVISION_SSD.input_size_px(settings_of(name))[0]
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_says_the_same(name: str, model: SSD, other: SSD) -> None:
    for expected, found in zip(model(images_of(name)), other(images_of(name)), strict=True):
        # Sums in another order, through forty layers.
        assert torch.allclose(found, expected, rtol=0, atol=5e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_is_in_the_streams(name: str) -> None:
    with torch.device("meta"):
        model = build(settings_of(name, "none"), NUM_CLASSES)
    convolutions: dict[str, Any] = {n: module for n, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    streams = streams_of(model)
    written = [layer for stream in streams for layer, _ in stream.layers]
    read = [reader for stream in streams for reader in stream.readers]
    heads = {n for n in convolutions if "head" in n and convolutions[n].groups == 1}
    first = next(iter(convolutions))
    assert sorted(written) == sorted(convolutions.keys() - heads)
    assert sorted(read) == sorted(n for n, each in convolutions.items() if each.groups == 1 and n != first)
    for stream in streams:
        outs = {convolutions[layer].out_channels for layer, _ in stream.layers}
        assert outs == {convolutions[reader].in_channels for reader in stream.readers} and len(outs) == 1


@pytest.mark.parametrize("name", [MOBILENET, pytest.param(VGG, marks=pytest.mark.slow)])
def test_the_lowest_ranked_go_and_what_is_left_says_the_same(name: str) -> None:
    model = trained_looking(name)
    flops = flops_by_weight(model, lambda: model(images_of(name)))
    streams = streams_of(model)
    zeroed: Any = without_lowest(model, streams, flops, 0.5)
    smaller: Any = thin(zeroed, build(settings_of(name, "none"), NUM_CLASSES), streams).model
    assert sum(flops_by_weight(smaller, lambda: smaller(images_of(name))).values()) <= 0.5 * sum(flops.values())
    assert_says_the_same(name, zeroed, smaller)
    rebuilt = thinned(build(settings_of(name, "none"), NUM_CLASSES), smaller.channel_plan).eval()
    rebuilt.load_state_dict(smaller.state_dict())
    rebuilt.freeze_body()
    learns = {n for n, value in rebuilt.named_parameters() if value.requires_grad}
    assert learns and not any(n.startswith("backbone.features") for n in learns - {"backbone.scale_weight"})


@torch.no_grad()
def test_a_map_behind_a_norm_over_channels_keeps_what_says_something() -> None:
    """Also where nothing reads it: the others' length would change."""
    model: Any = trained_looking(VGG)
    (stream,) = (each for each in streams_of(model) if each.vectors)
    conv: Any = model.get_submodule(stream.writers[0][0])
    conv.weight[:3] = 0
    conv.bias[:3] = torch.tensor([0.0, -1.0, 0.5])
    for reader in stream.readers:
        model.get_submodule(reader).weight[:, 5] = 0
    found: Any = thin(model, build(settings_of(VGG, "none"), NUM_CLASSES), [stream])
    assert found.removed == 2 and found.model.backbone.scale_weight.shape == (510,)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for head in ("classification_head", "regression_head"):
        expected, other = (
            getattr(each.head, head).module_list[0](
                each.backbone.scale_weight.view(1, -1, 1, 1) * F.normalize(each.backbone.features(image))
            )
            for each in (model, found.model)
        )
        assert torch.allclose(other, expected, rtol=0, atol=5e-5 * float(expected.abs().max()))


@torch.no_grad()
def test_depthwise_channels_go_where_nothing_is_said() -> None:
    model: Any = trained_looking(MOBILENET)
    stream = next(each for each in streams_of(model) if each.depthwise and each.followers)
    (expand, norm), ((depthwise, depthwise_norm),) = stream.writers[0], stream.depthwise
    own = [model.get_submodule(name) for name in (expand, norm, depthwise, depthwise_norm)]
    own[0].weight[:4] = 0
    own[1].weight[:4] = 0
    own[1].bias[:4] = torch.tensor([0.0, 0.0, 2.0, 2.0])  # 2 and 3 say something, which the depthwise layer reads
    own[3].bias[:4] = 0
    own[3].running_mean[:4] = 0
    own[3].bias[1] = 1.0  # a constant, which the squeeze scales by each image's own
    own[2].weight[3] = 0  # what 3 says is not read
    found: Any = thin(model, build(settings_of(MOBILENET, "none"), NUM_CLASSES), [stream])
    count = own[0].out_channels - 2
    assert found.model.get_submodule(depthwise).groups == found.model.get_submodule(expand).out_channels == count
    assert_says_the_same(MOBILENET, model, found.model)
