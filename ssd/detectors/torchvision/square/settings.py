"""What shapes a detector of squares: plain values, without torch. And the detectors by name."""

import difflib
from dataclasses import dataclass, replace
from typing import ClassVar

from ssd.errors import InputError

VGG, MOBILENET = "ssd300_vgg16", "ssdlite320_mobilenet_v3_large"
NAMES = (VGG, MOBILENET)
"""Those of torchvision's builders."""
# Of the body from its end: how many parts train in torchvision where it has weights, and how many there are.
_TRAINABLE_LAYERS = {VGG: (4, 5), MOBILENET: (6, 6)}


@dataclass(frozen=True)
class SquareSettings:
    """One detector. `settings_of` makes it as torchvision's builder of that name would."""

    family: ClassVar[str] = "torchvision_ssd"
    builder: str = VGG
    """One of NAMES."""
    trainable_layers: int | None = 4
    """How many of the body's parts train, counted from its end: 5 at most of the VGG, 6 of the MobileNet."""
    reduced_tail: bool | None = False
    """Whether the MobileNet's last stage has half of its channels, as torchvision has it without weights for ImageNet,
    and so in its own checkpoint."""

    def __post_init__(self) -> None:
        """Raises InputError, a ValueError, for values that make no sense."""
        if self.builder not in NAMES:
            nearest = difflib.get_close_matches(self.builder, NAMES, n=1, cutoff=0)[0]
            raise InputError(f"--detector {self.builder}: there is no such detector; pass {nearest}, for example")
        most = _TRAINABLE_LAYERS[self.builder][1]
        if self.trainable_layers is not None and self.trainable_layers > most:
            raise InputError(
                f"--trainable-layers {self.trainable_layers}: {self.builder} has {most} parts; pass {most} at most"
            )

    @property
    def name(self) -> str:
        return self.builder


def settings_of(name: str, backbone_weights: str = "imagenet") -> SquareSettings:
    """What torchvision's builder would make of its arguments' defaults. backbone_weights: as `--backbone-weights`."""
    from_scratch = backbone_weights == "none"
    usual, most = _TRAINABLE_LAYERS.get(name, (0, 0))
    return SquareSettings(name, most if from_scratch else usual, from_scratch and name == MOBILENET)


def unsettled(name: str) -> SquareSettings:
    """`settings_of` the name, but for what depends on --backbone-weights: None."""
    return replace(settings_of(name), trainable_layers=None, reduced_tail=None)


def settled(settings: SquareSettings, backbone_weights: str) -> SquareSettings:
    """With what is None as `settings_of` has it for these weights."""
    usual = settings_of(settings.builder, backbone_weights)
    return replace(
        settings,
        trainable_layers=usual.trainable_layers if settings.trainable_layers is None else settings.trainable_layers,
        reduced_tail=usual.reduced_tail if settings.reduced_tail is None else settings.reduced_tail,
    )


def title_of(settings: SquareSettings) -> str:
    return {VGG: "SSD300-vgg16", MOBILENET: "SSDLite320-mobilenet_v3_large"}[settings.builder]
