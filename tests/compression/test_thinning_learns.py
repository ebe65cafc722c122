"""Thinning stops nothing from learning: a step changes every parameter that it changes before filters are taken out."""

from typing import Any

import pytest
import torch
from small_detectors import SMALL_DETECTORS

from ssd.compression.thinning.removal import thin
from ssd.detectors.table import detector_of

NUM_CLASSES = 4


def still(model: Any, settings: Any) -> set[str]:
    """The parameters that train and that one step leaves as they are, of parts that a small batch does not need."""
    record = detector_of(settings)
    batch = record.synthetic(settings, NUM_CLASSES, torch.device("cpu"), 2)
    torch.manual_seed(1)
    torch.stack(list(record.losses_of(settings, False)(model.train(), batch).values())).sum().backward()
    before = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    found = {name for name, value in before.items() if torch.equal(model.get_parameter(name), value)}
    assert len(found) < len(before)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_DETECTORS)
def test_what_learned_before_learns_after(name: str) -> None:
    settings = SMALL_DETECTORS[name]()
    record = detector_of(settings)
    torch.manual_seed(0)
    model: Any = record.build(settings, NUM_CLASSES)
    assert record.streams is not None
    streams = record.streams(model)
    with torch.no_grad():
        for stream in streams:
            for writer, _ in stream.writers:
                weight = model.get_submodule(writer).weight
                weight[: len(weight) // 2 // stream.unit * stream.unit] = 0
    found = thin(model, record.build(settings, NUM_CLASSES), streams)
    assert found.removed > 100
    assert still(found.model, settings) <= still(model, settings)
