"""torchvision's detectors in bfloat16: near what they say in float32, and in float32 where 8 bits are too few."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from runs import small_checkpoint
from torchvision_models import eval_batch, with_opinions

from ssd.batch import RaggedBatch
from ssd.checkpoints import checkpoint
from ssd.config import Config, Thresholds
from ssd.detectors.torchvision.detector import TORCHVISION
from ssd.detectors.torchvision.names import settings_of
from ssd.evaluation.detect import in_precision
from ssd.precision import autocast

CPU = torch.device("cpu")
FAMILIES = ("retinanet", "fcos", "fasterrcnn", "maskrcnn", "keypointrcnn")
# A Mask R-CNN has all losses of a Faster R-CNN.
LEARNING = tuple(family for family in FAMILIES if family != "fasterrcnn")


@pytest.fixture(autouse=True)
def with_16_bit_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that bfloat16 is used on a machine that would be faster without."""
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")


def small(family: str) -> tuple[Any, Any, RaggedBatch]:
    """Settings, a model of an eighth of the channels and a batch of two images."""
    settings = settings_of(f"{family}_resnet18_fpn", "none")
    file = small_checkpoint(settings)
    model: Any = checkpoint.build_model(checkpoint.load(file), file)
    if hasattr(model, "numbers"):
        model.numbers = replace(model.numbers, boxes_an_image=8)
    torch.manual_seed(0)
    of_small_images = replace(settings, short_sides_px=(64,), long_side_px=96)
    return settings, model, TORCHVISION.synthetic(of_small_images, 2, CPU, 2)


@pytest.mark.parametrize("family", LEARNING)
def test_losses_are_those_of_float32_but_for_roundings(family: str) -> None:
    settings, model, batch = small(family)
    model.train()
    found = []
    for config in (Config(), Config(bf16=True)):
        torch.manual_seed(1)
        with autocast(config, CPU):
            found.append(TORCHVISION.losses_of(settings, False)(model, batch))
    whole, half = found
    assert half.keys() == whole.keys()
    for name, value in half.items():
        assert value.dtype == torch.float32
        assert value.isfinite()
        if name != "loss_box_reg":  # of other proposals, as some change places
            torch.testing.assert_close(value, whole[name], rtol=0.05, atol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert any(not torch.equal(half[name], whole[name]) for name in half), "was it computed in 16 bits?"
    sum(half.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_detections_are_those_of_float32_but_for_roundings(family: str) -> None:
    settings, model, batch = small(family)
    model = with_opinions(model.eval(), batch.images, num_classes=2)
    detect = TORCHVISION.detect(settings, Thresholds(0.05, 0.5, 1000, 10))
    with torch.no_grad():
        whole, half = (
            detect(in_precision(model, config, CPU), eval_batch(batch)) for config in (Config(), Config(bf16=True))
        )
    assert half.boxes_ltrb.dtype == half.scores.dtype == torch.float32
    assert torch.equal(half.counts, whole.counts) and half.counts.min() == 10
    torch.testing.assert_close(half.scores, whole.scores, rtol=0, atol=0.03)
    assert not torch.equal(half.scores, whole.scores), "was it computed in 16 bits?"
    # Boxes of nearly equal scores change places, so the best is looked for among all.
    best = (half.boxes_ltrb - whole.boxes_ltrb[:, :1]).abs().amax(dim=2).amin(dim=1)
    assert best.max() < 0.1  # of the image's sides
    assert not torch.equal(half.boxes_ltrb, half.boxes_ltrb.bfloat16().float())
    for part in (half.masks, half.keypoints):
        assert part is None or (part.dtype == torch.float32 and part.isfinite().all())
