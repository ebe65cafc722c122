"""What a detector shows to the methods of distillation, so that these need not know which detector it is.

In a training step the student's own forward pass shows it: what some of its modules gave is recorded beside its
result. The teacher, whose pass ends where nothing more is needed, is called by `DistillationParts.forward`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Seen = dict[str, list[Any]]
"""By the name of a watched module, what it gave in one pass: once for each time that it was called."""


class Heads(NamedTuple):
    """What the heads say of A anchors, in float32 and before any activation. logits: B x A x K. offsets: B x A x 4."""

    logits: Tensor
    offsets: Tensor


class Anchors(NamedTuple):
    """Dense heads, and what their numbers mean.

    heads: of what was seen. anchors_ltrb_px: (maps by name, images) -> A x 4 float32 in pixels of the images.
    decode: (offsets B x A x 4, anchors) -> boxes_ltrb_px, not cut to the image.
    probabilities: logits -> ... x C, of the classes that can be found.
    divergence: (logits of the student, of the teacher, R x K each) -> how far apart they are, R, 0 where they agree.
    learns: (boxes_ltrb_px B x N x 4, which of them are real B x N bool, anchors) -> which anchors the detector's own
    matcher would have learn one of them, B x A bool.
    level_of: boxes_ltrb_px N x 4 -> the place of the map, among those of `DistillationParts`, that suits each, N int64.
    truths: a training batch -> boxes_ltrb_px of its objects B x N x 4, and which are real B x N bool.
    assigned: (a training batch, anchors) -> which anchors learn one of its objects, and which have no loss: B x A bool.
    """

    heads: Callable[[Seen], Heads]
    anchors_ltrb_px: Callable[[dict[str, Tensor], Tensor], Tensor]
    decode: Callable[[Tensor, Tensor], Tensor]
    probabilities: Callable[[Tensor], Tensor]
    divergence: Callable[[Tensor, Tensor], Tensor]
    learns: Callable[[Tensor, Tensor, Tensor], Tensor]
    level_of: Callable[[Tensor], Tensor]
    truths: Callable[[Any], tuple[Tensor, Tensor]]
    assigned: Callable[[Any, Tensor], tuple[Tensor, Tensor]]


class Tail(NamedTuple):
    """Heads that can be taken up in their middle.

    watched: the model -> by "classes" and "boxes" the last module before a ReLU, which each of the maps goes through.
    rest: (model, what these gave of each map, the same of boxes) -> what the layers after them make of it.
    """

    watched: Callable[[Any], dict[str, nn.Module]]
    rest: Callable[[Any, list[Tensor], list[Tensor]], Heads]


class DistillationParts(NamedTuple):
    """What a detector shows.

    strides_px: of its neck's maps by name, from the finest to the coarsest, in pixels of the image.
    watched: the model -> modules by name, out of whose outputs `maps` and `Anchors.heads` are made.
    maps: of what was seen, B x C x H x W by name.
    forward: (model in evaluation mode, images, whether the heads are needed too) -> what the watched modules give.
    is_two_stage: whether proposals come between its maps and its boxes.
    anchors: None of a detector whose heads are not dense. tail: None of heads without a middle.
    """

    strides_px: dict[str, float]
    watched: Callable[[Any], dict[str, nn.Module]]
    maps: Callable[[Seen], dict[str, Tensor]]
    forward: Callable[[Any, Tensor, bool], Seen]
    is_two_stage: bool = False
    anchors: Anchors | None = None
    tail: Tail | None = None


def sigmoid_divergence(logits: Tensor, of_teacher: Tensor) -> Tensor:
    """Binary cross-entropy to the teacher's probabilities, summed over classes, less the teacher's own entropy, which
    has no gradient and is what the cross-entropy comes down to: R x K each -> R."""
    targets = of_teacher.sigmoid()
    bce = nn.functional.binary_cross_entropy_with_logits
    terms = bce(logits, targets, reduction="none") - bce(of_teacher, targets, reduction="none")
    return terms.sum(dim=-1)


def softmax_divergence(logits: Tensor, of_teacher: Tensor) -> Tensor:
    """Cross-entropy to the teacher's probabilities less the teacher's entropy: R x K each -> R."""
    log_targets = of_teacher.log_softmax(dim=-1)
    return (log_targets.exp() * (log_targets - logits.log_softmax(dim=-1))).sum(dim=-1)


def by_area(boxes_ltrb_px: Tensor, first: int, last: int) -> Tensor:
    """Which of the maps P<first> to P<last> suits boxes N x 4: N int64, 0 for the first. Feature Pyramid Networks (Lin
    et al. 2017), equation 1, in which a box of 224 pixels belongs to P4."""
    sides = (boxes_ltrb_px[:, 2:] - boxes_ltrb_px[:, :2]).clamp(min=0).prod(dim=1).sqrt()
    return (4 + (sides / 224 + 1e-8).log2()).floor().clamp(first, last).to(torch.int64) - first
