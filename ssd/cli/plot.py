"""main.py plot: what the folders of runs tell."""

from collections.abc import Sequence
from pathlib import Path

from ssd.errors import InputError
from ssd.options.flags import (
    EXIT_CODES,
    Parser,
)


def plot_parser() -> Parser:
    parser = Parser(
        "main.py plot",
        description="Draw what the folders of runs tell: plots as PNG, metrics.csv, and report.html, which needs no\n"
        "other file. Several runs are overlaid. A run that is over has all of this already.",
        epilog=f"example: main.py plot runs/bccd-dali runs/bccd-torch --output comparison\n{EXIT_CODES}",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder; one that is going on will do")
    parser.add_argument("--output", metavar="DIR", help="where to (default: the run's own folder, if it is one)")
    return parser


def plot(arguments: Sequence[str]) -> int:
    options = plot_parser().parse_args(arguments)
    folders = [Path(run) for run in options.runs]
    if options.output is None and len(folders) > 1:
        raise InputError("--output is missing: pass a folder for the plots of several runs")
    output = Path(options.output or folders[0])

    from ssd.console import say
    from ssd.report.page import write_plots_and_report

    if note := write_plots_and_report(folders, output):
        say(f"note: {note}")
    say(f"wrote {output / 'report.html'} and {output / 'plots'}")
    return 0
