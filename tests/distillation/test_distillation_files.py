"""Configurations of Distill_GID_detectron2: what each key becomes, and the six by name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from distillation_files import L1SMO, RUN, changed, complaint, read, started, written

from ssd.cli.train import train_parser
from ssd.config import Config
from ssd.detectors.detectron.config.key import ELSEWHERE, FIXED, OBEYED
from ssd.detectors.retinanet.settings import RetinaNetSettings
from ssd.detectors.ssd300.settings import SSD300Settings
from ssd.distillation.detectron2_config.files import Files, read_files
from ssd.distillation.detectron2_config.keys import ROLES, SECTIONS
from ssd.distillation.detectron2_config.shipped import NAMES
from ssd.distillation.detectron2_config.translate import (
    require_student,
    require_teacher,
    said_of_student,
)
from ssd.distillation.settings import GID, settings_of
from ssd.errors import InputError
from ssd.options.detectors import for_detector
from ssd.options.distillation import files_in, named_student, start_with
from ssd.options.flags import config_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path)


# --- what becomes of it ---


def test_a_file_is_a_student_a_run_and_a_way_to_learn(folder: Path) -> None:
    config = started(read(folder)).config
    assert config.detector == RetinaNetSettings(
        "retinanet_r50_fpn", norm=None, stride_in=None, trainable_layers=None, smooth_l1_beta=0.1
    )
    assert Path(config.teacher or "").samefile(folder.parents[1] / "r101" / "model_final.pth")
    assert config.distill == ("gid",)
    assert settings_of("gid", config.distill_settings) == GID(variant="seed", adapter=True, box_beta=0.1)
    # 8 ranks of 2 images; the rate is for 32 images here.
    assert (config.batch_size, config.learning_rate, config.steps) == (2, 0.02, 180_000)
    assert (config.multistep, config.multistep_factors) == ((120_000, 160_000), ())
    assert (config.warmup, config.warmup_factor, config.checkpoint_every) == (1000, 0.001, (5000, "steps"))
    assert (config.weight_decay, config.bias_decay, config.norm_decay) == (1e-4, 1e-4, 0.0)
    assert (config.output, config.evaluation, config.seed) == ("output_r50", (), None)


def test_at_another_batch_the_run_is_as_many_images(folder: Path) -> None:
    config = started(read(folder), batch_size=4, world_size=1).config
    assert (config.batch_size, config.steps, config.multistep) == (4, 720_000, (480_000, 640_000))
    assert (config.warmup, config.learning_rate) == (4000, 0.02)
    assert started(read(folder), world_size=1).config.batch_size == 16


def test_what_is_not_stated_is_as_there(folder: Path) -> None:
    """detectron2's defaults: a feature weight ten times that of the six files, boxes a tenth, thresholds .3 and .7."""
    files = changed(
        folder, "run", "IOU_THRESHOLDS: [0.4, 0.5]", "GI_NMS_THRESH: 0.3", "WEIGHT: 0.0005", "MODE: L2",
        "SMOOTH_L1_BETA: 0.1, WEIGHT: 1.0", "SMOOTH_L1_BETA: 0.0", "SOLVER: {", "SOLVER: {WARMUP_ITERS: 0, ",
    )  # fmt: skip
    config = started(files).config
    expected = GID(variant="seed", adapter=True, feature_weight=0.005, box_weight=0.1, shares=(0.3, 0.7))
    assert settings_of("gid", config.distill_settings) == expected
    assert (config.warmup, config.warmup_factor) == (0, None)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("GI_MODE: ALL", "GI_MODE: semi_pos", {"instances": "semi_pos"}),
        ("GI_MODE: ALL", "GI_NMS_THRESH: 0.6", {"nms_iou": 0.6}),
        ("GI_MODE: ALL", "GI_PRE_NMS_TOPK: 500", {"before_nms": 500}),
        ("GI_MODE: ALL", "GI_POST_NMS_TOPK: 7", {"count": 7}),
        ("[0.4, 0.5]", "[0.2, 0.6]", {"shares": (0.2, 0.6)}),
        ("GI_MODE: ALL", "ROI: {POOLER_RESOLUTION: 7, POOLER_SAMPLING_RATIO: 0}", {"cells": 7, "samples": 0}),
        ("GI_MODE: ALL", "ADAPTER: {TE_NAMES: [], ST_NAMES: []}", {"adapter": None}),
        ("GI_MODE: ALL", "ADAPTER: {SHARE_WEIGHTS: False, KERNEL_SIZE: 1}",
         {"shares_adapter": False, "adapter_kernel": 1}),
        ("WEIGHT: 0.0005", "WEIGHT: 0", {"feature_weight": 0.0}),
        ("LOSS:", "LOSS:\n    RELATION: {WEIGHT: 20, SMOOTH_L1_BETA: 0.5}",
         {"relation_weight": 20.0, "relation_beta": 0.5}),
        ("LOSS:", "LOSS:\n    RESPONSE_CLS: {WEIGHT: 0.3}", {"class_weight": 0.3}),
        ("WEIGHT: 1.0", "WEIGHT: 2", {"box_weight": 2.0}),
    ],
)  # fmt: skip
def test_keys_of_distillation_are_settings_of_gid(folder: Path, old: str, new: str, expected: dict[str, Any]) -> None:
    config = started(changed(folder, "run", old, new)).config
    usual = GID(variant="seed", adapter=True, box_beta=0.1)
    assert settings_of("gid", config.distill_settings) == replace(usual, **expected)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ({"BASE_LR": 0.02}, {"learning_rate": 0.04}),
        ({"MOMENTUM": 0.8}, {"momentum": 0.8}),
        ({"WEIGHT_DECAY": 0.01, "WEIGHT_DECAY_NORM": 0.02, "WEIGHT_DECAY_BIAS": 0.03},
         {"weight_decay": 0.01, "norm_decay": 0.02, "bias_decay": 0.03}),
        ({"BIAS_LR_FACTOR": 2.0}, {"bias_rate": 2.0}),
        ({"GAMMA": 0.2}, {"multistep_factors": (0.2, 0.2)}),
        ({"STEPS": [120_000, 200_000]}, {"multistep": (120_000,)}),
        ({"STEPS": []}, {"multistep": ()}),
        ({"WARMUP_ITERS": 10, "WARMUP_FACTOR": 0.5}, {"warmup": 10, "warmup_factor": 0.5}),
        ({"CHECKPOINT_PERIOD": 9}, {"checkpoint_every": (9, "steps")}),
        ({"AMP": {"ENABLED": True}}, {"fp16": True}),
    ],
    ids=str,
)  # fmt: skip
def test_keys_of_the_solver_are_flags(folder: Path, key: dict[str, Any], expected: dict[str, Any]) -> None:
    stated = {"IMS_PER_BATCH": 16, "BASE_LR": 0.01, "STEPS": [120_000, 160_000], "MAX_ITER": 180_000}
    before = started(read(folder)).config
    line = next(line for line in RUN.splitlines() if line.startswith("SOLVER"))
    files = changed(folder, "run", line, f"SOLVER: {yaml.safe_dump(stated | key, default_flow_style=True).strip()}")
    assert started(files).config == replace(before, **expected)


