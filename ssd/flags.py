"""The flags of each command. Light: --help and mistakes in flags are answered before anything heavy is imported."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

from ssd.config import (
    AUGMENTATIONS,
    BACKBONES,
    DATA_PIPELINES,
    EVAL_ENGINES,
    MLPERF_DIVISIONS,
    MLPERF_STATUSES,
    ON_BAD_IMAGE,
    RECIPES,
    Config,
)
from ssd.errors import InputError

EXIT_CODES = (
    "exit codes: 0 done, 1 --target not reached, MLPerf log not compliant, loss infinite for good or --timeout,\n"
    "2 bad input, 3 another rank lost, 75 asked to end by SIGTERM or SIGUSR1 (saved; --resume auto), 130 interrupted"
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def _number(convert: Callable[[str], Any], low: float, high: float = 1e9) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = convert(text)
        if not low <= value <= high:
            limit = f"less than {low:g}" if value < low else f"not in {low:g}..{high:g}"
            raise argparse.ArgumentTypeError(f"{text} is {limit}")
        return value

    parse.__name__ = convert.__name__
    return parse


def _interval(text: str) -> tuple[int, str]:
    count, _, unit = text.partition(" ")
    units = {word: f"{word.removesuffix('s')}s" for word in ("step", "minute", "epoch", "steps", "minutes", "epochs")}
    if unit not in units or not (count.isdecimal() and 1 <= int(count) <= 1e9):
        raise argparse.ArgumentTypeError(f'{text!r} is not like "500 steps", "10 minutes" or "1 epoch"')
    return int(count), units[unit]


_COUNT = _number(int, 1)
_COUNT_FROM_0 = _number(int, 0)
_FRACTION = _number(float, 0, 1)
_POSITIVE = _number(float, 0)
_MINUTES = _number(float, 0.01, 1e5)
_MOMENTUM = _number(float, 0, 0.999)
_BATCH = _number(int, 2)  # batch norm on the 1 x 1 map needs two
_SEED = _number(int, 0, 2**32 - 1)


def _default(name: str) -> str:
    value = getattr(Config, name)
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
    return "" if value in (None, "") or isinstance(value, bool) else f" (default: {shown})"


def _flag(group: Any, *names: str, dest: str, help: str, **arguments: Any) -> None:
    group.add_argument(*names, dest=dest, default=argparse.SUPPRESS, help=help + _default(dest), **arguments)


def _add_data_folder_flag(group: Any) -> None:
    _flag(
        group, "--data", "-d", dest="data", metavar="DIR",
        help='COCO-style folder (DIR/train2017 or DIR/images/train2017, and DIR/annotations), '
        'or "demo": written to data/demo once',
    )  # fmt: skip


def _add_several_pipelines_flag(group: Any) -> None:
    group.add_argument(
        "--data_pipeline", choices=(*DATA_PIPELINES, "both"), default="both", help="which (default: %(default)s)"
    )


def _add_data_flags(parser: argparse.ArgumentParser, *, training: bool) -> None:
    group = parser.add_argument_group("data")
    _add_data_folder_flag(group)
    if training:
        _flag(group, "--train-split", dest="train_split", metavar="NAME", help="split to train on")
    _flag(group, "--val-split", dest="val_split", metavar="NAME", help="split to evaluate on")
    _flag(
        group, "--data_pipeline", dest="data_pipeline", choices=DATA_PIPELINES,
        help="NVIDIA DALI, or pure PyTorch: the same augmentation either way",
    )  # fmt: skip
    if training:
        _flag(
            group, "--augmentation", dest="augmentation", choices=AUGMENTATIONS,
            help="published: half a degree of hue, contrast about 128, no antialiasing, crowd regions learned",
        )  # fmt: skip
    _flag(group, "--num-workers", dest="num_workers", type=_COUNT_FROM_0, metavar="N", help="threads or processes")
    _flag(
        group, "--on-bad-image", dest="on_bad_image", choices=ON_BAD_IMAGE,
        help="skip: read every image once before the start, and do without those that cannot be used",
    )  # fmt: skip


def _add_machine_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("machine")
    _flag(group, "--fp16", dest="fp16", action="store_true", help="mixed precision in float16 (on a CPU bfloat16)")
    _flag(group, "--bf16", dest="bf16", action="store_true", help="mixed precision in bfloat16")
    _flag(group, "--device", dest="device", choices=("auto", "cpu", "cuda"), help="where to run; auto: a GPU if any")
    group.add_argument("--local_rank", "--local-rank", type=int, default=None, help="for launchers older than torchrun")


def _add_evaluation_flags(group: Any) -> None:
    _flag(group, "--eval-batch-size", "--ebs", dest="eval_batch_size", type=_COUNT, metavar="N", help="images a rank")
    _flag(group, "--score-threshold", dest="score_threshold", type=_FRACTION, metavar="P", help="detections score more")
    _flag(group, "--nms-iou", dest="nms_iou", type=_FRACTION, metavar="IOU", help="overlap that drops the weaker one")
    _flag(group, "--max-per-class", dest="max_per_class", type=_COUNT, metavar="N", help="candidates a class and image")
    _flag(group, "--max-per-image", dest="max_per_image", type=_COUNT, metavar="N", help="detections an image")
    _flag(
        group, "--eval-engine", dest="eval_engine", choices=EVAL_ENGINES,
        help="what computes the COCO metrics: faster-coco-eval or pycocotools, with equal results",
    )  # fmt: skip


def train_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main.py",
        usage="main.py [train] --data DIR [flags]\n"
        "       main.py evaluate --data DIR --checkpoint FILE [flags]\n"
        "       main.py check --data DIR [flags]\n"
        "       main.py show-data --data DIR [flags]\n"
        "       main.py benchmark data --data DIR [flags]\n"
        "       main.py convert IN OUT\n"
        "       main.py download --data DIR [flags]\n"
        "Each has its own --help.",
        description="Train an SSD300 detector. Under torchrun every process is a rank.",
        epilog=f"recipes:\n{_recipes_help()}\n\n"
        f"example: torchrun --nproc_per_node=8 main.py --fp16 --data /coco\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", choices=tuple(RECIPES), help="start from these settings, listed below")
    _add_data_flags(parser, training=True)

    group = parser.add_argument_group("model")
    _flag(group, "--backbone", dest="backbone", choices=BACKBONES, help="the ResNet under the detector")
    _flag(
        group, "--backbone-weights", dest="backbone_weights", metavar="{imagenet,none,FILE}",
        help="torchvision's, downloaded; none; or a file (torch or safetensors) with a torchvision state dict",
    )  # fmt: skip
    _flag(
        group, "--checkpoint", dest="checkpoint", metavar="FILE",
        help="fine-tune from this: a run's, NVIDIA's DLE SSD, or of convert; classes may differ",
    )  # fmt: skip

    group = parser.add_argument_group("training")
    _flag(group, "--epochs", "-e", dest="epochs", type=_COUNT, metavar="N", help="times through the data")
    _flag(group, "--batch-size", "--bs", "-b", dest="batch_size", type=_BATCH, metavar="N", help="images a rank")
    _flag(
        group, "--learning-rate", "--lr", dest="learning_rate", type=_POSITIVE, metavar="LR",
        help="rate at a global batch of 32; the run's is this x ranks x batch size / 32",
    )  # fmt: skip
    _flag(group, "--momentum", "-m", dest="momentum", type=_MOMENTUM, metavar="M", help="of SGD")
    _flag(
        group,
        "--weight-decay",
        "--wd",
        dest="weight_decay",
        type=_POSITIVE,
        metavar="W",
        help="not on biases and batch norm",
    )
    _flag(group, "--warmup", dest="warmup", type=_COUNT_FROM_0, metavar="STEPS", help="steps of linear warm-up")
    _flag(
        group, "--multistep", dest="multistep", type=_COUNT, nargs="*", metavar="EPOCH",
        help="the rate falls to a tenth after these epochs",
    )  # fmt: skip
    _flag(group, "--seed", "-s", dest="seed", type=_SEED, metavar="N", help="default: drawn and recorded")

    group = parser.add_argument_group("evaluation")
    _flag(
        group, "--evaluation", dest="evaluation", type=_COUNT, nargs="*", metavar="EPOCH",
        help="evaluate after these epochs, and after the last",
    )  # fmt: skip
    _flag(
        group, "--target", dest="target", type=_FRACTION, metavar="AP", help="end at this AP; exit 1 if never reached"
    )
    _add_evaluation_flags(group)

    _add_machine_flags(parser)

    group = parser.add_argument_group("run")
    _flag(group, "--output", dest="output", metavar="DIR", help="the run's folder (default: runs/<data>-<time>)")
    _flag(
        group, "--resume", dest="resume", metavar="{auto,FILE}",
        help="go on from a checkpoint; auto: the run's own last one, if any",
    )  # fmt: skip
    _flag(
        group, "--resume-anyway", dest="resume_anyway", action="store_true",
        help="go on though data, seed, batch size or data path are not the checkpoint's; images come in a new order",
    )  # fmt: skip
    _flag(
        group, "--checkpoint-every", dest="checkpoint_every", type=_interval, metavar="'N steps|minutes|epochs'",
        help="how often to write one, also within an epoch; always around an evaluation and at the end",
    )  # fmt: skip
    _flag(
        group, "--keep-checkpoints", dest="keep_checkpoints", type=_COUNT, metavar="K",
        help="how many of the newest stay, beside the best",
    )  # fmt: skip
    _flag(
        group, "--timeout", dest="timeout", type=_MINUTES, metavar="MINUTES",
        help="give up when another rank, a step or an evaluation takes longer",
    )  # fmt: skip
    _flag(group, "--log-interval", dest="log_interval", type=_COUNT, metavar="STEPS", help="steps a line of log.jsonl")

    group = parser.add_argument_group("mlperf")
    _flag(group, "--mlperf", dest="mlperf", action="store_true", help="write mlperf.log and check it at the end")
    _flag(group, "--mlperf-org", dest="mlperf_org", metavar="NAME", help="who submits")
    _flag(group, "--mlperf-platform", dest="mlperf_platform", metavar="NAME", help="default: the name of the device")
    _flag(group, "--mlperf-division", dest="mlperf_division", choices=MLPERF_DIVISIONS, help="rules to be checked by")
    _flag(group, "--mlperf-status", dest="mlperf_status", choices=MLPERF_STATUSES, help="where the platform stands")
    return parser


def _recipes_help() -> str:
    return "\n".join(f"  {name:<11}{(recipe.__doc__ or '').splitlines()[0]}" for name, recipe in RECIPES.items())


def evaluate_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main.py evaluate",
        description="Judge a checkpoint on a data set by the COCO metrics.",
        epilog=f"example: main.py evaluate --data /coco --checkpoint runs/coco/checkpoints/best.pt\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--checkpoint", required=True, metavar="FILE",
        help="a run's checkpoints/best.pt or last.pt, NVIDIA's DLE SSD, or of convert",
    )  # fmt: skip
    _add_data_flags(parser, training=False)
    _add_evaluation_flags(parser.add_argument_group("evaluation"))
    _add_machine_flags(parser)
    parser.add_argument("--json", metavar="FILE", help="write the metrics there too")
    return parser


def check_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main.py check",
        description="Read every annotation and decode every image of a data set, and list all that is wrong with it.\n"
        "Changes nothing; --on-bad-image skip need not read the images again after it.",
        epilog="example: main.py check --data /coco --json findings.json\n"
        "exit codes: 0 clean, or only harmless findings, 1 findings that would stop a run or change what it learns or\n"
        "scores, 2 bad input, 130 interrupted",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    group = parser.add_argument_group("data")
    _add_data_folder_flag(group)
    _flag(group, "--train-split", dest="train_split", metavar="NAME", help="split to train on")
    _flag(group, "--val-split", dest="val_split", metavar="NAME", help="split to evaluate on")
    group.add_argument("--num-workers", type=_COUNT, metavar="N", help="threads that decode (default: one a core)")
    parser.add_argument(
        "--json", metavar="FILE", help="write every finding there; the console shows a few of each kind"
    )
    return parser


def show_data_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main.py show-data",
        description="Write a picture of what the detector learns from: augmented images, their boxes (thick) and the\n"
        "default boxes matched to them (thin).",
        epilog=f"example: main.py show-data --data demo --data_pipeline both --output data.png\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    group = parser.add_argument_group("data")
    _add_data_folder_flag(group)
    _flag(group, "--train-split", dest="train_split", metavar="NAME", help="split to show")
    _add_several_pipelines_flag(group)
    _flag(group, "--seed", "-s", dest="seed", type=_SEED, metavar="N", help="default: 0")
    group = parser.add_argument_group("picture")
    group.add_argument("--output", default="show-data.png", metavar="FILE", help="PNG to write (default: %(default)s)")
    group.add_argument("--rows", type=_COUNT, default=3, metavar="N", help="(default: %(default)s)")
    group.add_argument("--columns", type=_COUNT, default=3, metavar="N", help="a data path (default: %(default)s)")
    return parser


def benchmark_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main.py benchmark",
        description="Measure the data paths: finished training batches a second, what they cost, and the ceiling.",
        epilog=f"example: main.py benchmark data --data /coco --workers 1 2 4 --json data.json\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "what", metavar="data", choices=("data",), help="data: decoding alone, DALI and PyTorch, in turns"
    )
    group = parser.add_argument_group("data")
    _add_data_folder_flag(group)
    _flag(group, "--train-split", dest="train_split", metavar="NAME", help="split to read")
    _add_several_pipelines_flag(group)
    _flag(group, "--batch-size", "--bs", "-b", dest="batch_size", type=_BATCH, metavar="N", help="images a batch")
    group.add_argument(
        "--workers", type=_COUNT, nargs="+", metavar="N", help="threads or processes (default: 1 to all)"
    )
    group = parser.add_argument_group("measurement")
    group.add_argument("--rounds", type=_COUNT, default=5, metavar="N", help="median of these (default: %(default)s)")
    group.add_argument("--batches", type=_COUNT, default=20, metavar="N", help="timed a round (default: %(default)s)")
    group.add_argument(
        "--through", choices=("data", "train"), default="data",
        help="train: take the batches by training steps, and tell how long those wait (default: %(default)s)",
    )  # fmt: skip
    _flag(group, "--backbone", dest="backbone", choices=BACKBONES, help="for --through train")
    group = parser.add_argument_group("output")
    group.add_argument("--json", metavar="FILE", help="write the figures there")
    group.add_argument("--plot", metavar="FILE", help="draw images a second against workers there, as a PNG")
    _add_machine_flags(parser)
    return parser


def convert_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main.py convert",
        description="Write the model of a checkpoint, without the rest of its run, in this program's form.\n"
        "Checkpoints of NVIDIA's DeepLearningExamples (DLE) SSD300 on any ResNet can be read, too.",
        epilog=f"example: main.py convert nvidia_ssd.pt ssd300-r50.safetensors\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="IN", help="a checkpoint of a run or of DLE, as .pt or .safetensors")
    parser.add_argument("target", metavar="OUT", help="a name that ends in .pt, .pth or .safetensors")
    return parser


def download_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main.py download",
        description="Fetch COCO 2017 (20 GB, and as much again while it is unpacked) into a folder to train on.\n"
        "Run again after an interruption, it goes on where it was.",
        epilog=f"example: main.py download --data /coco\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--data", "-d", required=True, metavar="DIR", help="folder for it; made if it is not there")
    parser.add_argument(
        "--url", default="http://images.cocodataset.org", metavar="URL",
        help="a server that has COCO's archives under COCO's paths (default: %(default)s)",
    )  # fmt: skip
    return parser


def config_of(flags: dict[str, Any], base: Config) -> Config:
    """base with the flags that were given. Raises InputError where they do not go together."""
    flags = {name: tuple(value) if isinstance(value, list) else value for name, value in flags.items()}
    if flags.get("fp16") and flags.get("bf16"):
        raise InputError("--fp16 and --bf16 exclude each other; pass one")
    if flags.get("fp16") or flags.get("bf16"):
        flags = {"fp16": False, "bf16": False, **flags}  # overrules the recipe's
    config = replace(base, **flags)
    about_mlperf = sorted(name for name in flags if name.startswith("mlperf_"))
    if about_mlperf and not config.mlperf:
        raise InputError(f"--{about_mlperf[0].replace('_', '-')} says nothing without --mlperf; pass both or neither")
    if not config.data:
        raise InputError('--data is missing: pass a COCO-style folder, or "demo"')
    return config
