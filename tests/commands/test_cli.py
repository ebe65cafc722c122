"""Flags: the ancestors' names and defaults, and one line for every mistake. No test here imports torch."""

import argparse
import contextlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest

import main
import ssd
from ssd.cli.benchmark import benchmark_steps_parser
from ssd.cli.commands import every_parser
from ssd.cli.evaluate import evaluate_parser
from ssd.cli.train import train_parser
from ssd.config import Config, Thresholds
from ssd.detectors.names import family_of, settings_named
from ssd.detectors.ssd300.recipes import RECIPES
from ssd.options import flags as flags_module

ROOT = Path(main.__file__).parent

# What NVIDIA's DALI example publishes: flags -> (dest, default, an argument, its value).
PUBLISHED = {
    ("--data", "-d"): ("data", "", "/coco", "/coco"),
    ("--epochs", "-e"): ("epochs", 65, "3", 3),
    ("--batch-size", "--bs", "-b"): ("batch_size", 32, "64", 64),
    ("--eval-batch-size", "--ebs"): ("eval_batch_size", 32, "64", 64),
    ("--seed", "-s"): ("seed", None, "0", 0),
    ("--evaluation",): ("evaluation", (21, 31, 37, 42, 48, 53, 59, 64), "1 2", (1, 2)),
    ("--multistep",): ("multistep", (43, 54), "4 5 6", (4, 5, 6)),
    ("--learning-rate", "--lr"): ("learning_rate", 2.6e-3, "1e-3", 1e-3),
    ("--momentum", "-m"): ("momentum", 0.9, "0.5", 0.5),
    ("--weight-decay", "--wd"): ("weight_decay", 5e-4, "0", 0.0),
    ("--warmup",): ("warmup", 0, "300", 300),
    ("--num-workers",): ("num_workers", 4, "0", 0),
    ("--fp16",): ("fp16", False, "", True),
    ("--data_pipeline",): ("data_pipeline", "dali", "no_dali", "no_dali"),
    ("--backbone",): ("backbone", "resnet50", "resnet18", "resnet18"),
    ("--target",): ("target", None, "0.25", 0.25),
}


def config_of(*arguments: str) -> Config:
    """The settings that `main.py --data DIR <arguments>` trains with."""
    options = vars(train_parser().parse_args(["--data", "DIR", *arguments]))
    recipe = options.pop("recipe")
    options.pop("local_rank")
    return flags_module.config_of(options, RECIPES[recipe]() if recipe else Config())


@pytest.mark.parametrize(("names", "dest", "default", "argument", "value"), [(k, *v) for k, v in PUBLISHED.items()])
def test_published_flags(names: tuple[str, ...], dest: str, default: object, argument: str, value: object) -> None:
    if dest != "data":
        assert config_of().to_dict()[dest] == default
    for name in names:
        assert config_of(name, *argument.split()).to_dict()[dest] == value


def test_the_published_command() -> None:
    config = config_of(*"--warmup 300 --bs 64 --fp16 --data /coco/".split())
    assert config == Config(warmup=300, batch_size=64, fp16=True, data="/coco/")


@pytest.mark.parametrize("name", ["--local_rank", "--local-rank"])
def test_local_rank_of_older_launchers(name: str) -> None:
    assert train_parser().parse_args([f"{name}=1"]).local_rank == 1
    assert evaluate_parser().parse_args(["--checkpoint", "FILE", name, "1"]).local_rank == 1


def test_lists_may_be_empty() -> None:
    config = config_of("--evaluation", "--multistep")
    assert config.evaluation == () and config.multistep == ()


def test_every_setting_has_a_flag() -> None:
    parser = train_parser()
    dests = {action.dest for action in parser._actions} - {"help", "version", "recipe", "local_rank"}
    assert dests == Config().to_dict().keys()


