"""How a configuration of Detectron tests a detector: in which passes, and how boxes suppress each other."""

from typing import Any

from ssd.detectors.detectron.config.configuration import Configuration
from ssd.detectors.detectron.config.keys import KEYS
from ssd.detectors.detectron.config.naming import configuration_of
from ssd.detectors.detectron.config.values import require_in_range
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.detectors.tta import rules
from ssd.detectors.tta.passes import ONE_PASS, TTA, Pass, passes_of
from ssd.detectors.tta.rules import Suppression
from ssd.errors import InputError
from ssd.views import Look


def suppression_of(settings: DetectronSettings) -> Suppression:
    config = configuration_of(settings)
    return Suppression(
        soft=config["TEST.SOFT_NMS.METHOD"] if config["TEST.SOFT_NMS.ENABLED"] else "",
        sigma=config["TEST.SOFT_NMS.SIGMA"],
        votes=config["TEST.BBOX_VOTE.ENABLED"],
        vote_iou=config["TEST.BBOX_VOTE.VOTE_TH"],
        vote_score=config["TEST.BBOX_VOTE.SCORING_METHOD"],
        vote_beta=config["TEST.BBOX_VOTE.SCORING_METHOD_BETA"],
    )


def tta_of(settings: DetectronSettings, is_asked: bool) -> TTA | None:
    """The test-time augmentation of a detector's configuration; None where that enables none.

    is_asked: whether --tta asks for it. Then a section of keys that is not enabled has Detectron's published values,
    but for the keys that are given another value than their default. Raises InputError for such a value that cannot be.
    """
    config = configuration_of(settings)
    if settings.rpn_only:
        if is_asked:
            raise InputError(f"--tta: {settings.name} finds proposals alone, in one pass; leave it out")
        return None
    sections = ["BBOX_AUG"] + ["MASK_AUG"] * bool(settings.mask_head) + ["KPS_AUG"] * settings.finds_keypoints
    if not is_asked and not any(config[f"TEST.{section}.ENABLED"] for section in sections):
        return None
    own_px = (settings.test_short_side_px, settings.test_long_side_px)
    boxes, masks, points = (
        _section(config, section, own_px[0], is_asked) if section in sections else {}
        for section in ("BBOX_AUG", "MASK_AUG", "KPS_AUG")
    )
    suppression = suppression_of(settings)
    # Detectron's published settings for keypoints have no votes.
    if is_asked and not (config["TEST.BBOX_AUG.ENABLED"] or suppression.votes or settings.finds_keypoints):
        vote_iou = _value(config, "TEST.BBOX_VOTE.VOTE_TH", rules.PUBLISHED_VOTE_IOU)
        suppression = suppression._replace(votes=True, vote_iou=vote_iou)
    return TTA(
        _passes(boxes, own_px),
        _passes(masks, own_px),
        _passes(points, own_px),
        mask_rule=masks.get("HEUR", "SOFT_AVG"),
        keypoint_rule=points.get("HEUR", "HM_AVG"),
        keypoint_area_px=points["AREA_TH"] if points.get("SCALE_SIZE_DEP") else None,
        short_side_px=own_px[0],
        suppression=suppression,
    )


def _section(config: Configuration, section: str, short_side_px: int, is_asked: bool) -> dict[str, Any]:
    """The values of its keys; empty of one that is off."""
    above = f"TEST.{section}."
    is_enabled = config[f"{above}ENABLED"]
    if not is_enabled and not is_asked:
        return {}
    published: dict[str, Any] = {}
    if not is_enabled:
        short_sides_px, long_side_px = rules.published_sides_px(short_side_px)
        published = {"H_FLIP": True, "SCALE_H_FLIP": True, "SCALES": short_sides_px, "MAX_SIZE": long_side_px}
        if section == "KPS_AUG":
            published |= {"SCALE_SIZE_DEP": True, "AREA_TH": rules.PUBLISHED_KEYPOINT_AREA_PX}
    names = [key.removeprefix(above) for key in KEYS if key.startswith(above)]
    return {name: _value(config, f"{above}{name}", published.get(name)) for name in names}


def _value(config: Configuration, key: str, instead: Any) -> Any:
    """The value of a key; where that is the key's default, `instead`, if there is one. Raises InputError for a value
    that is out of the key's range: reading the configuration checks only the keys of sections that are on."""
    value = config[key]
    try:
        require_in_range(value, KEYS[key])
    except ValueError as error:
        raise config.error(key, str(error)) from None
    return instead if instead is not None and value == KEYS[key].default else value


def _passes(values: dict[str, Any], own_px: tuple[int, int]) -> tuple[Pass, ...]:
    if not values:
        return ONE_PASS
    return passes_of(
        [Look((side, values["MAX_SIZE"])) for side in values["SCALES"]],
        flips=values["SCALE_H_FLIP"],
        flips_own=values["H_FLIP"],
        stretched=[Look(own_px, float(ratio)) for ratio in values["ASPECT_RATIOS"]],
        flips_stretched=values["ASPECT_RATIO_H_FLIP"],
    )