def test_other_keys_of_the_run_are_flags(folder: Path) -> None:
    files = changed(
        folder, "run", "MIN_SIZE_TRAIN: (800,)", "MIN_SIZE_TRAIN: (600, 480, 640)\n  MIN_SIZE_TEST: 480\n"
        "  MAX_SIZE_TRAIN: 900\n  MAX_SIZE_TEST: 900",
        "OUTPUT_DIR: output_r50", "SEED: 5\nDATALOADER: {NUM_WORKERS: 3}\nTEST: {EVAL_PERIOD: 60000}",
    )  # fmt: skip
    config = started(files).config
    # Evaluation takes the last.
    assert config.detector.short_sides_px == (600, 640, 480) and config.detector.long_side_px == 900
    assert (config.output, config.seed, config.num_workers, config.evaluation) == (None, 5, 3, (60_000, 120_000))


def test_keys_of_the_student_are_settings_of_it_and_of_detections(folder: Path) -> None:
    (folder / "student.yaml").write_text(
        "_BASE_: base.yaml\nMODEL:\n  WEIGHTS: ''\n  BACKBONE: {FREEZE_AT: 1}\n"
        "  RESNETS: {DEPTH: 18, NORM: BN, STRIDE_IN_1X1: False, RES2_OUT_CHANNELS: 64}\n"
        "  RETINANET: {SCORE_THRESH_TEST: 0.01, NMS_THRESH_TEST: 0.6}\nTEST: {DETECTIONS_PER_IMAGE: 300}\n"
    )
    config = started(read(folder)).config
    expected = RetinaNetSettings("retinanet_r18_fpn", norm="batch", stride_in="3x3", trainable_layers=4)
    assert config.detector == expected and config.backbone_weights == "none"
    assert (config.score_threshold, config.nms_iou, config.max_per_image) == (0.01, 0.6, 300)


