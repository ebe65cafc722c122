"""What the recipes "demo" of all detectors share."""

from dataclasses import replace
from typing import Any

from ssd.config import Config


def demo_of(own: Config, **settings: Any) -> Config:
    """own for the demo data, from scratch, on two CPU cores. settings: what else it changes, named as in Config."""
    return replace(
        own,
        data="demo",
        backbone_weights="none",
        bf16=True,
        # Without it a step of the first epochs may throw the weights far off: AP 0.47 to 0.58, by seed (SSD300).
        clip_norm=10.0,
        schedule="cosine",
        num_workers=2,
        seed=1,
        **settings,
    )
