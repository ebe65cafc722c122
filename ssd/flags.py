"""The flags of each command. Light: --help and mistakes in flags are answered before anything heavy is imported."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

from ssd.config import BACKBONES, DATA_PIPELINES, RECIPES, Config
from ssd.errors import InputError

EXIT_CODES = "exit codes: 0 done, 1 --target not reached or the loss became infinite, 2 bad input, 130 interrupted"


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


_COUNT = _number(int, 1)
_COUNT_FROM_0 = _number(int, 0)
_FRACTION = _number(float, 0, 1)
_POSITIVE = _number(float, 0)
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
    _flag(group, "--num-workers", dest="num_workers", type=_COUNT_FROM_0, metavar="N", help="threads or processes")


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


def train_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main.py",
        usage="main.py [train] --data DIR [flags]\n"
        "       main.py evaluate --data DIR --checkpoint FILE [flags]\n"
        "       main.py show-data --data DIR [flags]\n"
        "       main.py benchmark data --data DIR [flags]\n"
        "Each has its own --help.",
        description="Train an SSD300 detector. Under torchrun every process is a rank.",
        epilog=f"example: torchrun --nproc_per_node=8 main.py --fp16 --data /coco\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", choices=tuple(RECIPES), help="start from these settings instead of the defaults")
    _add_data_flags(parser, training=True)

    group = parser.add_argument_group("model")
    _flag(group, "--backbone", dest="backbone", choices=BACKBONES, help="the ResNet under the detector")
    _flag(
        group, "--backbone-weights", dest="backbone_weights", metavar="{imagenet,none,FILE}",
        help="torchvision's, downloaded; none; or a file with a torchvision state dict",
    )  # fmt: skip
    _flag(group, "--checkpoint", dest="checkpoint", metavar="FILE", help="fine-tune from this; classes may differ")

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
    _flag(group, "--log-interval", dest="log_interval", type=_COUNT, metavar="STEPS", help="steps a line of log.jsonl")
    return parser


def evaluate_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main.py evaluate",
        description="Judge a checkpoint on a data set by the COCO metrics.",
        epilog=f"example: main.py evaluate --data /coco --checkpoint runs/coco/checkpoints/best.pt\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a run's checkpoints/best.pt or last.pt")
    _add_data_flags(parser, training=False)
    _add_evaluation_flags(parser.add_argument_group("evaluation"))
    _add_machine_flags(parser)
    parser.add_argument("--json", metavar="FILE", help="write the metrics there too")
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


def config_of(flags: dict[str, Any], base: Config) -> Config:
    """base with the flags that were given. Raises InputError where they do not go together."""
    flags = {name: tuple(value) if isinstance(value, list) else value for name, value in flags.items()}
    if flags.get("fp16") and flags.get("bf16"):
        raise InputError("--fp16 and --bf16 exclude each other; pass one")
    if flags.get("fp16") or flags.get("bf16"):
        flags = {"fp16": False, "bf16": False, **flags}  # overrules the recipe's
    config = replace(base, **flags)
    if not config.data:
        raise InputError('--data is missing: pass a COCO-style folder, or "demo"')
    return config
