"""Which keys each of the three files of a distillation may state, and what becomes of them there."""

from ssd.detectors.detectron.config.key import Key, elsewhere, fixed
from ssd.distillation.detectron2_config.distill_keys import DISTILL
from ssd.distillation.detectron2_config.model_keys import MODEL
from ssd.distillation.detectron2_config.run_keys import RUN

_OF_THE_RUN = "a run is told by the file that names this one"
_OF_THE_STUDENT = "the student is told by the file of DISTILL.STUDENT_YAML"
_NO_LOSS = "nothing of the teacher is trained"
_DETECTIONS = "TEST.DETECTIONS_PER_IMAGE"
# What a student's file says of its training and detections.
_UNTRAINED = ("BACKBONE.FREEZE_AT", "RETINANET.SMOOTH_L1_LOSS_BETA", "RETINANET.SCORE_THRESH_TEST",
              "RETINANET.NMS_THRESH_TEST", "RETINANET.BBOX_REG_LOSS_TYPE", "RESNETS.NORM")  # fmt: skip


def _said_elsewhere(keys: dict[str, Key], why: str) -> dict[str, Key]:
    return {name: elsewhere(key.default, why) for name, key in keys.items()}


_STUDENT = {**_said_elsewhere(RUN, _OF_THE_RUN), "VERSION": RUN["VERSION"], **MODEL, _DETECTIONS: RUN[_DETECTIONS]}

ROLES: dict[str, dict[str, Key]] = {
    "run": {
        **DISTILL,
        **RUN,
        _DETECTIONS: elsewhere(RUN[_DETECTIONS].default, _OF_THE_STUDENT),
        **_said_elsewhere({name: key for name, key in MODEL.items() if name != "MODEL.OUTPUTS"}, _OF_THE_STUDENT),
        "MODEL.META_ARCHITECTURE": fixed("DistillGID", "pass the file that has DISTILL.STUDENT_YAML"),
        "MODEL.WEIGHTS": elsewhere("", "--checkpoint of evaluate and --resume name the file"),
        "MODEL.DEVICE": MODEL["MODEL.DEVICE"],
    },
    "student": _STUDENT,
    "teacher": {
        **_STUDENT,
        **_said_elsewhere({f"MODEL.{name}": MODEL[f"MODEL.{name}"] for name in _UNTRAINED}, _NO_LOSS),
        _DETECTIONS: elsewhere(RUN[_DETECTIONS].default, _OF_THE_STUDENT),
    },
}
"""By what a file is to the run: the tables of keys by dotted name."""

SECTIONS = frozenset(
    name[:place] for keys in ROLES.values() for name in keys for place, letter in enumerate(name) if letter == "."
)
"""What keys lie in."""
