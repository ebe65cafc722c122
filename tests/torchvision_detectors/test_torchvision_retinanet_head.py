"""RetinaNet's heads train on small maps side by side and say what they say of each map by itself."""

import torch
from torchvision.models.detection.retinanet import RetinaNetHead

from ssd.detectors.torchvision.dense.head import Head, pack

SIZES = ((9, 13), (5, 7), (3, 4), (2, 2), (1, 1))  # P3 to P7 of an image of odd shape


def heads_and_maps(**kwargs: object) -> tuple[Head, RetinaNetHead, list[torch.Tensor]]:
    torch.manual_seed(0)
    ours, theirs = Head(8, 9, 3, **kwargs).double(), RetinaNetHead(8, 9, 3, **kwargs).double()
    for parameter in ours.parameters():  # far from 0, so that what leaks from map to map is seen
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, [torch.randn(2, 8, *size, dtype=torch.float64, requires_grad=True) for size in SIZES]


def said_and_gradients(head: torch.nn.Module, maps: list[torch.Tensor]) -> list[torch.Tensor]:
    said = head(maps)
    weight = torch.linspace(-1, 1, said["cls_logits"].numel(), dtype=torch.float64).view_as(said["cls_logits"])
    loss = (said["cls_logits"] * weight).sum() + said["bbox_regression"].square().sum()
    return [*said.values(), *torch.autograd.grad(loss, [*maps, *head.parameters()])]


def test_losses_and_gradients_are_those_of_torchvisions_head() -> None:
    ours, theirs, maps = heads_and_maps()
    for got, expected in zip(said_and_gradients(ours, maps), said_and_gradients(theirs, maps), strict=True):
        torch.testing.assert_close(got, expected)


def test_small_maps_lie_side_by_side_with_a_cell_between() -> None:
    packed = pack([torch.full((1, 2, 2, 3), 4.0), torch.full((1, 2, 1, 2), 5.0), torch.full((1, 2, 1, 1), 6.0)])
    assert packed.canvas[0, 1].tolist() == [[4, 4, 4, 0], [4, 4, 4, 0], [0, 0, 0, 0], [5, 5, 0, 6]]
    assert packed.between[0, 0].tolist() == [[0, 0, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 1, 0]]


def test_five_maps_are_two_calls_of_a_convolution_in_training_and_five_in_evaluation() -> None:
    ours, _, maps = heads_and_maps()
    calls = []
    convolution = ours.classification_head.cls_logits
    plain = convolution._conv_forward
    convolution._conv_forward = lambda *args: calls.append(1) or plain(*args)
    ours(maps)
    assert len(calls) == 2
    ours.eval()(maps)
    assert len(calls) == 7


def test_who_watches_a_convolution_sees_each_map() -> None:
    ours, _, maps = heads_and_maps()
    seen: list[tuple[int, ...]] = []
    ours.regression_head.conv[2].register_forward_hook(lambda _module, _given, said: seen.append(said.shape[2:]))
    ours(maps)
    assert seen == list(SIZES)


def test_what_overflows_between_maps_does_not_reach_them() -> None:
    """In float16 a sum between two maps may be infinite where none in them is."""
    head = Head(1, 1, 1)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_(head.classification_head.conv[0][0].weight, 1e38)  # of no other layer
    maps = [torch.zeros(1, 1, size, size) for size in (4, 2, 1, 1)]
    for each in maps[2:]:
        each.fill_(2.0)  # 2e38 in the maps, 4e38, which is infinite, between two of them
    said = head(maps)
    assert all(torch.isfinite(value).all() for value in said.values())


def test_norms_see_each_map() -> None:
    ours, theirs, maps = heads_and_maps(norm_layer=lambda channels: torch.nn.GroupNorm(4, channels))
    for got, expected in zip(said_and_gradients(ours, maps), said_and_gradients(theirs, maps), strict=True):
        torch.testing.assert_close(got, expected)
