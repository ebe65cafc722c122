#!/usr/bin/env python3
"""The command line from a checkout; an installed package has it as `ssd-dali`."""

import sys

try:
    from ssd.cli.commands import COMMANDS, main, run
except ModuleNotFoundError as error:
    if str(error.name).partition(".")[0] in ("ssd", "pipelines"):
        raise
    print(
        f"error: {sys.executable} has no {error.name}; activate the environment that it is installed in, such as by "
        "'. .venv/bin/activate', or pip install -e .",
        file=sys.stderr,
    )
    sys.exit(2)

__all__ = ["COMMANDS", "main"]

if __name__ == "__main__":
    sys.exit(run())
