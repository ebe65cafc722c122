"""main.py summary: what a model consists of, a checkpoint's or a detector's by its name, and which names there are."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd.config import Config
from ssd.detectors.names import FAMILIES
from ssd.errors import InputError
from ssd.options.detectors import add_detector_flags, detector_in
from ssd.options.flags import CHECKPOINT_HELP, COUNT, EXIT_CODES, Parser, config_of, require_folder_of

if TYPE_CHECKING:
    from torch import nn

    from ssd.compression.summary import Part, TensorSummary


def summary_parser(settings: Any = Config.detector) -> Parser:
    parser = Parser(
        "main.py summary",
        description="List a model's tensors by the names that a schedule may use: their shapes, how many of their\n"
        "weights, filters and channels are 0, and what their layers compute for one image. The model is a\n"
        "checkpoint's, or that of --detector with fresh weights. Without either: the names of all detectors.",
        base=Config(detector=settings),
        epilog=f"example: main.py summary --checkpoint runs/a/checkpoints/best.pt --output summary.csv\n"
        f"         main.py summary --detector retinanet_resnet50_fpn\n{EXIT_CODES}",
    )
    parser.add_argument("--checkpoint", metavar="FILE", help=CHECKPOINT_HELP)
    add_detector_flags(parser, settings, training=False)
    group = parser.add_argument_group("model")
    group.add_argument(
        "--classes", type=COUNT, metavar="N", help="that --detector tells apart, without the background (default: "
        "COCO's, or what a darknet cfg says)",
    )  # fmt: skip
    parser.add_argument("--output", metavar="FILE", help="write it there too: a name that ends in .json or .csv")
    parser.add_argument(
        "--all", action="store_true", help="show biases and batch norm too, not only what has 2 dimensions"
    )
    return parser


def summary(arguments: Sequence[str]) -> int:
    options = vars(summary_parser(detector_in(arguments)).parse_args(arguments))
    output, shows_all = options.pop("output"), options.pop("all")
    checkpoint, classes = options.pop("checkpoint"), options.pop("classes")
    if output is not None and Path(output).suffix not in (".json", ".csv"):
        raise InputError(f"--output {output}: pass a name that ends in .json or .csv")
    require_folder_of(output, "--output")
    if not arguments:
        _show_names()
        return 0
    if (checkpoint is None) == ("detector" not in options):
        raise InputError("summary takes --checkpoint FILE or --detector NAME; pass one of them")
    if checkpoint is not None and (options or classes):
        name = next(iter(options), "classes").replace("_", "-")
        raise InputError(f"--{name}: the checkpoint says all of its detector; leave it out")

    from ssd.compression.summary import parts_of, summarize_detector, write_summary
    from ssd.detectors.table import detector_of, num_classes_of

    if checkpoint is not None:
        title, settings, model = checkpoint, *_model_of(Path(checkpoint))
    else:
        settings = config_of(options, Config(detector=detector_in(arguments)), needs_data=False).detector
        num_classes = num_classes_of(settings) if classes is None else 1 + classes
        model = detector_of(settings).build(settings, num_classes)
        title = detector_of(settings).title(settings)
    tensors = summarize_detector(model, settings)
    width, height = detector_of(settings).input_size_px(settings)
    shown = [each for each in tensors if shows_all or len(each.shape) > 1]
    about = f"{title}: {len(shown)} of {len(tensors)} tensors, of an image of {width} x {height} pixels"
    _show(about, shown, parts_of(tensors))
    if output is not None:
        write_summary(Path(output), tensors)
    return 0


_FAMILIES = {
    "ssd300": "SSD300 on any ResNet (--backbone)",
    "torchvision_ssd": "torchvision's SSDs",
    "torchvision": "torchvision's RetinaNet, FCOS and R-CNNs, and their like on any ResNet",
    "retinanet": "detectron2's RetinaNet",
    "detectron": "Detectron's R-CNNs, or a YAML file of its",
    "yolov2": "darknet's YOLOv2, or a cfg file of its",
}


def _show_names() -> None:
    from ssd.console import say

    for family, title in _FAMILIES.items():
        say("\n    ".join([f"{title}:", *sorted(FAMILIES[family].names)]))


def _model_of(file: Path) -> "tuple[Any, nn.Module]":
    """A checkpoint's detector's settings, and its model."""
    from ssd.checkpoints import checkpoint, conversion

    content = conversion.load(file)
    return checkpoint.settings_of(content), checkpoint.build_model(content, file)


def _show(title: str, tensors: "list[TensorSummary]", parts: "list[Part]") -> None:
    from rich.markup import escape
    from rich.table import Table

    from ssd.console import Console

    table = Table(title=escape(title), title_justify="left")
    columns = ("tensor", "shape", "weights", "not 0", "0 %", "filters 0 %", "channels 0 %", "MFLOP", "MFLOP not 0")
    for column in columns:
        table.add_column(column, justify="left" if column in ("tensor", "shape") else "right", no_wrap=True)
    for each in tensors:
        shares = (_percent(share) for share in (each.zeros, each.zero_filters, each.zero_channels))
        computed = (f"{flops / 1e6:.1f}" if each.flops else "" for flops in (each.flops, each.nonzero_flops))
        shape = " x ".join(map(str, each.shape))
        table.add_row(each.name, shape, f"{each.weights:,}", f"{each.nonzeros:,}", *shares, *computed)
    table.add_section()
    for part in parts:
        computed = (f"{flops / 1e6:.1f}" for flops in (part.flops, part.nonzero_flops))
        table.add_row(part.name, "", f"{part.weights:,}", f"{part.nonzeros:,}", _percent(part.zeros), "", "", *computed)
    console = Console(soft_wrap=True)
    # In a pipe, or a terminal that is narrower, lines are longer than it rather than cut to nothing.
    wide = console.options.update(max_width=10_000)
    console.width = max(console.width, console.measure(table, options=wide).maximum)
    console.print(table)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"
