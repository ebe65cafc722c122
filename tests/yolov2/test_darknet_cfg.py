"""darknet's cfg language: what is read, what is refused and by which line, and the configurations that it ships."""

from typing import Any

import numpy as np
import pytest
import torch
from darknet_networks import TINY, fill, narrow, reorg_loop, walk

from ssd.detectors.yolov2.darknet.cfg import beyond_grid, fitted, parse, write
from ssd.detectors.yolov2.darknet.configurations import NAMES, cfg_named
from ssd.detectors.yolov2.darknet.layers import DarknetMaxPool, reorg, space_to_depth
from ssd.detectors.yolov2.darknet.model import Darknet
from ssd.detectors.yolov2.darknet.sections import Convolutional, MaxPool, Network, Region
from ssd.detectors.yolov2.settings import YOLOv2Settings, is_letterboxed, network_of
from ssd.errors import InputError

NETWORK = parse(TINY, "tiny.cfg")


def without_lines(network: Network) -> list[Any]:
    return [section._replace(line=0) for section in (network.net, *network.layers)]


# Reading


def test_spaces_comments_aliases_and_the_first_of_two_keys() -> None:
    text = "# a\n[network]\nwidth = 3 2\nheight=32\nchannels=3\nwidth=64\n;b\n"
    text += "[conv]\n filters\t=  6\n[region]\nanchors = 1,\t2\nclasses=1\nsoftmax=1\n"
    network = parse(text, "x.cfg")
    assert (network.net.width, network.net.line) == (32, 2)
    head, region = network.layers
    assert isinstance(head, Convolutional) and isinstance(region, Region)
    assert (head.filters, head.activation, head.line) == (6, "logistic", 8)
    assert (region.anchors, region.jitter, region.line) == ((1.0, 2.0), 0.2, 10)


def test_windows_line_ends_change_nothing() -> None:
    assert parse(TINY.replace("\n", "\r\n"), "tiny.cfg") == NETWORK


def test_what_is_written_is_read_as_the_same_network() -> None:
    again = parse(write(NETWORK), "again.cfg")
    assert without_lines(again) == without_lines(NETWORK) and again.shapes == NETWORK.shapes


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[maxpool]", "[dropout]", r"x.cfg:16: \[dropout\] is not known here"),
        ("[maxpool]", "[maxpool", "x.cfg:16: .* is no .section."),
        ("batch_normalize=1", "batch_normalise=1", "x.cfg:10: .* did you mean batch_normalize"),
        ("filters=8", "filters=8 # wide", "x.cfg:11: filters=8#wide is no whole number"),
        ("filters=8", "filters=8.0", "x.cfg:11: filters=8.0 is no whole number"),
        ("filters=8", "filters", "x.cfg:11: 'filters' is neither"),
        ("pad=1", "pad=2", "x.cfg:14: pad=2 is neither 0 nor 1"),
        ("activation=leaky", "activation=mish", "x.cfg:15: activation=mish is not obeyed here; leaky and linear and"),
        ("channels=3", "channels=1", "x.cfg:7: channels=1 is not obeyed here; 3 is"),
        ("learning_rate=0.001", "learning_rate=1e999", "x.cfg:8: .* not finite"),
        ("learning_rate=0.001", "policy=poly", "x.cfg:8: policy=poly"),
        ("learning_rate=0.001", "policy=steps\nsteps=1,2\nscales=.1", "x.cfg:2: 2 steps have 1 scales"),
        ("layers=-1,4", "layers=-1,99", "x.cfg:.*a .route. takes layers before itself, which is 7"),
        ("layers=-1,4", "layers=-1,0", "different sizes .8 x 8, 32 x 32."),
        ("layers=-1,4", "layers=-1", r"nothing reads layer 4, this \[convolutional\]"),
        ("[reorg]\nstride=2", "[reorg]\nstride=3", "x.cfg:.*: stride=3 is not obeyed here; 2 is"),
        ("[reorg]\nstride=2", "[reorg]", "only stride=2"),
        ("softmax=1", "softmax=0", "x.cfg:.*: softmax=0 is not obeyed here; 1 is"),
        ("softmax=1", "", "softmax=1 are obeyed"),
        (
            "channels=3",
            "channels=3\nsaturation=0",
            "x.cfg:8: saturation=0.0 is not obeyed here; it has to be from 0.01 to 100",
        ),
        ("learning_rate=0.001", "learning_rate=-1", "x.cfg:8: learning_rate=-1.0 .* from 0 to 100"),
        ("channels=3", "channels=3\nmomentum=9", "x.cfg:8: momentum=9.0 .* from 0 to less than 1"),
        ("channels=3", "channels=3\nburn_in=-5", "x.cfg:8: burn_in=-5 .* 0 or more"),
        ("channels=3", "channels=3\nmax_batches=-5", "x.cfg:8: max_batches=-5 .* 0 or more"),
        ("channels=3", "channels=3\nsteps=5,-5", "x.cfg:8: steps=-5 .* -1 or more"),
        ("width=64", "width=999999968", "x.cfg:5: width=999999968 .* from 1 to 16384"),
        ("softmax=1", "softmax=1\njitter=5", "jitter=5.0 .* less than 1"),
        ("[maxpool]", "[maxpool]\npadding=-5", "x.cfg:17: padding=-5 .* 0 or more"),
        ("filters=8", "filters=٨", "x.cfg:11: filters=٨ is no whole number"),
        ("classes=2", "classes=3", "filters=14 before .region.: 2 anchors and 3 classes need 16"),
        ("num=2", "num=3", "num=3 needs 6 anchors above 0, and there are 4"),
        ("anchors=1,1, 1.5,2.5", "anchors=1,1,1.5,", "anchors= is no number"),
        ("1.5,2.5", "2.5,100", "x.cfg:51: an anchor is 100 cells high and the output 4 x 4 cells; .*not in pixels"),
        ("1.5,2.5", "26.1,1", "an anchor is 26.1 cells wide"),
        ("[net]", "batch=2\n[net]", "x.cfg:2: batch stands before the first"),
        ("[reorg]", "[net]\n[reorg]", "a second .net."),
        ("width=64", "width=20", "x.cfg:.*: stride=2 on 8 x 16 x 5"),
        ("subdivisions=2", "subdivisions=3", "batch=4 does not part"),
    ],
)
def test_what_is_not_obeyed_is_refused_by_its_line(old: str, new: str, said: str) -> None:
    assert old in TINY
    with pytest.raises(InputError, match=said) as caught:
        parse(TINY.replace(old, new, 1), "x.cfg")
    assert "\n" not in str(caught.value)


