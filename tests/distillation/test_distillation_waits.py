"""A step with a teacher on a GPU that is none: nothing in it waits, and it computes what it does on a CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from distillation_toys import METHODS, SETTINGS, losses, new_training, random_batch, teacher_of, tiny
from fake_gpu import move_to_gpu, pretend, pretended_gpu, values
from torch import nn
from torchvision_models import NUM_CLASSES

from ssd.batch import MatchedBatch
from ssd.detectors.retinanet.settings import settings_named, settled
from ssd.detectors.ssd300.anchors import NUM_BOXES
from ssd.detectors.ssd300.settings import SSD300Settings
from ssd.detectors.table import detector_of

ON_GPU = ("images", "boxes_ltrb_px", "labels", "offsets")


def built(settings: Any, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return detector_of(settings).build(settings, NUM_CLASSES)


def matched_batch() -> MatchedBatch:
    generator = torch.Generator().manual_seed(2)
    labels = torch.zeros(2, NUM_BOXES, dtype=torch.int64)
    labels[0, 6000:6003] = torch.tensor([1, 2, 2])
    offsets = 0.1 * torch.randn(2, NUM_BOXES, 4, generator=generator)
    return MatchedBatch(torch.randn(2, 3, 300, 300, generator=generator), offsets, labels, torch.arange(2))


SSD300 = SSD300Settings("resnet18")
RETINANET = settled(settings_named("retinanet_r18_fpn"), "none")
CASES: list[tuple[Any, Callable[[int], nn.Module], Callable[[], Any], str, tuple[str, ...]]] = [
    *((SETTINGS, lambda seed: tiny(4 + 2 * seed, seed), lambda: random_batch(1), method, ()) for method in METHODS),
    *(
        (SETTINGS, lambda seed: tiny(4 + 2 * seed, seed), lambda: random_batch(1), "gid", settings)
        for settings in (
            ("gid.variant=seed",),
            ("gid.variant=seed", "gid.instances=pos"),
            ("gid.instances=neg",),
            ("gid.feature_weight=0", "gid.relation_weight=0", "gid.box_weight=0"),
        )
    ),
    *((SSD300, lambda seed: built(SSD300, seed), matched_batch, method, ()) for method in ("pkd", "gid")),
    (SSD300, lambda seed: built(SSD300, seed), matched_batch, "gid", ("gid.variant=seed", "gid.instances=semi_pos")),
    *((RETINANET, lambda seed: built(RETINANET, seed), lambda: random_batch(1), each, ()) for each in METHODS[-2:]),
]


def name_of(case: tuple[Any, ...]) -> str:
    return "-".join([type(case[0]).__name__, case[3], *case[4]])


@pytest.mark.parametrize(("settings", "model_of", "batch_of", "method", "own"), CASES, ids=map(name_of, CASES))
def test_losses_of_a_teacher_wait_for_nothing(
    settings: Any,
    model_of: Callable[[int], nn.Module],
    batch_of: Callable[[], Any],
    method: str,
    own: tuple[str, ...],
) -> None:
    """From the second step on: the first one is looked at, so that a teacher that was not loaded is an error."""

    def training_of() -> tuple[Any, nn.Module]:
        teacher = teacher_of(model_of(1), settings)
        model = model_of(0)
        training = new_training(teacher, method, model=model, detector=settings, distill_settings=own)
        losses(training, batch_of())
        return training, teacher.model

    training, _ = training_of()
    losses(training, batch_of())
    expected = losses(training, batch_of())
    training, teacher = training_of()
    batch = batch_of()
    with torch.backends.cudnn.flags(enabled=False), pretended_gpu() as waits:
        move_to_gpu(training.model, teacher, *(companion.adapters for companion in training.companions))
        batch = batch._replace(**{name: pretend(getattr(batch, name)) for name in ON_GPU if hasattr(batch, name)})
        losses(training, batch)  # constants come to the device once
        waits.found.clear()
        found = losses(training, batch)
        assert waits.found == []
    assert found.keys() == expected.keys() and len(found) > 2
    for name, loss in found.items():
        torch.testing.assert_close(values(loss), expected[name].detach(), rtol=1e-3, atol=1e-6)
