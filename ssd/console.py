"""The console that the commands print to."""

import os
import sys
from typing import IO, Any

import rich.console


class Console(rich.console.Console):
    """rich's, with the words of the user's files left as they are, and one whose reader may go: after `| head`, or with
    the terminal that it was in, a command says no more, but does its work and keeps its exit code."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, emoji=False, **settings)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _say_no_more(self.file)


def say(text: str) -> None:
    """A line on stdout, its words as they are."""
    Console(soft_wrap=True).print(text, markup=False)


def say_on_stderr(text: str) -> None:
    """A line on stderr, whose reader may be gone too, as after `2>&1 | head`."""
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:
        _say_no_more(sys.stderr)


def _say_no_more(stream: IO[str]) -> None:
    """Also of what others print to it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
