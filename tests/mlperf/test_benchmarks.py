"""Which MLPerf benchmark a detector has, and the logs and recipes of Mask R-CNN's and RetinaNet's.

The logs are of the training loop on a toy model of two steps an epoch, with made-up APs.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlperf_logs import Killed, assert_passes, rewritten, story, toy_run, value_of
from runs import small_checkpoint, write_small_data

import main
from ssd.config import Config
from ssd.detectors.names import family_of, settings_named
from ssd.detectors.torchvision.names import settings_of
from ssd.errors import InputError
from ssd.mlperf.benchmarks import BENCHMARKS, MASK_RCNN, RETINANET, SSD, benchmark_of
from ssd.mlperf.checker import check
from ssd.mlperf.log import ComplianceLog, read_events
from ssd.options.flags import config_of
from ssd.training.resume import is_over

MASK_RCNNS = ("maskrcnn_resnet50_fpn", "e2e_mask_rcnn_R-50-FPN_1x")


def recipe(name: str, batch_size: int | None = None, world_size: int = 1) -> Config:
    """As the command line makes it of --recipe mlperf."""
    settings = settings_named(name)
    base = family_of(settings).recipes["mlperf"](batch_size, world_size, settings)
    return config_of({"mlperf": True, "mlperf_division": "closed", "seed": 7, "data": "DIR"}, base)


# --- which benchmark ---


@pytest.mark.parametrize(
    ("name", "benchmark"),
    [
        ("ssd300", SSD),
        ("retinanet_r50_fpn_1x", RETINANET),
        ("retinanet_resnext50_32x4d_fpn", RETINANET),
        ("maskrcnn_resnet50_fpn_v2", MASK_RCNN),
        ("e2e_mask_rcnn_R-50-C4_1x", MASK_RCNN),
    ],
)
def test_a_detectors_benchmark(name: str, benchmark: object) -> None:
    assert benchmark_of(Config(detector=settings_named(name))) is benchmark


@pytest.mark.parametrize(
    "name",
    [
        "fasterrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn", "fcos_resnet50_fpn", "ssd300_vgg16", "yolov2-voc",
        "e2e_faster_rcnn_R-50-FPN_1x", "e2e_keypoint_rcnn_R-50-FPN_1x",
    ],
)  # fmt: skip
def test_a_detector_without_a_benchmark_is_refused_and_not_called_ssd(
    name: str, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    assert f"--mlperf: MLPerf has no benchmark of {name}" in refusal("--data", "x", "--mlperf", "--detector", name)
    with pytest.raises(InputError, match="MLPerf has no benchmark of"):  # where a checkpoint says the detector
        ComplianceLog(tmp_path / "mlperf.log", Config(detector=settings_named(name), mlperf=True))
    assert not list(tmp_path.iterdir())


def test_a_recipe_for_a_detector_without_a_benchmark(refusal: Callable[..., str]) -> None:
    for name in ("fcos_resnet50_fpn", "e2e_faster_rcnn_R-50-FPN_1x"):
        said = refusal("--data", "x", "--recipe", "mlperf", "--detector", name)
        assert f"--recipe mlperf: MLPerf has no benchmark of {name}" in said


def test_the_qualities_are_those_that_the_recipes_train_to() -> None:
    for name in ("ssd300", "retinanet_r50_fpn_1x", "retinanet_resnet50_fpn", *MASK_RCNNS):
        settings = settings_named(name)
        config = family_of(settings).recipes["mlperf"](8, 8, settings)
        quality = benchmark_of(config).quality
        assert (config.target, config.target_masks) == (quality["AP"], quality.get("segm_AP"))
    assert {name: benchmark.name for name, benchmark in BENCHMARKS.items()} == {name: name for name in BENCHMARKS}


# --- Mask R-CNN ---

REACHED = {1: (0.3, 0.28), 1.5: (0.38, 0.338), 3: (0.378, 0.339), 4: (0.4, 0.4)}  # of boxes and masks


def in_little(config: Config) -> Config:
    """With a length and evaluations of the toy's, one of them within an epoch."""
    return replace(config, steps=8, evaluation=(2, 3, 6))


