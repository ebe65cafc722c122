"""Masks as COCO's run lengths: column by column, beginning with how many pixels do not belong to the object."""

import numpy as np

_MOST_DIGITS = 8
"""Of five bits each. COCO's own code takes more, and overflows."""


def runs_of(counts: str) -> np.ndarray:
    """The run lengths, int64, that the text of a compressed mask states. Raises ValueError for a text that is none.

    Each is written in groups of five bits from the lowest on, with a sixth that says whether one more follows and all
    plus 48 a character; from the fourth on as the difference to the one two places before.
    """
    try:
        digits = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise ValueError("characters that are no run lengths") from None
    if len(digits) == 0 or digits.min() < 0 or digits.max() > 63:
        raise ValueError("characters that are no run lengths")
    ends = np.flatnonzero(digits & 32 == 0)
    if len(ends) == 0 or ends[-1] != len(digits) - 1:
        raise ValueError("run lengths that are cut short")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MOST_DIGITS:
        raise ValueError("a run length that is too large")
    place = np.arange(len(digits)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((digits & 31) << (5 * place), starts)
    runs -= np.where(digits[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
