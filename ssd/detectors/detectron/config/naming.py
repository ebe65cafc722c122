"""What --detector and --set say, as a detector's settings."""

import functools
from collections.abc import Sequence
from pathlib import Path

from ssd.detectors.detectron.config.configuration import Configuration, notes_on, read, with_words
from ssd.detectors.detectron.config.shipped import NAMES, configurations
from ssd.detectors.detectron.config.translate import settings_of
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.errors import InputError


def settings_named(name: str, words: Sequence[str] = ()) -> DetectronSettings:
    """Of one of NAMES, or of a YAML file of Detectron or Detectron.pytorch. words: the KEY VALUE pairs of --set.

    Raises InputError for one that cannot be read, or that no detector here can be.
    """
    if name in NAMES:
        config = configurations()[name]
    else:
        try:
            text = Path(name).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise InputError(f"--detector {name}: cannot be read ({reason}); pass a YAML file of Detectron") from None
        config = read(text, Path(name))
    return settings_of(with_words(config, words) if words else config)


def with_words_of(settings: DetectronSettings, words: Sequence[str]) -> DetectronSettings:
    """The settings of a checkpoint with the pairs of --set over their configuration. The points of the data that it was
    trained on stay."""
    return settings_of(with_words(configuration_of(settings), words))


@functools.lru_cache(maxsize=64)
def configuration_of(settings: DetectronSettings) -> Configuration:
    """The configuration that settings were translated from."""
    return read(settings.cfg, Path(settings.name)) if settings.cfg else configurations()["e2e_faster_rcnn_R-50-FPN_1x"]


def notes_of(settings: DetectronSettings) -> list[str]:
    """What the user should know of keys that decide nothing."""
    return notes_on(configuration_of(settings))
