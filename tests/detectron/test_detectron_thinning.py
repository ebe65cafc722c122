"""Filters of zeros taken out of Detectron's R-CNNs change no output beyond rounding."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from detectron_models import KINDS, NUM_CLASSES, SMALL
from torch import Tensor
from torchvision.ops import FrozenBatchNorm2d

from ssd.compression.thinning.removal import thin
from ssd.detectors.channels import thinned
from ssd.detectors.detectron.builders import build
from ssd.detectors.detectron.detector import DETECTRON


@torch.no_grad()
def said(model: Any) -> list[Tensor]:
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    maps = list(model.backbone(images).values())
    found = [*maps, *(each for part in model.rpn["head"](model._rpn_maps(maps)) for each in part)]
    if model.settings.box_head == "mlp":
        pooled = torch.randn(5, maps[0].shape[1], 7, 7, generator=torch.Generator().manual_seed(0))
        found += model.roi_heads["box_predictor"](model.roi_heads["box_head"](pooled))
    return found


@pytest.mark.parametrize("kind", ["faster", "finest map", "C4", "group norm"])
@torch.no_grad()
def test_the_smaller_model_says_the_same(kind: str) -> None:
    norm = "group" if kind == "group norm" else "affine"
    settings = replace(SMALL, norm=norm, **KINDS[kind])
    torch.manual_seed(0)
    model: Any = build(settings, NUM_CLASSES).eval()
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(-0.3, 0.3)
    assert DETECTRON.streams is not None
    streams = DETECTRON.streams(model)
    for stream in streams:
        writers = [model.get_submodule(name) for name, _ in stream.writers]
        gone = torch.randperm(len(writers[0].weight))[: len(writers[0].weight) // 2]
        for writer in writers:
            writer.weight[gone] = 0
    found = thin(model, build(settings, NUM_CLASSES), streams)
    # In a body, 5 parts, 2 in each block; in one that stays, the layer of proposals.
    assert len(streams) == {"faster": 5 + 8 + 1 + 2, "finest map": 5 + 8 + 1 + 2, "C4": 1, "group norm": 1}[kind]
    assert found.removed >= (200 if kind in ("faster", "finest map") else 8)
    for expected, now in zip(said(model), said(found.model), strict=True):
        assert torch.allclose(now, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    plan: Any = found.model.channel_plan
    rebuilt = thinned(build(settings, NUM_CLASSES), plan).eval()
    rebuilt.load_state_dict(found.model.state_dict())
