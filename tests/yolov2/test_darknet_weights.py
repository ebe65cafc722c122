"""darknet's files of weights: their headers, their bytes, and what is refused."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from darknet_networks import TINY

from ssd.detectors.yolov2.darknet.cfg import parse
from ssd.detectors.yolov2.darknet.configurations import cfg_named
from ssd.detectors.yolov2.darknet.model import Darknet
from ssd.detectors.yolov2.darknet.sections import Network
from ssd.detectors.yolov2.darknet.weights import copy_into, num_floats, read_weights, write_weights
from ssd.detectors.yolov2.files import load_backbone
from ssd.detectors.yolov2.settings import YOLOv2Settings
from ssd.errors import InputError

NETWORK = parse(TINY, "tiny.cfg")
FLOATS = (8 * 3 * 9 + 4 * 8) + (8 * 8 * 9 + 4 * 8) + (16 * 8 * 9 + 4 * 16) + (14 * 48 + 14)
FILE = Path("some.weights")


def content_of(network: Network, version: tuple[int, int, int], seen: int = 640, floats: int = FLOATS) -> bytes:
    """A file that counts its floats: 1, 2, 3, ..."""
    header = struct.pack("<3iq" if version[:2] == (0, 2) else "<3iI", *version, seen)
    return header + np.arange(1, floats + 1, dtype="<f4").tobytes()


@pytest.mark.parametrize(
    ("name", "size_bytes", "header"),
    [
        ("yolov2-voc", 202_704_264, 20),
        ("yolov2", 203_934_260, 16),
        ("yolov2-tiny-voc", 63_471_556, 16),
        ("yolov2-tiny", 44_948_600, 20),
        ("yolo-voc.2.0", 268_632_452, 16),
    ],
)
def test_the_published_files_have_as_many_bytes(name: str, size_bytes: int, header: int) -> None:
    assert header + 4 * num_floats(parse(cfg_named(name), name)) == size_bytes


@pytest.mark.parametrize(("version", "seen"), [((0, 2, 0), 2**40), ((0, 1, 0), 32_013_312), ((2, 1000, 7), 5)])
def test_a_file_is_written_again_byte_for_byte(version: tuple[int, int, int], seen: int) -> None:
    """seen has eight bytes from version 0.2 on, and four where a number of 1000 or more says something else."""
    wide = version == (0, 2, 0)
    content = struct.pack("<3iq" if wide else "<3iI", *version, seen)
    content += np.random.default_rng(0).uniform(0.1, 1, FLOATS).astype("<f4").tobytes()
    weights = read_weights(content, NETWORK, FILE)
    assert (weights.version, weights.seen) == (version, seen)
    model = Darknet(NETWORK)
    state = model.state_dict()
    copy_into(weights, state)
    assert write_weights(NETWORK, model.state_dict(), weights.version, weights.seen) == content


def test_each_number_comes_to_its_place() -> None:
    """Of the first layer: 8 biases, 8 scales, 8 means, 8 variances, then the filters; of the last: biases, filters."""
    tensors = read_weights(content_of(NETWORK, (0, 2, 0)), NETWORK, FILE).tensors
    assert tensors["layers.0.norm.bias"].tolist() == list(range(1, 9))
    assert tensors["layers.0.norm.weight"][0] == 9 and tensors["layers.0.norm.running_mean"][0] == 17
    assert tensors["layers.0.norm.running_var"][7] == 32
    assert tensors["layers.0.conv.weight"].shape == (8, 3, 3, 3)
    assert tensors["layers.0.conv.weight"][0, 0].flatten().tolist() == list(range(33, 42))
    assert tensors["layers.10.conv.weight"].flatten()[-1] == FLOATS
    assert tensors["layers.10.conv.bias"][0] == FLOATS - 14 * 48 - 13


def test_the_backbone_of_yolov2_is_the_first_eighteen_convolutions() -> None:
    """darknet19_448.conv.23 has 79,327,120 bytes with a header of 16."""
    network = parse(cfg_named("yolov2-voc"), "yolov2-voc")
    content = bytes(16) + np.ones(19_831_776, "<f4").tobytes()
    assert len(content) == 79_327_120
    weights = read_weights(content, network, FILE, is_backbone=True)
    assert len(weights.layers) == 18 and weights.layers[-1] == 22
    tiny = parse(cfg_named("yolov2-tiny-voc"), "yolov2-tiny-voc")  # darknet itself loads it, and nothing fits
    with pytest.raises(InputError, match="has 63471556 bytes of weights, this file has 79327120"):
        read_weights(content, tiny, FILE, is_backbone=True)


def test_a_backbone_fills_the_first_layers_and_leaves_the_others(tmp_path: Path) -> None:
    file = tmp_path / "tiny.conv.3"
    floats = (8 * 3 * 9 + 4 * 8) + (8 * 8 * 9 + 4 * 8)
    file.write_bytes(content_of(NETWORK, (0, 1, 0), seen=0, floats=floats))
    model = Darknet(NETWORK)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    said = load_backbone(model, YOLOv2Settings("tiny.cfg", TINY), str(file))
    assert said == f"{file} fills 2 of 4 convolutions of tiny.cfg, up to layer 2"
    for name, value in model.state_dict().items():
        is_filled = name.startswith(("layers.0.", "layers.2.")) and "num_batches" not in name
        assert torch.equal(value, before[name]) != is_filled, name
    assert load_backbone(model, YOLOv2Settings("tiny.cfg", TINY), "none") is None
    with pytest.raises(InputError, match="no-such: cannot be read"):
        load_backbone(model, YOLOv2Settings("tiny.cfg", TINY), str(tmp_path / "no-such"))


def test_a_file_that_does_not_come_out_even_is_refused_with_both_sizes() -> None:
    whole = content_of(NETWORK, (0, 2, 0))
    total = 20 + 4 * FLOATS
    for content, said in (
        (whole[:-4], f"has {total} bytes of weights, this file has {total - 4} .4 bytes more or less"),
        (whole + bytes(8), f"has {total} bytes of weights, this file has {total + 8};"),
        (whole[:15], "15 bytes are not even the header"),
        (whole[:18], "ends in its header of 20"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            read_weights(content, NETWORK, FILE)
        assert "\n" not in str(caught.value) and "some.weights" in str(caught.value)
    first = 20 + 4 * (8 * 3 * 9 + 4 * 8)
    assert read_weights(whole[:first], NETWORK, FILE, is_backbone=True).layers == [0]
    with pytest.raises(InputError, match="behind none of its layers; nearest is the end of layer 0"):
        read_weights(whole[: first + 4], NETWORK, FILE, is_backbone=True)
    with pytest.raises(InputError, match="pass the file of this network"):
        read_weights(whole[:first], NETWORK, FILE)


def test_numbers_that_are_no_weights_are_refused() -> None:
    whole = content_of(NETWORK, (0, 2, 0))
    variance = 20 + 4 * 24
    for place, value, said in (
        (variance, -1.0, "a variance below 0 in layer 0"),
        (variance, float("nan"), "not finite in layer 0"),
        (len(whole) - 4, float("inf"), "not finite in layer 10"),
    ):
        content = whole[:place] + struct.pack("<f", value) + whole[place + 4 :]
        with pytest.raises(InputError, match=said):
            read_weights(content, NETWORK, FILE)


def test_the_keys_of_a_layer_say_what_the_file_has_of_it() -> None:
    def with_keys(keys: str) -> Network:
        return parse(
            TINY.replace("[convolutional]\nbatch_normalize=1\n", f"[conv]\nbatch_normalize=1\n{keys}\n", 1), "x"
        )

    second = 8 * 8 * 9 + 4 * 8
    for keys, floats in (
        ("dontload=1", FLOATS - second),
        ("dontloadscales=1", FLOATS - 3 * 8),
        ("numload=2", FLOATS - 6 * (8 * 9 + 4)),
        ("flipped=1", FLOATS),
        ("dontsave=1", FLOATS),
    ):
        network = with_keys(keys)
        assert num_floats(network) == floats, keys
        weights = read_weights(content_of(network, (0, 1, 0), floats=floats), network, FILE)
        state = Darknet(network).state_dict()
        before = {name: value.clone() for name, value in state.items()}
        copy_into(weights, state)
        written = write_weights(network, state, (0, 1, 0), 0)
        assert len(written) == 16 + 4 * (FLOATS - (second if keys == "dontsave=1" else 0)), keys
        kernel = state["layers.2.conv.weight"]
        if keys == "numload=2":
            assert torch.equal(kernel[2:], before["layers.2.conv.weight"][2:])
            assert not torch.equal(kernel[:2], before["layers.2.conv.weight"][:2])
        if keys == "flipped=1":  # neighbours in the file are neighbouring filters
            assert kernel[1, 0, 0, 0] == kernel[0, 0, 0, 0] + 1 and kernel[0, 0, 0, 1] == kernel[0, 0, 0, 0] + 8
        if keys == "dontload=1":
            assert torch.equal(kernel, before["layers.2.conv.weight"])
