"""The exceptions that the command line turns into one line and an exit code."""


class InputError(ValueError):
    """Bad input from outside: a file, a folder or a flag. Exit code 2.

    The message is one line that names the file or flag and what to do about it.
    """


class LostRankError(RuntimeError):
    """Another rank died, or did not come in time. Exit code 3."""
