"""Recipes of torchvision's detectors: the optimiser of torchvision's references/detection."""

import copy

import pytest
import torch
from torch import nn

from ssd.detectors.names import family_of, settings_named
from ssd.training.optimizer import build_optimizer


@pytest.mark.parametrize(
    ("name", "decay"),
    [
        ("fasterrcnn_resnet50_fpn", 1e-4),
        ("retinanet_resnet50_fpn_v2", 1e-4),
        ("ssd300_vgg16", 5e-4),
        ("ssdlite320_mobilenet_v3_large", 4e-5),
    ],
)
def test_recipe_torchvision_decays_every_parameter(name: str, decay: float) -> None:
    """As `SGD(model.parameters())` of the references does: biases and norms too."""
    settings = settings_named(name)
    config = family_of(settings).recipes["torchvision"](detector=settings)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    other = copy.deepcopy(model)
    optimizer = build_optimizer(model, config)
    expected = torch.optim.SGD(other.parameters(), lr=config.learning_rate, momentum=0.9, weight_decay=decay)
    for _ in range(2):
        for own, their in zip(model.parameters(), other.parameters(), strict=True):
            own.grad, their.grad = torch.ones_like(own), torch.ones_like(their)
        optimizer.step()
        expected.step()
    for own, their in zip(model.parameters(), other.parameters(), strict=True):
        # A decay of 1e-4 is 1e-6 of a weight here.
        torch.testing.assert_close(own, their, rtol=1e-12, atol=1e-12)


def test_recipe_demo_leaves_biases_and_norms_alone() -> None:
    """With which its recorded AP was reached."""
    settings = settings_named("fasterrcnn_resnet18_fpn")
    config = family_of(settings).recipes["demo"](detector=settings)
    assert (config.weight_decay, config.bias_decay, config.norm_decay) == (1e-4, 0.0, 0.0)