@pytest.mark.parametrize(("name", "candidates"), list(zip(MASK_RCNNS, (16_000, 8_000), strict=True)))
def test_a_closed_mask_rcnn_passes(name: str, candidates: int, tmp_path: Path) -> None:
    """It ends with the first evaluation that has reached both qualities."""
    log = toy_run(tmp_path, in_little(recipe(name, 8, 8)), REACHED)
    assert_passes(log, MASK_RCNN)
    expected = {
        "ruleset": "3.1.0",
        "submission_benchmark": "maskrcnn",
        "global_batch_size": 64,
        "opt_base_learning_rate": pytest.approx(0.08),
        "opt_learning_rate_warmup_steps": 800,
        "opt_learning_rate_warmup_factor": 1e-4,
        "opt_learning_rate_decay_factor": 0.1,
        "opt_learning_rate_decay_steps": [18_000, 24_000],
        "num_image_candidates": candidates,
        "min_image_size": 800,
        "max_image_size": 1333,
        "gradient_accumulation_steps": 1,
    }
    assert {key: value_of(log, key) for key in expected} == expected
    accuracies = {
        e["metadata"]["epoch_num"]: (e["value"]["BBOX"], e["value"]["SEGM"], e["metadata"]["step_num"])
        for e in read_events(log) if e["key"] == "eval_accuracy"
    }  # fmt: skip
    assert accuracies == {epoch: (*REACHED[epoch], 2 * epoch) for epoch in (1, 1.5, 3)}
    assert [event for event in story(log) if event[0].startswith("block")] == [
        ("block_start", 1, 1), ("block_stop", 1, 1), ("block_start", 2, 0.5), ("block_stop", 2, 0.5),
        ("block_start", 2, 1.5), ("block_stop", 2, 1.5),
    ]  # fmt: skip
    assert read_events(log)[-1]["metadata"]["status"] == "success"


def test_what_a_closed_mask_rcnn_lacks_is_said(tmp_path: Path) -> None:
    config = replace(recipe(MASK_RCNNS[0], 8, 8), multistep=(9,), multistep_factors=(0.5,), steps=2, evaluation=())
    log = toy_run(tmp_path, config, {1: (0.4, 0.338)})
    assert check(log, MASK_RCNN) == [
        "--multistep-factors must be a tenth at each fall; here: 0.5",
        "--multistep must have two falls; here: [9]",
        "an evaluation must reach an AP of 0.377 and segm_AP of 0.339; here: {'BBOX': 0.4, 'SEGM': 0.338}",
    ]
    assert read_events(log)[-1]["metadata"]["status"] == "aborted"
    told = rewritten(log, tmp_path / "other.log", key="num_image_candidates", value=1500)
    assert "proposals of a rank's batch must be a multiple of 1000; here: 1500" in check(told, MASK_RCNN)


def test_falls_told_in_epochs_are_logged_in_steps_and_masks_that_are_not_there(tmp_path: Path) -> None:
    settings = settings_named(MASK_RCNNS[0])
    config = replace(family_of(settings).defaults(settings), mlperf=True, epochs=1, evaluation=(), warmup=0, seed=7)
    log = toy_run(tmp_path, config, {1: 0.2})
    assert_passes(log, MASK_RCNN)  # in the open division
    assert value_of(log, "opt_learning_rate_decay_steps") == [2 * 16, 2 * 22]
    assert value_of(log, "opt_learning_rate_warmup_factor") == 1
    assert value_of(log, "eval_accuracy") == {"BBOX": 0.2, "SEGM": -1}
    assert ("epoch_stop", 1) in story(log) and "step_num" not in log.read_text()


def test_a_killed_run_of_steps_has_the_log_of_one_in_one_go(tmp_path: Path) -> None:
    """Killed within an epoch, in an evaluation, and gone on with from the checkpoint before it."""
    config = in_little(recipe(MASK_RCNNS[0], 8, 8))
    whole = toy_run(tmp_path / "whole", config, REACHED)
    with pytest.raises(Killed):
        toy_run(tmp_path / "killed", config, REACHED, die_at=1.5)
    assert torch.load(tmp_path / "killed" / "checkpoints" / "last.pt")["step"] == 3
    log = toy_run(tmp_path / "killed", config, REACHED, resume="last.pt")
    assert_passes(log, MASK_RCNN)
    assert [event for event in story(log) if event != ("resumed",)] == story(whole)
    last = torch.load(tmp_path / "killed" / "checkpoints" / "last.pt")
    assert (last["step"], last["best_ap"]) == (6, 0.38)  # the best of boxes came before that of masks
    assert is_over(last, config) and not is_over(last, replace(config, target_masks=0.34))
    assert not is_over(last, replace(config, target=0.379))  # which another evaluation than that of the masks reached


