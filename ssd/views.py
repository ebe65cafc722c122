"""What a detector sees of an image. A data path makes it; it knows views and no detector."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ssd.batch import RGB_MEAN, RGB_STD


class Augmentation(NamedTuple):
    """What a run may choose of the augmentation. The defaults are those of all that is not said to be otherwise."""

    hue_degrees: tuple[float, float] | None = None
    """None is `augmentation.HUE_DEGREES`."""
    contrast_centre: float | None = None
    """The level in [0, 255] that contrast turns about; None is the image's own mean luma."""
    antialias: bool = True
    """Whether shrinking an image takes in its whole footprint, or 2 x 2 pixels for each."""
    learns_crowds: bool = False
    """Whether the boxes of crowd regions are learned as if each were an object."""


AUGMENTATIONS = {
    "own": Augmentation(),
    # DeepLearningExamples' DALI path. Its code names no resize filter; later releases of DALI antialias by default,
    # those of its published figures (January 2022) presumably not. Its crop is ours, one attempt a round.
    "published": Augmentation(hue_degrees=(-0.5, 0.5), contrast_centre=128.0, antialias=False, learns_crowds=True),
}


class ObjectParts(NamedTuple):
    """What a detector learns of each object beside its box."""

    masks: bool = False
    keypoints: bool = False


BOXES = ObjectParts()
"""Nothing."""


class SquareView(NamedTuple):
    """The image, in training a crop of it, stretched to a square, in a `MatchedBatch`.

    size_px: width and height. augmentation: of training. defaults_cxcywh: A x 4 float32 on the CPU, the default boxes
    that learn the ground truth.
    antialias: whether shrinking an image takes in its whole footprint where nothing is augmented: in evaluation.
    mean, std: of R, G and B in [0, 1].
    """

    size_px: int
    augmentation: Augmentation
    defaults_cxcywh: Tensor
    antialias: bool = True
    mean: tuple[float, float, float] = RGB_MEAN
    std: tuple[float, float, float] = RGB_STD


ResizeRule = Literal["torchvision", "detectron2", "detectron"]


class Look(NamedTuple):
    """Lengths at which an image is shown. sides_px: of its short side, and the longest that its long side may become.
    width_factor: by which its width is stretched before."""

    sides_px: tuple[int, int]
    width_factor: float = 1.0


class ShortSideView(NamedTuple):
    """The whole image at its own shape, in a `RaggedBatch`: its short side is resized to a given length, unless its
    long side became longer than allowed, which then has the allowed length. As torchvision's GeneralizedRCNNTransform.

    short_sides_px: of training; each image of each pass draws one of them. Evaluation takes the last.
    long_side_px: the longest that a side may become.
    divisor: a batch's height and width are the smallest multiples of it that all its images fit into.
    flips: whether half of the training images are mirrored.
    by_shape: whether a training batch has either wide images only (width >= height), or tall ones only.
    antialias: whether shrinking an image takes in its whole footprint. torchvision's weights were trained without.
    mean, std: of R, G and B in [0, 1].
    parts: of the objects, that `RaggedBatch` has too.
    resize_rule: whose lengths the sides get. torchvision rounds them down, detectron2 to the nearest pixel; of both, a
    side's factor is what its length became. Detectron rounds them too and scales both sides by exactly one factor,
    which batches say then.
    evaluated_sides_px: of evaluation, if not the last of short_sides_px and long_side_px.
    further_looks: of test-time augmentation. After each batch of evaluation its images come once more for each of them.
    """

    short_sides_px: tuple[int, ...] = (800,)
    long_side_px: int = 1333
    divisor: int = 32
    flips: bool = True
    by_shape: bool = True
    antialias: bool = False
    mean: tuple[float, float, float] = RGB_MEAN
    std: tuple[float, float, float] = RGB_STD
    parts: ObjectParts = BOXES
    resize_rule: ResizeRule = "torchvision"
    evaluated_sides_px: tuple[int, int] | None = None
    further_looks: tuple[Look, ...] = ()

    @property
    def one_scale(self) -> bool:
        return self.resize_rule == "detectron"