def test_the_weights_of_a_student_may_be_a_body_a_detector_or_elsewhere(folder: Path) -> None:
    told = started(read(folder))
    assert told.config.backbone_weights == "imagenet" and "torchvision's ImageNet weights" in " ".join(told.notes)
    given = started(read(folder), "backbone_weights")
    assert "torchvision's" not in " ".join(given.notes)
    for name, setting in (("R-50.pkl", "backbone_weights"), ("model_0004999.pth", "checkpoint")):
        (folder.parent / name).write_bytes(b"")
        files = changed(folder, "student", "WEIGHTS: " + yaml.safe_load(text_of(folder, "student"))["MODEL"]["WEIGHTS"],
                        f"WEIGHTS: {name}")  # fmt: skip
        assert Path(getattr(started(files).config, setting)).samefile(folder.parent / name)


def text_of(folder: Path, role: str) -> str:
    return (folder / f"{role}.yaml").read_text()


def test_what_decides_nothing_is_told_and_nothing_else(folder: Path) -> None:
    notes = started(read(folder), "backbone_weights").notes
    (run,) = [note for note in notes if note.startswith(f"{folder / 'run.yaml'}: DATASETS")]
    assert run == (
        f"{folder / 'run.yaml'}: DATASETS.TRAIN: not obeyed: --data names the folder, and its splits are found by "
        "their names or --train-split and --val-split"
    )
    assert any(
        note.startswith(str(folder)) and "SOLVER.MAX_ITER: not obeyed: a run is told by" in note for note in notes
    )
    assert any("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA: not obeyed: nothing of the teacher" in note for note in notes)
    assert any("gid.adapter=false" in note for note in notes)
    assert len(notes) == 6  # OUTPUTS, and the training of the student's file and of the teacher's
    told = " ".join(notes)
    assert all(key not in told for key in ("IMS_PER_BATCH", "GI_MODE", "META_ARCHITECTURE", "DEPTH", "WEIGHTS"))


@pytest.mark.parametrize("name", NAMES)
def test_the_six_are_known_by_name(name: str) -> None:
    config = started(read_files(name), "teacher").config
    is_smooth, is_augmented = "L1Smo" in name, "L1_aug_T" in name
    assert config.detector.smooth_l1_beta == (0.1 if is_smooth else 0.0)
    assert config.detector.short_sides_px == ((640, 672, 704, 736, 768, 800) if is_augmented else (800,))
    words = ("gid.variant=seed", "gid.adapter=true", *(("gid.box_beta=0.1",) if is_smooth else ()))
    assert config.distill_settings == words and config.steps == 180_000
    assert "pass --teacher FILE too: a RetinaNet-R101" in complaint(lambda: started(read_files(name)))


