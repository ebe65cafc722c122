"""Which passes --tta and a configuration of Detectron mean, and what is said of settings that cannot be."""

from typing import Any

import pytest

from ssd.config import Config
from ssd.detectors.detectron.config.naming import notes_of, settings_named, with_words
from ssd.detectors.detectron.config.testing import suppression_of
from ssd.detectors.table import tta_of, tta_text, view_with
from ssd.detectors.torchvision.names import settings_of
from ssd.detectors.tta.passes import ONE_PASS, TTA, Pass
from ssd.detectors.tta.rules import Suppression
from ssd.errors import InputError
from ssd.views import Look, ShortSideView, num_looks

MASK = settings_named("e2e_mask_rcnn_R-50-FPN_1x")
KEYPOINTS = settings_named("e2e_keypoint_rcnn_R-50-FPN_1x")
X_152 = settings_named("e2e_mask_rcnn_X-152-32x8d-FPN-IN5k_1.44x")
PUBLISHED_PX = (400, 500, 600, 700, 900, 1000, 1100, 1200)
PUBLISHED = (
    Pass(), Pass(flip=True), *(Pass(Look((side, 2000)), flip) for side in PUBLISHED_PX for flip in (False, True))
)  # fmt: skip


def tta(settings: Any, is_asked: bool | None = None, words: str = "") -> TTA | None:
    return tta_of(with_words(settings, words.split()) if words else settings, is_asked)


def found(settings: Any, is_asked: bool | None = None, words: str = "") -> TTA:
    passes = tta(settings, is_asked, words)
    assert passes is not None
    return passes


def test_one_pass_unless_it_is_asked_for() -> None:
    assert tta(MASK) is None and tta(MASK, False) is None and tta(Config().detector) is None
    assert tta(MASK, None, "TEST.BBOX_AUG.ENABLED True") is None  # of which nothing else is on, as in Detectron


def test_detectrons_published_passes_are_the_default() -> None:
    votes = Suppression(votes=True, vote_iou=0.9)
    assert found(MASK, True) == TTA(PUBLISHED, PUBLISHED, short_side_px=800, suppression=votes)
    points = found(KEYPOINTS, True)
    assert points == TTA(PUBLISHED, ONE_PASS, PUBLISHED, keypoint_area_px=22500, short_side_px=800)
    assert found(settings_of("fcos_resnet18_fpn"), True) == TTA(PUBLISHED, PUBLISHED, PUBLISHED)
    # They follow the size that a detector is evaluated at.
    small = found(MASK, True, "TEST.SCALE 400 TEST.MAX_SIZE 600")
    assert small.boxes[2:4] == (Pass(Look((200, 1000))), Pass(Look((200, 1000)), True)) and small.short_side_px == 400


def test_a_shipped_configuration_of_several_passes_needs_no_flag() -> None:
    assert found(X_152) == found(X_152, True) == found(MASK, True) and tta(X_152, False) is None
    assert suppression_of(X_152) == Suppression(votes=True, vote_iou=0.9)
    (note,) = [note for note in notes_of(X_152) if "_AUG" in note]
    assert note.endswith("TEST.BBOX_AUG.ENABLED is for evaluate and predict; a run is evaluated in one pass")
    assert tta_text(X_152, found(X_152)) == "TTA of 18 passes for boxes, 18 for masks, votes at an IoU of 0.9"
    view = view_with(X_152, found(X_152))
    assert isinstance(view, ShortSideView) and num_looks(view) == 9


@pytest.mark.parametrize(
    ("settings", "words", "switch"),
    [
        (settings_named("e2e_faster_rcnn_R-50-FPN_1x"), "TEST.MASK_AUG.ENABLED True TEST.MASK_AUG.H_FLIP True",
         "MODEL.MASK_ON is off"),
        (MASK, "TEST.KPS_AUG.ENABLED True TEST.KPS_AUG.SCALES (400,)", "MODEL.KEYPOINTS_ON is off"),
        (settings_named("rpn_R-50-FPN_1x"), "TEST.BBOX_AUG.ENABLED True TEST.BBOX_AUG.H_FLIP True",
         "MODEL.RPN_ONLY is on"),
        (settings_named("rpn_R-50-FPN_1x"), "TEST.SOFT_NMS.ENABLED True TEST.SOFT_NMS.METHOD gaussian",
         "MODEL.RPN_ONLY is on"),
        (settings_named("rpn_R-50-FPN_1x"), "TEST.BBOX_VOTE.ENABLED True TEST.BBOX_VOTE.VOTE_TH 0.7",
         "MODEL.RPN_ONLY is on"),
    ],
)  # fmt: skip
def test_a_section_that_a_detector_cannot_have_is_said_to_decide_nothing(
    settings: Any, words: str, switch: str
) -> None:
    changed = with_words(settings, words.split())
    assert tta(changed) is None
    said = [note.partition(": ")[2] for note in notes_of(changed) if "TEST." in note]
    assert said == [f"{key} says nothing: {switch}" for key in words.split()[::2]]


