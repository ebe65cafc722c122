"""Detectron's configurations as runs: batch, rate, steps, warm-up, and what --set and another batch change of them."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ssd.cli.train import train_parser
from ssd.config import Config
from ssd.detectors.detectron.config.configuration import Configuration, of_values, overlaid
from ssd.detectors.detectron.config.key import OBEYED
from ssd.detectors.detectron.config.keys import KEYS
from ssd.detectors.detectron.config.naming import settings_named, title_of
from ssd.detectors.detectron.config.recipes import defaults, detectron
from ssd.detectors.detectron.config.shipped import NAMES, configurations
from ssd.detectors.detectron.config.testing import suppression_of, tta_of
from ssd.detectors.detectron.config.translate import settings_of
from ssd.distributed import Ranks
from ssd.errors import InputError
from ssd.options.detectors import detector_in, for_detector, set_in
from ssd.options.flags import config_of
from ssd.options.recipes import base_of
from ssd.schedule import lr_at, plan_of, warmup_of
from ssd.training.resume import _differs, data_identity

FASTER = "e2e_faster_rcnn_R-50-FPN_1x"


def run_config(*words: str, world_size: int = 1) -> Config:
    """The settings that `main.py --data DIR <words>` trains with on so many ranks."""
    arguments = ["--data", "DIR", *words]
    settings = detector_in(arguments)
    parser = train_parser(settings)
    options = vars(parser.parse_args(arguments))
    options.pop("local_rank")
    recipe = options.pop("recipe")
    return config_of(options, base_of(recipe, parser, settings, options.get("batch_size"), world_size))


def rate_at(step: int, config: Config, world_size: int = 1) -> float:
    return lr_at(
        step,
        base_lr=config.learning_rate,
        global_batch_size=config.batch_size * world_size,
        warmup=warmup_of(config),
        falls=plan_of(config, 1).falls,
        cosine_steps=config.steps if config.schedule == "cosine" else None,
    )


# --- a second writing of Detectron's rules ---


def detectrons_rate(step: int, solver: dict[str, Any]) -> float:
    """lr_policy.get_lr_at_iter, without numpy's float32."""
    policy = solver["LR_POLICY"]
    if policy == "step":
        rate = solver["BASE_LR"] * solver["GAMMA"] ** (step // solver["STEP_SIZE"])
    elif policy == "cosine_decay":
        rate = solver["BASE_LR"] * 0.5 * (math.cos(math.pi * step / solver["MAX_ITER"]) + 1)
    else:
        index = max(place for place, start in enumerate(solver["STEPS"]) if start <= step)
        is_listed = policy == "steps_with_lrs"
        rate = solver["LRS"][index] if is_listed else solver["BASE_LR"] * solver["GAMMA"] ** index
    if step < solver["WARM_UP_ITERS"]:
        way = step / solver["WARM_UP_ITERS"]
        rate *= solver["WARM_UP_FACTOR"] * (1 - way) + way
    return float(rate)


SOLVERS = [
    {"LR_POLICY": "steps_with_decay", "STEPS": [0, 600, 800], "MAX_ITER": 900, "BASE_LR": 0.02, "GAMMA": 0.1},
    {"LR_POLICY": "steps_with_decay", "STEPS": [0, 100], "MAX_ITER": 300, "WARM_UP_ITERS": 0, "GAMMA": 0.5},
    {"LR_POLICY": "step", "STEP_SIZE": 250, "MAX_ITER": 900, "GAMMA": 0.3, "WARM_UP_FACTOR": 0.1},
    {"LR_POLICY": "steps_with_lrs", "STEPS": [0, 60, 90], "LRS": [0.01, 0.02, 0.0005], "MAX_ITER": 120},
    {"LR_POLICY": "cosine_decay", "MAX_ITER": 500, "WARM_UP_ITERS": 0},
]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver["LR_POLICY"])
def test_the_rate_is_detectrons_at_every_step(solver: dict[str, Any]) -> None:
    config = of_values("x", {**configurations()[FASTER].given, **{f"SOLVER.{k}": v for k, v in solver.items()}})
    config = overlaid(config, ["SOLVER.STEPS", "[]"]) if "STEPS" not in solver else config
    run = defaults(settings_of(config))
    whole = {name.removeprefix("SOLVER."): config[name] for name in KEYS if name.startswith("SOLVER.")}
    assert run.steps == solver["MAX_ITER"]
    for step in range(run.steps):
        assert rate_at(step, run) == pytest.approx(detectrons_rate(step, whole), rel=1e-12)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "SOLVER.LR_POLICY step SOLVER.STEPS [] SOLVER.STEP_SIZE 1 SOLVER.MAX_ITER 1000000000",
            "SOLVER.STEP_SIZE: 1 lets the rate fall more than 1000 times in 1000000000",
        ),
        ("SOLVER.LR_POLICY exp_decay", "SOLVER.LR_POLICY: cannot be 'exp_decay': is none of step, steps_with_decay"),
        ("SOLVER.LR_POLICY step", "SOLVER.STEPS: says nothing with LR_POLICY step; set LR_POLICY steps_with_decay"),
        ("SOLVER.LR_POLICY cosine_decay", "cosine_decay begins after the warm-up here; set SOLVER.WARM_UP_ITERS 0"),
        ("SOLVER.STEPS [5,9]", r"SOLVER.STEPS: has to begin with 0 and to rise, as Detectron's does, not \[5, 9\]"),
        ("SOLVER.STEPS [0,9,3]", "SOLVER.STEPS: has to begin with 0 and to rise"),
        ("SOLVER.LR_POLICY steps_with_lrs", "SOLVER.LRS: has to have a rate above 0 for each of the 3 SOLVER.STEPS"),
        ("SOLVER.WARM_UP_METHOD constant", "SOLVER.WARM_UP_METHOD: cannot be 'constant': a rate that rises at once"),
        ("SOLVER.TYPE Adam", "SOLVER.TYPE: cannot be 'Adam': the optimiser is SGD"),
    ],
)
def test_a_rate_that_cannot_be_is_refused(words: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        run_config("--detector", FASTER, "--set", *words.split())
    assert "\n" not in str(error.value)


# --- batches ---


def test_the_shipped_schedules_are_those_of_the_paper() -> None:
    """16 images at 0.02, or 8 at 0.01; a tenth at 60,000 and 80,000 of 90,000, and at multiples of these."""
    lengths = {"1x": 1.0, "2x": 2.0, "3x": 3.0, "s1x": 130 / 90, "1.44x": 1.44}
    for name in NAMES:
        if name.startswith("tutorial"):
            continue
        run = defaults(settings_named(name))
        of_8 = ("C4" in name or "X-1" in name) and "keypoint" not in name and not name.startswith("rpn")
        batch = 8 if of_8 else 16
        assert (run.batch_size, run.accumulate) == (batch, 8)
        assert rate_at(1000, run) == pytest.approx(0.02 * batch / 16)
        length = lengths[name.removesuffix("_gn").rpartition("_")[2]]
        assert run.steps == pytest.approx(90_000 * 16 / batch * length, rel=0.004)
        assert (run.weight_decay, run.momentum, run.warmup, run.warmup_factor) == (1e-4, 0.9, 500, 1 / 3)
        assert (run.bias_rate, run.bias_decay, run.norm_decay) == (2.0, 0.0, 0.0)
        is_rpn = name.startswith("rpn")
        assert (run.score_threshold, run.max_per_image, run.eval_batch_size) == (0.0 if is_rpn else 0.05, 100, 1)
        assert run.metrics[0] == ("recall" if is_rpn else "coco")
        assert run.nms_iou == (0.3 if is_rpn else 0.5)
        assert run.backbone_weights == ("none" if name.startswith("scratch") else "imagenet")


@pytest.mark.parametrize(("gpus", "steps", "rate"), [(1, 60_000, 0.0025), (2, 30_000, 0.005), (8, 7_500, 0.02)])
def test_the_tutorials_see_as_many_images(gpus: int, steps: int, rate: float) -> None:
    run = defaults(settings_named(f"tutorial_{gpus}gpu_{FASTER.removesuffix('_1x')}"))
    assert (run.steps, run.batch_size, run.accumulate) == (steps, 2 * gpus, gpus)
    assert run.multistep == (steps // 2, steps * 2 // 3)
    assert rate_at(1000, run) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("flags", "world_size", "batch", "accumulate", "steps", "rate"),
    [
        ("", 1, 16, 8, 90_000, 0.02),
        ("", 2, 8, 4, 90_000, 0.02),
        ("", 8, 2, 1, 90_000, 0.02),
        ("", 3, 2, 1, 240_000, 0.0075),  # 16 images cannot be shared among 3 ranks, so each has Detectron's 2
        ("", 16, 2, 1, 45_000, 0.04),
        ("--batch-size 4", 1, 4, 1, 360_000, 0.005),
        ("--batch-size 4 --accumulate 4", 1, 4, 4, 360_000, 0.005),  # --bs 1 --iter_size 4
        ("--batch-size 3", 1, 3, 1, 480_000, 0.00375),
        ("--batch-size 1 --steps 7", 1, 1, 1, 7, 0.00125),
        ("--batch-size 7", 1, 7, 1, 205_714, 0.00875),  # 90,000 x 16 / 7 is 205,714.29
    ],
)
def test_another_batch_has_its_rate_and_as_many_images(
    flags: str, world_size: int, batch: int, accumulate: int, steps: int, rate: float
) -> None:
    run = run_config("--detector", FASTER, *flags.split(), world_size=world_size)
    assert (run.batch_size, run.accumulate, run.steps) == (batch, accumulate, steps)
    assert rate_at(501, run, world_size) == pytest.approx(rate, rel=1e-12)
    if "--steps" not in flags:
        assert run.multistep == tuple(math.floor(step * 16 / (batch * world_size) + 0.5) for step in (60_000, 80_000))
    assert run.warmup == 500
    # An image keeps as many proposals whatever the batch.
    assert run.detector.rpn_collect_scale == pytest.approx(batch / accumulate / 2)


def test_a_batch_that_cannot_be_parted_is_refused() -> None:
    with pytest.raises(InputError, match="--accumulate 3: does not part a batch of 4 into equal parts of images"):
        run_config("--detector", FASTER, "--batch-size", "4", "--accumulate", "3")


def test_set_and_flags_overrule_in_this_order(tmp_path: Path) -> None:
    run = run_config("--detector", FASTER, "--set", "SOLVER.BASE_LR", "0.04", "TEST.NMS", "0.6", "--nms-iou", "0.4")
    assert rate_at(501, run) == pytest.approx(0.04) and run.nms_iou == 0.4
    assert run_config("--detector", FASTER, "--lr", "0.5").learning_rate == 0.5
    twice = ["--set", "TEST.NMS", "0.6", "--set", "TEST.NMS", "0.7"]
    assert run_config("--detector", FASTER, *twice).nms_iou == 0.7
    (tmp_path / "r.toml").write_text(f'detector = "{FASTER}"\nbatch_size = 8\n')
    assert run_config("--recipe", str(tmp_path / "r.toml")).steps == 180_000


def test_what_set_changes_is_known_by_name() -> None:
    """A checkpoint's own settings stay but for these."""
    assert set_in(["--detector", FASTER, "--set", "TRAIN.SCALES", "(640,)"]) == {"short_sides_px", "cfg"}
    assert set_in(["--detector", FASTER, "--set", "SOLVER.MAX_ITER", "9"]) == {"cfg"}
    assert set_in(["--detector", FASTER]) == set()


def test_a_file_of_weights_that_is_there_is_the_body(tmp_path: Path) -> None:
    file = tmp_path / "R-50.pkl"

    def source(*words: str) -> str:
        config = overlaid(configurations()[FASTER], words)
        return detectron(detector=settings_of(config)).backbone_weights

    assert source("TRAIN.WEIGHTS", "https://host/R-50.pkl") == "imagenet"
    assert source("RESNETS.IMAGENET_PRETRAINED_WEIGHTS", "data/resnet50_caffe.pth") == "imagenet"
    assert source("TRAIN.WEIGHTS", str(file)) == "imagenet"
    file.touch()
    assert source("TRAIN.WEIGHTS", str(file)) == str(file)
    assert source("TRAIN.WEIGHTS", "own.pkl") == "own.pkl"
    assert source("TRAIN.WEIGHTS", "") == "imagenet"
    assert source("TRAIN.WEIGHTS", "", "TRAIN.FREEZE_AT", "0") == "none"
    assert source("MODEL.LOAD_IMAGENET_PRETRAINED_WEIGHTS", "False") == "none"


# --- checkpoints ---


def test_a_checkpoint_is_trained_as_the_file_says_that_is_passed() -> None:
    """Its name may be another: Detectron's model_final.pkl goes on as an own file says."""
    of_file = replace(settings_named(FASTER), name="model_final", short_sides_px=(500,))
    given = {"detector", "batch_size"}
    config = run_config("--detector", FASTER, "--batch-size", "4", "--set", "SOLVER.MAX_ITER", "80000")
    again = for_detector(of_file, config, given)
    assert (again.detector.name, again.detector.short_sides_px, again.steps) == (FASTER, (800,), 320_000)
    with pytest.raises(InputError, match="--detector ssd300: the checkpoint holds a model_final"):
        for_detector(of_file, Config(), {"detector"})


def test_a_checkpoint_alone_says_how_it_is_trained() -> None:
    config = for_detector(settings_named(FASTER), Config(batch_size=4), {"batch_size"})
    assert (config.steps, config.batch_size, config.accumulate) == (360_000, 4, 1)
    assert config.detector.rpn_collect_scale == 2.0
    with pytest.raises(InputError, match="--epochs: this run's length is 90000 steps; pass --steps"):
        for_detector(settings_named(FASTER), Config(epochs=5), {"epochs"})
    says = {"steps", "epochs", "multistep", "multistep_factors"}
    of_recipe = for_detector(settings_named(FASTER), Config(steps=7, multistep=()), says)
    assert of_recipe.steps == 7  # a recipe says all settings, of which the one for epochs means nothing here
    with pytest.raises(InputError, match="--multistep-factors: 2 for 3 of --multistep"):
        for_detector(settings_named(FASTER), Config(multistep=(10, 20, 30)), {"multistep"})


@pytest.mark.parametrize(
    ("name", "title"),
    [
        (FASTER, "Faster R-CNN R-50-FPN"),
        ("e2e_mask_rcnn_X-152-32x8d-FPN-IN5k_1.44x", "Mask R-CNN X-152-32x8d-FPN"),
        ("e2e_keypoint_rcnn_R-101-FPN_1x", "Keypoint R-CNN R-101-FPN"),
        ("e2e_mask_rcnn_R-50-FPN_2x_gn", "Mask R-CNN R-50-FPN GN"),
        ("rpn_R-50-C4_1x", "RPN R-50-C4"),
    ],
)
def test_a_title_says_what_is_built(name: str, title: str) -> None:
    assert title_of(settings_named(name)) == title


# --- every key that is said to be obeyed is ---

# Other values for keys whose type does not tell one that can be.
OTHERS: dict[str, tuple[Any, ...]] = {
    "MODEL.CONV_BODY": ("FPN.fpn_ResNet101_conv5_body",),
    "FAST_RCNN.ROI_BOX_HEAD": ("fast_rcnn_heads.roi_Xconv1fc_head",),
    "MRCNN.ROI_MASK_HEAD": ("mask_rcnn_heads.mask_rcnn_fcn_head_v1up",),
    "KRCNN.ROI_KEYPOINTS_HEAD": ("other",),
    "TRAIN.WEIGHTS": ("own.pkl",),
    "RESNETS.IMAGENET_PRETRAINED_WEIGHTS": ("own.pkl",),
    "SOLVER.STEPS": ([0, 5],),
    "SOLVER.LRS": ([0.1, 0.2, 0.3],),
    "TRAIN.SCALES": ((640,),),
    "TRAIN.MAX_SIZE": (1400,),
    "TEST.MAX_SIZE": (1400,),
    "PIXEL_MEANS": ((1.0, 2.0, 3.0),),
    "MODEL.BBOX_REG_WEIGHTS": ((1.0, 1.0, 1.0, 1.0),),
    "RPN.SIZES": ((16, 32),),
    "RPN.ASPECT_RATIOS": ((1.0,),),
    "FPN.RPN_ASPECT_RATIOS": ((1.0,),),
    **{f"TEST.{section}.SCALES": ((400, 600),) for section in ("BBOX_AUG", "MASK_AUG", "KPS_AUG")},
    **{f"TEST.{section}.ASPECT_RATIOS": ((0.5,),) for section in ("BBOX_AUG", "MASK_AUG", "KPS_AUG")},
}


def augmented(section: str) -> dict[str, Any]:
    """A configuration in which each key of a section of test-time augmentation decides something."""
    values = {"ENABLED": True, "SCALES": (500,), "ASPECT_RATIOS": (0.75,)}
    if section == "KPS_AUG":
        values["SCALE_SIZE_DEP"] = True
    return {f"TEST.{section}.{name}": value for name, value in values.items()}


def others(name: str, value: Any) -> tuple[Any, ...]:
    """Values that a key may have beside this one."""
    key = KEYS[name]
    if name in OTHERS:
        return OTHERS[name]
    if key.choices:
        return tuple(each for each in key.choices if each != value)
    numbers = (value + 1, 2 * value, value / 2, 3, 0.25)
    return (not value,) if isinstance(value, bool) else tuple({n for n in numbers if type(n) is type(value)} - {value})


def outcome(config: Configuration) -> Any:
    """All that comes of a configuration, but for its text; or what is said against it."""
    try:
        settings = settings_of(config)
        run = asdict(detectron(detector=settings))
    except InputError as error:
        return str(error)
    tested = tta_of(settings, False), suppression_of(settings)
    return {**run, "detector": asdict(replace(settings, cfg="")), "tested": tested}


BASES = ("e2e_mask_rcnn_R-50-FPN_1x", "e2e_keypoint_rcnn_R-50-FPN_1x", "e2e_mask_rcnn_R-50-C4_1x", FASTER)


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if key.fate == OBEYED])
def test_a_key_that_is_obeyed_changes_what_comes_of_it(name: str) -> None:
    """Or is refused where it contradicts another. None is passed over."""
    more: dict[str, dict[str, Any]] = {
        "KRCNN.DECONV_DIM": {"KRCNN.USE_DECONV": True, "KRCNN.HEATMAP_SIZE": 112},
        "FAST_RCNN.CONV_HEAD_DIM": {"FAST_RCNN.ROI_BOX_HEAD": "fast_rcnn_heads.roi_Xconv1fc_head"},
        "FAST_RCNN.NUM_STACKED_CONVS": {"FAST_RCNN.ROI_BOX_HEAD": "fast_rcnn_heads.roi_Xconv1fc_head"},
        "SOLVER.LRS": {"SOLVER.LR_POLICY": "steps_with_lrs", "SOLVER.LRS": [0.3, 0.2, 0.1]},
        "SOLVER.STEP_SIZE": {"SOLVER.LR_POLICY": "step", "SOLVER.STEPS": []},
        "RESNETS.USE_GN": {"RESNETS.USE_GN": False},
    }
    section = name.split(".")[1] if name.startswith("TEST.") else ""
    if section.endswith("_AUG") and not name.endswith(".ENABLED"):
        more[name] = augmented(section)
    elif section in ("SOFT_NMS", "BBOX_VOTE") and not name.endswith(".ENABLED"):
        more[name] = {f"TEST.{section}.ENABLED": True}
    changes = []
    for base in BASES[1:] if section == "KPS_AUG" else BASES:
        config = of_values("x", {**configurations()[base].given, **more.get(name, {})})
        before = outcome(config)
        if not config.is_on(KEYS[name].switch) or isinstance(before, str):
            continue
        for value in others(name, config[name]):
            try:
                after = outcome(of_values("x", {**config.given, name: value}))
            except InputError:
                continue
            changes.append(after != before)
        if changes:
            break
    assert changes and all(changes), (name, changes)


# --- runs from before a key was obeyed go on ---


def test_keys_of_tests_do_not_keep_a_run_from_going_on() -> None:
    settings = settings_named("e2e_mask_rcnn_X-152-32x8d-FPN-IN5k_1.44x")
    before = settings.cfg.replace("  BBOX_VOTE: {ENABLED: true, VOTE_TH: 0.9}\n", "")
    assert before != settings.cfg and not _differs("cfg", before, settings.cfg, settings)
    assert _differs("cfg", settings.cfg.replace("BASE_LR: 0.01", "BASE_LR: 0.02"), settings.cfg, settings)
    loader: Any = SimpleNamespace(identity={})
    now = data_identity(Config(detector=settings), "data", loader, Ranks(0, 0, 1, torch.device("cpu")))
    assert "rules" not in now  # which older checkpoints do not have
