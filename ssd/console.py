"""The console that the commands print to."""

import os
import sys
from typing import Any

import rich.console


class Console(rich.console.Console):
    """rich's, with the words of the user's files left as they are, and one whose reader may go: after `| head`, or with
    the terminal that it was in, a command says no more, but does its work and keeps its exit code."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, emoji=False, **settings)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # also for what is printed by others
        os.close(nowhere)


def say(text: str) -> None:
    """A line on stdout, its words as they are."""
    Console(soft_wrap=True).print(text, markup=False)