def test_a_network_has_to_end_with_one_region_and_begin_with_net() -> None:
    body, head = TINY.split("[region]")
    for text, said in (
        (body, "the last section has to be .region."),
        (f"{TINY}\n[region]{head}", "the only one"),
        (TINY.replace("[net]", "[maxpool]").replace("batch=4\nsubdivisions=2\nwidth=64\nheight=64\nchannels=3\n"
         "learning_rate=0.001", ""), "the first section"),
        ("# nothing", r"has no \[section\]"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            parse(text, "x.cfg")


def test_a_network_takes_other_classes_anchors_and_inputs() -> None:
    network = fitted(NETWORK, classes=5, anchors=(1.0, 2.0), size_px=(96, 128))
    assert network.shapes[-1] == (10, 8, 6) and network.region.num == 1
    with pytest.raises(InputError, match="stride=2 on 8 x 17 x 17"):
        fitted(NETWORK, classes=5, anchors=(1.0, 2.0), size_px=(68, 68))


def test_anchors_may_be_twice_as_large_as_the_grid() -> None:
    """On fewer cells than 13, as large as on 13, which the shipped ones are made for."""
    assert beyond_grid((26.0, 26.0), (4, 4)) == "" == beyond_grid((38.0, 50.0), (19, 25))
    in_pixels = (100.0, 130.0, 620.0, 450.0)
    assert "100 cells wide and the output 13 x 13" in beyond_grid(in_pixels, (13, 13))
    assert "50.1 cells high and the output 30 x 25" in beyond_grid((60.0, 50.1), (30, 25))


# The configurations


@pytest.mark.parametrize(
    ("name", "convolutions", "parameters", "gflop", "cells"),
    [
        ("yolov2-voc", 23, 50_655_389, 29.36, 13),
        ("yolov2", 23, 50_962_889, 62.94, 19),
        ("yolov2-tiny-voc", 9, 15_861_773, 6.97, 13),
        ("yolov2-tiny", 9, 11_232_057, 5.41, 13),
        ("yolo-voc.2.0", 22, 67_137_565, 34.90, 13),
    ],
)
def test_the_shipped_networks_have_darknets_size(
    name: str, convolutions: int, parameters: int, gflop: float, cells: int
) -> None:
    """Figures of pjreddie/darknet's own files, and of its author's page for 2.0."""
    network = parse(cfg_named(name), name)
    channels, found = network.net.channels, []
    for layer, (filters, height, width) in zip(network.layers, network.shapes, strict=True):
        if isinstance(layer, Convolutional):
            weights = layer.size**2 * channels * filters
            found.append((weights + (2 if layer.batch_normalize else 1) * filters, 2 * weights * height * width))
        channels = filters
    assert len(found) == convolutions
    assert sum(of_layer for of_layer, _ in found) == parameters
    assert sum(operations for _, operations in found) / 1e9 == pytest.approx(gflop, abs=0.005)
    assert network.shapes[-1][1:] == (cells, cells) and network.downsampling == 32


def test_names_are_those_of_darknets_files() -> None:
    assert NAMES == ("yolov2-voc", "yolov2", "yolov2-tiny-voc", "yolov2-tiny", "yolo-voc.2.0")


# The layers


def test_reorg_by_hand() -> None:
    first = torch.arange(16).view(1, 4, 2, 2)
    assert reorg(first).flatten().tolist() == [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15]
    assert space_to_depth(first).flatten().tolist() == [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15]
    second = torch.arange(64).view(1, 4, 4, 4)
    assert reorg(second)[0, :4].flatten().tolist() == [
        0, 2, 4, 6, 16, 18, 20, 22, 32, 34, 36, 38, 48, 50, 52, 54
    ]  # fmt: skip
    assert space_to_depth(second)[0, :2].flatten().tolist() == [0, 2, 8, 10, 16, 18, 24, 26]


def test_reorg_is_darknets_loop() -> None:
    images = np.random.default_rng(0).normal(size=(2, 8, 6, 10)).astype(np.float32)
    expected = np.stack([reorg_loop(image) for image in images])
    assert np.array_equal(reorg(torch.from_numpy(images)).numpy(), expected)


def test_max_pool_by_hand() -> None:
    images = torch.tensor([[[[-1.0, -2, -3], [-4, -5, -6], [-7, -8, -9]]]])
    keeps = DarknetMaxPool(MaxPool(size=2, stride=1))(images)
    assert keeps[0, 0].tolist() == [[-1, -2, -3], [-4, -5, -6], [-7, -8, -9]]  # no zeros from outside
    halves = DarknetMaxPool(MaxPool(size=2, stride=2))(images)
    assert halves[0, 0].tolist() == [[-1, -3], [-7, -9]]  # rounded up
    three = DarknetMaxPool(MaxPool(size=3, stride=2))(images)  # padding 2: a window begins at -1
    assert three[0, 0].tolist() == [[-1, -2], [-4, -5]]


def test_a_pool_has_no_infinity_in_its_graph() -> None:
    """From which a range for 8 bits would come out infinite."""
    graph = torch.export.export(DarknetMaxPool(MaxPool(size=2, stride=1)), (torch.zeros(1, 2, 3, 3),)).graph
    assert "max_pool2d" in str(graph) and "inf" not in str(graph)


def test_whether_images_are_fitted_in_is_read_overruled_and_written() -> None:
    """By AlexeyAB's key."""
    text = TINY.replace("[net]", "[net]\nletter_box=1")
    assert parse(text, "x").net.letter_box and not NETWORK.net.letter_box
    assert is_letterboxed(YOLOv2Settings("x", text)) and not is_letterboxed(YOLOv2Settings("x", TINY))
    assert not is_letterboxed(YOLOv2Settings("x", text, resize="stretch"))
    letterboxed = YOLOv2Settings("x", TINY, resize="letterbox")
    assert "letter_box=1" in write(network_of(letterboxed)) and "letter_box" not in write(NETWORK)
    with pytest.raises(InputError, match="--resize crop: is none of stretch, letterbox"):
        YOLOv2Settings("x", TINY, resize="crop")


# The forward pass


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny.cfg", *NAMES])
def test_the_forward_pass_is_that_of_a_plain_walk_over_the_cfg(name: str) -> None:
    network = NETWORK if name == "tiny.cfg" else narrow(parse(cfg_named(name), name), 16)
    model = Darknet(network).eval()
    tensors = fill(model)
    images = np.random.default_rng(1).uniform(size=(2, 3, network.net.height, network.net.width))
    expected = walk(network, tensors, images)
    found = model(torch.from_numpy(images).float()).values
    assert found.shape[1:] == network.shapes[-1]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)
    assert np.abs(expected).mean() > 0.05  # the comparison is of something


def test_seen_counts_the_images_of_training() -> None:
    model = Darknet(NETWORK)
    assert int(model(torch.zeros(2, 3, 64, 64)).seen) == 2
    assert int(model(torch.zeros(3, 3, 64, 64)).seen) == 5
    assert int(model.eval()(torch.zeros(3, 3, 64, 64)).seen) == 5
    assert int(model.state_dict()["seen"]) == 5


def test_fresh_weights_are_spread_as_darknets() -> None:
    torch.manual_seed(0)
    model = Darknet(narrow(parse(cfg_named("yolov2-tiny-voc"), "x"), 2))
    (_, layer) = model.convolutions()[6]
    assert layer.conv.weight.std().item() == pytest.approx((2 / layer.conv.weight[0].numel()) ** 0.5, rel=0.02)
    assert layer.norm is not None and (layer.norm.eps, layer.norm.momentum) == (1e-5, 0.01)
