"""Filters of zeros taken out change no output beyond rounding, and what is left trains, saves and loads as before."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import main
from ssd.batch import MatchedBatch
from ssd.checkpoints import checkpoint, conversion
from ssd.compression.summary import parts_of, summarize
from ssd.compression.thinning.removal import Thinned
from ssd.compression.thinning.removal import thin as thin_streams
from ssd.detectors.channels import thinned
from ssd.detectors.ssd300.anchors import IMAGE_SIZE_PX
from ssd.detectors.ssd300.channels.streams import streams_of
from ssd.detectors.ssd300.loss import ssd_losses
from ssd.detectors.ssd300.model import SSD300
from ssd.detectors.ssd300.settings import SSD300Settings
from ssd.errors import InputError


def trained_looking(backbone: str, num_classes: int = 7) -> SSD300:
    """With batch norms that do something, as after training."""
    torch.manual_seed(0)
    model = SSD300(backbone, num_classes).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.3, 0.3)
                module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return model


def thin(model: SSD300, round_to: int = 1) -> Thinned:
    return thin_streams(model, SSD300(model.backbone, model.num_classes), streams_of(model), round_to=round_to)


@torch.no_grad()
def zero_filters(model: SSD300, share: float = 0.5, *, streams: slice = slice(None)) -> None:
    """Zeroes the same filters in all that write a stream, so that they can go."""
    for stream in streams_of(model)[streams]:
        writers = [model.get_submodule(name) for name, _ in stream.writers]
        gone = torch.randperm(len(writers[0].weight))[: int(share * len(writers[0].weight))]  # type: ignore[arg-type]
        for writer in writers:
            writer.weight[gone] = 0  # type: ignore[operator]


def images(count: int = 1) -> Tensor:
    return torch.randn(count, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_says_the_same(model: SSD300, smaller: SSD300) -> None:
    for expected, found in zip(model(images()), smaller(images()), strict=True):
        scale = float(expected.abs().max())
        assert torch.allclose(found, expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_every_layer_is_in_the_streams(backbone: str) -> None:
    model = SSD300(backbone, 3)
    convolutions = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    streams = streams_of(model)
    writers = [name for stream in streams for name, _ in stream.writers]
    readers = [name for stream in streams for name in stream.readers]
    assert sorted(writers) == sorted(name for name in convolutions if "heads" not in name)
    assert sorted(readers) == sorted(convolutions - {"trunk.0"})
    for stream in streams:
        (channels,) = {model.get_submodule(name).out_channels for name, _ in stream.writers}
        assert {model.get_submodule(norm).num_features for _, norm in stream.writers} == {channels}
        assert {model.get_submodule(name).in_channels for name in stream.readers} == {channels}


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_the_smaller_model_says_the_same(backbone: str) -> None:
    model = trained_looking(backbone)
    zero_filters(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = thin(model)
    assert_says_the_same(model, found.model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    sizes = [
        parts_of(summarize(each, lambda each=each: each.every_layer(images())))[-1] for each in (model, found.model)
    ]
    assert sizes[1].flops < 0.6 * sizes[0].flops and sizes[1].weights < 0.5 * sizes[0].weights
    # In a stream of one addition all but one of the filters go, whatever constants they say.
    assert found.model.get_submodule("trunk.4.0.conv1").out_channels in (32, 33)
    assert found.left > 0


def test_a_smaller_model_can_be_thinned_again() -> None:
    model = trained_looking("resnet18")
    zero_filters(model, 0.3)
    once = thin(model).model
    zero_filters(once, 0.3)
    twice = thin(once).model
    assert_says_the_same(once, twice)
    rebuilt = thinned(SSD300("resnet18", 7), twice.channel_plan).eval()
    rebuilt.load_state_dict(twice.state_dict())
    assert_says_the_same(twice, rebuilt)


def test_all_that_is_left_learns() -> None:
    model = trained_looking("resnet18")
    zero_filters(model, 0.5)
    smaller = thin(model).model.train()
    before = [p.detach().clone() for p in smaller.parameters()]
    labels = torch.zeros(2, 8732, dtype=torch.int64)
    labels[:, ::50] = 1
    labels[:, -1] = 1  # of the last feature map
    batch = MatchedBatch(images(2), torch.rand(2, 8732, 4), labels, torch.zeros(2))
    torch.stack([*ssd_losses(smaller, batch).values()]).sum().backward()
    torch.optim.SGD(smaller.parameters(), lr=0.1).step()
    assert all((p != old).any() for p, old in zip(smaller.parameters(), before, strict=True))


def test_numbers_of_channels_stay_multiples() -> None:
    model = trained_looking("resnet18")
    zero_filters(model, 0.41)
    found = thin(model, round_to=8)
    assert_says_the_same(model, found.model)
    for name, module in found.model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_features % 8 == 0, name


def test_a_layer_of_zeros_is_not_removed() -> None:
    model = trained_looking("resnet18")
    zero_filters(model, 1.0, streams=slice(1, 2))
    with pytest.raises(InputError, match="all of its filters are 0"):
        thin(model)


def test_the_command_and_what_reads_its_file(
    demo_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], refusal: Callable[..., str]
) -> None:
    content = checkpoint.load(demo_checkpoint)
    assert "prune filters first" in refusal("thin", "--checkpoint", demo_checkpoint, "--output", tmp_path / "thin.pt")
    model = checkpoint.build_model(content, demo_checkpoint).eval()
    zero_filters(model)
    sparse = tmp_path / "sparse.pt"
    checkpoint.save(sparse, {**content, "model": model.state_dict()})
    assert "over itself" in refusal("thin", "--checkpoint", sparse, "--output", sparse)
    checkpoint.save(
        tmp_path / "dead.pt",
        {**content, "model": {**content["model"], "trunk.4.0.conv1.weight": torch.zeros(64, 64, 3, 3)}},
    )
    assert "trunk.4.0.conv1: all of its filters are 0" in refusal(
        "thin", "--checkpoint", tmp_path / "dead.pt", "--output", tmp_path / "thin.pt"
    )
    for name in ("thin.pt", "thin.safetensors"):
        file = tmp_path / name
        assert main.main(["thin", "--checkpoint", str(sparse), "--output", str(file)]) == 0
        assert "at most" in capfd.readouterr().out and file.stat().st_size < 0.5 * sparse.stat().st_size
        smaller = checkpoint.build_model(conversion.load(file), file).eval()
        assert_says_the_same(model, smaller)
    # Fine-tuning, for other classes too, begins with the smaller layers.
    fresh, settings = SSD300("resnet18", 3), SSD300Settings(backbone="resnet18")
    assert all(
        name.startswith("class_heads.")
        for name in checkpoint.load_for_fine_tuning(fresh, settings, conversion.load(file), file)
    )
    assert torch.equal(fresh.state_dict()["extra_blocks.4.3.weight"], smaller.state_dict()["extra_blocks.4.3.weight"])
    assert fresh.channel_plan and fresh(images(2)).logits.shape == (2, 8732, 3)

    smaller_content = conversion.load(tmp_path / "thin.pt")
    for plan in (
        {"trunk.4.0.conv9": {"out": 3}},
        {"trunk.0": {"out": 65}},
        {"trunk.0": {"out": 0}},
        {"trunk.2": {"in": 1}},
        [1],
    ):
        checkpoint.save(tmp_path / "other.pt", {**smaller_content, "channels": plan})
        assert "channel plan does not fit" in refusal("summary", "--checkpoint", tmp_path / "other.pt")
    for momentum in ([1.0], {"trunk.0.weight": 1.0}):
        checkpoint.save(tmp_path / "other.pt", {**smaller_content, "momentum": momentum})
        assert "its momentum is no table of tensors" in refusal("summary", "--checkpoint", tmp_path / "other.pt")
    checkpoint.save(tmp_path / "other.pt", {**smaller_content, "channels": {"trunk.0": {"out": 5}}})
    assert "do not fit" in refusal("summary", "--checkpoint", tmp_path / "other.pt")
