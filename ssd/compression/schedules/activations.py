"""What the filters of layers say while a model trains, for the pruners that rank by it."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Statistics = dict[str, dict[str, Tensor]]
"""By the name of a weight with F filters: "active", the share of what they say after the ReLU that is not 0, and
"mean", its mean: F float32 each. Average percentage of zeros (APoZ, Hu et al. 2016) is 1 - active."""


class ActivationStatistics:
    """Gathers them over the training steps of an epoch, on this rank.

    A layer's output is what its batch norm makes of it, or its own where it has none, after a ReLU: also where the ReLU
    is a module that several layers share, as in a ResNet's block.
    """

    def __init__(self, model: nn.Module, tensors: Iterable[str], norms: Mapping[str, nn.Module]) -> None:
        """tensors: names of weights of convolutions. norms: by such names, as of `binding.norms_after`."""
        self._model, self._names = model, list(tensors)
        self._sums: Statistics = {}
        self._steps: dict[str, int] = {}
        self._hooks: list[Any] = []
        for name in self._names:
            layer = norms.get(name) or model.get_submodule(name.rpartition(".")[0])
            self._hooks.append(
                layer.register_forward_hook(lambda _module, _inputs, output, name=name: self._add(name, output))
            )

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _add(self, name: str, output: Tensor) -> None:
        if not self._model.training:
            return
        said = output.detach().float().relu()
        dimensions = [d for d in range(said.dim()) if d != 1]
        now = {"active": (said > 0).float().mean(dimensions), "mean": said.mean(dimensions)}
        before = self._sums.get(name)
        self._sums[name] = now if before is None else {key: before[key] + value for key, value in now.items()}
        self._steps[name] = self._steps.get(name, 0) + 1

    def silent(self) -> list[str]:
        """The tensors of which nothing has been heard since the last `take`."""
        return [name for name in self._names if name not in self._steps]

    def take(self) -> Statistics:
        """Of the steps since the last call; nothing of layers that were not called."""
        found = {
            name: {key: value / self._steps[name] for key, value in sums.items()} for name, sums in self._sums.items()
        }
        self._sums, self._steps = {}, {}
        return found

    def state(self) -> dict[str, Any]:
        return {"sums": on_cpu(self._sums), "steps": dict(self._steps)}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        self._sums = {name: {k: v.to(device) for k, v in sums.items()} for name, sums in state["sums"].items()}
        self._steps = dict(state["steps"])


def on_cpu(statistics: Statistics) -> Statistics:
    return {name: {key: value.cpu() for key, value in values.items()} for name, values in statistics.items()}
