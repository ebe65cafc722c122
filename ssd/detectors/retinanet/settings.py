"""What shapes a RetinaNet of detectron2, what it sees of an image and how long it trains, by name and without torch."""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

from ssd.errors import InputError

BODIES = {"r18": "resnet18", "r34": "resnet34", "r50": "resnet50", "r101": "resnet101", "r152": "resnet152"}
"""As names have them -> as torchvision has them."""
NORMS = ("frozen", "batch")
STRIDES_IN = ("1x1", "3x3")


class Schedule(NamedTuple):
    """A run's length and when the rate falls to a tenth: in steps of 16 images, and in epochs, which are about as much
    of COCO's 117266 images with objects."""

    steps: int
    falls: tuple[int, ...]
    epochs: int
    falls_epochs: tuple[int, ...]


# detectron2's model zoo has 1x and 3x; 2x is Detectron's.
SCHEDULES = {
    "1x": Schedule(90_000, (60_000, 80_000), 12, (8, 11)),
    "2x": Schedule(180_000, (120_000, 160_000), 24, (16, 22)),
    "3x": Schedule(270_000, (210_000, 250_000), 37, (29, 34)),
}
MULTI_SCALE_PX = (640, 672, 704, 736, 768, 800)

_USUAL = "1x"
_PARTS_OF_BODY = 5  # the stem and four stages of a ResNet

NAMES: tuple[str, ...] = tuple(
    f"retinanet_{body}_fpn{ending}"
    for body in ("r50", "r101", "r18", "r34", "r152")
    for ending in ("", *(f"_{schedule}{scales}" for schedule in SCHEDULES for scales in ("", "_multi-scale")))
)
"""What --detector takes; without a schedule it is 1x."""


@dataclass(frozen=True)
class RetinaNetSettings:
    """One RetinaNet. `settings_named` makes that of a name."""

    family: ClassVar[str] = "retinanet"
    builder: str = "retinanet_r50_fpn"
    """One of NAMES."""
    norm: str | None = "frozen"
    """One of NORMS, what the body normalises by: "frozen" keeps statistics and weights of the file that the body came
    from, "batch" learns them."""
    stride_in: str | None = "1x1"
    """One of STRIDES_IN, the convolution of a bottleneck that halves the resolution: the first in the weights of MSRA,
    which detectron2 begins with, the second in torchvision's."""
    trainable_layers: int | None = 3
    """How many of the body's five parts train, counted from its end: 3 is detectron2's FREEZE_AT 2."""
    smooth_l1_beta: float = 0.0
    """Where the loss of an offset turns from square to absolute; 0 is absolute everywhere."""
    short_sides_px: tuple[int, ...] = (800,)
    """Each training image draws one; evaluation takes the last."""
    long_side_px: int = 1333
    """The longest that a side may become."""
    divisor: int = 32
    """A batch's height and width are multiples of it."""

    def __post_init__(self) -> None:
        """Raises InputError, a ValueError, for values that make no sense."""
        if self.builder not in NAMES:
            raise InputError(f"--detector {self.builder}: there is no such RetinaNet; pass {NAMES[0]}, for example")
        if self.long_side_px < max(self.short_sides_px):
            raise InputError(
                f"--max-size {self.long_side_px}: is less than --min-size {max(self.short_sides_px)}; pass a larger one"
            )
        if self.divisor % 32:
            raise InputError(f"--divisor {self.divisor}: its pyramid needs multiples of 32; pass one")
        if self.norm not in (None, *NORMS):
            raise InputError(f"--norm {self.norm}: is none of {', '.join(NORMS)}")
        if self.stride_in not in (None, *STRIDES_IN):
            raise InputError(f"--stride-in {self.stride_in}: is none of {', '.join(STRIDES_IN)}")
        if self.trainable_layers is not None and self.trainable_layers > _PARTS_OF_BODY:
            raise InputError(
                f"--trainable-layers {self.trainable_layers}: {self.name} has {_PARTS_OF_BODY} parts; pass "
                f"{_PARTS_OF_BODY} at most"
            )

    @property
    def name(self) -> str:
        """Without the schedule, which is no part of what a checkpoint holds."""
        return "_".join(self.builder.split("_")[:3])

    @property
    def is_multi_scale(self) -> bool:
        """Whether the name says that several short sides are drawn from."""
        return self.builder.endswith("_multi-scale")

    @property
    def body(self) -> str:
        """As names have it."""
        return self.builder.split("_")[1]

    @property
    def schedule(self) -> Schedule:
        return SCHEDULES[(*self.builder.split("_"), _USUAL)[3]]


def settings_named(name: str) -> RetinaNetSettings:
    """name: one of NAMES. What depends on --backbone-weights is None."""
    is_multi_scale = name.endswith("_multi-scale")
    return RetinaNetSettings(
        name,
        norm=None,
        stride_in=None,
        trainable_layers=None,
        short_sides_px=MULTI_SCALE_PX if is_multi_scale else (800,),
    )


def settled(settings: RetinaNetSettings, backbone_weights: str) -> RetinaNetSettings:
    """With what is None as these weights need it. From scratch the whole body trains, with batch norm. Files of MSRA's
    weights are pickles; others are torchvision's."""
    from_scratch = backbone_weights == "none"
    is_msra = from_scratch or backbone_weights.endswith(".pkl")
    return replace(
        settings,
        norm=settings.norm or ("batch" if from_scratch else "frozen"),
        stride_in=settings.stride_in or ("1x1" if is_msra else "3x3"),
        trainable_layers=(5 if from_scratch else 3) if settings.trainable_layers is None else settings.trainable_layers,
    )


def title_of(settings: RetinaNetSettings) -> str:
    """Such as "detectron2's RetinaNet-R50-FPN"."""
    return f"detectron2's RetinaNet-{settings.body.upper()}-FPN"
