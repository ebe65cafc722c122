"""The command line: names of commands, and what their failures are to the shell."""

import difflib
import io
import os
import sys
from collections.abc import Sequence

from ssd.cli.benchmark import benchmark, benchmark_data_parser, benchmark_parser, benchmark_steps_parser
from ssd.cli.compression.compare import compare, compare_parser
from ssd.cli.compression.sensitivity import sensitivity, sensitivity_parser
from ssd.cli.compression.summary import summary, summary_parser
from ssd.cli.compression.thin import thin, thin_parser
from ssd.cli.convert import convert, convert_parser
from ssd.cli.data import check, check_parser, download, download_parser, show_data, show_data_parser
from ssd.cli.evaluate import evaluate, evaluate_parser
from ssd.cli.export import export, export_parser
from ssd.cli.plot import plot, plot_parser
from ssd.cli.predict import predict, predict_parser
from ssd.cli.train import train, train_parser
from ssd.console import say_on_stderr
from ssd.errors import InputError, LostRankError
from ssd.options.flags import Parser

# Threads of torch that wait for work should sleep: by default they spin, and take the cores from the data paths'
# threads and processes. Read when torch is first imported; the user's own setting wins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# But not at once: the next operator comes within microseconds, and waking a thread takes longer.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def _doctor(arguments: Sequence[str]) -> int:
    from ssd.cli.doctor import doctor  # whose imports the other commands need not wait for

    return doctor(arguments)


COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "check": check,
    "show-data": show_data,
    "benchmark": benchmark,
    "plot": plot,
    "convert": convert,
    "summary": summary,
    "sensitivity": sensitivity,
    "thin": thin,
    "compare": compare,
    "download": download,
    "doctor": _doctor,
}


def every_parser() -> list[Parser]:
    """The parsers of all commands, for the reference of flags in the docs."""
    from ssd.cli.doctor import doctor_parser

    return [
        train_parser(),
        evaluate_parser(),
        predict_parser(),
        export_parser(),
        doctor_parser(),
        check_parser(),
        show_data_parser(),
        plot_parser(),
        convert_parser(),
        summary_parser(),
        sensitivity_parser(),
        thin_parser(),
        compare_parser(),
        download_parser(),
        benchmark_parser(),
        benchmark_data_parser(),
        benchmark_steps_parser("train"),
        benchmark_steps_parser("inference"),
    ]


def main(arguments: Sequence[str]) -> int:
    named = bool(arguments) and not arguments[0].startswith("-")
    name, rest = (arguments[0], arguments[1:]) if named else ("train", arguments)
    try:
        if name not in COMMANDS:
            nearest = "".join(f"did you mean {near}? " for near in difflib.get_close_matches(name, COMMANDS, n=1))
            raise InputError(f"no such command: {name}; {nearest}there are {', '.join(COMMANDS)}")
        return COMMANDS[name](rest)
    except InputError as error:
        return _refuse(error)
    except LostRankError as error:
        say_on_stderr(f"error: {error}")
        return 3
    except (RuntimeError, MemoryError) as error:
        from pipelines.no_dali.workers import worker_failure
        from ssd.errors import memory_failure

        failure = worker_failure(error) or memory_failure(error)
        if failure is None:
            raise
        return _refuse(failure)
    except OSError as error:  # a disk that is full, a folder that may not be written to
        say_on_stderr(f"error: {error.filename or 'the machine'}: {error.strerror or error}")
        return 2
    except KeyboardInterrupt:
        say_on_stderr("interrupted")
        return 130


def _refuse(error: InputError) -> int:
    rank = int(os.environ.get("RANK", 0))
    say_on_stderr(f"error: {error}" if rank == 0 else f"error on rank {rank}: {error}")
    return 2


def run() -> int:
    """The command that the process was started with; its exit code."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed, as by >&-
            setattr(sys, stream, open(os.devnull, "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of what a console lacks; Python has stderr so already
    try:
        return main(sys.argv[1:])
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # of what argparse said; commands say all by `ssd.console`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
