"""The exceptions that the command line turns into one line and an exit code."""

import re

_MEMORY_CAUSE = re.compile("DefaultCPUAllocator|MemoryError: ")


class InputError(ValueError):
    """Bad input from outside: a file, a folder or a flag. Exit code 2.

    The message is one line that names the file or flag and what to do about it.
    """

    def __str__(self) -> str:
        """One line, also where a file's name has line breaks."""
        return r"\n".join(super().__str__().splitlines())


def memory_failure(error: Exception) -> InputError | None:
    """What the user should read if the error tells of memory that is used up, on a GPU or on the host; else None."""
    # By names, as this module knows nothing of torch, which reports the host's by a plain RuntimeError.
    of_gpu = type(error).__name__ == "OutOfMemoryError"
    if not (of_gpu or isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)):
        return None
    lines = str(error).strip().splitlines() or ["no memory is left"]
    # A worker's error comes with its traceback, the cause last.
    cause = next((line for line in reversed(lines) if _MEMORY_CAUSE.search(line)), lines[0]).strip().rstrip(".")
    return InputError(
        f"out of memory: {cause}; pass a smaller --batch-size (--accumulate keeps the step as it is) or "
        f"--eval-batch-size, or free the {'GPU' if of_gpu else 'machine'} of other work"
    )


class LostRankError(RuntimeError):
    """Another rank died, or did not come in time. Exit code 3."""
