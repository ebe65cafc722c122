"""ResNets under detectors: ImageNet's weights for them, or those of a file."""

from pathlib import Path
from typing import Any
from urllib.error import URLError

from torch import Tensor, nn

from ssd.errors import InputError
from ssd.weight_files import fits, read_any


def resnet_state(backbone: str, source: str) -> dict[str, Any]:
    """A torchvision ResNet's state dict. source: "imagenet" (torchvision's IMAGENET1K_V1, downloaded once), or a file
    of torch or safetensors. Raises InputError if there is none; what a file holds the caller has to look at."""
    if source == "imagenet":
        return _download_imagenet(backbone)
    file = Path(source)
    state = read_any(file, "a torchvision ResNet state dict")
    if file.suffix == ".safetensors":
        state = state["model"]
    return state if isinstance(state, dict) else {}


def fill(module: nn.Module, state: dict[str, Tensor], complaint: str) -> None:
    """Loads a state dict whose names and shapes are those of the module. Raises InputError that says complaint."""
    own = module.state_dict()
    # Files from before torch 0.4.1 lack this counter, which nothing here reads.
    missing = {name for name in own.keys() - state.keys() if not name.endswith("num_batches_tracked")}
    if missing or any(name not in own or not fits(value, own[name]) for name, value in state.items()):
        raise InputError(f"{complaint}; pass another file, or none")
    module.load_state_dict(state, strict=False)


def _download_imagenet(backbone: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights

    weights = get_model_weights(backbone)["IMAGENET1K_V1"]
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
        return state
    except (URLError, OSError, RuntimeError) as error:
        raise InputError(
            f"--backbone-weights imagenet: cannot download {weights.url} ({error}); download it elsewhere and pass "
            "--backbone-weights FILE, or --backbone-weights none to train from scratch"
        ) from error
