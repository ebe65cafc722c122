"""Filters taken out of darknet's networks, through route, reorg and pooling, change no output beyond rounding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from darknet_networks import TINY, fill, narrow, tensors_of, walk
from schedules import schedule_of
from torch import Tensor

import main
from ssd.batch import EvalBatch, whole
from ssd.checkpoints import checkpoint, conversion
from ssd.compression.schedules.distiller_yaml import read_schedule
from ssd.compression.schedules.masks import Compression
from ssd.compression.thinning.ranking import without_lowest
from ssd.compression.thinning.removal import thin
from ssd.detectors.channels import thinned
from ssd.detectors.yolov2.darknet.cfg import parse, write
from ssd.detectors.yolov2.darknet.configurations import NAMES, cfg_named
from ssd.detectors.yolov2.darknet.model import Darknet
from ssd.detectors.yolov2.darknet.sections import Network
from ssd.detectors.yolov2.darknet.weights import read_weights, write_weights
from ssd.detectors.yolov2.detector import YOLOV2
from ssd.detectors.yolov2.recipes import defaults
from ssd.detectors.yolov2.settings import YOLOv2Settings
from ssd.detectors.yolov2.streams import streams_of, without_filters
from ssd.distributed import Ranks
from ssd.inference.export import to_program
from ssd.schedule import Warmup

IMAGES = np.random.default_rng(1).uniform(size=(1, 3, 64, 64))


def network_named(name: str) -> Network:
    return parse(TINY, name) if name == "tiny.cfg" else narrow(parse(cfg_named(name), name), 16)


def filled(network: Network) -> Darknet:
    model = Darknet(network).eval()
    with torch.no_grad():
        fill(model)
    return model


@torch.no_grad()
def zero_filters(model: Darknet, share: float, *, with_norm: bool) -> None:
    """In each stream; where channels go in pairs, whole pairs."""
    generator = torch.Generator().manual_seed(2)
    for stream in streams_of(model):
        ((conv_name, norm_name),) = stream.writers
        conv: Any = model.get_submodule(conv_name)
        norm: Any = model.get_submodule(norm_name)
        units = torch.randperm(len(conv.weight) // stream.unit, generator=generator)
        gone = units[: int(share * len(units))].repeat_interleave(stream.unit) * stream.unit
        gone = gone + torch.arange(stream.unit).repeat(len(gone) // stream.unit)
        conv.weight[gone] = 0
        if with_norm:
            norm.weight[gone] = 0
            norm.bias[gone] = 0


@torch.no_grad()
@pytest.mark.parametrize("with_norm", [True, False], ids=["silent", "constant"])
@pytest.mark.parametrize("name", ["tiny.cfg", *NAMES])
def test_the_smaller_network_says_what_the_whole_one_said(name: str, with_norm: bool) -> None:
    """By the plain walk over the smaller cfg with its file of weights, so that darknet would say it too."""
    network = network_named(name)
    model = filled(network)
    zero_filters(model, 0.5, with_norm=with_norm)
    expected = walk(network, tensors_of(model), IMAGES)

    found = thin(model, Darknet(network), streams_of(model))
    smaller: Any = found.model
    assert found.removed > 0 and np.abs(expected).mean() > 0.05
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        smaller(torch.from_numpy(IMAGES).float()).values.numpy(), expected, rtol=0, atol=2e-5 * scale
    )

    small = parse(write(without_filters(network, smaller.channel_plan)), name)
    content = write_weights(small, smaller.state_dict(), (0, 2, 0), 640)
    again = Darknet(small).eval()
    again.load_state_dict(again.state_dict() | read_weights(content, small, Path("small.weights")).tensors)
    np.testing.assert_allclose(walk(small, tensors_of(again), IMAGES), expected, rtol=0, atol=2e-5 * scale)
    halves = [index for index, _ in model.convolutions()[:-1]]
    if with_norm:
        for index in halves:
            before, after = network.layers[index].filters, small.layers[index].filters  # type: ignore[union-attr]
            assert after == before // 2 or after % 4 == 0, index
    else:  # in each layer one filter says the constants of all; in pairs they would have to be alike
        assert found.left >= len([stream for stream in streams_of(model) if stream.unit == 1])


@pytest.mark.parametrize(
    ("name", "places"),
    [
        # Layer 26 has 64 channels, four times before the 1024 of layer 24.
        ("yolov2-voc", {26: [0, 64, 128, 192], 24: [256]}),
        ("yolo-voc.2.0", {16: [0, 512, 1024, 1536], 24: [2048]}),
    ],
)
def test_channels_behind_reorg_and_concatenation(name: str, places: dict[int, list[int]]) -> None:
    with torch.device("meta"):
        model = Darknet(parse(cfg_named(name), name))
    with torch.device("cpu"):
        streams = {stream.writers[0][0]: stream for stream in streams_of(model)}
    assert len(streams) == len(model.convolutions()) - 1 and "layers.30.conv" not in streams
    reader = f"layers.{model.convolutions()[-2][0]}.conv"
    for writer, starts in places.items():
        stream = streams[f"layers.{writer}.conv"]
        assert stream.places[reader][0].tolist() == starts
        assert stream.places[reader][3].tolist() == [start + 3 for start in starts]
        assert (stream.unit, stream.multiple) == ((2, 4) if len(starts) == 4 else (1, 1))


@torch.no_grad()
def test_half_a_pair_before_reorg_stays() -> None:
    model = filled(network_named("tiny.cfg"))
    (stream,) = (each for each in streams_of(model) if each.unit == 2)
    conv: Any = model.get_submodule(stream.writers[0][0])
    norm: Any = model.get_submodule(stream.writers[0][1])
    for gone, left in (((0, 3), 8), ((2, 3), 8), ((2, 3, 6, 7), 4)):  # two are no multiple of four
        fill(model)
        for value in (conv.weight, norm.weight, norm.bias):
            value[list(gone)] = 0
        found: Any = thin(model, Darknet(model.network), [stream]).model
        assert found.get_submodule(stream.writers[0][0]).out_channels == left
        images = torch.from_numpy(IMAGES).float()
        assert torch.allclose(found(images).values, model(images).values, atol=1e-5)


@pytest.mark.parametrize("share", [0.7, 0.4])
def test_lowest_ranked_filters_go_to_a_share_of_the_flops(share: float) -> None:
    network = network_named("yolov2-voc")
    model = filled(network)
    flops = {f"layers.{i}.conv.weight": int(m.conv.weight.numel()) for i, m in model.convolutions()}
    streams = streams_of(model)
    found: Any = thin(without_lowest(model, streams, flops, share), Darknet(network), streams).model
    left = sum(module.conv.weight.numel() for _, module in found.convolutions())
    assert 0.8 * share < left / sum(flops.values()) <= share


def companion_of(text: str, model: Darknet) -> Compression:
    ranks = Ranks(0, 0, 1, torch.device("cpu"))
    schedule = read_schedule(text, Path("prune.yaml"))
    return Compression(
        schedule, model, None, ranks, steps_per_epoch=4, num_epochs=4, base_lr=0.1, warmup=Warmup(0, 0, 1), seed=0
    )


BUT_THE_HEAD = "weights: [layers.0.conv.weight, layers.2.conv.weight, layers.4.conv.weight]"


def trained(model: Darknet, companion: Compression, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    companion.hook(optimizer)
    images = torch.from_numpy(IMAGES).float()
    for step in range(steps):
        companion.before_step(step, 0.01)
        optimizer.zero_grad()
        model.train()(images).values.square().mean().backward()
        optimizer.step()
        companion.after_step(step)


def test_filters_by_score_go_with_what_their_norm_adds_and_stay_away() -> None:
    """The mean square of a filter over the layer's largest, ranked over all layers; none loses its best filter. Under
    momentum, and when the policy has ended."""
    model = filled(network_named("tiny.cfg"))
    names = [f"layers.{index}.conv.weight" for index in (0, 2, 4)]
    squares = [model.get_parameter(name).detach().square().flatten(1).mean(1) for name in names]
    scores = torch.cat([each / each.max() for each in squares])
    text = schedule_of(
        "GlobalFilterPruner", "desired_sparsity: 0.5", BUT_THE_HEAD, args="{mask_batchnorm: true}", epochs=[1]
    )
    companion = companion_of(text, model)
    companion.before_step(4, 0.01)
    gone = torch.cat([(model.get_parameter(name) == 0).flatten(1).all(1) for name in names])
    assert gone.sum() == 16 and scores[gone].max() < scores[~gone].min()
    trained(model, companion, 12)
    again = torch.cat([(model.get_parameter(name) == 0).flatten(1).all(1) for name in names])
    assert torch.equal(gone, again)
    for name, own in zip(names, gone.split([8, 8, 16]), strict=True):
        norm = name.replace("conv.weight", "norm.")
        for value in (model.get_parameter(f"{norm}weight"), model.get_parameter(f"{norm}bias")):
            assert not value[own].any() and value[~own].all()
        assert norm + "bias" in companion.state()["masks"]
    # All but what [reorg] keeps to fours goes for good.
    found: Any = thin(model.eval(), Darknet(model.network), streams_of(model)).model
    images = torch.from_numpy(IMAGES).float()
    with torch.no_grad():
        assert torch.allclose(found(images).values, model(images).values, atol=1e-4)
    assert [module.conv.out_channels for _, module in found.convolutions()][0] == 8 - int(gone[:8].sum())


def test_each_layer_keeps_its_best_filter() -> None:
    model = filled(network_named("tiny.cfg"))
    text = schedule_of("GlobalFilterPruner", "desired_sparsity: 1.0", BUT_THE_HEAD, epochs=[0])
    companion_of(text, model).before_step(0, 0.01)
    for index in (0, 2, 4):
        assert int((model.get_parameter(f"layers.{index}.conv.weight") != 0).flatten(1).any(1).sum()) == 1


def test_weights_by_magnitude_over_all_layers() -> None:
    model = filled(network_named("tiny.cfg"))
    names = [f"layers.{index}.conv.weight" for index in (0, 2, 4)]

    def joined() -> Tensor:
        return torch.cat([model.get_parameter(name).detach().flatten() for name in names])

    before = joined().abs()
    text = schedule_of("GlobalMagnitudePruner", "desired_sparsity: 0.7", BUT_THE_HEAD, epochs=[0])
    companion = companion_of(text, model)
    companion.before_step(0, 0.01)
    count = int(0.7 * len(before))
    assert int((joined() == 0).sum()) == count
    assert torch.equal(joined() == 0, before <= before.kthvalue(count).values)
    trained(model, companion, 6)
    assert int((joined() == 0).sum()) == count
    assert not companion.state()["masks"].keys() - set(names)  # nothing of a norm without mask_batchnorm


def test_a_thinned_checkpoint_is_a_smaller_network_of_darknet(tmp_path: Path, refusal: Any) -> None:
    network = network_named("tiny.cfg")
    model = filled(network)
    settings = YOLOv2Settings("tiny.cfg", TINY)
    content = {
        "format": 2,
        "detector": {"family": "yolov2", "network": "tiny.cfg", "cfg": TINY},
        "categories": [(1, "cat"), (2, "dog")],
        "model": model.state_dict(),
    }
    checkpoint.save(tmp_path / "dense.pt", content)
    assert checkpoint.settings_of(checkpoint.load(tmp_path / "dense.pt")) == settings
    command = ["thin", "--checkpoint", str(tmp_path / "dense.pt"), "--output", str(tmp_path / "thin.pt")]
    assert main.main([*command, "--flops", "0.5"]) == 0
    smaller: Any = checkpoint.build_model(checkpoint.load(tmp_path / "thin.pt"), tmp_path / "thin.pt").eval()
    for suffix in (".cfg", ".weights", ".names"):
        assert main.main(["convert", str(tmp_path / "thin.pt"), str(tmp_path / f"small{suffix}")]) == 0
    again = conversion.load(tmp_path / "small.weights")
    other: Any = checkpoint.build_model(again, tmp_path / "small.weights").eval()
    images = torch.from_numpy(IMAGES).float()
    with torch.no_grad():
        assert torch.equal(smaller(images).values, other(images).values)
    assert "channels" not in again and other.layers[0].conv.out_channels < 8
    rebuilt = thinned(Darknet(network), smaller.channel_plan)
    assert [p.shape for p in rebuilt.parameters()] == [p.shape for p in other.parameters()]


@pytest.mark.slow
@torch.no_grad()
def test_an_exported_thinned_network_finds_what_it_finds_here() -> None:
    model = filled(network_named("tiny.cfg"))
    flops = {f"layers.{i}.conv.weight": int(m.conv.weight.numel()) for i, m in model.convolutions()}
    streams = streams_of(model)
    smaller: Any = thin(without_lowest(model, streams, flops, 0.5), Darknet(model.network), streams).model
    settings = YOLOv2Settings("tiny.cfg", TINY)
    thresholds = defaults(settings).thresholds._replace(max_per_image=60)
    pixels = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = YOLOV2.detect(settings, thresholds)(smaller, EvalBatch(pixels / 255, whole(pixels), torch.arange(2)))
    assert YOLOV2.exportable is not None
    found = to_program(YOLOV2.exportable(smaller, settings, thresholds)).module()(pixels)
    assert found["counts"].tolist() == expected.counts.tolist() and min(found["counts"]) > 3
    torch.testing.assert_close(found["scores"], expected.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["boxes_ltrb"], expected.boxes_ltrb, rtol=1e-4, atol=1e-4)
