"""Filters of zeros taken out of Detectron's R-CNNs change no output beyond rounding."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from detectron_models import C4, KINDS, NUM_CLASSES, SMALL
from torch import Tensor
from torchvision.ops import FrozenBatchNorm2d

from ssd.compression.thinning.removal import thin
from ssd.detectors.channels import thinned
from ssd.detectors.detectron.builders import build
from ssd.detectors.detectron.detector import DETECTRON
from ssd.detectors.detectron.weights.files import weights_of
from ssd.detectors.table import to_dict
from ssd.errors import InputError

# One of them reaches over the map's border.
ROIS = torch.tensor([[0, 4.0, 4, 40, 30], [0, -30, -20, 20, 24], [0, 60, 30, 130, 90]])
# Of a model with one block a stage: those within blocks; what comes out of stages, the stem among them; of the head.
STREAMS = {
    "faster": 8 + 5 + 1 + 2,
    "finest map": 8 + 5 + 1 + 2,
    "C4": 8 + 5 + 1,
    "C4 v0upshare": 8 + 4 + 1,  # a transposed convolution reads res5
    "C4 v0up": 8 + 3 + 1,  # and the masks' own res5 reads the map
    "C4 keypoints": 8 + 4 + 1,  # another head reads the map
    "C4 v1up": 8 + 4 + 1,
    "C5": 8 + 4 + 1 + 2,  # the map is flattened
    "C5 mask": 8 + 4 + 1 + 2,
    "C5 dilated": 8 + 4 + 1 + 2,
    "proposals on C4": 6 + 4 + 1,
    "group norm": 1,
}


MORE_KINDS: dict[str, dict[str, Any]] = {
    "proposals on C4": {"maps": "C4", "rpn_only": True},
    "C4 keypoints": {**C4, "finds_keypoints": True},
    "C4 v1up": {**C4, "mask_head": "v1up"},
    "C5 mask": {"maps": "C5", "mask_head": "v1up4convs"},
}


@torch.no_grad()
def said(model: Any) -> list[Tensor]:
    """By the RPN and the heads."""
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    maps = list(model.backbone(images).values())
    found = [each for part in model.rpn["head"](model._rpn_maps(maps)) for each in part]
    if not model.settings.rpn_only and model.settings.norm == "affine":
        features = model._box_features(maps, ROIS)
        found += model._box_outputs(features)
        if model.settings.mask_head:
            found.append(model._mask_maps(maps, ROIS, features if model.settings.mask_head == "v0upshare" else None))
        if model.settings.finds_keypoints:
            found.append(model._keypoint_maps(maps, ROIS))
    return found


@pytest.mark.parametrize("kind", STREAMS)
@torch.no_grad()
def test_the_smaller_model_says_the_same(kind: str) -> None:
    norm = "group" if kind == "group norm" else "affine"
    own = MORE_KINDS.get(kind) or KINDS[kind]
    settings = replace(SMALL, norm=norm, **own)
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
    assert len(streams) == STREAMS[kind]
    assert found.removed >= (8 if kind == "group norm" else 200)
    for expected, now in zip(said(model), said(found.model), strict=True):
        assert torch.allclose(now, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    with pytest.raises(InputError, match="taken filters out of it"):
        weights_of({"detector": to_dict(settings), "model": {}, "channels": found.model.channel_plan})
    plan: Any = found.model.channel_plan
    rebuilt = thinned(build(settings, NUM_CLASSES), plan).eval()
    rebuilt.load_state_dict(found.model.state_dict())