def test_a_name_says_what_its_file_says(folder: Path) -> None:
    """The texts above are those of this one."""
    one, other = (started(read_files(name), "teacher").config for name in (L1SMO, str(folder / "run.yaml")))
    assert replace(one, output="output_r50") == other


# --- the command line ---


def options_of(*arguments: str) -> tuple[dict[str, Any], Files]:
    files = files_in(arguments)
    assert files is not None
    options = vars(train_parser(named_student(files)).parse_args(["--data", "x", *arguments]))
    del options["recipe"], options["local_rank"]
    return options, files


def config_from(*arguments: str) -> Config:
    options, files = options_of(*arguments)
    base, _ = start_with(files, options, None, 8)
    return config_of(options, base)


def test_flags_overrule_a_file_and_other_methods_add_to_it(folder: Path) -> None:
    run = str(folder / "run.yaml")
    config = config_from(
        *("--distill", run, "pkd", "--teacher", "t.pt", "--lr", "0.5", "--min-size", "64", "--output", "here"),
        *("--distill-settings", "gid.count=3", "pkd.weight=2", "gid.box_beta=0"),
    )
    assert (config.distill, config.teacher) == (("gid", "pkd"), "t.pt")
    assert settings_of("gid", config.distill_settings) == GID(variant="seed", adapter=True, count=3)
    assert (config.learning_rate, config.output, config.detector.short_sides_px) == (0.5, "here", (64,))
    # What its weights decide: torchvision's have the stride in the 3x3.
    assert (config.detector.stride_in, config.detector.norm, config.detector.trainable_layers) == ("3x3", "frozen", 3)


def test_flags_make_room_for_themselves(folder: Path) -> None:
    line = next(line for line in RUN.splitlines() if line.startswith("SOLVER"))
    changed(folder, "run", line, line.replace("{", "{GAMMA: 0.2, "), "OUTPUT_DIR", "TEST: {EVAL_PERIOD: 60000}\n#")
    run = ("--distill", str(folder / "run.yaml"))
    in_epochs = config_from(*run, "--epochs", "24")
    assert (in_epochs.steps, in_epochs.epochs, in_epochs.multistep) == (None, 24, (16, 21))
    assert (in_epochs.multistep_factors, in_epochs.evaluation) == ((0.2, 0.2), (8, 16))
    assert config_from(*run, "--epochs", "3").multistep == (2,)  # the second lies at the end
    assert config_from(*run, "--warmup", "0").warmup_factor is None
    assert config_from(*run, "--warmup", "7").warmup_factor == 0.001
    assert config_from(*run, "--warmup-power", "2").warmup_factor is None
    assert config_from(*run, "--multistep", "2").multistep_factors == (0.2,)
    assert config_from(*run, "--multistep", "2", "--multistep-factors", "0.5").multistep_factors == (0.5,)
    with pytest.raises(InputError, match="--steps and --epochs"):
        config_from(*run, "--epochs", "3", "--steps", "9")
    with pytest.raises(InputError, match="--warmup-factor says nothing"):
        config_from(*run, "--warmup", "0", "--warmup-factor", "0.5")


def test_a_file_says_of_a_checkpoint_too_what_the_defaults_are(folder: Path) -> None:
    options, files = options_of("--distill", str(folder / "run.yaml"))
    base, _ = start_with(files, options, None, 8)
    config = config_of(options, base)
    held = RetinaNetSettings(
        "retinanet_r50_fpn", norm="batch", stride_in="1x1", smooth_l1_beta=0.5, short_sides_px=(64,), long_side_px=99
    )
    found = for_detector(held, config, said_of_student(files)).detector
    # What the student's file does not state stays the checkpoint's.
    expected = replace(held, smooth_l1_beta=0.1, short_sides_px=(800,), long_side_px=1333)
    assert found == expected
    stating = changed(folder, "student", "OUTPUTS: [images, p3]", "RESNETS: {NORM: FrozenBN}")
    assert said_of_student(stating) == {"smooth_l1_beta", "short_sides_px", "long_side_px", "norm"}
    said = complaint(lambda: require_student(files, "s.pt", RetinaNetSettings("retinanet_r18_fpn")))
    assert said == (
        f"--checkpoint s.pt: holds a retinanet_r18_fpn; the student of --distill {folder / 'run.yaml'} is a "
        "retinanet_r50_fpn; pass one of it"
    )


