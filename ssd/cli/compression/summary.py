"""main.py summary: what the model of a checkpoint consists of."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssd.errors import InputError
from ssd.options.flags import CHECKPOINT_HELP, EXIT_CODES, Parser, require_folder_of

if TYPE_CHECKING:
    from ssd.compression.summary import Part, TensorSummary


def summary_parser() -> Parser:
    parser = Parser(
        "main.py summary",
        description="List a checkpoint's tensors by the names that a schedule may use: their shapes, how many of\n"
        "their weights, filters and channels are 0, and what their layers compute for one image.",
        epilog=f"example: main.py summary --checkpoint runs/a/checkpoints/best.pt --output summary.csv\n{EXIT_CODES}",
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help=CHECKPOINT_HELP)
    parser.add_argument("--output", metavar="FILE", help="write it there too: a name that ends in .json or .csv")
    parser.add_argument(
        "--all", action="store_true", help="show biases and batch norm too, not only what has 2 dimensions"
    )
    return parser


def summary(arguments: Sequence[str]) -> int:
    options = summary_parser().parse_args(arguments)
    if options.output is not None and Path(options.output).suffix not in (".json", ".csv"):
        raise InputError(f"--output {options.output}: pass a name that ends in .json or .csv")
    require_folder_of(options.output, "--output")

    from ssd.checkpoints import checkpoint, conversion
    from ssd.compression.summary import parts_of, summarize_detector, write_summary

    file = Path(options.checkpoint)
    content = conversion.load(file)
    tensors = summarize_detector(checkpoint.build_model(content, file), checkpoint.settings_of(content))
    shown = [each for each in tensors if options.all or len(each.shape) > 1]
    _show(f"{file}: {len(shown)} of {len(tensors)} tensors", shown, parts_of(tensors))
    if options.output is not None:
        write_summary(Path(options.output), tensors)
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
    Console(soft_wrap=True).print(table)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"
