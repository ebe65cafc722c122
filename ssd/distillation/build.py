"""Each method as its settings and a pair have it: what it trains beside the student, and its terms of a step."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssd.constants import constant, on_device
from ssd.detectors.distillation import Heads, Seen
from ssd.distillation.methods import crosskd, gid
from ssd.distillation.methods import instances as general
from ssd.distillation.methods.cwd import cwd
from ssd.distillation.methods.instances import Instances
from ssd.distillation.methods.maps import Projections
from ssd.distillation.methods.mgd import Generators, mgd
from ssd.distillation.methods.pkd import pkd
from ssd.distillation.pair import Pair
from ssd.distillation.settings import CWD, GID, MGD, PKD, CrossKD
from ssd.errors import InputError

_TWO_STAGE_PKD_WEIGHT, _PKD_WEIGHT, _PKD_MAPS = 6.0, 10.0, 4


class Step(NamedTuple):
    """What a method sees of a training step.

    teacher_model: which nothing trains. teacher_maps: of its neck by name. teacher, student: what was seen of them.
    adapted: what the method's adapter made of the student.
    """

    batch: Any
    teacher_model: nn.Module
    teacher_maps: dict[str, Tensor]
    teacher: Seen
    student: Seen
    adapted: dict[str, Any]


class Term(NamedTuple):
    """A loss, () float32, and whether there was nothing to compute it of, in which case it is 0: () bool or None."""

    value: Tensor
    is_empty: Tensor | None = None


class Method(NamedTuple):
    """adapter: its inputs are the student's maps by name, or with a tail the lists of both branches."""

    name: str
    adapter: nn.Module
    terms: Callable[[Step], dict[str, Term]]
    needs_heads: bool = False
    needs_tail: bool = False


class _Plain(nn.Module):
    """The maps as they are."""

    def forward(self, maps: Any) -> Any:
        return maps


def build_method(name: str, settings: Any, pair: Pair, seed: int, show: Callable[[Tensor, Instances], None]) -> Method:
    """settings: of `settings.METHODS`. seed: of what it draws. show: takes the images of each step and the instances
    chosen in them. Raises InputError where the pair lacks what the method needs."""
    builders: dict[str, Callable[[], Method]] = {
        "pkd": lambda: _pkd(settings, pair),
        "cwd": lambda: _cwd(settings, pair),
        "mgd": lambda: _mgd(settings, pair, seed),
        "gid": lambda: _gid(settings, pair, show),
        "crosskd": lambda: _crosskd(settings, pair),
    }
    if not any(getattr(settings, field.name) != 0 for field in fields(settings) if field.name.endswith("weight")):
        return Method(name, _Plain(), lambda step: {})  # of a term of weight 0 there is nothing to train either
    return builders[name]()


def _teachers(step: Step, levels: list[tuple[str, str]]) -> list[Tensor]:
    return [step.teacher_maps[other] for _, other in levels]


def _pkd(settings: PKD, pair: Pair) -> Method:
    levels = pair.levels("pkd", settings.levels, first=_PKD_MAPS)
    two_stages = pair.teacher.parts.is_two_stage or pair.student.parts.is_two_stage
    usual = _TWO_STAGE_PKD_WEIGHT if two_stages else _PKD_WEIGHT
    weight = usual if settings.weight is None else settings.weight

    def terms(step: Step) -> dict[str, Term]:
        return {"pkd": Term(weight * pkd(step.adapted, _teachers(step, levels)))}

    return Method("pkd", Projections(pair.channels(levels), has_bias=False), terms)


def _cwd(settings: CWD, pair: Pair) -> Method:
    levels = pair.levels("cwd", settings.levels)

    def terms(step: Step) -> dict[str, Term]:
        value = cwd(step.adapted, _teachers(step, levels), settings.temperature)
        return {"cwd": Term(settings.weight * value)}

    return Method("cwd", Projections(pair.channels(levels), has_bias=False), terms)


def _mgd(settings: MGD, pair: Pair, seed: int) -> Method:
    levels = pair.levels("mgd", settings.levels)

    def terms(step: Step) -> dict[str, Term]:
        return {"mgd": Term(settings.weight * mgd(step.adapted, _teachers(step, levels)))}

    return Method("mgd", Generators(pair.channels(levels), settings.dropped, seed), terms)