def test_every_setting_is_read() -> None:
    files = [ROOT / "main.py", *(ROOT / "ssd").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")]
    source = "\n".join(file.read_text() for file in files)
    for name in [field.name for field in fields(Config)]:
        reader = rf"\bself\.{name}\b" if name in Thresholds._fields else rf"\b_?config\.{name}\b"
        assert re.search(reader, source), f"nothing reads Config.{name}"


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().epochs = 1  # type: ignore[misc]


# --- recipes ---


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_config(name: str) -> None:
    assert config_of("--recipe", name) == replace(RECIPES[name](), data="DIR")


def test_flags_override_the_recipe() -> None:
    recipe = RECIPES["demo"]()
    config = config_of("--epochs", "3", "--recipe", "demo", "--seed", "7")
    assert (config.epochs, config.seed, config.data) == (3, 7, "DIR")
    assert (config.detector.backbone, config.learning_rate, config.warmup) == (
        "resnet18",
        recipe.learning_rate,
        recipe.warmup,
    )
    assert config_of("--recipe", "demo", "--learning-rate", "0.0026").learning_rate == 0.0026  # the default's value too


@pytest.mark.parametrize(
    ("batch_size", "world_size", "expected"),
    [(None, 1, (64, 2.6e-3, 300)), (64, 8, (64, 2.6e-3, 300)), (None, 8, (128, 2.7e-3, 1200))],
)
def test_the_coco_recipe_is_deep_learning_examples_scripts(
    batch_size: int | None, world_size: int, expected: tuple[int, float, int]
) -> None:
    config = RECIPES["coco"](batch_size, world_size)
    assert (config.batch_size, config.learning_rate, config.warmup) == expected
    assert replace(config, batch_size=32, learning_rate=2.6e-3, warmup=0, fp16=False) == Config()


def test_fp16_overrides_a_recipe_in_bf16() -> None:
    assert RECIPES["demo"]().bf16
    config = config_of("--recipe", "demo", "--fp16")
    assert config.fp16 and not config.bf16


# --- mistakes ---


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--data DIR --bogus", "--bogus"),
        ("--data DIR --bogus 3", "--bogus"),
        ("--data DIR stray", "stray"),
        ("evaluat --data DIR", "evaluat"),
        ("--data DIR --epoch 3", "--epoch"),  # no abbreviations: a new flag must not change what an old command means
        ("--epochs 3", "--data"),
        ("--data", "--data"),
        ("--data DIR --epochs 0", "--epochs"),
        ("--data DIR --epochs 1.5", "--epochs"),
        ("--data DIR --epochs x", "--epochs"),
        ("--data DIR --bs 0", "--bs"),
        ("--data DIR --ebs -1", "--ebs"),
        ("--data DIR --lr -1", "--lr"),
        ("--data DIR --lr nan", "--lr"),
        ("--data DIR --lr inf", "--lr"),
        ("--data DIR --wd nan", "--wd"),
        ("--data DIR --momentum 1.5", "--momentum"),
        ("--data DIR --warmup -1", "--warmup"),
        ("--data DIR --num-workers -1", "--num-workers"),
        ("--data DIR --seed -1", "--seed"),
        ("--data DIR --seed 99999999999999999999999", "--seed"),
        ("--data DIR --multistep 0", "--multistep"),
        ("--data DIR --multistep 3 x", "--multistep"),
        ("--data DIR --evaluation 1.5", "--evaluation"),
        ("--data DIR --target 2", "--target"),
        ("--data DIR --target nan", "--target"),
        ("--data DIR --target-masks 0.3", "--target-masks says nothing without --target"),
        ("--data DIR --backbone vgg16", "--backbone"),
        ("--data DIR --data_pipeline tf", "--data_pipeline"),
        ("--data DIR --device tpu", "--device"),
        ("--data DIR --recipe imagenet", "--recipe"),
        ("--data DIR --local_rank x", "--local_rank"),
        ("--data DIR --fp16 --bf16", "--fp16 and --bf16"),
        ("--data DIR --mlperf --mlperf-division both", "--mlperf-division"),
        ("--data DIR --mlperf --mlperf-status sold", "--mlperf-status"),
        ("--data DIR --mlperf --mlperf-org=", "--mlperf-org"),
        ("--data DIR --mlperf-org me", "--mlperf-org says nothing without --mlperf"),
        ("show-data --data DIR --output data.gif", "--output data.gif"),
        ("benchmark data --data DIR --plot data.gif", "--plot data.gif"),
        ("evaluate --data DIR", "--checkpoint"),
        ("evaluate --checkpoint FILE", "--data"),
        ("evaluate --data DIR --checkpoint FILE --epochs 3", "--epochs"),
        ("evaluate --data DIR --checkpoint FILE --score-threshold 1.5", "--score-threshold"),
        ("evaluate --data DIR --checkpoint FILE --nms-iou -1", "--nms-iou"),
        ("evaluate --data DIR --checkpoint FILE --max-per-image 0", "--max-per-image"),
    ],
)
def test_mistakes_are_named_in_one_line(arguments: str, named: str, refusal: Callable[..., str]) -> None:
    assert named in refusal(*arguments.split())


