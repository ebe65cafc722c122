"""Files of weights: safetensors, and torchvision's ResNets."""

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
from model_files import seeded
from test_weight_formats import equal_states, refused
from torch import Tensor, nn
from torchvision import models

from ssd.checkpoints import checkpoint, conversion
from ssd.detectors.ssd300 import weights
from ssd.errors import InputError
from ssd.storage.weight_files import read_any


def test_damaged_safetensors_are_refused(demo_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    conversion.save(file, checkpoint.load(demo_checkpoint))
    data = file.read_bytes()
    for size in (0, 7, 8, 1000, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:size])
        refused(file)
    file.write_bytes(demo_checkpoint.read_bytes())  # what its name does not say
    refused(file)
    refused(tmp_path / "none.safetensors")


def test_safetensors_without_a_checkpoints_words_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    for metadata in (None, {"ssd300": "{"}, {"ssd300": "[1]"}, {"ssd300": "7"}, {"ssd300": '{"format": 1}'}):
        safetensors.torch.save_file({"trunk.0.weight": torch.zeros(3)}, file, metadata)
        refused(file)


# --- torchvision's ResNets ---


def torchvision_trunk(whole: nn.Module) -> dict[str, Tensor]:
    """The weights up to layer3 in the order in which torchvision runs them, by no name of ours."""
    return nn.Sequential(*list(whole.children())[:7]).state_dict()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_load_backbone_fills_the_trunk_bit_for_bit(backbone: str, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole = models.get_model(backbone, weights=None)
    for buffer in whole.buffers():
        buffer.data = torch.randint(5, buffer.shape).to(buffer.dtype)  # else running statistics are 0 and 1 everywhere
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(whole.state_dict(), file)
    else:
        torch.save(whole.state_dict(), file)
    model, fresh = seeded(2, backbone, 4), seeded(2, backbone, 4)
    weights.load_backbone(model, str(file))
    assert equal_states(model.trunk.state_dict(), torchvision_trunk(whole))
    for name, value in model.state_dict().items():
        if not name.startswith("trunk."):
            assert torch.equal(value, fresh.state_dict()[name]), name


def test_load_backbone_takes_files_from_before_batch_norm_counted(tmp_path: Path) -> None:
    whole = models.resnet18()
    state = {name: value for name, value in whole.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    model = seeded(2, "resnet18", 4)
    weights.load_backbone(model, str(tmp_path / "weights.pth"))
    assert equal_states(model.trunk.state_dict(), torchvision_trunk(whole))


def test_load_backbone_none_keeps_the_fresh_weights() -> None:
    model = seeded(2, "resnet18", 4)
    weights.load_backbone(model, "none")
    assert equal_states(model.state_dict(), seeded(2, "resnet18", 4).state_dict())


def test_load_backbone_refuses_other_weights(tmp_path: Path) -> None:
    state = models.resnet18().state_dict()
    incomplete = {name: value for name, value in state.items() if not name.startswith("layer3.1.")}
    prefixed = {f"module.{name}": value for name, value in state.items()}
    own = seeded(0, "resnet18", 4).state_dict()
    no_tensor = {**state, "conv1.weight": 3}
    model = seeded(2, "resnet18", 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    file = tmp_path / "weights.pth"
    for content in (models.resnet34().state_dict(), incomplete, prefixed, own, [1], {}, {1: 2}, no_tensor):
        torch.save(content, file)
        assert "--backbone-weights" in refused(file, lambda file: weights.load_backbone(model, str(file)))
    safetensors.torch.save_file(models.resnet34().state_dict(), tmp_path / "weights.safetensors")
    refused(tmp_path / "weights.safetensors", lambda file: weights.load_backbone(model, str(file)))
    for data in (b"", b"weights\n"):
        file.write_bytes(data)
        refused(file, lambda file: weights.load_backbone(model, str(file)))
    refused(tmp_path / "none.pth", lambda file: weights.load_backbone(model, str(file)))
    assert equal_states(model.state_dict(), before)


@pytest.mark.parametrize("error", [URLError("Name or service not known"), TimeoutError("timed out")])
def test_imagenet_weights_offline(error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", offline)
    with pytest.raises(InputError) as refusal:
        weights.load_backbone(seeded(2, "resnet18", 4), "imagenet")
    message = str(refusal.value)
    assert message.startswith("--backbone-weights imagenet: ") and "\n" not in message
    assert "https://download.pytorch.org/models/resnet18" in message
    assert "--backbone-weights FILE" in message and "--backbone-weights none" in message


def test_of_a_runs_folder_it_is_said_where_checkpoints_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}: is a folder; pass the path of a model$"):
        read_any(tmp_path, "a model")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match=f"a model; this run's checkpoints are in {tmp_path}/checkpoints$"):
        read_any(tmp_path, "a model")
