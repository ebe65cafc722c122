"""The flags of `main.py benchmark data`, `train` and `inference`, with what --help says of them."""

from typing import Literal

from ssd.cli.flags import (
    BATCH,
    COUNT,
    COUNT_FROM_0,
    FRACTION,
    Parser,
    add_data_folder_flag,
    add_machine_flags,
    add_several_pipelines_flag,
    flag,
)
from ssd.cli.parsers import EXIT_CODES
from ssd.config import BACKBONES, DATA_PIPELINES


def benchmark_parser() -> Parser:
    parser = Parser(
        "main.py benchmark",
        usage="main.py benchmark data|train|inference [flags]",
        description="Measure the data paths, the training step or detection. Each has its own --help.",
        epilog=f"example: main.py benchmark train --synthetic --precisions bf16\n{EXIT_CODES}",
    )
    parser.add_argument("what", choices=("data", "train", "inference"), help="what to measure")
    return parser


def benchmark_data_parser() -> Parser:
    parser = Parser(
        "main.py benchmark data",
        description="Measure the data paths: finished training batches a second, what they cost, and the ceiling:\n"
        "decoding alone, DALI and PyTorch, in turns.",
        epilog=f"example: main.py benchmark data --data /coco --workers 1 2 4 --json data.json\n{EXIT_CODES}",
    )
    group = parser.add_argument_group("data")
    add_data_folder_flag(group)
    flag(group, "--train-split", dest="train_split", metavar="NAME", help="split to read")
    add_several_pipelines_flag(group)
    flag(group, "--batch-size", "--bs", "-b", dest="batch_size", type=BATCH, metavar="N", help="images a batch")
    group.add_argument("--workers", type=COUNT, nargs="+", metavar="N", help="threads or processes (default: 1 to all)")
    group = parser.add_argument_group("measurement")
    group.add_argument("--rounds", type=COUNT, default=5, metavar="N", help="median of these (default: %(default)s)")
    group.add_argument("--batches", type=COUNT, default=20, metavar="N", help="timed a round (default: %(default)s)")
    group.add_argument(
        "--through", choices=("data", "train"), default="data",
        help="train: take the batches by training steps, and tell how long those wait (default: %(default)s)",
    )  # fmt: skip
    flag(group, "--backbone", dest="backbone", choices=BACKBONES, help="for --through train")
    group = parser.add_argument_group("output")
    group.add_argument("--json", metavar="FILE", help="write the figures there")
    group.add_argument("--plot", metavar="FILE", help="draw images a second against workers there, as a PNG or JPEG")
    add_machine_flags(parser)
    return parser


def benchmark_steps_parser(subject: Literal["train", "inference"]) -> Parser:
    """Of subject "train" or "inference"."""
    does = {
        "train": "Measure training steps: the training loop's own, with a timer.",
        "inference": "Measure detection: the model, decoding and non-maximum suppression.",
    }
    parser = Parser(
        f"main.py benchmark {subject}",
        description=f"{does[subject]} Every precision, with every\nbatch size. MFU is against a matrix product.",
        epilog=f"example: main.py benchmark {subject} --synthetic --precisions fp32 bf16\n{EXIT_CODES}",
    )
    group = parser.add_argument_group("data")
    add_data_folder_flag(group)
    group.add_argument("--synthetic", action="store_true", help="batches that lie in memory, of COCO's 80 classes")
    split = ("--train-split", "train_split") if subject == "train" else ("--val-split", "val_split")
    flag(group, split[0], dest=split[1], metavar="NAME", help="split to read")
    flag(group, "--data_pipeline", dest="data_pipeline", choices=DATA_PIPELINES, help="what reads it")
    flag(group, "--num-workers", dest="num_workers", type=COUNT_FROM_0, metavar="N", help="threads or processes")
    group = parser.add_argument_group("model")
    flag(group, "--backbone", dest="backbone", choices=BACKBONES, help="the ResNet under the detector")
    flag(group, "--checkpoint", dest="checkpoint", metavar="FILE", help="whose weights (default: random)")
    group = parser.add_argument_group("measurement")
    group.add_argument(
        "--precisions", nargs="+", choices=("fp32", "bf16", "fp16"), default=["bf16"],
        help="(default: bf16; fp16 is bf16 on a CPU)",
    )  # fmt: skip
    group.add_argument("--batch-sizes", type=BATCH, nargs="+", default=[32], metavar="N", help="(default: 32)")
    group.add_argument(
        "--compile", choices=("off", "on", "both"), default="off", help="torch.compile (default: %(default)s)"
    )
    if subject == "train":
        flag(group, "--cuda-graphs", dest="cuda_graphs", action="store_true", help="a step as one launch on a GPU")
    else:
        flag(
            group, "--score-threshold", dest="score_threshold", type=FRACTION, metavar="P", help="detections score more"
        )
    group.add_argument("--warmup-steps", type=COUNT, default=12, metavar="N", help="not timed (default: %(default)s)")
    group.add_argument("--steps", type=COUNT, default=20, metavar="N", help="timed (default: %(default)s)")
    flag(group, "--device", dest="device", choices=("auto", "cpu", "cuda"), help="where to run; auto: a GPU if any")
    group = parser.add_argument_group("output")
    group.add_argument("--json", metavar="FILE", help="write the figures there")
    group.add_argument("--plot", metavar="FILE", help="draw them there, as a PNG or JPEG")
    group.add_argument("--profile", metavar="FILE", help="write a step's trace there, for chrome://tracing (JSON)")
    return parser
