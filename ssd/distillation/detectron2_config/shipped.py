"""The six configurations of distillation that Distill_GID_detectron2 has, by name: made of one table.

Facts from daixinghome/Distill_GID_detectron2 at 9118c54 (GID/config). Teachers are files that its users train, so that
--teacher has to name one.
"""

from typing import Any, NamedTuple

_PREFIX = "Distill_RetinaNet_T_Res101_S_Res50_2x_"
_L1, _SMOOTH_L1 = 0.0, 0.1
_ONE_SIDE_PX, _SEVERAL_SIDES_PX = (800,), (640, 672, 704, 736, 768, 800)


class _Shipped(NamedTuple):
    """teacher, student: names of their files. beta: of smooth L1, of the student's boxes and of their response. sides:
    that training images draw one of."""

    teacher: str
    student: str
    beta: float
    sides_px: tuple[int, ...] = _ONE_SIDE_PX


_TABLE = {
    "L1Smo": _Shipped("RetinaNet_Res101_1x_smooth_l1", "RetinaNet_2x_smooth_l1", _SMOOTH_L1),
    "L1Smo_T_L1": _Shipped("RetinaNet_Res101_1x", "RetinaNet_2x_smooth_l1", _SMOOTH_L1),
    "L1Smo_T_L1_aug": _Shipped("RetinaNet_Res101_1x_multi-scale", "RetinaNet_2x_smooth_l1", _SMOOTH_L1),
    "L1_T_L1": _Shipped("RetinaNet_Res101_1x", "RetinaNet_2x", _L1),
    "L1_T_L1_aug": _Shipped("RetinaNet_Res101_1x_multi-scale", "RetinaNet_2x", _L1),
    "L1_aug_T_L1_aug": _Shipped("RetinaNet_Res101_1x_multi-scale", "RetinaNet_2x_multi-scale", _L1, _SEVERAL_SIDES_PX),
}
NAMES = tuple(_PREFIX + name for name in _TABLE)


def values_of(name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What the run's, the student's and the teacher's file of one of NAMES state, but for what decides nothing."""
    shipped = _TABLE[name.removeprefix(_PREFIX)]
    run = {
        "INPUT.MIN_SIZE_TRAIN": shipped.sides_px,
        "DISTILL.TEACHER_YAML": shipped.teacher,
        "DISTILL.STUDENT_YAML": shipped.student,
        "DISTILL.GID.IOU_THRESHOLDS": [0.4, 0.5],
        "DISTILL.LOSS.FEATURE.WEIGHT": 0.0005,
        "DISTILL.LOSS.RESPONSE_REG.SMOOTH_L1_BETA": shipped.beta,
        "DISTILL.LOSS.RESPONSE_REG.WEIGHT": 1.0,
        "SOLVER.IMS_PER_BATCH": 16,
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.STEPS": (120_000, 160_000),
        "SOLVER.MAX_ITER": 180_000,
        "OUTPUT_DIR": f"output_retina_res101_Res50_2x_{name.removeprefix(_PREFIX)}",
    }
    student = {
        "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
        "MODEL.RESNETS.DEPTH": 50,
        "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": shipped.beta,
    }
    return run, student, {"MODEL.RESNETS.DEPTH": 101}
