"""--recipe FILE.toml: settings as the flags take them, and options that do not go together."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ssd.cli.train import set_by_recipe, train_parser
from ssd.config import Config
from ssd.detectors.names import family_of, settings_named
from ssd.detectors.ssd300.recipes import RECIPES
from ssd.detectors.ssd300.settings import SSD300Settings
from ssd.errors import InputError
from ssd.options.detectors import detector_in
from ssd.options.flags import config_of
from ssd.options.recipes import base_of


def config_from(text: str, folder: Path, *flags: str, world_size: int = 1) -> Config:
    """The settings of a run with --recipe of a file that holds this text."""
    file = folder / "own.toml"
    file.write_text(text)
    parser = train_parser()
    options = vars(parser.parse_args(["--data", "DIR", "--recipe", str(file), *flags]))
    recipe = options.pop("recipe")
    options.pop("local_rank")
    return config_of(options, base_of(recipe, parser, Config.detector, options.get("batch_size"), world_size))


def test_a_file_says_what_flags_say(tmp_path: Path) -> None:
    text = """
    backbone = "resnet18"
    epochs = 8
    learning_rate = 1e-2
    multistep = [6, 7]
    evaluation = []
    bf16 = true
    checkpoint_every = "10 minutes"
    ema = 0.999
    clip_norm = 10
    """
    flags = "--backbone resnet18 --epochs 8 --lr 0.01 --multistep 6 7 --evaluation --bf16 --ema 0.999 --clip-norm 10"
    options = ["--data", "DIR", *flags.split(), "--checkpoint-every", "10 minutes"]
    expected = vars(train_parser().parse_args(options))
    expected = {name: value for name, value in expected.items() if name not in ("recipe", "local_rank")}
    assert config_from(text, tmp_path) == config_of(expected, Config())


def test_flags_overrule_the_file_and_the_file_its_recipe(tmp_path: Path) -> None:
    config = config_from('recipe = "demo"\nepochs = 3\nbf16 = false', tmp_path, "--seed", "9")
    assert config.epochs == 3 and config.bf16 is False and config.seed == 9
    assert config.learning_rate == RECIPES["demo"]().learning_rate and config.detector.backbone == "resnet18"
    assert config_from("bf16 = true", tmp_path, "--fp16").bf16 is False


def test_the_recipe_scales_with_the_files_batch_or_the_flags(tmp_path: Path) -> None:
    text = 'recipe = "coco"\nbatch_size = 256'
    assert config_from(text, tmp_path, world_size=8) == replace(RECIPES["coco"](256, 8), data="DIR")
    assert config_from(text, tmp_path, "--bs", "32").warmup == RECIPES["coco"](32, 1).warmup


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("epoch = 8", "there is no setting 'epoch'; did you mean 'epochs'?"),
        ('"batch-size" = 8', "there is no setting 'batch-size'; did you mean 'batch_size'?"),
        ("[training]\nepochs = 8", "there is no setting 'training'"),
        ("epochs = 0", "argument --epochs/-e: 0 is less than 1"),
        ('epochs = "many"', "argument --epochs/-e: invalid int value: 'many'"),
        ("epochs = true", "--epochs takes a value, not True"),
        ("epochs = [1, 2]", "unrecognized arguments: 2"),
        ("bf16 = 1", "--bf16 takes true or false, not 1"),
        ("[data]\nx = 1", "--data takes a value, not {'x': 1}"),
        ('backbone = "vgg"', "argument --backbone: invalid choice: 'vgg'"),
        ('recipe = "fast"', "may start from demo, own, coco, published, mlperf only"),
        ('recipe = "other.toml"', "may start from demo, own, coco, published, mlperf only"),
        ("fp16 = true\nbf16 = true", "--fp16 and --bf16 exclude each other"),
        ("epochs = x", "not valid TOML (Invalid value (at line 1, column 10))"),
        ("epochs = 1\nepochs = 2", "not valid TOML"),
    ],
)
def test_what_a_file_may_not_say(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        config_from(text, tmp_path)
    assert complaint in str(error.value)
    assert "own.toml" in str(error.value) or "exclude each other" in complaint
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path, refusal: Callable[..., str]) -> None:
    missing = tmp_path / "none.toml"
    assert f"--recipe {missing}: cannot be read (No such file" in refusal("--data", "DIR", "--recipe", missing)
    os.mkdir(missing)
    assert "cannot be read (Is a directory)" in refusal("--data", "DIR", "--recipe", missing)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--accumulate 3 --bs 8", "--accumulate 3: does not part a batch of 8 into equal parts"),
        ("--accumulate 8 --bs 8", "--accumulate 8: does not part a batch of 8 into equal parts of two"),
        ("--schedule cosine --multistep 3", "--schedule cosine and --multistep exclude each other"),
        ("--schedule cosine --mlperf", "--schedule cosine and --mlperf exclude each other"),
        ("--freeze-backbone --backbone-weights none", "--freeze-backbone: would freeze random weights"),
        ("--ema 1", "--ema: 1 is not in 0..0.999999"),
        ("--clip-norm 0", "--clip-norm: 0 is less than"),
        ("--optimizer adam", "--optimizer: invalid choice: 'adam'"),
    ],
)
def test_flags_that_do_not_go_together(flags: str, complaint: str, refusal: Callable[..., str]) -> None:
    assert complaint in refusal("--data", "DIR", *flags.split())


def test_a_file_may_set_what_only_its_detector_has(tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    file.write_text('detector = "retinanet_resnet18_fpn"\nshort_sides_px = [192]\nbackbone_weights = "none"\n')
    arguments = ["--recipe", str(file)]
    settings = detector_in(arguments)
    parser = train_parser(settings)
    assert base_of(str(file), parser, settings, None, 1).detector.short_sides_px == (192,)
    file.write_text("short_sides_px = [192]\n")
    with pytest.raises(InputError, match="there is no setting 'short_sides_px'"):
        base_of(str(file), train_parser(SSD300Settings()), SSD300Settings(), None, 1)


def test_a_recipe_leaves_to_a_checkpoint_what_it_does_not_change() -> None:
    """The points of a run's own keypoints are no flags, and no recipe knows them; nor does it those anchors."""
    settings = settings_named("keypointrcnn_resnet18_fpn")
    config = family_of(settings).recipes["demo"](None, 1, settings)
    given = set_by_recipe(config, settings)
    assert (
        not given & {"keypoints", "keypoint_links", "keypoint_labels"} and {"learning_rate", "short_sides_px"} <= given
    )
    yolo = settings_named("yolov2-voc")
    assert "anchors" not in set_by_recipe(family_of(yolo).recipes["darknet"](None, 1, yolo), yolo)


def test_a_file_that_says_epochs_has_no_minutes_of_the_recipe_it_starts_from(tmp_path: Path) -> None:
    file = tmp_path / "cells.toml"
    parser = train_parser(SSD300Settings())
    file.write_text('recipe = "own"\nepochs = 8\n')
    config = base_of(str(file), parser, SSD300Settings(), None, 1)
    assert (config.epochs, config.minutes) == (8, None)
    file.write_text('recipe = "own"\nkeep_checkpoints = 3\n')
    assert base_of(str(file), parser, SSD300Settings(), None, 1).minutes == 20


def test_recipe_owns_rate_grows_with_the_batch_no_further_than_to_0_04() -> None:
    """Config's rate is that of a global batch of 32."""

    def rate(batch_size: int | None, world_size: int) -> float:
        recipe = RECIPES["own"](batch_size, world_size)
        return recipe.learning_rate * recipe.batch_size * world_size / 32

    assert rate(None, 1) == pytest.approx(0.01)
    assert [rate(4, 2), rate(8, 2), rate(16, 1)] == pytest.approx([0.02, 0.04, 0.04])
    assert [rate(4, 8), rate(32, 8)] == pytest.approx([0.04, 0.04])