def test_an_empty_data_flag_is_a_missing_one(refusal: Callable[..., str]) -> None:
    assert "--data" in refusal("--data", "")


def test_main_reports_the_rank(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "3")
    assert main.main(["--bogus"]) == 2
    assert capsys.readouterr().err.startswith("error on rank 3: ")


# --- help ---


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        main.main([*arguments, "--help"])
    assert exit_.value.code == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


def test_help_groups_the_flags_and_states_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys)
    assert help_of(capsys, "train") == text
    for group in ("data", "model", "training", "evaluation", "machine", "run", "mlperf"):
        assert f"\n{group}:\n" in text
    for names in PUBLISHED:
        assert names[0] in text
    flat = " ".join(text.split())
    for default in ("65", "0.0026", "43 54", "21 31 37 42 48 53 59 64", "resnet50", "dali"):
        assert f"(default: {default})" in flat
    assert "(default: )" not in flat
    assert "exit codes:" in text and "torchrun" in text


def test_help_lists_the_recipes_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    lines = help_of(capsys).partition("\nrecipes:\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert all(len(line.split()) > 5 and len(line) <= 120 for line in lines)


@pytest.mark.parametrize(
    ("detector", "has", "has_not"),
    [
        ("ssd300", ["--backbone", "--augmentation"], ["--min-size", "--boxes-an-image", "--input-size", "--set"]),
        ("fcos_resnet18_fpn", ["--min-size", "--norm"], ["--boxes-an-image", "--backbone", "--anchors", "--stride-in"]),
        ("maskrcnn_resnet18_fpn", ["--min-size", "--boxes-an-image"], ["--backbone", "--anchors", "--stride-in"]),
        ("ssdlite320_mobilenet_v3_large", ["--trainable-layers"], ["--min-size", "--norm", "--boxes-an-image"]),
        ("retinanet_r18_fpn", ["--stride-in", "--min-size"], ["--boxes-an-image", "--norm-eps", "--backbone"]),
        ("yolov2-voc", ["--anchors", "--input-size"], ["--min-size", "--boxes-an-image", "--trainable-layers"]),
    ],
)
def test_help_shows_flags_of_the_detector_and_of_no_other(
    detector: str, has: list[str], has_not: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(capsys, "--detector", detector)
    shown = set(re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE))
    assert shown.issuperset(has) and shown.isdisjoint(has_not)
    recipes = text.partition("\nrecipes:\n")[2].partition("\n\n")[0].splitlines()
    own = list(family_of(settings_named(detector)).recipes)
    if detector == "fcos_resnet18_fpn":  # its family has the recipe, and MLPerf has no benchmark of it
        own.remove("mlperf")
    assert [line.split()[0] for line in recipes] == own


def test_a_recipe_may_not_say_what_the_detector_has_no_flag_for(tmp_path: Path, refusal: Callable[..., str]) -> None:
    file = tmp_path / "own.toml"
    file.write_text('detector = "retinanet_resnet18_fpn"\nboxes_an_image = 512\n')
    assert "'boxes_an_image' cannot be set for this detector; leave it out" in refusal("--data", "x", "--recipe", file)


def test_help_of_evaluate(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, "evaluate")
    for name in ("--checkpoint", "--data", "--val-split", "--score-threshold", "--device", "--timeout", "--json"):
        assert name in text
    for name in ("--epochs", "--learning-rate", "--output", "--train-split"):
        assert name not in text


def test_the_command_line_answers_without_torch() -> None:
    code = """
import sys, main
assert main.main(["--bogus"]) == 2
assert main.main(["--data", "DIR", "--fp16", "--bf16"]) == 2
try:
    main.main(["--help"])
except SystemExit:
    pass
print(sorted(name for name in ("torch", "nvidia.dali", "numpy") if name in sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "[]"


def test_main_py_exits_with_mains_code(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, ROOT / "main.py", "--bogus"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: unrecognized arguments: --bogus; see main.py --help\n"
    assert list(tmp_path.iterdir()) == []


def test_the_help_that_is_pointed_at_has_the_detectors_flags(refusal: Callable[..., str]) -> None:
    detector = ("--detector", "retinanet_resnet18_fpn")
    assert refusal(*detector, "--short-side", "64").endswith("; see main.py --detector retinanet_resnet18_fpn --help")
    assert refusal("--short-side", "64").endswith("; see main.py --help")


def test_the_installed_command_is_told_by_its_own_name(tmp_path: Path) -> None:
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["ssd-dali"]
    module, _, function = script.partition(":")
    program = tmp_path / "ssd-dali"  # as pip writes it
    program.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, program, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    for arguments in ([], ["evaluate"], ["benchmark", "data"]):
        done = run(*arguments, "--help")
        assert done.returncode == 0 and done.stdout.startswith(f"usage: {' '.join(['ssd-dali', *arguments])} ")
        assert "\nexample: " in done.stdout and "main.py" not in done.stdout
    assert "example: torchrun --nproc_per_node=8 --no-python ssd-dali --fp16" in run("--help").stdout
    done = run("--bogus")
    assert done.returncode == 2 and done.stderr == "error: unrecognized arguments: --bogus; see ssd-dali --help\n"


def test_an_installation_has_every_package() -> None:
    setuptools = pytest.importorskip("setuptools")
    include = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    files = [file.relative_to(ROOT) for name in ("ssd", "pipelines") for file in (ROOT / name).rglob("*.py")]
    folders = {".".join(file.parent.parts) for file in files}
    assert "ssd.cli" in folders and folders == set(setuptools.find_packages(str(ROOT), include=include))


def test_a_misspelt_flag_or_command_is_told_its_nearest(refusal: Callable[..., str]) -> None:
    assert "--data_pipline no_dali; did you mean --data_pipeline?; see" in refusal("--data_pipline", "no_dali")
    assert "--epoch=1; did you mean --epochs?; see" in refusal("--epoch=1")
    assert "no such command: evalute; did you mean evaluate? there are train, " in refusal("evalute")


@pytest.mark.parametrize("parser", every_parser(), ids=lambda parser: parser.prog)
def test_the_example_of_each_help_can_be_typed(parser: argparse.ArgumentParser) -> None:
    (example,) = re.findall(r"^example: (.*)$", parser.format_help(), re.MULTILINE)
    words = shlex.split(example.partition("main.py ")[2])
    if parser.prog == "main.py benchmark":  # the example is of what it measures
        parser, words = benchmark_steps_parser("train"), words[2:]
    elif parser.prog != "main.py":
        assert example.startswith(f"{parser.prog} ")
        words = words[len(parser.prog.split()) - 1 :]
    parser.parse_args(words)


def test_a_console_without_a_character_shows_its_number(tmp_path: Path) -> None:
    folder = tmp_path / "漢"
    for part in ("annotations/instances_train2017.json", "annotations/instances_val2017.json", "train2017", "val2017"):
        (folder / part).mkdir(parents=True)  # all that `download` asks is whether they are there
    command = [sys.executable, ROOT / "main.py", "download", "--data", folder]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/\\u6f22: COCO 2017 is there already\n"


@pytest.mark.parametrize("command", [["--version"], ["evaluate", "--version"], ["--version", "--fp16"]])
def test_the_version_is_said(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        assert main.main(command) == 0
    assert capsys.readouterr().out == f"ssd-dali {ssd.__version__}\n"