def test_a_target_of_masks_is_for_what_finds_masks(tmp_path: Path, refusal: Callable[..., str]) -> None:
    flags = ["--target", "0.3", "--target-masks", "0.3", "--output", tmp_path / "run", "--device", "cpu"]
    assert "--target-masks: ssd300 finds no masks; leave it out" in refusal("--data", "x", *flags)


# --- the recipes ---


@pytest.mark.parametrize("name", MASK_RCNNS)
@pytest.mark.parametrize("global_batch_size", [2, 8, 12, 16, 40, 64, 128, 256, 1024])
def test_mask_rcnns_rates_and_falls_conform(name: str, global_batch_size: int) -> None:
    """By the closed rules: a rate of k x 0.02, or 0.02 / k below 16 images; falls after 60,000 and 80,000 steps of 16
    images x (1 + K / 10), in whole steps."""
    config = recipe(name, global_batch_size)
    rate = config.learning_rate * global_batch_size / 32
    share = 0.02 / rate if global_batch_size < 16 and rate < 0.02 else rate / 0.02
    assert share >= 1 - 1e-9 and share == pytest.approx(round(share))
    first, second = config.multistep
    stretch = 5 if global_batch_size >= 256 else 2
    assert (first, second) == tuple(
        pytest.approx(steps * (1 + stretch / 10) * 16 / global_batch_size, abs=0.5 + 1e-9) for steps in (60e3, 80e3)
    )
    assert config.batch_size == global_batch_size and config.steps is not None and second < config.steps
    epoch = -(-117_266 // global_batch_size)
    assert config.evaluation == tuple(range(epoch, config.steps + 1, epoch))
    assert (config.weight_decay, config.bias_rate, config.bias_decay, config.norm_decay) == (1e-4, 2, 0, 0)


@pytest.mark.parametrize("name", ["retinanet_resnext50_32x4d_fpn", "retinanet_r50_fpn_1x"])
def test_only_its_optimizer_keeps_the_retinanet_recipe_open(name: str, tmp_path: Path) -> None:
    config = recipe(name, 32, 8)
    assert (config.batch_size * 8, config.warmup) == (256, 4572)  # an epoch of 1,170,301 images
    log = toy_run(tmp_path, replace(config, epochs=1), {1: 0.35})
    assert check(log, RETINANET) == [
        "the closed division of RetinaNet trains with Adam, which this program has not; here: sgd"
    ]


def test_a_retinanet_may_be_so_many_steps_long(tmp_path: Path) -> None:
    config = replace(recipe("retinanet_r50_fpn_1x"), mlperf_division="open", steps=3, evaluation=(1,), target=None)
    log = toy_run(tmp_path, config, {0.5: 0.1, 1.5: 0.2})
    assert_passes(log, RETINANET)
    assert story(log)[-1] == ("run_stop",) and ("epoch_start", 2) in story(log) and ("epoch_stop", 2) not in story(log)


# --- a whole run ---


@pytest.mark.slow
def test_a_mask_rcnn_of_two_steps_writes_its_benchmarks_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "maskrcnn_resnet18_fpn"
    data = write_small_data(tmp_path / "demo")
    flags: list[Any] = ["--detector", name, "--checkpoint", small_checkpoint(settings_of(name, "none")), "--steps", 2]
    flags += ["--min-size", 64, "--max-size", 96, "--bs", 2, "--evaluation", 1, "--seed", 3, "--device", "cpu"]
    flags += ["--data", data, "--data_pipeline", "no_dali", "--num-workers", 0, "--no-plots", "--mlperf"]
    assert main.main([*map(str, [*flags, "--output", tmp_path / "run"])]) == 0
    log = tmp_path / "run" / "mlperf.log"
    assert f"MLPerf's checker (ruleset 3.1.0, open division) passes {log}" in capsys.readouterr().out
    assert_passes(log, MASK_RCNN)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    (last,) = [e["value"] for e in read_events(log) if e["key"] == "eval_accuracy" and e["metadata"]["step_num"] == 2]
    assert last == {"BBOX": results["AP"], "SEGM": results["segm_AP"]}
    assert (value_of(log, "min_image_size"), value_of(log, "num_image_candidates")) == (64, 4000)
