"""Filters taken out of a model and of its moving average at once: each says afterwards what it said before."""

import copy

import torch
from torch import Tensor, nn

from ssd.compression.thinning.removal import thin_in_place
from ssd.detectors.channels import Stream

STREAM = Stream([[("0", "1")]], ["3"])


def network(biases: list[float]) -> nn.Module:
    """A convolution of four filters, of which the first two are 0 and say a constant by their norm's bias."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)
    ).eval()
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[1].bias[:2] = torch.tensor(biases)
    return model


@torch.no_grad()
def assert_same_after(models: list[nn.Module], filters_left: int) -> None:
    images = torch.randn(2, 3, 8, 8)
    expected: list[Tensor] = [copy.deepcopy(model)(images) for model in models]
    thin_in_place(models, [STREAM])
    assert len(models[0][0].weight) == filters_left
    for model, before in zip(models, expected, strict=True):
        torch.testing.assert_close(model(images), before, rtol=1e-5, atol=1e-6)


def test_one_filter_says_the_constants_of_both() -> None:
    assert_same_after([network([0.1, 0.2]), network([0.3, 0.4])], 3)


def test_one_that_says_nothing_in_the_average_does_not_speak_for_others() -> None:
    assert_same_after([network([0.1, 0.2]), network([-0.1, 0.2])], 3)


def test_where_no_filter_says_something_in_both_all_stay() -> None:
    assert_same_after([network([0.1, 0.2]), network([-0.1, -0.2])], 4)


def test_what_only_the_average_says_is_not_lost() -> None:
    assert_same_after([network([-0.1, 0.2]), network([0.3, 0.4])], 3)
