"""main.py benchmark: the data paths, the training step or detection, measured."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

from ssd.cli.splits import data_name, read_split
from ssd.config import DATA_PIPELINES, Config
from ssd.detectors.names import family_of
from ssd.errors import InputError
from ssd.options.detectors import add_detector_flags, detector_in
from ssd.options.flags import (
    BATCH,
    COUNT,
    COUNT_FROM_0,
    EXIT_CODES,
    FRACTION,
    Parser,
    add_data_folder_flag,
    add_machine_flags,
    add_several_pipelines_flag,
    add_split_flags,
    config_of,
    flag,
    pipelines_named,
    require_folder_of,
    require_picture,
)


def benchmark_parser() -> Parser:
    parser = Parser(
        "main.py benchmark",
        usage="main.py benchmark data|train|inference [flags]",
        description="Measure the data paths, the training step or detection. Each has its own --help.",
        epilog=f"example: main.py benchmark train --synthetic --precisions bf16\n{EXIT_CODES}",
    )
    parser.add_argument("what", choices=("data", "train", "inference"), help="what to measure")
    return parser


def benchmark_data_parser(settings: Any = Config.detector) -> Parser:
    parser = Parser(
        "main.py benchmark data",
        description="Measure the data paths: finished training batches a second, what they cost, and the ceiling:\n"
        "decoding alone, DALI and PyTorch, in turns.",
        epilog=f"example: main.py benchmark data --data /coco --workers 1 2 4 --json data.json\n{EXIT_CODES}",
    )
    group = parser.add_argument_group("data")
    add_data_folder_flag(group)
    add_split_flags(group, "train")
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
    add_detector_flags(parser, settings)
    group = parser.add_argument_group("output")
    group.add_argument("--json", metavar="FILE", help="write the figures there")
    group.add_argument("--plot", metavar="FILE", help="draw images a second against workers there, as a PNG or JPEG")
    add_machine_flags(parser)
    return parser


def benchmark_steps_parser(subject: Literal["train", "inference"], settings: Any = Config.detector) -> Parser:
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
    add_split_flags(group, "train" if subject == "train" else "val")
    flag(group, "--data_pipeline", dest="data_pipeline", choices=DATA_PIPELINES, help="what reads it")
    flag(group, "--num-workers", dest="num_workers", type=COUNT_FROM_0, metavar="N", help="threads or processes")
    group = parser.add_argument_group("model")
    add_detector_flags(parser, settings)
    flag(group, "--checkpoint", dest="checkpoint", metavar="FILE", help="whose weights (default: random)")
    group = parser.add_argument_group("measurement")
    group.add_argument(
        "--precisions", nargs="+", choices=("fp32", "bf16", "fp16"), default=["bf16"],
        help="(default: bf16; fp16 is bf16 on a CPU)",
    )  # fmt: skip
    group.add_argument("--batch-sizes", type=COUNT, nargs="+", default=[32], metavar="N", help="(default: 32)")
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


def benchmark(arguments: Sequence[str]) -> int:
    what = benchmark_parser().parse_args(arguments[:1]).what
    return _benchmark_data(arguments[1:]) if what == "data" else _benchmark_steps(what, arguments[1:])


def _benchmark_data(arguments: Sequence[str]) -> int:
    settings = detector_in(arguments)
    options = vars(benchmark_data_parser(settings).parse_args(arguments))
    names = pipelines_named(options.pop("data_pipeline"))
    chosen = {name: options.pop(name) for name in ("workers", "rounds", "batches", "through", "json", "plot")}
    local_rank = options.pop("local_rank")
    config = config_of(options, Config(batch_size=32, seed=0, backbone_weights="none", detector=settings))
    require_folder_of(chosen["json"], "--json")
    require_picture(chosen["plot"], "--plot")
    workers = chosen["workers"] or list(range(1, (os.cpu_count() or 1) + 1))

    from pipelines import speed as data_benchmark
    from ssd.console import Console, say_on_stderr
    from ssd.detectors.table import view_of
    from ssd.distributed import process_group
    from ssd.environment import git_revision, hardware, versions
    from ssd.speed.steps import through_training
    from ssd.training.build import build_training

    view = view_of(config.detector)
    with process_group(config.device, local_rank) as ranks:
        if ranks.world_size > 1:
            raise InputError("benchmark measures one process; start it without torchrun")
        split = read_split(config, "train")
        about = {"batch_size": config.batch_size, "rounds": chosen["rounds"], "timed_batches": chosen["batches"]}
        about |= {
            "data": data_name(config),
            "hardware": hardware(ranks.device),
            "versions": versions(),
            "git_revision": git_revision(),
        }
        found = data_benchmark.benchmark(
            split,
            view,
            subjects=(data_benchmark.DECODE_ONLY, *names),
            workers=workers,
            batch_size=config.batch_size,
            timed_batches=chosen["batches"],
            rounds=chosen["rounds"],
            ranks=ranks,
            progress=say_on_stderr,
        )
        data_benchmark.show_table(found, Console())
        if chosen["through"] == "train":
            about["through_train"] = through_training(
                build_training(config, split.categories, ranks, has_to_learn=False)[0],
                {
                    name: partial(data_benchmark.endless, split, name, max(workers), ranks, view, config.batch_size)
                    for name in names
                },
                timed_steps=chosen["batches"],
            )
    if chosen["json"]:
        data_benchmark.write_json(Path(chosen["json"]), found, about)
    if chosen["plot"]:
        data_benchmark.write_plot(Path(chosen["plot"]), found, data_name(config))
    return 0


def _benchmark_steps(subject: Literal["train", "inference"], arguments: Sequence[str]) -> int:
    settings = detector_in(arguments)
    options = vars(benchmark_steps_parser(subject, settings).parse_args(arguments))
    chosen = {name: options.pop(name) for name in ("synthetic", "json", "plot", "profile")}
    precisions, batch_sizes = options.pop("precisions"), options.pop("batch_sizes")
    compiled = {"off": [False], "on": [True], "both": [False, True]}[options.pop("compile")]
    warmup_steps, timed_steps = options.pop("warmup_steps"), options.pop("steps")
    if chosen["synthetic"] == ("data" in options):
        raise InputError(f"benchmark {subject} takes --data DIR or --synthetic; pass one of them")
    config = config_of({"data": "synthetic", **options}, Config(seed=0, backbone_weights="none", detector=settings))
    if config.checkpoint:  # a bare machine that measures random weights has not all that a run needs
        from ssd.cli.training_run import with_detector_of_checkpoint

        config = replace(with_detector_of_checkpoint(config, set(options)), accumulate=1)  # a batch in one part
    for name in ("json", "plot", "profile"):
        require_folder_of(chosen[name], f"--{name}")
    least = family_of(config.detector).least_part if subject == "train" else 1
    if min(batch_sizes) < least:
        raise InputError(
            f"--batch-sizes {min(batch_sizes)}: {config.detector.name} trains on {least} images or more at once, for "
            "its batch norm"
        )

    from pipelines import speed as data_benchmark
    from ssd.coco_categories import coco_categories
    from ssd.console import say_on_stderr
    from ssd.detectors.table import detector_of, view_of
    from ssd.distributed import process_group
    from ssd.speed import comparison
    from ssd.training.step import require_device

    with process_group(config.device) as ranks:
        if ranks.world_size > 1:
            raise InputError("benchmark measures one process; start it without torchrun")
        require_device(config, ranks)
        for precision in precisions:
            if precision != "fp32" and comparison.computed_in(precision, ranks.device) == "float32":
                say_on_stderr(f"note: this CPU has no 16-bit units, so {precision} is computed in float32")
        categories: Sequence[tuple[int, str]] = coco_categories()
        batches_of: Callable[[int], Iterator[Any]]
        if chosen["synthetic"]:
            synthetic = partial(
                detector_of(config.detector).synthetic, config.detector, 1 + len(categories), ranks.device
            )

            def batches_of(batch_size: int) -> Iterator[Any]:
                return repeat(synthetic(batch_size))
        else:
            trains = subject == "train"
            split = read_split(config, "train" if trains else "val")
            categories = split.categories
            view = view_of(config.detector)
            batches_of = partial(
                data_benchmark.endless, split, config.data_pipeline, config.num_workers, ranks, view, training=trains
            )
        data = "synthetic" if chosen["synthetic"] else f"{data_name(config)}, {config.data_pipeline}"

        def keep(rows: Sequence[comparison.Row]) -> None:
            if chosen["json"]:
                about = {"data": data, **comparison.about(config, 1 + len(categories), rows, subject, ranks)}
                comparison.write_json(Path(chosen["json"]), rows, about)

        rows = comparison.compare(
            subject, config, categories, batches_of, ranks,
            precisions=precisions, compiled=compiled, batch_sizes=batch_sizes,
            warmup_steps=warmup_steps, timed_steps=timed_steps,
            trace=Path(chosen["profile"]) if chosen["profile"] else None,
            progress=say_on_stderr,
            keep=keep,
        )  # fmt: skip
        comparison.show_table(subject, rows, ranks.device)
    if chosen["plot"]:
        comparison.write_plot(Path(chosen["plot"]), subject, rows)
    return 0
