"""One of Detectron's R-CNNs through the commands: training on masks, resuming, evaluation."""

import json
from pathlib import Path

import pytest
from runs import assert_equal_runs, last_of, log_of, write_small_data

import main

CONFIGURATION = """
MODEL:
  CONV_BODY: FPN.fpn_ResNet50_conv5_body
  FASTER_RCNN: True
  MASK_ON: True
  LOAD_IMAGENET_PRETRAINED_WEIGHTS: False
RESNETS:
  STRIDE_1X1: False
  TRANS_FUNC: bottleneck_gn_transformation
  STEM_FUNC: basic_gn_stem
  SHORTCUT_FUNC: basic_gn_shortcut
  FREEZE_AT: 0
  WIDTH_PER_GROUP: 8
GROUP_NORM: {NUM_GROUPS: 8}
FPN: {FPN_ON: True, MULTILEVEL_ROIS: True, MULTILEVEL_RPN: True, DIM: 16}
FAST_RCNN:
  ROI_BOX_HEAD: fast_rcnn_heads.roi_2mlp_head
  ROI_XFORM_METHOD: RoIAlign
  ROI_XFORM_RESOLUTION: 7
  ROI_XFORM_SAMPLING_RATIO: 2
  MLP_HEAD_DIM: 32
MRCNN:
  ROI_MASK_HEAD: mask_rcnn_heads.mask_rcnn_fcn_head_v1up4convs
  RESOLUTION: 28
  ROI_XFORM_METHOD: RoIAlign
  ROI_XFORM_RESOLUTION: 14
  ROI_XFORM_SAMPLING_RATIO: 2
  DILATION: 1
  DIM_REDUCED: 16
  CONV_INIT: MSRAFill
SOLVER: {BASE_LR: 0.001, LR_POLICY: steps_with_decay, STEPS: [0], MAX_ITER: 3, WARM_UP_ITERS: 0}
TRAIN:
  SCALES: (48, 64)
  MAX_SIZE: 64
  BATCH_SIZE_PER_IM: 16
  RPN_PRE_NMS_TOP_N: 100
  RPN_POST_NMS_TOP_N: 50
TEST: {SCALE: 64, MAX_SIZE: 64, RPN_PRE_NMS_TOP_N: 50, RPN_POST_NMS_TOP_N: 20}
"""
FLAGS = (
    "--bs 2 --clip-norm 10 --seed 3 --device cpu --num-workers 0 --log-interval 1 --no-plots --evaluation --steps 3 "
    "--score-threshold 0.01 --max-per-image 5"
).split()


def run(*arguments: object) -> None:
    assert main.main([str(argument) for argument in arguments]) == 0


@pytest.mark.slow
def test_a_run_is_the_same_on_both_data_paths_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """In the middle of an epoch of three steps, on the other path, which gives the CPU the same pixels."""
    data, file = write_small_data(tmp_path / "demo"), tmp_path / "tiny.yaml"
    file.write_text(CONFIGURATION)
    flags = ["--detector", file, "--data", data, *FLAGS]
    whole, other, again = tmp_path / "whole", tmp_path / "other", tmp_path / "again"
    paths = ["--checkpoint-every", "1 steps", "--keep-checkpoints", 9, "--data_pipeline"]
    run("train", *flags, *paths, "no_dali", "--output", whole)
    run("train", *flags, *paths, "dali", "--output", other)
    logged = [line for line in log_of(whole, "train") if "loss_mask_loss" in line]
    others = [line for line in log_of(other, "train") if "loss_mask_loss" in line]
    assert len(logged) == 3 and min(line["loss_mask_loss"] for line in logged) > 0
    for line, same in zip(logged, others, strict=True):
        for name in line:
            if name.endswith("_loss"):
                assert line[name] == pytest.approx(same[name], rel=1e-4), name
    run(
        "train",
        *flags,
        "--data_pipeline",
        "no_dali",
        "--output",
        again,
        "--resume",
        whole / "checkpoints" / "step-00000002.pt",
    )
    assert_equal_runs(last_of(whole), last_of(again))
    results = json.loads((whole / "results.json").read_text())
    judged = ["--data_pipeline", "no_dali", "--num-workers", 0, "--score-threshold", 0.01, "--max-per-image", 5]
    report = tmp_path / "judged.json"
    run(
        "evaluate",
        "--data",
        data,
        "--checkpoint",
        whole / "checkpoints" / "last.pt",
        "--device",
        "cpu",
        *judged,
        "--json",
        report,
    )
    assert json.loads(report.read_text())["segm_AP"] == pytest.approx(results["segm_AP"])
