"""torchvision's weights for ImageNet, and filling a detector's trunk with them or with those of a file."""

from pathlib import Path
from typing import Any
from urllib.error import URLError

from torch import Tensor, nn

from ssd.errors import InputError
from ssd.storage.weight_files import fits, read_any

WHAT = "the state dict of a classifier of torchvision"


def read_backbone(source: str, name: str) -> dict[str, Tensor]:
    """source: "imagenet" (torchvision's first ones of the builder `name`, downloaded once) or a file, of torch or
    safetensors, with a state dict. Raises InputError for what cannot be read."""
    if source == "imagenet":
        return _download_imagenet(name)
    file = Path(source)
    state = read_any(file, WHAT)
    if file.suffix == ".safetensors":
        state = state["model"]
    return state if isinstance(state, dict) else {}


def fill(module: nn.Module, state: dict[str, Any], complaint: str) -> None:
    """Loads the state into the module, whose names and shapes it must have. Raises InputError that begins with the
    complaint if it has not."""
    own = module.state_dict()
    # Files from before torch 0.4.1 lack this counter, which nothing here reads.
    missing = {name for name in own.keys() - state.keys() if not name.endswith("num_batches_tracked")}
    if missing or any(name not in own or not fits(value, own[name]) for name, value in state.items()):
        raise InputError(f"{complaint}; pass another file, or none")
    module.load_state_dict(state, strict=False)


def _download_imagenet(name: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights

    weights = get_model_weights(name)
    # Of the VGG16 torchvision has those that its SSD begins with. Bodies of later papers have no first version.
    versions = (name for name in ("IMAGENET1K_FEATURES", "IMAGENET1K_V1") if name in weights.__members__)
    chosen = weights[next(versions, weights.DEFAULT.name)]
    try:
        state: dict[str, Tensor] = chosen.get_state_dict(progress=False, check_hash=True)
        return state
    except (URLError, OSError, RuntimeError) as error:
        raise InputError(
            f"--backbone-weights imagenet: cannot download {chosen.url} ({error}); download it elsewhere and pass "
            "--backbone-weights FILE, or --backbone-weights none to train from scratch"
        ) from error
