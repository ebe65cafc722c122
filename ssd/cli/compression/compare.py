"""main.py compare: detectors side by side, what they find, how large they are and how fast they run."""

from collections.abc import Sequence
from pathlib import Path

from ssd.cli.splits import data_name, judged_text, split_to_judge
from ssd.config import Config
from ssd.errors import InputError
from ssd.options.detectors import for_detector
from ssd.options.flags import (
    COUNT,
    COUNT_FROM_0,
    EXIT_CODES,
    Parser,
    add_data_flags,
    add_evaluation_flags,
    add_machine_flags,
    config_of,
)

_RUNTIMES = ("eager", "compiled", "onnxruntime", "openvino")


def compare_parser() -> Parser:
    parser = Parser(
        "main.py compare",
        description="Hold detectors against each other on one split: COCO metrics, parameters, zeros, FLOPs, bytes,\n"
        "peak memory, and milliseconds an image, measured in turns in one run. Writes comparison.html, which needs no\n"
        "other file, comparison.json, frontier.png (AP over milliseconds) and detections.jpg.",
        epilog="example: main.py compare runs/dense/checkpoints/best.pt thin.pt thin-int8.onnx --data /mydata "
        f"--output comparison\n{EXIT_CODES}",
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE",
        help="checkpoints, and ONNX files of main.py export; speeds are compared with the first one's",
    )  # fmt: skip
    parser.add_argument("--output", required=True, metavar="DIR", help="where to write; made if it is not there")
    add_data_flags(parser, training=False)
    add_evaluation_flags(parser.add_argument_group("evaluation"))
    group = parser.add_argument_group("speed")
    group.add_argument(
        "--runtimes", nargs="+", choices=_RUNTIMES, default=["eager", "onnxruntime"], metavar="NAME",
        help=f"of {', '.join(_RUNTIMES)}; checkpoints are exported for the last two (default: eager onnxruntime)",
    )  # fmt: skip
    group.add_argument(
        "--batch-sizes", nargs="+", type=COUNT, default=[1, 8], metavar="N", help="images at once (default: 1 8)"
    )
    group.add_argument(
        "--rounds", type=COUNT, default=15, metavar="N",
        help="each file runs once a round; figures are medians (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--warmup-rounds", type=COUNT_FROM_0, default=3, metavar="N", help="not counted (default: %(default)s)"
    )
    group.add_argument("--no-memory", action="store_true", help="do not start processes to measure peak memory in")
    add_machine_flags(parser)
    return parser


def compare(arguments: Sequence[str]) -> int:
    options = vars(compare_parser().parse_args(arguments))
    files, output = [Path(file) for file in options.pop("files")], Path(options.pop("output"))
    runtimes = tuple(dict.fromkeys(options.pop("runtimes")))
    batch_sizes = sorted(set(options.pop("batch_sizes")))
    rounds, warmup_rounds = options.pop("rounds"), options.pop("warmup_rounds")
    measures_memory, local_rank = not options.pop("no_memory"), options.pop("local_rank")
    config = config_of(options, Config())

    from functools import partial

    import pipelines
    from pipelines.categories import require_points
    from ssd.compression.comparison.compare import compare as compared
    from ssd.compression.comparison.figures import PAGE, show_tables
    from ssd.compression.comparison.runtimes import require_runtimes
    from ssd.compression.comparison.subjects import load_subjects
    from ssd.console import Console, say, say_on_stderr
    from ssd.detectors.table import detector_of, view_of
    from ssd.distributed import process_group
    from ssd.views import ObjectParts, parts_of

    require_runtimes(runtimes)
    subjects = load_subjects(files)
    configs = [for_detector(each.settings, config, set(options)) for each in subjects]
    console = Console(soft_wrap=True)
    with process_group(config.device, local_rank, config.timeout) as ranks:
        if ranks.world_size > 1:
            raise InputError("main.py compare measures in one process; start it without torchrun")
        about = {"categories": subjects[0].categories}
        # Masks and keypoints where any of them finds them.
        views = [parts_of(view_of(each.settings)) for each in subjects]
        parts = ObjectParts(any(each.masks for each in views), any(each.keypoints for each in views))
        source, split, _ = split_to_judge(about, subjects[0].file, config, ranks, parts)
        for each in subjects:
            if skeleton := detector_of(each.settings).skeleton(each.settings):
                require_points(skeleton.names, split, each.file.name)
        for warning in filter(None, (split.repairs_text, judged_text(split))):
            say_on_stderr(f"warning: {warning}")
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--output {output}: cannot be a folder ({error.strerror}); pass another") from error
        loader_of = partial(
            pipelines.build_eval, config.data_pipeline, split, batch_size=configs[0].eval_batch_size,
            num_workers=config.num_workers, ranks=ranks,
        )  # fmt: skip
        found = compared(
            subjects, configs, lambda view: loader_of(view=view), split.ground_truth(), ranks,
            output=output, title=f"{data_name(config)} {source.name}, {len(split)} images", runtimes=runtimes,
            batch_sizes=batch_sizes, rounds=rounds, warmup_rounds=warmup_rounds, measures_memory=measures_memory,
            progress=lambda text: console.print(text, markup=False, style="dim"),
        )  # fmt: skip
    show_tables(found)
    say(f"wrote {output / PAGE}")
    return 0
