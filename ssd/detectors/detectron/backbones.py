"""What a body begins with."""

from typing import Any

from ssd.detectors.detectron.settings import DetectronSettings
from ssd.errors import InputError


def load_backbone(model: Any, settings: DetectronSettings, source: str) -> None:
    """source: as --backbone-weights. Raises InputError for a body that cannot learn from scratch, and for any file."""
    if source != "none":
        raise InputError(f"--backbone-weights {source}: bodies of {settings.name} are not read from files; pass none")
    if settings.norm == "affine" or settings.freeze_at:
        raise InputError(
            f"--backbone-weights none: {settings.name} has layers that do not learn and would stay as drawn; pass a "
            "file, or a configuration with group norm (RESNETS.USE_GN) and RESNETS.FREEZE_AT 0"
        )