def _gid(settings: GID, pair: Pair, show: Callable[[Tensor, Instances], None]) -> Method:
    pair.require_heads("gid")
    parts = pair.student.parts
    anchors = parts.anchors
    assert anchors is not None
    levels = [(own, other) for own, other in zip(pair.student.maps, pair.teacher.maps, strict=True)]
    channels = pair.channels(levels)
    reads_maps = settings.feature_weight or settings.relation_weight
    differ = [f"{name} {own} and {other}" for name, (own, other) in channels.items() if own != other]
    if settings.adapter is False and differ and reads_maps:
        raise InputError(
            f"gid.adapter=false: maps of {pair.student.title} and {pair.teacher.title} have other channels "
            f"({', '.join(differ)}), which only an adapter makes comparable; leave it out"
        )
    adapts = settings.of_variant("adapter") or differ
    adapter: nn.Module = _Plain()
    if adapts and reads_maps:
        adapter = gid.Adapter(channels, settings.adapter_kernel, settings.shares_adapter)
    scales = [1 / parts.strides_px[own] for own, _ in levels]
    response = settings.class_weight or settings.box_weight

    def terms(step: Step) -> dict[str, Term]:
        student, teacher = anchors.heads(step.student), anchors.heads(step.teacher)
        places = anchors.anchors_ltrb_px(parts.maps(step.student), step.batch.images)
        with torch.no_grad():
            chosen = _choose(settings, pair, step, student, teacher, places)
            learns = anchors.learns(chosen.boxes_ltrb_px, chosen.real, places) if response else None
            number = gid.counts(chosen)
        show(step.batch.images, chosen)
        found: dict[str, Term] = {}
        rois, level = gid.rois_of(chosen), anchors.level_of(chosen.boxes_ltrb_px.flatten(0, 1))
        if reads_maps:
            of_teacher, of_student = (
                gid.roi_features(maps, scales, level, rois, settings.cells, settings.samples)
                for maps in (_teachers(step, levels), [step.adapted[own] for own, _ in levels])
            )
            features = gid.RoiFeatures(of_teacher, of_student, chosen.real.flatten())
            if settings.feature_weight:
                value = gid.feature_loss(features, settings.of_variant("feature"))
                found["gid_feature"] = Term(settings.feature_weight * value, number == 0)
            if settings.relation_weight:
                value = gid.relation_loss(features, settings.relation_beta)
                found["gid_relation"] = Term(settings.relation_weight * value, number < 3)
        if learns is not None:
            empty = gid.summed(learns.sum()) == 0
            counted, *rows = gid.rows_of(learns, *student, *teacher)
            own, other = Heads(*rows[:2]), Heads(*rows[2:])
            if settings.class_weight:
                value = gid.response_sums(anchors.divergence(own.logits, other.logits), counted)
                found["gid_class"] = Term(settings.class_weight * value, empty)
            if settings.box_weight:
                value = gid.response_sums(gid.offset_distance(own.offsets, other.offsets, settings.box_beta), counted)
                found["gid_box"] = Term(settings.box_weight * value, empty)
        return found

    return Method("gid", adapter, terms, needs_heads=True)


def _choose(
    settings: GID, pair: Pair, step: Step, student: Heads, teacher: Heads, anchors_ltrb_px: Tensor
) -> Instances:
    anchors = pair.student.parts.anchors
    assert anchors is not None
    boxes = [anchors.decode(heads.offsets, anchors_ltrb_px) for heads in (teacher, student)]
    if least_side_px := settings.of_variant("least_side_px"):
        limits = _limits_px(step.batch)
        boxes = [torch.minimum(each.clamp(min=0), limits) for each in boxes]
    probabilities = [anchors.probabilities(heads.logits) for heads in (teacher, student)]
    form = settings.of_variant("score")
    scores, surest = general.scores_and_boxes(form, probabilities[0], probabilities[1], boxes[0], boxes[1])
    # The reimplementation cuts the list before it looks at sizes.
    scores, surest, anchor = general.best(scores, surest, settings.of_variant("before_nms"))
    scores = general.usable(scores, surest, least_side_px)
    chosen = general.choose(scores, surest, settings.count, settings.nms_iou)
    if settings.instances == "all":
        return chosen
    learns = None
    if settings.of_variant("positives") == "anchor":
        learns = anchors.assigned(step.batch, anchors_ltrb_px)[0].gather(1, anchor.gather(1, chosen.places))
    return general.of_kind(chosen, settings.instances, settings.shares, anchors.truths(step.batch), learns)


def _limits_px(batch: Any) -> Tensor:
    """The largest left, top, right and bottom of a box in each image: B x 1 x 4."""
    images: Tensor = batch.images
    if hasattr(batch, "sizes_px"):
        return on_device(batch.sizes_px.to(torch.float32).repeat(1, 2).unsqueeze(1), images.device)
    width, height = images.shape[3], images.shape[2]
    return constant((width, height, width, height), images.device).view(1, 1, 4)


def _crosskd(settings: CrossKD, pair: Pair) -> Method:
    pair.require_tail("crosskd")
    anchors, tail = pair.student.parts.anchors, pair.teacher.parts.tail
    assert anchors is not None and tail is not None
    weights = {"classes": settings.class_weight, "boxes": settings.box_weight}
    channels = {name: (own, pair.teacher.branches[name]) for name, own in pair.student.branches.items()}

    def terms(step: Step) -> dict[str, Term]:
        branches = {
            name: [crosskd.aligned(own, other) for own, other in zip(maps, step.teacher[name], strict=True)]
            if weights[name]
            else list(step.teacher[name])  # nothing is made of it
            for name, maps in step.adapted.items()
        }
        crossed = tail.rest(step.teacher_model, branches["classes"], branches["boxes"])
        of_teacher = anchors.heads(step.teacher)
        places = anchors.anchors_ltrb_px(pair.student.parts.maps(step.student), step.batch.images)
        learns, ignored = anchors.assigned(step.batch, places)
        counted, positives = ~ignored, learns.sum()
        found = {}
        if settings.class_weight:
            value = crosskd.class_loss(crossed.logits, of_teacher.logits, counted, positives)
            found["crosskd_class"] = Term(settings.class_weight * value)
        if settings.box_weight:
            boxes, others = (anchors.decode(heads.offsets, places) for heads in (crossed, of_teacher))
            value = crosskd.box_loss(boxes, others, of_teacher.logits, counted, positives)
            found["crosskd_box"] = Term(settings.box_weight * value)
        return found

    projections = crosskd.HeadProjections({name: each for name, each in channels.items() if weights[name]})
    return Method("crosskd", projections, terms, needs_heads=True, needs_tail=True)
