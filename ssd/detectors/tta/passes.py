"""The passes of test-time augmentation: at which lengths, and whether mirrored."""

from collections.abc import Sequence
from typing import NamedTuple

from ssd.detectors.tta.rules import Suppression, published_sides_px
from ssd.views import Look, ShortSideView, evaluated_sides_px


class Pass(NamedTuple):
    """One pass over an image. look: None is the view's own, otherwise a further one. flip: whether it is mirrored."""

    look: Look | None = None
    flip: bool = False


ONE_PASS = (Pass(),)


class TTA(NamedTuple):
    """What passes boxes, masks and keypoints are found in. In each, the first is the view's own look.

    mask_rule, keypoint_rule: of rules.MASK_RULES and KEYPOINT_RULES, how the passes' maps become one.
    keypoint_area_px: of a box, in pixels of the image's file, for its points. Below this area, passes that shrink are
    left out; from it on, those that enlarge. None: all passes count.
    short_side_px: the view's own short side, which passes shrink or enlarge.
    suppression: of the boxes of all passes.
    """

    boxes: tuple[Pass, ...] = ONE_PASS
    masks: tuple[Pass, ...] = ONE_PASS
    keypoints: tuple[Pass, ...] = ONE_PASS
    mask_rule: str = "SOFT_AVG"
    keypoint_rule: str = "HM_AVG"
    keypoint_area_px: float | None = None
    short_side_px: int = 0
    suppression: Suppression = Suppression()

    @property
    def looks(self) -> tuple[Look, ...]:
        """The further looks of all passes, each once."""
        passes = (*self.boxes, *self.masks, *self.keypoints)
        return tuple(dict.fromkeys(each.look for each in passes if each.look is not None))

    @property
    def is_one_pass(self) -> bool:
        return all(passes == ONE_PASS for passes in (self.boxes, self.masks, self.keypoints))


def passes_of(
    looks: Sequence[Look],
    *,
    flips: bool,
    flips_own: bool,
    stretched: Sequence[Look] = (),
    flips_stretched: bool = False,
) -> tuple[Pass, ...]:
    """The view's own look, and further ones. stretched: looks of another shape. flips_own, flips, flips_stretched:
    whether each of the kind comes mirrored too."""
    passes = [Pass()] + [Pass(flip=True)] * flips_own
    for some, are_flipped in ((looks, flips), (stretched, flips_stretched)):
        passes += [Pass(look, flip) for look in some for flip in (False, True)[: 1 + are_flipped]]
    return tuple(passes)


def published(view: ShortSideView) -> TTA:
    """Detectron's published passes, for a detector of that view without settings of its own for them. The boxes of all
    passes are suppressed as those of one are."""
    short_sides_px, long_side_px = published_sides_px(evaluated_sides_px(view)[0])
    passes = passes_of([Look((side, long_side_px)) for side in short_sides_px], flips=True, flips_own=True)
    return TTA(passes, passes, passes)


def text_of(tta: TTA, *, masks: bool = False, keypoints: bool = False) -> str:
    """What results say of it, such as "TTA of 18 passes for boxes, 18 for masks, votes at an IoU of 0.9". masks,
    keypoints: whether the detector finds them."""
    counts = [f"{len(tta.boxes)} passes for boxes"]
    counts += [f"{len(tta.masks)} for masks"] * masks + [f"{len(tta.keypoints)} for keypoints"] * keypoints
    own = tta.suppression
    counts += [f"soft suppression ({own.soft})"] * bool(own.soft) + [f"votes at an IoU of {own.vote_iou:g}"] * own.votes
    return f"TTA of {', '.join(counts)}"
