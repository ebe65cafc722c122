"""What the tests of files with weights share: small models to write, and how a file is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ssd.detectors.ssd300.model import SSD300
from ssd.errors import InputError


def seeded(seed: int, backbone: str, num_classes: int) -> SSD300:
    torch.manual_seed(seed)
    return SSD300(backbone, num_classes)


def refusal_of(file: Path, load: Callable[[Path], Any]) -> str:
    """The one line with which load refuses the file; it names the file."""
    with pytest.raises(InputError) as refusal:
        load(file)
    message = str(refusal.value)
    assert str(file) in message and r"\n" not in message  # a line break within
    return message