class StretchView(NamedTuple):
    """The whole image, or in training a window that may reach beyond it, stretched to a size that all images of a batch
    have, in a `RaggedBatch`. As YOLOv2's paper has it. Images without boxes train as well.

    fits: instead, as darknet does since March 2017, the whole image keeps its shape, in training but for the jitter,
    lies where it fits into the size, and has GRAY around it.
    size_px: (width, height) of evaluation. train_sizes_px: of training; one of them is drawn for every steps_a_size
    steps, but in the last `final_steps` of a run of `run_steps` (0: of no known length) it is the last of them.
    jitter: each edge of the window is drawn up to this share of the image's side from the image's own edge,
    inwards or outwards; beyond the image its border pixels are repeated. With `fits`, the image's sides change by up to
    this share, and it lies anywhere. flips: whether half of the training images are
    mirrored. hue: largest turn, of 1 for the whole circle. saturation, exposure: largest factor; it or its inverse is
    drawn. antialias: as in `ShortSideView`. mean, std: of R, G and B in [0, 1].
    """

    size_px: tuple[int, int]
    train_sizes_px: tuple[tuple[int, int], ...]
    steps_a_size: int = 10
    jitter: float = 0.0
    flips: bool = True
    hue: float = 0.0
    saturation: float = 1.0
    exposure: float = 1.0
    antialias: bool = False
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    fits: bool = False
    final_steps: int = 0
    run_steps: int = 0

    @property
    def distorts_colour(self) -> bool:
        return (self.hue, self.saturation, self.exposure) != (0.0, 1.0, 1.0)


GRAY = 128
"""Of 255, around images that are fitted in: darknet's 0.5."""


