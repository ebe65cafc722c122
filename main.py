#!/usr/bin/env python3
"""The command line from a checkout; an installed package has it as `ssd-dali`."""

import sys


def _say_what_is_missing(error: ModuleNotFoundError) -> int:
    """Of a Python without the packages, as after `make demo` in a shell that does not know of .venv."""
    if str(error.name).partition(".")[0] in ("ssd", "pipelines"):
        raise error
    print(
        f"error: {sys.executable} has no {error.name}; activate the environment that it is installed in, such as by "
        "'. .venv/bin/activate', or pip install -e .",
        file=sys.stderr,
    )
    return 2


try:
    from ssd.cli.commands import COMMANDS, main, run
except ModuleNotFoundError as error:
    sys.exit(_say_what_is_missing(error))

__all__ = ["COMMANDS", "main"]

if __name__ == "__main__":
    try:
        sys.exit(run())
    except ModuleNotFoundError as error:
        sys.exit(_say_what_is_missing(error))