def test_no_file_is_read_where_none_is_named() -> None:
    assert files_in(["--distill", "pkd", "gid", "--data", "x"]) is None and files_in([]) is None


def test_mistakes_in_flags(folder: Path, refusal: Callable[..., str]) -> None:
    run = str(folder / "run.yaml")
    bare = changed(folder, "teacher", "WEIGHTS: ../r101/model_final.pth", "WEIGHTS: ''")
    assert "a RetinaNet-R101, the teacher of detectron2 or one trained here" in complaint(lambda: started(bare))
    assert "names two configurations" in refusal("--data", "x", "--distill", run, L1SMO)
    assert "the student is that of" in refusal("--data", "x", "--distill", run, "--detector", "retinanet_r50_fpn")
    assert "the run is that of" in refusal("--data", "x", "--distill", run, "--recipe", "demo")
    assert "gid: the file is gid with its settings; leave gid out" in refusal("--data", "x", "--distill", run, "gid")
    assert "pass the file that has DISTILL.STUDENT_YAML" in refusal(
        "--data", "x", "--distill", str(folder / "student.yaml")
    )
    (folder / "run.YAML").write_text("A: 1\n")
    assert "run.YAML:1: there is no key A" in refusal("--data", "x", "--distill", str(folder / "run.YAML"))
    assert "did you mean pkd?" in refusal("--data", "x", "--distill", "pdk")
    said = refusal("--data", "x", "--distill", L1SMO.replace("_2x", "_1x"))
    assert f"did you mean {L1SMO}?" in said
    assert f"pass {L1SMO}, which is known by name" in refusal("--data", "x", "--distill", f"config/{L1SMO}.yaml")
    assert "cannot be read" in refusal("--data", "x", "--distill", "none.yaml")
    recipe = folder / "own.toml"
    recipe.write_text(f'teacher = "t.pt"\ndistill = ["{L1SMO}"]\n')
    assert "a recipe names methods" in refusal("--data", "x", "--recipe", str(recipe))


def test_another_teacher_than_the_files_is_refused(folder: Path) -> None:
    files = changed(folder, "teacher", "DEPTH: 101", "DEPTH: 101, STRIDE_IN_1X1: True")
    require_teacher(files, "t.pt", RetinaNetSettings("retinanet_r101_fpn_1x"))
    said = complaint(lambda: require_teacher(files, "t.pt", RetinaNetSettings("retinanet_r50_fpn")))
    assert said == (
        f"{folder / 'teacher.yaml'}:5: MODEL.RESNETS.DEPTH: --teacher t.pt is a retinanet_r50_fpn, not a "
        "retinanet_r101_fpn"
    )
    other = RetinaNetSettings("retinanet_r101_fpn", stride_in="3x3")
    assert "has its strides in the 3x3" in complaint(lambda: require_teacher(files, "t.pt", other))
    assert "is a ssd300" in complaint(lambda: require_teacher(files, "t.pt", SSD300Settings()))


def test_every_key_says_what_becomes_of_it() -> None:
    for role, keys in ROLES.items():
        for name, key in keys.items():
            assert key.fate in (OBEYED, FIXED, ELSEWHERE) and key.text, (role, name)
            assert name not in SECTIONS
    assert len(ROLES["run"]) == 220 and "DISTILL.GID.GI_MODE" not in ROLES["student"]
