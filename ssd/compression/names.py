"""Names of tensors in schedules that were written for other versions of the same model."""

import re
from collections.abc import Collection

from ssd.compression.yaml_lines import Place, nearest_to

# What torchvision called parts of its R-CNNs until 0.12 -> what it calls them now.
_RENAMED = (
    (re.compile(r"(.*\bfpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)"), r"\1.0.\2"),
    (re.compile(r"(.*\brpn\.head\.conv)\.(weight|bias)"), r"\1.0.0.\2"),
)
_MASK_FCN = re.compile(r"(.*\bmask_head)\.mask_fcn(\d+)\.(weight|bias)")


def resolve(name: str, known: Collection[str], place: Place) -> str:
    """The name in `known` that a schedule means: its own, without "module.", or what an old name has become.

    Raises InputError at its place for a name that means nothing.
    """
    bare = name.removeprefix("module.")
    if bare in known:
        return bare
    newer = [pattern.sub(to, bare) for pattern, to in _RENAMED if pattern.fullmatch(bare)]
    if found := _MASK_FCN.fullmatch(bare):
        newer.append(f"{found[1]}.{int(found[2]) - 1}.0.{found[3]}")
    for candidate in newer:
        if candidate in known:
            return candidate
    raise place.error(f"the model has no tensor {name!r}{nearest_to(bare, known)}; main.py summary lists its tensors")
