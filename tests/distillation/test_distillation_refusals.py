"""Configurations of Distill_GID_detectron2 that are refused, each in a line that names key and place."""

from pathlib import Path

import pytest
from distillation_files import changed, complaint, started, written


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path)


@pytest.mark.parametrize(
    ("role", "old", "new", "expected"),
    [
        ("run", "GI_MODE: ALL", "GI_MOD: ALL", "run.yaml:10: there is no key DISTILL.GID.GI_MOD; did you mean "
         "DISTILL.GID.GI_MODE?"),
        ("run", "OUTPUT_DIR: output_r50", r'"a\nb": 1', r"run.yaml:15: there is no key 'a\nb'"),
        ("run", "OUTPUT_DIR: output_r50", "OUTPUT_DIR:", "run.yaml:15: OUTPUT_DIR: says nothing; take it out"),
        ("student", "OUTPUTS: [images, p3]", "FPN: {NORM: }", "MODEL.FPN.NORM: says nothing; take it out"),
        ("run", "config/teacher.yaml", r'"a\nb.yaml"', r"there is no file 'a\nb.yaml' here"),
        ("run", "DISTILL:", "DISTIL:", "run.yaml:7: there is no key DISTIL; did you mean DISTILL?"),
        ("run", "GI_MODE: ALL", "GI_MODE: some", "DISTILL.GID.GI_MODE: 'some' is none of all, pos, semi_pos, neg"),
        ("run", "GI_MODE: ALL", "GI_MODE: 3", "'3' is none of all"),
        ("run", "GI_MODE: ALL", "IOU_LABELS: [0, 1, 1]", "cannot be [0, 1, 1]: boxes between the two"),
        ("run", "[0.4, 0.5]", "[0.5, 0.4]", "run.yaml:10: DISTILL.GID.IOU_THRESHOLDS: gid.shares=0.5,0.4: must rise"),
        ("run", "[0.4, 0.5]", "[0.4]", "DISTILL.GID.IOU_THRESHOLDS: gid.shares=0.4: is not two numbers"),
        ("run", "GI_MODE: ALL", "GI_NMS_THRESH: 1.5", "gid.nms_iou=1.5: is out of range"),
        ("run", "GI_MODE: ALL", "GI_POST_NMS_TOPK: 0", "cannot be 0: is less than 1"),
        ("run", "GI_MODE: ALL", "GI_POST_NMS_TOPK: ten", "takes a whole number, not 'ten'"),
        ("run", "GI_MODE: ALL", "ROI: {POOLER_TYPE: ROIPool}", "cannot be 'ROIPool': only RoIAlign"),
        ("run", "GI_MODE: ALL", "ADAPTER: {ST_NAMES: []}", "ADAPTER.ST_NAMES: has to be TE_NAMES"),
        ("run", "GI_MODE: ALL", "ADAPTER: {ST_NAMES: [p3]}", "cannot be ['p3']: all five maps have an adapter"),
        ("run", "GI_MODE: ALL", "ADAPTER: {KERNEL_SIZE: 2}", "has to be odd"),
        ("run", "LOSS:", "LOSS:\n    GT_WEIGHT: 2.0", "cannot be 2.0: the student's own losses count once"),
        ("run", "{WEIGHT: 0.0005}", "{ST_NAMES: [p3]}", "LOSS.FEATURE.ST_NAMES: cannot be ['p3']"),
        ("run", "{WEIGHT: 0.0005}", "{MODE: L1}", "LOSS.FEATURE.MODE: cannot be 'L1'"),
        ("run", "LOSS:", "LOSS:\n    RELATION: {DIST_MODE: L1}", "distances are Euclidean"),
        ("run", "LOSS:", "LOSS:\n    RESPONSE_CLS: {MODE: L2}", "the paper of GID has no other loss there"),
        ("run", "MODE: L1", "MODE: bce", "RESPONSE_REG.MODE: cannot be 'bce'"),
        ("run", "DISTILL:", "DISTILL:\n  TEACHER_CFG: {VERSION: 2}", "DISTILL.TEACHER_CFG: is made of the file of "
         "DISTILL.TEACHER_YAML"),
        ("run", "config/teacher.yaml", "config/teach.yaml", "there is no file config/teach.yaml here or in a folder"),
        ("run", "  TEACHER_YAML: config/teacher.yaml", "", "DISTILL.TEACHER_YAML: has to name a file"),
        ("run", "DistillGID", "RetinaNet", "cannot be 'RetinaNet': pass the file that has DISTILL.STUDENT_YAML"),
        ("run", "DistillGID", "DistillGID, OUTPUTS: []", "MODEL.OUTPUTS: belongs in a student's file, not in the "
         "file of --distill"),
        ("run", "SOLVER: {", "SOLVER: {MAX_ITERS: 3, ", "there is no key SOLVER.MAX_ITERS; did you mean "
         "SOLVER.MAX_ITER?"),
        ("run", "SOLVER: {", "SOLVER: {LR_SCHEDULER_NAME: WarmupCosineLR, ", "pass --schedule cosine"),
        ("run", "SOLVER: {", "SOLVER: {CLIP_GRADIENTS: {ENABLED: True}, ", "--clip-norm shortens all together"),
        ("run", "(120000, 160000)", "(160000, 120000)", "SOLVER.STEPS: has to rise"),
        ("run", "MAX_ITER: 180000", "MAX_ITER: 0", "SOLVER.MAX_ITER: cannot be 0"),
        ("run", "SOLVER: {", "SOLVER: {MOMENTUM: 5.0, ", "SOLVER.MOMENTUM: cannot be 5.0: is more than 0.999"),
        ("run", "SOLVER: {", "SOLVER: {WARMUP_FACTOR: 9.0, ", "WARMUP_FACTOR: cannot be 9.0: is more than 1"),
        ("student", "SMOOTH_L1_LOSS_BETA: 0.1", "NMS_THRESH_TEST: 7.0", "cannot be 7.0: is more than 1"),
        ("student", "SMOOTH_L1_LOSS_BETA: 0.1", "SCORE_THRESH_TEST: 3.0", "cannot be 3.0: is more than 1"),
        ("run", "OUTPUT_DIR: output_r50", "TEST: {AUG: {ENABLED: True}}", "evaluate --tta does it in several"),
        ("run", "(800,)", "(640,)", "INPUT.MIN_SIZE_TRAIN: has to have MIN_SIZE_TEST 800 in it"),
        ("run", "(800,)", "(800,)\n  MAX_SIZE_TEST: 1000", "has to be MAX_SIZE_TRAIN 1333, not 1000"),
        ("run", "(800,)", "(800, 1400)", "1333 is less than 1400"),
        ("run", "(800,)", "(800,)\n  RANDOM_FLIP: none", "half of the training images are mirrored"),
        ("run", "OUTPUT_DIR: output_r50", "SEED: 4294967296", "SEED: cannot be 4294967296: that is too much"),
        ("run", "INPUT:\n  MIN_SIZE_TRAIN: (800,)", "INPUT: 3", "run.yaml:3: INPUT: takes keys of its own, not 3"),
        ("student", "OUTPUTS", "OUTPUT", "student.yaml:6: there is no key MODEL.OUTPUT; did you mean MODEL.OUTPUTS?"),
        ("student", "OUTPUTS: [images, p3]", "FPN: {NORM: GN}", "the pyramid and the heads have no norm"),
        ("student", "OUTPUTS: [images, p3]", "RESNETS: {DEPTH: 26}", "cannot be 26: is none of 18, 34, 50, 101, 152"),
        ("student", "OUTPUTS: [images, p3]", "RESNETS: {RES2_OUT_CHANNELS: 64}", "has to be 256 with DEPTH 50"),
        ("student", "OUTPUTS: [images, p3]", "META_ARCHITECTURE: GeneralizedRCNNDistill", "only RetinaNets are taught"),
        ("student", "  OUTPUTS", "DISTILL: {GID: {GI_MODE: ALL}}\n#", "belongs in the file of --distill, not in a "
         "student's file"),
        ("student", "WEIGHTS: detectron2://ImageNetPretrained/MSRA/R-50.pkl", "WEIGHTS: model_final.pth",
         "is not here; pass the file as --checkpoint"),
        ("student", "base.yaml", "bas.yaml", "cannot be read (No such file or directory), _BASE_ of"),
        ("run", "BASE_LR: 0.01", "BASE_LR: 1" + "0" * 400, "SOLVER.BASE_LR: takes a number, and that is too much"),
        ("run", "MAX_ITER: 180000", "MAX_ITER: 1" + "0" * 400, "SOLVER.MAX_ITER: cannot be 1000"),
        ("run", "config/teacher.yaml", "~nobody-is-so/x.yaml", "run.yaml:8: DISTILL.TEACHER_YAML: "
         "'~nobody-is-so/x.yaml' is no path on this machine"),
        ("run", "config/teacher.yaml", "t" * 300, "DISTILL.TEACHER_YAML: there is no file ttt"),
        ("teacher", "../r101/model_final.pth", "~nobody-is-so/x.pth", "WEIGHTS: '~nobody-is-so/x.pth' is no path"),
        ("student", "_BASE_: base.yaml", r'_BASE_: "a\0b"', r"_BASE_: 'a\x00b' is no path on this machine"),
        ("student", "base.yaml", "~nobody-is-so/x.yaml", "student.yaml:2: _BASE_: '~nobody-is-so/x.yaml' is no path"),
        ("student", "base.yaml", "student.yaml", "student.yaml:2: _BASE_ student.yaml goes round in a circle"),
        ("student", "_BASE_: base.yaml", "_BASE_: [base.yaml]", "_BASE_ takes the path of one file"),
        ("student", "_BASE_: base.yaml", "_BASE_: https://host/base.yaml", "_BASE_ takes the path of one file"),
        ("base", "x in [32, 64", "x in [16, 64", "base.yaml:7: has the tag tag:yaml.org,2002:python/object/apply:eval"),
        ("base", '"[[x, x', '"exit() or [[x, x', "names no plain value"),
        ("base", "RetinaNetDistill", "!!python/object/apply:os.system [ls]", "names no plain value"),
        ("teacher", "../r101/model_final.pth", "../r50/model_final.pth", "teacher.yaml:4: MODEL.WEIGHTS: "
         "../r50/model_final.pth is not here; pass --teacher FILE"),
        ("teacher", "DEPTH: 101", "DEPTH: 101, NUM_GROUPS: 32", "the body is a plain ResNet"),
    ],
)  # fmt: skip
def test_what_cannot_be_obeyed_is_refused_in_a_line(folder: Path, role: str, old: str, new: str, expected: str) -> None:
    assert expected in complaint(lambda: started(changed(folder, role, old, new)))


def test_a_link_to_itself_and_a_long_chain_of_bases_are_refused(folder: Path) -> None:
    (folder / "loop.yaml").symlink_to("loop.yaml")
    said = complaint(lambda: changed(folder, "student", "_BASE_: base.yaml", "_BASE_: loop.yaml"))
    assert "loop.yaml: cannot be read" in said
    for place in range(12):
        (folder / f"chain{place}.yaml").write_text(f"_BASE_: chain{place + 1}.yaml\n")
    said = complaint(lambda: changed(folder, "student", "loop.yaml", "chain0.yaml"))
    assert "_BASE_: more than 10 files lie on another" in said and "circle" not in said
