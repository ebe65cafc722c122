"""Which layers of a MobileNetV3 of torchvision share channels."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ssd.detectors.channels import Stream, Writer


@dataclass
class Growing:
    """A `Stream` while it is found. One to which several layers add has no activation behind some of them, and is
    treated as if it had none at all: what is 0 before one is 0 behind it."""

    additions: list[list[Writer]]
    activation: nn.Module
    readers: list[str] = field(default_factory=list)
    depthwise: list[Writer] = field(default_factory=list)
    behind: list[str] = field(default_factory=list)
    followers: list[Writer] = field(default_factory=list)

    def stream(self) -> Stream:
        return Stream(
            self.additions,
            self.readers,
            activation=self.activation if len(self.additions) == 1 else nn.Identity(),
            depthwise=tuple(self.depthwise),
            behind=tuple(self.behind),
            followers=tuple(self.followers),
        )


class MobileNetWalk:
    """Goes from layer to layer. found: the streams so far, the last of which is what the next layer reads."""

    def __init__(self) -> None:
        self.found: list[Growing] = []
        self.inner: list[Stream] = []
        self.now: Growing | None = None
        self._is_behind = False
        """Whether the next layer reads what a depthwise convolution has said."""

    def streams(self) -> list[Stream]:
        return [*(each.stream() for each in self.found), *self.inner]

    def convolution(self, name: str, layer: Any) -> None:
        """layer: torchvision's Conv2dNormActivation, of that name in the model."""
        writer, conv = (f"{name}.0", f"{name}.1"), layer[0]
        if conv.groups > 1:
            assert self.now is not None
            self.now.depthwise.append(writer)
            self._is_behind = True
            return
        self.read(writer[0])
        self.now = Growing([[writer]], layer[2] if len(layer) > 2 else nn.Identity())
        self.found.append(self.now)

    def read(self, name: str) -> None:
        """A layer that reads what is there now."""
        if self.now is not None:  # else it is the image
            self.now.readers.append(name)
            if self._is_behind:
                self.now.behind.append(name)
        self._is_behind = False

    def block(self, name: str, layers: nn.Sequential, *, adds: bool) -> None:
        """layers: of an inverted residual, of that name in the model. adds: to what comes in."""
        before = self.now
        for child, layer in layers.named_children():
            if hasattr(layer, "fc1"):
                self._squeeze(f"{name}.{child}")
            else:
                self.convolution(f"{name}.{child}", layer)
        if adds:
            assert before is not None and self.now is not None
            before.additions += self.now.additions
            self.found.remove(self.now)
            self.now = before

    def _squeeze(self, name: str) -> None:
        assert self.now is not None and self._is_behind
        self.now.readers.append(f"{name}.fc1")
        self.now.behind.append(f"{name}.fc1")
        self.now.followers.append((f"{name}.fc2", ""))
        self.inner.append(Stream([[(f"{name}.fc1", "")]], [f"{name}.fc2"]))

    def follow(self, name: str, layer: Any) -> None:
        """A part of a MobileNet's features, of that name in the model."""
        if hasattr(layer, "block"):
            self.block(f"{name}.block", layer.block, adds=layer.use_res_connect)
        else:
            self.convolution(name, layer)
