"""What the commands' flags are made of, the flags that several commands share, and how flags become a Config. A flag of
one command stands in its file of `ssd/cli`, training's in `cli/train.py`, and its setting in `ssd/config.py`.

Light: --help and mistakes in flags are answered before anything heavy is imported.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import ssd
from ssd.config import DATA_PIPELINES, EVAL_ENGINES, EXIF, GRADIENT_COMPRESSIONS, METRICS, ON_BAD_IMAGE, Config
from ssd.detectors.names import family_of
from ssd.distillation.settings import read_word
from ssd.errors import InputError
from ssd.mlperf.benchmarks import SSD, benchmark_of

EXIT_CODES = "exit codes: 0 done, 2 bad input, 130 interrupted"
TRAINING_EXIT_CODES = (
    "exit codes: 0 done, 1 --target not reached, MLPerf log not compliant, loss infinite for good or --timeout,\n"
    "2 bad input, 3 another rank lost, 75 asked to end by SIGTERM or SIGUSR1 (saved; --resume auto), 130 interrupted"
)
CHECKPOINT_HELP = (
    "a run's checkpoints/best.pt or last.pt, of convert, or of NVIDIA's DLE SSD, torchvision, darknet, Detectron or "
    "detectron2"
)


CONSOLE_COMMAND = "ssd-dali"
"""What pyproject.toml names the installed command."""


def _as_installed(text: str) -> str:
    """torchrun starts a file with Python unless it is told not to."""
    of_torchrun = re.sub(r"(torchrun .*?)main\.py", rf"\g<1>--no-python {CONSOLE_COMMAND}", text)
    return of_torchrun.replace("main.py", CONSOLE_COMMAND)


class Parser(argparse.ArgumentParser):
    """Raises InputError at a mistake. epilog: the text below the flags, an example and the exit codes. In all texts
    "main.py" becomes the console command's name where that was typed."""

    def __init__(
        self, prog: str, *, description: str, epilog: str, usage: str | None = None, base: Config | None = None
    ) -> None:
        form = argparse.RawDescriptionHelpFormatter
        self._is_installed = Path(sys.argv[0]).name == CONSOLE_COMMAND
        if self._is_installed:
            prog = _as_installed(prog)
        self.base = base or Config()
        """What the flags start from."""
        super().__init__(
            prog, description=description, epilog=epilog, usage=usage, formatter_class=form, allow_abbrev=False
        )
        version = f"{CONSOLE_COMMAND} {ssd.__version__}"
        self.add_argument("--version", action="version", version=version, help="say which version this is")
        self.of_others: dict[str, str] = {}
        """Flags that only other detectors have, and one of these."""
        self.refused: dict[str, str] = {}
        """Flags of other commands that one might look for here, and why they are not there."""

    def add_argument_group(self, *arguments: Any, **named: Any) -> Any:
        group: Any = super().add_argument_group(*arguments, **named)
        group.base = self.base
        return group

    def format_help(self) -> str:
        text = super().format_help()
        return _as_installed(text) if self._is_installed else text

    def error(self, message: str) -> NoReturn:
        settings = self.base.detector
        is_named = "--detector" in self._option_string_actions and settings.name in family_of(settings).names
        detector = f" --detector {settings.name}" if is_named and settings != Config.detector else ""
        raise InputError(f"{message}{self._nearest_to_unknown(message)}; see {self.prog}{detector} --help")

    def _nearest_to_unknown(self, message: str) -> str:
        about = "unrecognized arguments: "  # argparse's words
        if not message.startswith(about):
            return ""
        unknown = message.removeprefix(about).split()[0].partition("=")[0]
        if unknown in self.refused:
            return f"; {self.refused[unknown]}"
        if unknown in self.of_others:
            return (
                f"; that is an option of other detectors, such as --detector {self.of_others[unknown]}; beside "
                "--checkpoint, name its detector by --detector"
            )
        nearest = difflib.get_close_matches(unknown, self._option_string_actions, n=1, cutoff=0.75)
        return "".join(f"; did you mean {name}?" for name in nearest)

    def value_of(self, setting: str, value: Any) -> Any:
        """What the flag of a setting makes of its value in a file: what it would make of the same words.

        Raises InputError for a value that it does not take, and where there is no such flag.
        """
        action = next((action for action in self._actions if action.dest == setting), None)
        if action is None:
            raise InputError(f"{setting!r} cannot be set for this detector; leave it out")
        name, takes_value = action.option_strings[0], action.nargs != 0
        if isinstance(value, bool) != (not takes_value) or isinstance(value, dict):
            self.error(f"{name} takes {'a value' if takes_value else 'true or false'}, not {value}")
        if not takes_value:
            return value
        words = [name, *map(str, value)] if isinstance(value, list) else [f"{name}={value}"]
        return getattr(self.parse_args(words), setting)


