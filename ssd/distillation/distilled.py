"""Losses that hold a student to a teacher too, beside those that it has anyway."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssd.detectors.contract import Forward, LossesOf
from ssd.detectors.distillation import DistillationParts, Seen
from ssd.distillation.build import Method, Step, Term
from ssd.distillation.methods.ranks import summed
from ssd.distillation.teacher import Teacher
from ssd.distillation.watched import Recorder
from ssd.errors import InputError

TAIL = ("classes", "boxes")
"""What is seen of heads in their middle, by the names that `Tail.watched` has."""


def watched_modules(parts: DistillationParts, model: nn.Module, methods: Sequence[Method]) -> dict[str, nn.Module]:
    """The modules that these methods look at."""
    with_tail = any(method.needs_tail for method in methods)
    return {**parts.watched(model), **(parts.tail.watched(model) if with_tail and parts.tail is not None else {})}


def input_of(method: Method, parts: DistillationParts) -> Callable[[Seen], Any]:
    """What the method's adapter takes of what was seen of the student."""
    return (lambda seen: {name: seen[name] for name in TAIL}) if method.needs_tail else parts.maps


def distilled(
    losses_of: LossesOf, teacher: Teacher, parts: DistillationParts, methods: Sequence[Method], weight: float
) -> LossesOf:
    """The losses with those of the methods by their names, each times weight.

    parts: the student's. The forward pass that the losses are then given is a `watched.Distilling`. At the first step
    it raises InputError for a term that is 0 although the teacher's maps are not the student's, and for one that is not
    finite.
    """
    with_heads = any(method.needs_heads for method in methods)
    with_tail = any(method.needs_tail for method in methods)
    middle = teacher.parts.tail.watched(teacher.model) if with_tail and teacher.parts.tail is not None else {}
    recorder = Recorder(middle, frozenset(middle))
    is_checked = False

    def losses(forward: Forward, batch: Any) -> dict[str, Tensor]:
        nonlocal is_checked
        recorder.begin()
        of_teacher = teacher.forward(batch.images, with_heads=with_heads)
        of_teacher |= recorder.end()
        shown: list[Any] = []

        def student(*arguments: Any) -> Any:
            output, *more = forward(*arguments)
            shown[:] = more
            return output

        named = losses_of(student, batch)
        seen, adapted = shown
        teacher_maps = teacher.parts.maps(of_teacher)
        terms: dict[str, Term] = {}
        for method in methods:
            terms |= method.terms(Step(batch, teacher.model, teacher_maps, of_teacher, seen, adapted[method.name]))
        if not is_checked:
            is_checked = True
            lost = torch.stack([~value.detach().isfinite().all() for value in named.values()]).sum()
            if summed(lost) == 0:  # else it is the batch
                _require_terms(terms, parts.maps(seen), teacher_maps)
        return {**named, **{name: weight * term.value for name, term in terms.items()}}

    return losses


def _require_terms(terms: dict[str, Term], maps: dict[str, Tensor], of_teacher: dict[str, Tensor]) -> None:
    """Raises InputError for a term that is not finite, or 0 on all ranks although there is something to compute. A
    student that is its teacher, as before it is pruned, may have terms of 0."""
    if not terms:
        return
    values = summed(torch.stack([term.value.detach().float().abs() for term in terms.values()])).tolist()
    for (name, term), value in zip(terms.items(), values, strict=True):
        if not math.isfinite(value):
            raise InputError(
                f"--distill: the loss {name} is {value} in the first step; look at the weights of --teacher"
            )
        if value != 0 or (term.is_empty is not None and bool(term.is_empty)):
            continue
        pairs = list(zip(maps.values(), of_teacher.values(), strict=False))
        if all(own.shape == other.shape and torch.allclose(own, other, rtol=1e-3, atol=1e-5) for own, other in pairs):
            continue
        raise InputError(
            f"--distill: the loss {name} is exactly 0 in the first step, so nothing is learned by it; leave it out"
        )