def test_a_section_that_names_no_pass_is_no_reason_for_a_note() -> None:
    alone = with_words(MASK, ["TEST.BBOX_AUG.ENABLED", "True"])
    flipped = with_words(MASK, "TEST.BBOX_AUG.ENABLED True TEST.BBOX_AUG.H_FLIP True".split())
    assert [note for note in notes_of(alone) if "_AUG" in note] == []
    (note,) = [note for note in notes_of(flipped) if "_AUG" in note]
    assert note.endswith("TEST.BBOX_AUG.ENABLED is for evaluate and predict; a run is evaluated in one pass")


def test_a_section_that_is_on_means_what_it_says() -> None:
    passes = found(
        MASK, True, "TEST.BBOX_AUG.ENABLED True TEST.BBOX_AUG.SCALES (640,) TEST.BBOX_AUG.ASPECT_RATIOS (0.5,2) "
        "TEST.BBOX_AUG.ASPECT_RATIO_H_FLIP True TEST.MASK_AUG.ENABLED True TEST.MASK_AUG.H_FLIP True "
        "TEST.MASK_AUG.HEUR LOGIT_AVG"
    )  # fmt: skip
    shapes = [Pass(Look((800, 1333), ratio), flip) for ratio in (0.5, 2.0) for flip in (False, True)]
    assert passes.boxes == (Pass(), Pass(Look((640, 4000))), *shapes)
    assert passes.masks == (Pass(), Pass(flip=True)) and passes.mask_rule == "LOGIT_AVG"
    assert passes.suppression == Suppression() and len(passes.looks) == 3
    points = found(
        KEYPOINTS, None, "TEST.KPS_AUG.ENABLED True TEST.KPS_AUG.SCALES (400,) TEST.KPS_AUG.SCALE_SIZE_DEP True "
        "TEST.KPS_AUG.HEUR HM_MAX"
    )  # fmt: skip
    assert (points.boxes, points.keypoint_rule, points.keypoint_area_px) == (ONE_PASS, "HM_MAX", 32400)


def test_of_a_section_that_is_off_what_is_set_is_kept_where_it_is_asked_for() -> None:
    passes = found(MASK, True, "TEST.BBOX_AUG.SCALES (640,) TEST.MASK_AUG.MAX_SIZE 900 TEST.BBOX_VOTE.VOTE_TH 0.7")
    assert passes.boxes == (Pass(), Pass(flip=True), Pass(Look((640, 2000))), Pass(Look((640, 2000)), True))
    assert passes.masks[2] == Pass(Look((400, 900))) and passes.suppression.vote_iou == 0.7
    soft = found(MASK, True, "TEST.SOFT_NMS.ENABLED True TEST.SOFT_NMS.METHOD gaussian")
    assert soft.suppression == Suppression(soft="gaussian", votes=True, vote_iou=0.9)


@pytest.mark.parametrize(
    ("settings", "words", "said"),
    [
        (Config().detector, "", "--tta: SSD300-resnet50 looks at an image in one pass only; leave it out"),
        (settings_named("rpn_R-50-FPN_1x"), "", "finds proposals alone, in one pass; leave it out"),
        (MASK, "TEST.BBOX_AUG.SCORE_HEUR AVG", "TEST.BBOX_AUG.SCORE_HEUR: cannot be 'AVG': boxes of a network's own"),
        (MASK, "TEST.BBOX_AUG.SCALES (0,)", "TEST.BBOX_AUG.SCALES: cannot be 0: is less than 1"),
        (MASK, "TEST.MASK_AUG.HEUR BEST", "TEST.MASK_AUG.HEUR: cannot be 'BEST': is none of SOFT_AVG, SOFT_MAX"),
        (MASK, "TEST.MASK_AUG.SCALE_SIZE_DEP True", "only KPS_AUG chooses passes by an object's size"),
        (KEYPOINTS, "TEST.KPS_AUG.ASPECT_RATIOS (0,)", "TEST.KPS_AUG.ASPECT_RATIOS: cannot be 0: is less than 0.01"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings: Any, words: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        tta(settings, True, words)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("TEST.SOFT_NMS.ENABLED True TEST.SOFT_NMS.METHOD cubic", "METHOD: cannot be 'cubic': is none of linear, gau"),
        ("TEST.SOFT_NMS.ENABLED True TEST.SOFT_NMS.SIGMA 0.0", "SIGMA: cannot be 0.0: is less than 1e-06"),
        ("TEST.BBOX_VOTE.ENABLED True TEST.BBOX_VOTE.SCORING_METHOD MEAN", "cannot be 'MEAN': is none of ID, TEMP_AVG"),
        ("TEST.BBOX_AUG.ENABLED True TEST.BBOX_AUG.SCALES (400.5,)", "SCALES: takes a row of whole numbers, not (400."),
        ("TEST.BBOX_AUG.ENABLED True TEST.BBOX_AUG.SCALE_SIZE_DEP True", "SCALE_SIZE_DEP: cannot be True: as in Detec"),
    ],
)  # fmt: skip
def test_keys_that_are_on_are_looked_at_when_they_are_set(words: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        with_words(MASK, words.split())
    assert said in str(error.value) and "\n" not in str(error.value)
