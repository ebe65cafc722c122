"""How the cfg that --detector names differs from the one that a checkpoint holds."""

from collections.abc import Collection
from typing import NamedTuple

from ssd.detectors.yolov2.darknet.sections import NAMES, Layer, Net, Network

_OF_THE_RUN = (
    "batch", "subdivisions", "learning_rate", "momentum", "decay", "burn_in", "power", "policy", "steps", "scales",
    "max_batches",
)  # fmt: skip
"""Of [net]. A run takes them from the file that is named, whatever its checkpoint holds."""
_OF_THE_DATA = ("classes",)
_WITHOUT_EFFECT = ("line", "angle", "absolute", "max")


class Difference(NamedTuple):
    """line: of the section's head in the new file, or of the key where the section has it. is_and_was: both values,
    as in "thresh is 0.3 and was 0.6"."""

    line: int
    is_and_was: str


def first_difference(new: Network, text: str, old: Network, passed_over: Collection[str] = ()) -> Difference | None:
    """The first key of a new cfg that has another value than in the old one, if a checkpoint decides it.

    text: of the new one, where the keys' lines are looked for. passed_over: keys that flags decide.
    """
    pairs: list[tuple[Net | Layer, Net | Layer]] = [(new.net, old.net), *zip(new.layers, old.layers, strict=False)]
    untold = {*_OF_THE_RUN, *_OF_THE_DATA, *_WITHOUT_EFFECT, *passed_over}
    for number, (section, before) in enumerate(pairs, -1):
        if type(section) is not type(before):
            what = f"layer {number} is [{NAMES[type(section)]}] and was [{NAMES[type(before)]}]"
            return Difference(section.line, what)
        # The data's classes decide the filters of the convolution before [region], which is compared by itself.
        skipped = untold | {"filters"} if number == len(new.layers) - 2 else untold
        for key in section._fields:
            value, was = getattr(section, key), getattr(before, key)
            if key not in skipped and value != was:
                return Difference(_line_of(key, section, text), f"{key} is {_shown(value)} and was {_shown(was)}")
    if len(new.layers) != len(old.layers):
        return Difference(new.layers[-1].line, f"there are {len(new.layers)} layers and were {len(old.layers)}")
    return None


def _line_of(key: str, section: Net | Layer, text: str) -> int:
    for number, line in enumerate(text.split("\n")[section.line :], section.line + 1):
        words = "".join(line.split())
        if words.startswith("["):
            break
        if words.startswith(f"{key}="):
            return number
    return section.line


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(int(value)) if isinstance(value, bool) else str(value)
