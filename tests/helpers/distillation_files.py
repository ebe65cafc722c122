"""Configurations of Distill_GID_detectron2 for tests, small and laid out as there, and what is asked of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssd.distillation.detectron2_config.files import Files, read_files
from ssd.distillation.detectron2_config.translate import Start, start_of
from ssd.errors import InputError

# As such files are laid out: the nested ones are named from the folder above, and are based on one beside them.
RUN = """
MODEL: {META_ARCHITECTURE: DistillGID}
INPUT:
  MIN_SIZE_TRAIN: (800,)
DATASETS:
  TRAIN: ("coco_2017_train",)
DISTILL:
  TEACHER_YAML: config/teacher.yaml
  STUDENT_YAML: config/student.yaml
  GID: {GI_MODE: ALL, IOU_THRESHOLDS: [0.4, 0.5]}
  LOSS:
    FEATURE: {WEIGHT: 0.0005}
    RESPONSE_REG: {MODE: L1, SMOOTH_L1_BETA: 0.1, WEIGHT: 1.0}
SOLVER: {IMS_PER_BATCH: 16, BASE_LR: 0.01, STEPS: "(120000, 160000)", MAX_ITER: 180000}
OUTPUT_DIR: output_r50
"""
BASE = """
MODEL:
  META_ARCHITECTURE: RetinaNetDistill
  BACKBONE: {NAME: build_retinanet_resnet_fpn_backbone_distill}
  RESNETS: {OUT_FEATURES: [res3, res4, res5], DEPTH: 50}
  ANCHOR_GENERATOR:
    SIZES: !!python/object/apply:eval ["[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]"]
  RETINANET: {SMOOTH_L1_LOSS_BETA: 0.0}
SOLVER: {MAX_ITER: 90000}
"""
STUDENT = """
_BASE_: base.yaml
MODEL:
  WEIGHTS: detectron2://ImageNetPretrained/MSRA/R-50.pkl
  RETINANET: {SMOOTH_L1_LOSS_BETA: 0.1}
  OUTPUTS: [images, p3]
"""
TEACHER = """
_BASE_: base.yaml
MODEL:
  WEIGHTS: ../r101/model_final.pth
  RESNETS: {DEPTH: 101}
"""
L1SMO = "Distill_RetinaNet_T_Res101_S_Res50_2x_L1Smo"


def written(tmp_path: Path) -> Path:
    """Of the run's file, config/run.yaml in what stands for the folder that commands run in."""
    config = tmp_path / "GID" / "config"
    config.mkdir(parents=True)
    for name, text in (("run", RUN), ("base", BASE), ("student", STUDENT), ("teacher", TEACHER)):
        (config / f"{name}.yaml").write_text(text)
    (tmp_path / "r101").mkdir()
    (tmp_path / "r101" / "model_final.pth").write_bytes(b"")
    return config


def read(folder: Path) -> Files:
    return read_files(str(folder / "run.yaml"))


def started(files: Files, *given: str, batch_size: int | None = None, world_size: int = 8) -> Start:
    return start_of(files, given, batch_size, world_size)


def changed(folder: Path, role: str, *replaced: str) -> Files:
    """With texts of a file replaced: old, new, old, new."""
    file = folder / f"{role}.yaml"
    text = file.read_text()
    for old, new in zip(replaced[::2], replaced[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    return read(folder)


def complaint(call: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)
