#!/usr/bin/env python3
"""The command line from a checkout; an installed package has it as `ssd-dali`."""

import sys

from ssd.cli.commands import COMMANDS, main, run

__all__ = ["COMMANDS", "main"]

if __name__ == "__main__":
    sys.exit(run())
