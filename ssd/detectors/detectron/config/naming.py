"""What --detector and --set say, as a detector's settings."""

import functools
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from ssd.detectors.detectron.config.configuration import Configuration, notes_on, overlaid, read
from ssd.detectors.detectron.config.shipped import NAMES, configurations
from ssd.detectors.detectron.config.translate import settings_of
from ssd.detectors.detectron.settings import BLOCKS, DetectronSettings
from ssd.errors import InputError


def settings_named(name: str) -> DetectronSettings:
    """Of one of NAMES, or of a YAML file of Detectron or Detectron.pytorch. Raises InputError for one that cannot be
    read, or that no detector here can be."""
    if name in NAMES:
        return settings_of(configurations()[name])
    try:
        text = Path(name).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(f"--detector {name}: cannot be read ({reason}); pass a YAML file of Detectron") from None
    return settings_of(read(text, Path(name)))


def with_words(settings: DetectronSettings, words: Sequence[str]) -> DetectronSettings:
    """The settings with the KEY VALUE pairs of --set over the configuration that they come from: what these change
    becomes so, and all else stays. Raises InputError as `settings_named` does."""
    config = configuration_of(settings)
    before, after = settings_of(config), settings_of(overlaid(config, words))
    names = [field.name for field in fields(settings) if field.name != "name"]
    changed = {name: getattr(after, name) for name in names if getattr(after, name) != getattr(before, name)}
    return replace(settings, **changed)


def title_of(settings: DetectronSettings) -> str:
    """What is built, such as "Mask R-CNN X-101-32x8d-FPN". Files of other names may describe the same."""
    kind = "RPN" if settings.rpn_only else "Faster R-CNN"
    kinds = {"Mask": bool(settings.mask_head), "Keypoint": settings.finds_keypoints}
    if any(kinds.values()):
        kind = f"{' and '.join(name for name, is_on in kinds.items() if is_on)} R-CNN"
    depth = next((depth for depth, blocks in BLOCKS.items() if blocks == settings.blocks), sum(settings.blocks))
    is_plain = (settings.groups, settings.width_per_group) == (1, 64)
    body = f"R-{depth}" if is_plain else f"X-{depth}-{settings.groups}x{settings.width_per_group}d"
    return f"{kind} {body}-{settings.maps}{' GN' if settings.norm == 'group' else ''}"


@functools.lru_cache(maxsize=64)
def configuration_of(settings: DetectronSettings) -> Configuration:
    """The configuration that settings were translated from."""
    return read(settings.cfg, Path(settings.name)) if settings.cfg else configurations()["e2e_faster_rcnn_R-50-FPN_1x"]


def notes_of(settings: DetectronSettings) -> list[str]:
    """What the user should know of keys that decide nothing, or nothing in training."""
    config = configuration_of(settings)
    passes = [key for key in config.given if key.endswith("_AUG.ENABLED") and _adds_passes(config, key)]
    later = [f"{config.name}: {key} is for evaluate and predict; a run is evaluated in one pass" for key in passes[:1]]
    return [*notes_on(config), *later]


def _adds_passes(config: Configuration, key: str) -> bool:
    """Whether a section of test-time augmentation is on, of a detector that has what it is for, and names passes."""
    named = [key.replace("ENABLED", name) for name in ("H_FLIP", "SCALES", "ASPECT_RATIOS")]
    return config.is_on(key) and any(config[name] for name in named)