def fitted_ltrb_px(size_px: tuple[int, int], image_px: tuple[int, int]) -> tuple[int, int, int, int]:
    """Where an image lies that is fitted into a size, both (width, height): as large as its shape allows, in the
    middle, in whole pixels rounded down as darknet does."""
    width, height = size_px
    of_width, of_height = image_px
    if width * of_height < height * of_width:
        inner = width, max(1, of_height * width // of_width)
    else:
        inner = max(1, of_width * height // of_height), height
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    return left, top, left + inner[0], top + inner[1]


def placed_ltrb_px(view: "RaggedView", image_px: tuple[int, int]) -> tuple[int, int, int, int]:
    """Where in evaluation an image of that (width, height) lies in what the view makes of it."""
    if isinstance(view, StretchView) and view.fits:
        return fitted_ltrb_px(view.size_px, image_px)
    return 0, 0, *evaluated_px(view, image_px)


def described(view: "View") -> dict[str, Any]:
    """What of the view in evaluation results are to say, where it is not a setting of the detector: a cfg file says it
    too, and one network has other metrics stretched than fitted in. {} of other views."""
    if not isinstance(view, StretchView):
        return {}
    return {"input_px": list(view.size_px), "resize": "letterbox" if view.fits else "stretch"}


def for_run(view: "View", steps: int) -> "View":
    """The view for a run of so many steps, of which it may see the last ones differently; 0 for no known number."""
    return view._replace(run_steps=steps) if isinstance(view, StretchView) else view


def for_a_few_steps(view: "View") -> "View":
    """The view for a few steps that shall stand for many: of several sizes of batches it draws one for each step."""
    return view._replace(steps_a_size=1) if isinstance(view, StretchView) else view


def shows_empty(view: "View") -> bool:
    """Whether images without a box are shown in training too. darknet shows them; others leave them out."""
    return isinstance(view, StretchView)


def needs_points(view: "View") -> bool:
    """Whether training leaves out images none of whose objects has a stated point. Detectron and detectron2 do so where
    they learn keypoints; torchvision's model asks for none."""
    return isinstance(view, ShortSideView) and view.parts.keypoints and view.resize_rule != "torchvision"


RaggedView = ShortSideView | StretchView
"""The views of a `RaggedBatch`."""
View = SquareView | ShortSideView | StretchView


def parts_of(view: View) -> ObjectParts:
    return view.parts if isinstance(view, ShortSideView) else BOXES


class Resized(NamedTuple):
    """(width, height) that a view gives an image, and by which factor, where that is one exactly."""

    size_px: tuple[int, int]
    scale: float | None = None


def scale_of_sides(
    scale: float | None, size_px: tuple[int, int], stretched_px: tuple[int, int] | None
) -> tuple[float, float] | None:
    """The factors of the width and the height of an image of that size, which is stretched before it is scaled; None
    without a scale, where its new size says them."""
    if scale is None:
        return None
    return scale * (stretched_px or size_px)[0] / size_px[0], scale


def resized(view: ShortSideView, size_px: tuple[int, int], sides_px: tuple[int, int]) -> Resized:
    """What the view makes of an image of that size. sides_px: of its short side, and the longest of its long side.

    torchvision's rule, which rounds down, but for sides of less than a pixel, which it refuses; detectron2's or
    Detectron's, which round.
    """
    short_side_px, long_side_px = sides_px
    if view.resize_rule == "detectron2":
        return Resized(_rounded_px(size_px, sides_px))
    scale = short_side_px / min(size_px)
    if not view.one_scale:
        scale = min(scale, long_side_px / max(size_px))
        width, height = (max(1, math.floor(side * scale)) for side in size_px)
        return Resized((width, height))
    if round(scale * max(size_px)) > long_side_px:
        scale = long_side_px / max(size_px)
    width, height = (max(1, round(side * scale)) for side in size_px)
    return Resized((width, height), scale)


def pastes_closed(view: View) -> bool:
    """Whether a mask is stretched from the first pixel of its box to the last, as Detectron does it, or to the end of
    the last."""
    return isinstance(view, ShortSideView) and view.one_scale


def resized_px(view: ShortSideView, size_px: tuple[int, int], short_side_px: int) -> tuple[int, int]:
    """(width, height) that the view gives an image of that size in training."""
    return resized(view, size_px, (short_side_px, view.long_side_px)).size_px


def evaluated(view: RaggedView, size_px: tuple[int, int]) -> Resized:
    """What the view makes of an image of that size in evaluation."""
    if isinstance(view, StretchView):
        return Resized(view.size_px)
    return resized(view, size_px, evaluated_sides_px(view))


def evaluated_sides_px(view: ShortSideView) -> tuple[int, int]:
    """Of an image's short side in evaluation, and the longest that its long side may become."""
    return view.evaluated_sides_px or (view.short_sides_px[-1], view.long_side_px)


def every_look(view: "RaggedView", size_px: tuple[int, int]) -> list[tuple[Resized, tuple[int, int] | None]]:
    """What the view makes of an image of that size in evaluation: `evaluated`, and each of its further looks, with the
    size that the image is stretched to before, if it is."""
    looks: list[tuple[Resized, tuple[int, int] | None]] = [(evaluated(view, size_px), None)]
    if isinstance(view, StretchView):
        return looks
    for sides_px, width_factor in view.further_looks:
        stretched_px = (max(1, round(width_factor * size_px[0])), size_px[1])
        looks.append((resized(view, stretched_px, sides_px), None if stretched_px == size_px else stretched_px))
    return looks


def num_looks(view: "View") -> int:
    """How many batches an evaluation has of each image."""
    return 1 + len(view.further_looks) if isinstance(view, ShortSideView) else 1


def _rounded_px(size_px: tuple[int, int], sides_px: tuple[int, int]) -> tuple[int, int]:
    # In detectron2's order of operations: one rounding error decides where a side is half a pixel.
    short_side_px, long_side_px = sides_px
    scale = short_side_px / min(size_px)
    sides = [short_side_px if side == min(size_px) else side * scale for side in size_px]
    if max(sides) > long_side_px:
        scale = long_side_px / max(sides)
        sides = [side * scale for side in sides]
    width, height = (max(1, int(side + 0.5)) for side in sides)
    return width, height


def evaluated_px(view: RaggedView, size_px: tuple[int, int]) -> tuple[int, int]:
    """(width, height) that the view gives an image of that size in evaluation."""
    return evaluated(view, size_px).size_px


def largest_px(view: RaggedView) -> int:
    """No image that the view resizes has more pixels."""
    if isinstance(view, StretchView):
        return max(width * height for width, height in (view.size_px, *view.train_sizes_px))
    sides_px = [(max(view.short_sides_px), view.long_side_px), *filter(None, [view.evaluated_sides_px])]
    sides_px += [look.sides_px for look in view.further_looks]
    return max(min(short, long) * long for short, long in sides_px)


def padded_px(view: RaggedView, sizes_px: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """(width, height) of a batch of images of these sizes."""
    divisor = 1 if isinstance(view, StretchView) else view.divisor
    width, height = (-(-max(sides) // divisor) * divisor for sides in zip(*sizes_px, strict=True))
    return width, height
