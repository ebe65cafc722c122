"""What shapes a detector of torchvision and what it sees of an image: plain values, without torch."""

from dataclasses import dataclass
from typing import ClassVar

from ssd.errors import InputError
from ssd.keypoints import Skeleton

NORMS = ("frozen", "batch")


def parts_of_body(builder: str) -> int:
    """How many there are for `Settings.trainable_layers`: a ResNet's stem and four stages, a MobileNet's six stages."""
    return 6 if "mobilenet" in builder else 5


@dataclass(frozen=True)
class Settings:
    """One detector. `names.settings_of` makes it as torchvision's builder of that name would."""

    family: ClassVar[str] = "torchvision"
    builder: str = "fasterrcnn_resnet50_fpn"
    """One of `names.NAMES`."""
    norm: str | None = "frozen"
    """One of NORMS, what the body normalises by: "frozen" keeps statistics and weights of the file that the body came
    from, "batch" learns them. The `_v2` builders have "batch" always."""
    norm_eps: float = 1e-5
    """What "frozen" adds to a variance. Files from before torchvision 0.13 were trained with 0."""
    trainable_layers: int | None = 3
    """How many of the body's parts train, counted from its end: of a ResNet 5 at most, of a MobileNet 6."""
    short_sides_px: tuple[int, ...] = (800,)
    """Each training image draws one; evaluation takes the last."""
    long_side_px: int = 1333
    """The longest that a side may become."""
    divisor: int = 32
    """A batch's height and width are multiples of it."""
    boxes_an_image: int = 512
    """How many proposals of an image have a loss in training, of which a quarter at most learn an object."""
    keypoints: tuple[str, ...] = ()
    """The names of the points that a Keypoint R-CNN finds, those of the data that it trains on."""
    keypoint_links: tuple[tuple[int, int], ...] = ()
    """Pairs of places among them, for pictures."""
    keypoint_labels: tuple[int, ...] = ()
    """The classes that have them, in [1, K); () for all."""

    def __post_init__(self) -> None:
        """Raises InputError, a ValueError, for values that make no sense."""
        if self.long_side_px < max(self.short_sides_px):
            raise InputError(
                f"--max-size {self.long_side_px}: is less than --min-size {max(self.short_sides_px)}; pass a larger one"
            )
        if self.norm not in (None, *NORMS):
            raise InputError(f"--norm {self.norm}: is none of {', '.join(NORMS)}")
        most = parts_of_body(self.builder)
        if self.trainable_layers is not None and self.trainable_layers > most:
            raise InputError(
                f"--trainable-layers {self.trainable_layers}: {self.builder} has {most} parts; pass {most} at most"
            )

    @property
    def name(self) -> str:
        return self.builder

    @property
    def skeleton(self) -> Skeleton | None:
        return Skeleton(self.keypoints, self.keypoint_links, self.keypoint_labels) if self.keypoints else None
