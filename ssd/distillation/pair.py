"""Whether a student can learn from a teacher, and which of their maps belong together."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssd.detectors.distillation import DistillationParts
from ssd.detectors.table import detector_of
from ssd.distillation.methods.maps import Channels
from ssd.distillation.teacher import Teacher
from ssd.errors import InputError
from ssd.views import SquareView, StretchView, View

# On either side, for a look at the shapes of a detector that takes images of any: a cell of the coarsest map.
_SIDE_PX = 128


class Side(NamedTuple):
    """A detector of a pair. maps: channels of each by name. heads: anchors and classes, for the images of the look at
    both, None of a detector without dense heads. branches: channels of the head's middle by name."""

    title: str
    parts: DistillationParts
    maps: dict[str, int]
    heads: tuple[int, int] | None
    branches: dict[str, int]


class Pair(NamedTuple):
    teacher: Side
    student: Side
    size_px: int | None
    """Of all images, where they have one."""

    def levels(self, method: str, names: Sequence[str] = (), first: int | None = None) -> list[tuple[str, str]]:
        """Which of the student's maps learn from which of the teacher's: those of the same place in their order.

        names: of the student's maps; () for all, or for so many of the first. Maps of one cell, of which nothing has a
        place, are left out unless they are named. Raises InputError for a name that is none.
        """
        partners = self._partners(method)
        for name in names:
            if name not in partners:
                raise InputError(
                    f"--distill-settings {method}.levels={','.join(names)}: {self.student.title} beside "
                    f"{self.teacher.title} has {', '.join(partners)}; name some of these"
                )
        strides_px = self.student.parts.strides_px
        usual = [name for name in self.student.maps if self.size_px is None or strides_px[name] < self.size_px]
        chosen = [name for name in self.student.maps if name in names] if names else usual[:first]
        return [(name, partners[name]) for name in chosen if name in partners]

    def _partners(self, method: str) -> dict[str, str]:
        """The teacher's map for each of the student's: that of the same place in their order, unless one of the two is
        more than twice as fine, then the first of the same stride. Raises InputError where there is none."""
        own, other = self.student.parts.strides_px, self.teacher.parts.strides_px
        by_order = dict(zip(self.student.maps, self.teacher.maps, strict=False))
        if all(0.5 <= own[name] / other[partner] <= 2 for name, partner in by_order.items()):
            return by_order
        by_stride = {
            name: [each for each in self.teacher.maps if other[each] == own[name]] for name in self.student.maps
        }
        found = {name: same[0] for name, same in by_stride.items() if same}
        if not found:
            raise InputError(
                f"--distill {method}: no map of {self.student.title} ({_strides(own)}) has the stride of one of "
                f"{self.teacher.title} ({_strides(other)}); use another teacher"
            )
        return found

    def channels(self, levels: Sequence[tuple[str, str]]) -> Channels:
        return {own: (self.student.maps[own], self.teacher.maps[other]) for own, other in levels}

    def require_heads(self, method: str) -> None:
        """Raises InputError unless both have dense heads that say the same things of the same anchors."""
        for side in (self.student, self.teacher):
            if side.parts.anchors is None:
                raise InputError(
                    f"--distill {method}: needs class and box outputs of every anchor, which {side.title} does not "
                    "show; pkd, cwd and mgd need none"
                )
        if self.student.heads != self.teacher.heads or self.student.parts.anchors != self.teacher.parts.anchors:
            said = [
                f"{' x '.join(map(str, each.heads or ()))} of {each.title}" for each in (self.student, self.teacher)
            ]
            raise InputError(
                f"--distill {method}: needs the same anchors and classes in both heads, and these are "
                f"{said[0]} (student) and {said[1]} (teacher); pkd, cwd and mgd need none"
            )

    def require_tail(self, method: str) -> None:
        """Raises InputError unless what is in the middle of one's head can go through the rest of the other's."""
        self.require_heads(method)
        for side in (self.student, self.teacher):
            if side.parts.tail is None:
                raise InputError(
                    f"--distill {method}: takes a head up in its middle, and {side.title} has a single convolution "
                    "there; use another method"
                )


def _strides(strides_px: dict[str, float]) -> str:
    return ", ".join(f"{name} {stride_px:g} px" for name, stride_px in strides_px.items())


def pair_of(teacher: Teacher, model: nn.Module, settings: Any) -> Pair:
    """model, settings: the student's. Raises InputError where the two do not see the same images."""
    detector = detector_of(settings)
    parts, title = detector.distillation_parts(settings), detector.title(settings)
    if parts is None:
        raise InputError(f"--distill: {title} shows nothing that a teacher could be compared with; leave it out")
    view, teachers = detector.view(settings), detector_of(teacher.settings).view(teacher.settings)
    _require_same_view(view, teachers, title, teacher.title)
    size_px = view.size_px if isinstance(view, SquareView) else None
    width, height = view.size_px if isinstance(view, StretchView) else (size_px or _SIDE_PX,) * 2
    images = torch.zeros(1, 3, height, width, device=next(model.parameters()).device)
    return Pair(_side(teacher.title, teacher.parts, teacher.model, images), _side(title, parts, model, images), size_px)


def _side(title: str, parts: DistillationParts, model: nn.Module, images: Tensor) -> Side:
    was_training = model.training
    model.eval()
    branches: dict[str, int] = {}
    hooks = []
    if parts.tail is not None:
        for name, module in parts.tail.watched(model).items():
            hooks.append(module.register_forward_hook(_count_channels(branches, name)))
    with torch.no_grad():
        seen = parts.forward(model, images, parts.anchors is not None)
    for hook in hooks:
        hook.remove()
    model.train(was_training)
    maps = {name: each.shape[1] for name, each in parts.maps(seen).items()}
    heads = None
    if parts.anchors is not None:
        _, anchors, classes = parts.anchors.heads(seen).logits.shape
        heads = anchors, classes
    return Side(title, parts, maps, heads, branches)


def _count_channels(found: dict[str, int], name: str) -> Any:
    def count(module: nn.Module, arguments: Any, output: Tensor) -> None:
        found[name] = output.shape[1]

    return count


# What changes how images look, or how large they are, beside their colours.
_SEEN_OF: dict[type, tuple[str, ...]] = {SquareView: ("size_px",), StretchView: ("fits",)}


def _require_same_view(view: View, teachers: View, title: str, teachers_title: str) -> None:
    """One tensor is for both: what a view makes of an image must be what the other's would."""
    differ = [
        name
        for name in ("mean", "std", *_SEEN_OF.get(type(view), ()))
        if getattr(view, name) != getattr(teachers, name, None)
    ]
    if type(view) is not type(teachers) or differ:
        how = ", ".join(f"{name} {getattr(view, name)} and {getattr(teachers, name, None)}" for name in differ)
        raise InputError(
            f"--teacher: {title} (student) and {teachers_title} (teacher) see images differently"
            f"{f' ({how})' if how and type(view) is type(teachers) else ''}; use a teacher of the same kind"
        )
