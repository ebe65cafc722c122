"""The optimiser's momentum of a run's checkpoint, by the names of the weights, cut as they are."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ssd.training.optimizer import PUBLISHED, names_of_groups


def momentum_of(content: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """By the name of a weight; nothing of a checkpoint that has no optimiser's state, or another model's.

    content: of a run's checkpoint. model: its own, in which requires_grad is as in the run.
    """
    state = content.get("optimizer", {}).get("state", {})
    groups = content.get("optimizer", {}).get("param_groups", [])
    trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    settings = content.get("settings", {})
    has_own = any(settings.get(name, usual) != usual for name, usual in PUBLISHED.items())
    names = names_of_groups(trained, has_own)
    groups = groups[: len(names)]  # those after them are what a teacher's methods train beside the model
    if [len(group["params"]) for group in groups] != [len(each) for each in names]:
        return {}
    shapes = {name: value.shape for name, value in trained}
    found = {}
    for group, own in zip(groups, names, strict=True):
        for number, name in zip(group["params"], own, strict=True):
            buffer = state.get(number, {}).get("momentum_buffer")
            if buffer is None or buffer.shape != shapes[name]:
                return {}
            found[name] = buffer
    return found


def cut_momentum(momentum: dict[str, Tensor], cut: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
    """cut: of `removal.Thinned`."""
    return {name: cut(name, buffer).clone() for name, buffer in momentum.items()}
