"""The one exception that bad input raises, so the command line can turn it into one line and exit code 2."""


class InputError(ValueError):
    """Bad input from outside: a file, a folder or a flag.

    The message is one line that names the file or flag and what to do about it.
    """
