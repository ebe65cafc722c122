"""main.py summary and thin: what a model consists of, and one without its zeros."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd.config import Config
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
        "checkpoint's, or that of --detector with fresh weights.",
        base=Config(detector=settings),
        epilog=f"example: main.py summary --checkpoint runs/a/checkpoints/best.pt --output summary.csv\n"
        f"         main.py summary --detector retinanet_resnet50_fpn\n{EXIT_CODES}",
    )
    parser.add_argument("--checkpoint", metavar="FILE", help=CHECKPOINT_HELP)
    add_detector_flags(parser, settings, training=False)
    group = parser.add_argument_group("model")
    group.add_argument(
        "--classes", type=COUNT, metavar="N", help="that --detector tells apart, without the background (default: 80)"
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
    if (checkpoint is None) == ("detector" not in options):
        raise InputError("summary takes --checkpoint FILE or --detector NAME; pass one of them")
    if checkpoint is not None and (options or classes):
        name = next(iter(options), "classes").replace("_", "-")
        raise InputError(f"--{name}: the checkpoint says all of its detector; leave it out")

    import torch

    from ssd.compression.summary import parts_of, summarize, write_summary
    from ssd.detectors.table import detector_of

    if checkpoint is not None:
        title, settings, model = checkpoint, *_model_of(Path(checkpoint))
    else:
        settings = config_of(options, Config(detector=detector_in(arguments)), needs_data=False).detector
        model = detector_of(settings).build(settings, 1 + (classes or 80))
        title = detector_of(settings).title(settings)
    detector = detector_of(settings)
    width, height = detector.input_size_px(settings)
    images = torch.zeros(1, 3, height, width)
    # Where a detector's own pass joins layers, it has one that does not.
    run: Any = getattr(model, "every_layer", partial(detector.trace, model))
    tensors = summarize(model, lambda: run(images))
    shown = [each for each in tensors if shows_all or len(each.shape) > 1]
    about = f"{title}: {len(shown)} of {len(tensors)} tensors, of an image of {width} x {height} pixels"
    _show(about, shown, parts_of(tensors))
    if output is not None:
        write_summary(Path(output), tensors)
    return 0


def _model_of(file: Path) -> "tuple[Any, nn.Module]":
    """A checkpoint's detector's settings, and its model."""
    from ssd.checkpoints import checkpoint, conversion

    content = conversion.load(file)
    return checkpoint.settings_of(content), checkpoint.build_model(content, file)


def thin_parser() -> Parser:
    parser = Parser(
        "main.py thin",
        description="Take the filters that are 0 out of a checkpoint's model, for good. The smaller one says the same\n"
        "but for rounding; it is evaluated, exported and trained on as any other.",
        epilog="example: main.py thin --checkpoint runs/sparse/checkpoints/best.pt --output thin.pt --round-to 8\n"
        f"{EXIT_CODES}",
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help=CHECKPOINT_HELP)
    parser.add_argument("--output", required=True, metavar="FILE", help="a name that ends in .pt, .pth or .safetensors")
    parser.add_argument(
        "--round-to", type=COUNT, default=1, metavar="N",
        help="keep numbers of channels multiples of this, which many machines compute faster (default: %(default)s)",
    )  # fmt: skip
    return parser


def thin(arguments: Sequence[str]) -> int:
    options = thin_parser().parse_args(arguments)
    source, target = Path(options.checkpoint), Path(options.output)
    if target.suffix not in (".pt", ".pth", ".safetensors"):
        raise InputError(f"--output {target}: pass a name that ends in .pt, .pth or .safetensors")
    if target.exists() and source.exists() and target.samefile(source):
        raise InputError(f"--output {target}: would be written over itself; pass another name")
    require_folder_of(options.output, "--output")

    import torch

    from ssd.checkpoints import checkpoint, conversion
    from ssd.compression.summary import parts_of, summarize
    from ssd.compression.thinning import thin as thinned_of
    from ssd.detectors.ssd300.anchors import IMAGE_SIZE_PX
    from ssd.detectors.ssd300.model import SSD300
    from ssd.detectors.ssd300.streams import streams_of

    content = conversion.load(source)
    model: Any = checkpoint.build_model(content, source).eval()
    if not isinstance(model, SSD300):
        raise InputError(f"{source}: holds {checkpoint.title_of(content)}, and only SSD300 can be thinned yet")
    try:
        fresh = SSD300(model.backbone, model.num_classes)
        found = thinned_of(model, fresh, streams_of(model), round_to=options.round_to)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    if found.removed == 0:
        raise InputError(f"{source}: no filter that can go is all 0; prune filters first, see docs/compression.rst")
    smaller: Any = found.model.eval()
    images = torch.randn(2, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        differences = [float((a - b).abs().max()) for a, b in zip(model(images), smaller(images), strict=True)]
    kept = {key: content[key] for key in ("format", "detector", "categories")}
    conversion.save(target, {**kept, "model": smaller.state_dict(), "channels": smaller.channel_plan})
    for name, each in (("before", model), ("after", smaller)):
        total = parts_of(summarize(each, lambda each=each: each.every_layer(images[:1])))[-1]  # type: ignore[misc]
        print(f"{name}: {total.weights:,} weights, {total.flops / 1e9:.3f} GFLOP an image")
    print(
        f"wrote {target}: without {found.removed} filters of zeros ({found.left} stay); on two images of noise its "
        f"output differs by {max(differences):.1e} at most"
    )
    return 0


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
