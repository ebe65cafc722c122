"""What can be chosen of SSD300. Light: the command line reads it before it imports torch."""

from dataclasses import dataclass
from typing import ClassVar

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
AUGMENTATIONS = ("own", "published")


@dataclass(frozen=True)
class SSD300Settings:
    family: ClassVar[str] = "ssd300"
    name: ClassVar[str] = "ssd300"
    backbone: str = "resnet50"
    """One of BACKBONES."""
    augmentation: str = "own"
    """One of AUGMENTATIONS."""

    def __post_init__(self) -> None:
        """Raises ValueError for values out of a file that are none."""
        for value, known in ((self.backbone, BACKBONES), (self.augmentation, AUGMENTATIONS)):
            if value not in known:
                raise ValueError(f"{value!r} is none of {', '.join(known)}")
