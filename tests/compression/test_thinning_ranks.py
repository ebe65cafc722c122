"""Filters of the lowest rank go until a share of the FLOPs is left, and the momentum goes with the weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import main
from ssd.checkpoints import checkpoint, conversion
from ssd.compression.summary import flops_by_weight, parts_of, pass_of, summarize_detector
from ssd.compression.thinning.momentum import momentum_of
from ssd.compression.thinning.ranking import importance, without_lowest
from ssd.compression.thinning.removal import thin
from ssd.config import Config
from ssd.detectors.channels import Stream
from ssd.detectors.ssd300.channels.streams import streams_of
from ssd.detectors.ssd300.model import SSD300
from ssd.detectors.ssd300.settings import SSD300Settings
from ssd.distributed import Ranks
from ssd.errors import InputError
from ssd.training.build import build_training
from ssd.training.optimizer import add_adapters, build_optimizer

SETTINGS = SSD300Settings(backbone="resnet18")


def small() -> tuple[nn.Sequential, list[Stream]]:
    """Filters of the sizes 1, 2, 3, 4, of which batch norm doubles the first."""
    model = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -2, 3, 4]).view(4, 1, 1, 1))
        model[1].weight[0] = 2  # type: ignore[index]
        model[1].eps = 0.0  # type: ignore[assignment]
    return model, [Stream([[("0", "1")]], ["3"])]


def test_importance_by_hand() -> None:
    model, (stream,) = small()
    # 2, 2, 3 and 4 over their mean.
    assert importance(model, stream).tolist() == pytest.approx([8 / 11, 8 / 11, 12 / 11, 16 / 11])


def test_as_few_go_as_suffice() -> None:
    model, streams = small()
    flops = {"0.weight": 400, "3.weight": 800}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    zeroed: Any = without_lowest(model, streams, flops, 0.8)
    assert zeroed[0].weight.flatten().tolist() == [0, 0, 3, 4]  # equal ranks go together
    zeroed = without_lowest(model, streams, flops, 0.49)
    assert zeroed[0].weight.flatten().tolist() == [0, 0, 0, 4]
    assert zeroed[1].weight.flatten().tolist() == [0, 0, 0, 1] and zeroed[0].weight is not model[0].weight
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match="leaves 0.25 of the FLOPs at least"):
        without_lowest(model, streams, flops, 0.2)
    assert without_lowest(model, streams, flops, 0.5, round_to=2)[0].weight.flatten().tolist() == [0, 0, 3, 4]  # type: ignore[index]


@pytest.mark.parametrize("round_to", [1, 8])
def test_the_share_is_reached_and_not_passed_by_far(round_to: int) -> None:
    torch.manual_seed(0)
    model = SSD300("resnet18", 3).eval()
    flops, streams = flops_by_weight(model, pass_of(model, SETTINGS)), streams_of(model)
    zeroed = without_lowest(model, streams, flops, 0.5, round_to=round_to)
    found = thin(zeroed, SSD300("resnet18", 3), streams, round_to=round_to)
    total = parts_of(summarize_detector(found.model, SETTINGS))[-1]
    assert 0.45 * sum(flops.values()) < total.flops <= 0.5 * sum(flops.values())
    channels = [m.num_features for m in found.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(count % round_to == 0 for count in channels) and len(set(channels)) > 5


def run_checkpoint(file: Path, **settings: float) -> tuple[SSD300, dict[str, torch.Tensor]]:
    """Of a run with these settings whose momentum is 10 times each weight; as it is by name."""
    torch.manual_seed(0)
    model = SSD300("resnet18", 3)
    optimizer = build_optimizer(model, Config(**settings))  # type: ignore[arg-type]
    add_adapters(optimizer, nn.Conv2d(2, 2, 1), Config())  # of a teacher, beside the model
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"].copy_(10 * parameter.detach())
    content = {
        "format": checkpoint.FORMAT, "detector": {"family": "ssd300", "backbone": "resnet18"},
        "categories": [(1, "a"), (2, "b")], "model": model.state_dict(), "optimizer": optimizer.state_dict(),
        "settings": settings,
    }  # fmt: skip
    checkpoint.save(file, content)
    return model, {name: 10 * value.detach() for name, value in model.named_parameters()}


@pytest.mark.parametrize("settings", [{}, {"bias_rate": 2.0, "norm_decay": 0.1}])
def test_the_momentum_is_found_by_name(settings: dict[str, float], tmp_path: Path) -> None:
    model, expected = run_checkpoint(tmp_path / "run.pt", **settings)
    content = checkpoint.load(tmp_path / "run.pt")
    found = momentum_of(content, model)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert momentum_of({}, model) == {}
    model.freeze_trunk()  # another run's: the numbers would mean other weights
    assert momentum_of(content, model) == {}


def test_the_command_and_a_run_that_trains_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], refusal: Callable[..., str]
) -> None:
    source, target = tmp_path / "run.pt", tmp_path / "thin.pt"
    run_checkpoint(source)
    command = ["thin", "--checkpoint", str(source), "--output", str(target), "--flops", "0.5", "--round-to", "8"]
    assert main.main(command) == 0
    said = capfd.readouterr().out
    assert "momentum goes with them" in said and "of the FLOPs" in said and "train it on" in said
    content = conversion.load(target)
    weights = content["model"]
    for name, buffer in content["momentum"].items():
        # A weight that stays has the value it had; of a filter that says nothing, neither is left.
        assert torch.equal(buffer, 10 * weights[name]), name
    config = Config(detector=SETTINGS, checkpoint=str(target), device="cpu")
    training, notes = build_training(config, [(1, "a"), (2, "b")], Ranks(0, 0, 1, torch.device("cpu")))
    assert any("and its momentum" in note for note in notes)
    for name, parameter in training.model.named_parameters():
        assert torch.equal(training.optimizer.state[parameter]["momentum_buffer"], content["momentum"][name]), name
    assert "of the FLOPs at least" in refusal(*command[:-3], "0.01")
