"""What a key of Detectron's configuration is to this program."""

from typing import Any, NamedTuple

OBEYED, FIXED, ELSEWHERE = "obeyed", "fixed", "elsewhere"


class Key(NamedTuple):
    """One key.

    default: Detectron's; where Detectron.pytorch has another one, its key is ELSEWHERE and it does not matter.
    fate: OBEYED: it decides what is built or how it is trained. FIXED: it has to keep its default, or be one of
    `choices`; any other value is refused. ELSEWHERE: any value is taken, nothing follows from it, and a run says so.
    text: how it is obeyed, why it is fixed, or what takes its place.
    choices: of FIXED values beside the default, and all values of an OBEYED one; () for any.
    least: the least value of an OBEYED number, or of each in a row.
    of: what a row is made of; () for what its default is made of.
    switch: a key without which this one means nothing: "MODEL.MASK_ON", or "!KEY" where that has to be off.
    most: the greatest value, as `least`.
    may_be_empty: whether a row with a default of some numbers may have none.
    """

    default: Any
    fate: str
    text: str
    choices: tuple[Any, ...] = ()
    least: float | None = None
    of: tuple[type, ...] = ()
    switch: str = ""
    most: float | None = None
    may_be_empty: bool = False


def obeyed(
    default: Any,
    text: str,
    *choices: Any,
    least: float | None = None,
    most: float | None = None,
    of: tuple[type, ...] = (),
    switch: str = "",
    may_be_empty: bool = False,
) -> Key:
    return Key(default, OBEYED, text, choices, least, of, switch, most, may_be_empty)


def fixed(default: Any, why: str, *choices: Any, switch: str = "") -> Key:
    return Key(default, FIXED, why, choices, switch=switch)


def elsewhere(default: Any, text: str) -> Key:
    return Key(default, ELSEWHERE, text)


def within(switch: str, keys: dict[str, Key]) -> dict[str, Key]:
    """The keys, all with this switch."""
    return {name: key if key.switch else key._replace(switch=switch) for name, key in keys.items()}