def number(convert: Callable[[str], Any], low: float, high: float = 1e9) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = convert(text)
        if not low <= value <= high:
            limit = f"less than {low:g}" if value < low else f"not in {low:g}..{high:g}"
            raise argparse.ArgumentTypeError(f"{text} is {limit}")
        return value

    parse.__name__ = convert.__name__
    return parse


def interval(text: str) -> tuple[int, str]:
    count, _, unit = text.partition(" ")
    units = {word: f"{word.removesuffix('s')}s" for word in ("step", "minute", "epoch", "steps", "minutes", "epochs")}
    if unit not in units or not (count.isdecimal() and 1 <= int(count) <= 1e9):
        raise argparse.ArgumentTypeError(f'{text!r} is not like "500 steps", "10 minutes" or "1 epoch"')
    return int(count), units[unit]


def distill_setting(text: str) -> str:
    try:
        return read_word(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


COUNT = number(int, 1)
COUNT_FROM_0 = number(int, 0)
FRACTION = number(float, 0, 1)
POSITIVE = number(float, 0)
ABOVE_0 = number(float, 1e-9)
DECAY = number(float, 0, 0.999999)
MINUTES = number(float, 0.01, 1e5)
MOMENTUM = number(float, 0, 0.999)
BATCH = number(int, 2)  # batch norm on the 1 x 1 map needs two
SEED = number(int, 0, 2**32 - 1)


def _default(name: str, base: Config) -> str:
    value = base.detector.name if name == "detector" else base.to_dict().get(name)
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
    return "" if value in (None, "", ()) or isinstance(value, bool) else f" (default: {shown})"


def flag(group: Any, *names: str, dest: str, help: str, default: str = "", **arguments: Any) -> None:
    """A flag of a setting, whose help says its default: that of the parser's `base`, or in words. group: of the
    parser, or it."""
    base = getattr(group, "base", Config())
    shown = f" (default: {default})" if default else _default(dest, base)
    group.add_argument(*names, dest=dest, default=argparse.SUPPRESS, help=help + shown, **arguments)


def add_data_folder_flag(group: Any) -> None:
    flag(
        group, "--data", "-d", dest="data", metavar="DIR",
        help='folder of images and annotations, as COCO, VOC, YOLO or an annotation tool has it, or "demo": written to '
        "data/demo once",
    )  # fmt: skip


_ROLES = {"train": "train on", "val": "evaluate on"}


def add_split_flags(group: Any, *roles: str) -> None:
    """roles: of "train" and "val"."""
    for role in roles:
        flag(
            group, f"--{role}-split", dest=f"{role}_split", metavar="NAME",
            help=f"split to {_ROLES[role]} (default: {role}2017, or what the folder's names tell)",
        )  # fmt: skip
    for role in roles:
        flag(
            group, f"--{role}-annotations", dest=f"{role}_annotations", metavar="FILE",
            help=f"annotation file to {_ROLES[role]}, where the split's name does not lead to it",
        )  # fmt: skip
        flag(
            group, f"--{role}-images", dest=f"{role}_images", metavar="DIR",
            help=f"folder of the images to {_ROLES[role]}, where they are elsewhere",
        )  # fmt: skip


def add_exif_flag(group: Any) -> None:
    flag(
        group, "--exif", dest="exif", choices=EXIF,
        help="turn images as their EXIF data say, or not (default: what the stated sizes tell, and it is said)",
    )  # fmt: skip


def add_several_pipelines_flag(group: Any) -> None:
    group.add_argument(
        "--data_pipeline", choices=(*DATA_PIPELINES, "both"), default="both", help="which (default: %(default)s)"
    )


def add_data_flags(parser: argparse.ArgumentParser, *, training: bool) -> None:
    group = parser.add_argument_group("data")
    add_data_folder_flag(group)
    add_split_flags(group, *(("train", "val") if training else ("val",)))
    flag(
        group, "--data_pipeline", dest="data_pipeline", choices=DATA_PIPELINES,
        help="NVIDIA DALI, or pure PyTorch: the same augmentation either way",
    )  # fmt: skip
    flag(group, "--num-workers", dest="num_workers", type=COUNT_FROM_0, metavar="N", help="threads or processes")
    add_exif_flag(group)
    flag(
        group, "--on-bad-image", dest="on_bad_image", choices=ON_BAD_IMAGE,
        help="skip: read every image once before the start, and do without those that cannot be used",
    )  # fmt: skip


def add_timeout_flag(group: Any, what: str) -> None:
    flag(
        group, "--timeout", dest="timeout", type=MINUTES, metavar="MINUTES", help=f"give up when {what} takes longer"
    )  # fmt: skip


def add_device_flags(group: Any) -> None:
    flag(group, "--fp16", dest="fp16", action="store_true", help="mixed precision in float16 (on a CPU bfloat16)")
    flag(group, "--bf16", dest="bf16", action="store_true", help="mixed precision in bfloat16")
    flag(group, "--device", dest="device", choices=("auto", "cpu", "cuda"), help="where to run; auto: a GPU if any")


def add_machine_flags(parser: argparse.ArgumentParser) -> Any:
    """Returns their group."""
    group = parser.add_argument_group("machine")
    add_device_flags(group)
    group.add_argument("--local_rank", "--local-rank", type=int, default=None, help="for launchers older than torchrun")
    return group


def add_step_flags(group: Any) -> None:
    flag(group, "--compile", dest="compile", action="store_true", help="compile the training step (a minute or two)")
    flag(group, "--cuda-graphs", dest="cuda_graphs", action="store_true", help="launch a step on a GPU as one graph")


def add_gradient_compression_flag(group: Any) -> None:
    flag(
        group, "--gradient-compression", dest="gradient_compression", choices=GRADIENT_COMPRESSIONS,
        help="bf16: ranks send each other half as many bytes, and sum rounded gradients",
    )  # fmt: skip


def add_detection_flags(group: Any, *, of_checkpoint: bool) -> None:
    """of_checkpoint: whether a checkpoint says which detector's defaults hold."""
    for name, dest, kind, metavar, text in (
        ("--score-threshold", "score_threshold", FRACTION, "P", "detections score more"),
        ("--nms-iou", "nms_iou", FRACTION, "IOU", "overlap that drops the weaker one"),
        ("--max-per-class", "max_per_class", COUNT, "N", "candidates a class and image"),
        ("--max-per-image", "max_per_image", COUNT, "N", "detections an image"),
    ):
        default = _of_detector(dest) if of_checkpoint else ""
        flag(group, name, dest=dest, type=kind, metavar=metavar, help=text, default=default)


def _of_detector(dest: str) -> str:
    return f"the detector's; an SSD300's is {getattr(Config(), dest)}"


def add_tta_flag(group: Any) -> None:
    group.add_argument(
        "--tta", action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS,
        help="look at each image in several passes, enlarged, shrunk and mirrored: 18, of 20 times the pixels "
        "(default: as a configuration of Detectron says, else one pass)",
    )  # fmt: skip


def add_evaluation_flags(group: Any, *, of_checkpoint: bool = True) -> None:
    flag(
        group, "--eval-batch-size", "--ebs", dest="eval_batch_size", type=COUNT, metavar="N", help="images a rank",
        default=_of_detector("eval_batch_size") if of_checkpoint else "",
    )  # fmt: skip
    add_detection_flags(group, of_checkpoint=of_checkpoint)
    flag(
        group, "--metrics", dest="metrics", choices=METRICS, nargs="+",
        help="also PASCAL VOC's, of 11 recalls or of the area, and the recall of boxes of any class; the first decides "
        "what is best, and is --target's",
    )  # fmt: skip
    flag(
        group, "--eval-engine", dest="eval_engine", choices=EVAL_ENGINES,
        help="what computes the COCO metrics: faster-coco-eval or pycocotools, with equal results",
    )  # fmt: skip


def overlay(base: Config, flags: dict[str, Any]) -> Config:
    """base with these settings. Raises InputError where both 16-bit types are among them."""
    flags = {name: tuple(value) if isinstance(value, list) else value for name, value in flags.items()}
    for name in ("detector", "set"):  # base has it already
        flags.pop(name, None)
    if flags.get("fp16") and flags.get("bf16"):
        raise InputError("--fp16 and --bf16 exclude each other; pass one")
    if flags.get("fp16") or flags.get("bf16"):
        flags = {"fp16": False, "bf16": False, **flags}  # overrules the recipe's
    return base.overlaid(flags)


def config_of(flags: dict[str, Any], base: Config, *, needs_data: bool = True) -> Config:
    """base with the flags that were given. Raises InputError where they do not go together."""
    config = overlay(base, flags)
    family = family_of(config.detector)
    config = config.with_detector(family.settled(config.detector, config.backbone_weights))
    _require_whole_distillation(config)
    if config.schedule == "cosine" and ("multistep" in flags or config.mlperf):
        other = "--multistep" if "multistep" in flags else "--mlperf"
        raise InputError(f"--schedule cosine and {other} exclude each other; pass one")
    if others := {"epochs", "steps"} & flags.keys():
        if "minutes" in flags:
            raise InputError(f"--minutes and --{others.pop()}: a run has one length; leave one of them out")
        config = replace(config, minutes=None)  # a recipe's
    if config.minutes and config.mlperf:
        raise InputError("--minutes and --mlperf: its runs have a length of their own; leave one of them out")
    require_one_length(config, flags.keys())
    if config.warmup_factor is not None and not config.warmup:
        raise InputError("--warmup-factor says nothing without --warmup; pass both or neither")
    if config.warmup_factor is not None and config.warmup_power != 1:
        raise InputError("--warmup-factor and --warmup-power exclude each other; pass one")
    if config.batch_size < family.least_part:
        raise InputError(
            f"--batch-size {config.batch_size}: batch norm needs two images or more; pass more (a cfg file has batch=1 "
            "for darknet's tests)"
        )
    if config.batch_size % config.accumulate or config.batch_size // config.accumulate < family.least_part:
        least = "two images or more" if family.least_part > 1 else "images"
        raise InputError(
            f"--accumulate {config.accumulate}: does not part a batch of {config.batch_size} into equal parts of "
            f"{least}; pass another --batch-size, or --accumulate 1"
        )
    if config.freeze_backbone and config.backbone_weights == "none" and not config.checkpoint:
        raise InputError("--freeze-backbone: would freeze random weights; pass --checkpoint or --backbone-weights")
    if config.target_masks is not None and config.target is None:
        raise InputError("--target-masks says nothing without --target; pass both or neither")
    if config.mlperf and config.metrics[0] != "coco":
        raise InputError(f"--mlperf is judged by COCO's AP, not by {config.metrics[0]}; name coco first in --metrics")
    about_mlperf = sorted(name for name in flags if name.startswith("mlperf_"))
    if about_mlperf and not config.mlperf:
        raise InputError(f"--{about_mlperf[0].replace('_', '-')} says nothing without --mlperf; pass both or neither")
    if config.mlperf and not config.mlperf_org.strip():
        raise InputError("--mlperf-org: says nothing; name who submits")
    if needs_data and not config.data:
        raise InputError('--data is missing: pass a folder of images and annotations, or "demo"')
    return for_its_batch(config)


def for_its_batch(config: Config) -> Config:
    """With what of the detector's settings depends on how many images it learns from at once."""
    for_batch = family_of(config.detector).for_batch
    if for_batch is None:
        return config
    return config.with_detector(for_batch(config.detector, config.batch_size // config.accumulate))


def _require_whole_distillation(config: Config) -> None:
    """Raises InputError where the settings of a teacher do not go together."""
    if config.distill and config.teacher is None:
        raise InputError(f"--distill {' '.join(config.distill)}: from whom? pass --teacher FILE too")
    if config.teacher is not None and not config.distill:
        raise InputError("--teacher: teaches nothing without --distill; pass a method, such as --distill pkd")
    if len(set(config.distill)) < len(config.distill):
        raise InputError(f"--distill {' '.join(config.distill)}: names a method twice; name each once")
    for word in config.distill_settings:
        method = word.partition(".")[0]
        if method not in config.distill:
            raise InputError(
                f"--distill-settings {word}: says nothing without --distill {method}; pass both or neither"
            )
    if config.distill and config.distill_weight and config.cuda_graphs:
        raise InputError("--cuda-graphs freezes a step, and --distill has to look at it; leave one of them out")


def require_one_length(config: Config, given: Collection[str]) -> None:
    """Raises InputError where a run has two lengths, or not a factor for each fall of its rate."""
    is_told_in_epochs = config.mlperf and benchmark_of(config) == SSD
    if config.steps and ("epochs" in given or is_told_in_epochs):
        other = "--epochs" if "epochs" in given else "--mlperf"
        both = f"--steps and {other}" if "steps" in given else other
        advice = "leave one of them out" if "steps" in given or other == "--mlperf" else "pass --steps"
        raise InputError(f"{both}: this run's length is {config.steps} steps; {advice}")
    if config.multistep_factors and len(config.multistep_factors) != len(config.multistep):
        lengths = f"{len(config.multistep_factors)} for {len(config.multistep)} of --multistep"
        raise InputError(f"--multistep-factors: {lengths}; pass as many")


def require_folder_of(file: str | None, flag: str) -> None:
    """Raises InputError, before the work, if a result could not be written."""
    if file is not None and (Path(file).is_dir() or not Path(file).parent.is_dir()):
        raise InputError(f"{flag} {file}: not a file in an existing folder; pass another path")


def require_picture(file: str | None, flag: str) -> None:
    """Raises InputError, before the work, if a picture could not be written."""
    require_folder_of(file, flag)
    if file is not None and Path(file).suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise InputError(f"{flag} {file}: pass a name that ends in .png or .jpg")


def pipelines_named(choice: str) -> tuple[str, ...]:
    return DATA_PIPELINES if choice == "both" else (choice,)
