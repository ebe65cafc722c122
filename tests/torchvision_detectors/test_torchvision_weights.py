"""torchvision's files become models here, and models here go back to torchvision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models.detection as theirs
from model_files import refusal_of
from torch import Tensor, nn
from torchvision.models import resnet18, resnet34

from ssd.detectors.table import from_dict
from ssd.detectors.torchvision import recipes
from ssd.detectors.torchvision.builders import build
from ssd.detectors.torchvision.detector import TORCHVISION
from ssd.detectors.torchvision.names import NAMES, settings_of, title_of
from ssd.detectors.torchvision.settings import Settings
from ssd.detectors.torchvision.weights import foreign, load_backbone
from ssd.errors import InputError

OF_TORCHVISION = (
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "keypointrcnn_resnet50_fpn",
)


def settings_in(content: dict[str, Any]) -> Settings:
    return from_dict(content["detector"])


def their_builder(name: str, **options: Any) -> nn.Module:
    model: nn.Module = getattr(theirs, name)(weights=None, weights_backbone=None, **options)
    return model


@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_names_and_shapes_are_those_of_torchvisions_builder(name: str) -> None:
    with torch.device("meta"):
        ours, other = build(settings_of(name, "none"), 5), their_builder(name, num_classes=5)
    assert shapes(ours.state_dict()) == shapes(other.state_dict())
    trained = {key for key, parameter in ours.named_parameters() if parameter.requires_grad}
    assert trained == {key for key, _ in other.named_parameters()}


def shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def test_every_detector_can_be_built() -> None:
    for name in NAMES:
        with torch.device("meta"):
            model = build(settings_of(name), 3)
        assert sum(p.numel() for p in model.parameters()) > 1e7, name
        assert title_of(settings_of(name))


def test_the_first_parts_of_a_body_that_was_trained_stay() -> None:
    with torch.device("meta"):
        model: Any = build(settings_of("fasterrcnn_resnet18_fpn"), 3)
        mobile: Any = build(settings_of("fasterrcnn_mobilenet_v3_large_fpn"), 3)
    body = model.backbone.body
    learns = {name.partition(".")[0] for name, each in body.named_parameters() if each.requires_grad}
    assert learns == {"layer2", "layer3", "layer4"}
    with torch.device("meta"):
        other = theirs.backbone_utils.mobilenet_backbone(
            backbone_name="mobilenet_v3_large", weights=None, fpn=True, trainable_layers=3
        )
    expected = [(name, each.requires_grad) for name, each in other.body.named_parameters()]
    assert [(name, each.requires_grad) for name, each in mobile.backbone.body.named_parameters()] == expected


def test_a_frozen_body_stays_as_it_is_in_training() -> None:
    settings = settings_of("retinanet_resnet18_fpn", "none")
    model = unfilled(settings, 3)
    assert TORCHVISION.freeze_backbone is not None
    TORCHVISION.freeze_backbone(model)
    model.train()
    assert model.training and not model.backbone.body.bn1.training and model.backbone.fpn.training
    assert not any(parameter.requires_grad for parameter in model.backbone.body.parameters())
    assert any(parameter.requires_grad for parameter in model.parameters())


# Files


def with_random_statistics(model: nn.Module) -> nn.Module:
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = torch.rand_like(buffer) + 0.5
    return model


@pytest.mark.parametrize("weights", ["imagenet", "none"])
def test_a_backbone_file_fills_the_body(weights: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = with_random_statistics(resnet18())
    torch.save(whole.state_dict(), tmp_path / "body.pth")
    settings = settings_of("retinanet_resnet18_fpn", weights)
    model = unfilled(settings, 3)
    load_backbone(model, settings, str(tmp_path / "body.pth"))
    own = model.backbone.body.state_dict()
    assert {name.partition(".")[0] for name in own} == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in own.items())
    assert any(name.endswith("num_batches_tracked") for name in own) == (weights == "none")


def test_backbones_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    settings = settings_of("retinanet_resnet18_fpn")
    model = unfilled(settings, 3)
    file = tmp_path / "body.pth"
    for content in (resnet34().state_dict(), {}, [1]):
        torch.save(content, file)
        assert "--backbone-weights" in refusal_of(file, lambda file: load_backbone(model, settings, str(file)))
    with pytest.raises(InputError, match="frozen norms"):
        load_backbone(model, settings, "none")


def unfilled(settings: Settings, num_classes: int) -> Any:
    """A model without the time that drawing its weights takes."""
    with torch.device("meta"):
        model = build(settings, num_classes)
    return model.to_empty(device="cpu")


def some_state(settings: Settings, num_classes: int) -> dict[str, Tensor]:
    return {name: torch.rand(value.shape) for name, value in unfilled(settings, num_classes).state_dict().items()}


def of_91(family: str) -> dict[str, Tensor]:
    """A state dict as torchvision's COCO files have it, of a small body, in which each class's rows are its label."""
    name = f"{family}_resnet18_fpn"
    state = some_state(settings_of(name), 91)
    for key, value in state.items():
        if key.startswith(TORCHVISION.fresh_heads(settings_of(name))):
            rows = 4 if "bbox_pred" in key else 1
            by_label = value.unflatten(0, (-1, 91, rows))
            by_label.copy_(torch.arange(91.0).view([-1] + [1] * (by_label.dim() - 2)).expand_as(by_label))
    return state


@pytest.mark.parametrize("family", ["retinanet", "fcos", "fasterrcnn", "maskrcnn"])
def test_coco_labels_become_contiguous(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = of_91(family)
    content = foreign(state, tmp_path / "coco.pth")
    assert content is not None
    assert settings_in(content) == settings_of(f"{family}_resnet18_fpn")
    ids = [0, *(id for id, _ in content["categories"])]
    assert content["categories"][11] == (13, "stop sign") and len(ids) == 81
    prefixes = TORCHVISION.fresh_heads(settings_in(content))
    model = unfilled(settings_in(content), 81)
    model.load_state_dict(content["model"])
    for key, value in content["model"].items():
        if key.startswith(prefixes):
            by_label = value.unflatten(0, (-1, 81, 4 if "bbox_pred" in key else 1)).flatten(2)
            assert torch.equal(by_label, torch.tensor(ids).view(1, 81, 1).expand_as(by_label).float()), key
        else:
            assert torch.equal(value, state[key]), key


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As torchvision named them before 0.13."""
    return {name.replace("rpn.head.conv.0.0.", "rpn.head.conv."): value for name, value in state.items()}


def test_files_from_before_torchvision_0_13_add_nothing_to_a_variance(tmp_path: Path) -> None:
    state = some_state(settings_of("fasterrcnn_resnet18_fpn"), 3)
    content = foreign({"model": old_names(state), "epoch": 3}, tmp_path / "old.pth")
    assert content is not None and settings_in(content).norm_eps == 0
    assert content["model"].keys() == state.keys()
    assert content["categories"] == [(1, "class 1"), (2, "class 2")]
    assert unfilled(settings_in(content), 3).backbone.body.bn1.eps == 0


def test_what_is_no_detector_of_torchvision(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    for content in ([1], {}, {"model": {"a": 1}}, resnet18().state_dict(), {"format": 1, "model": {}}):
        assert foreign(content, file) is None
    state = some_state(settings_of("retinanet_resnet18_fpn"), 3)
    incomplete = {name: value for name, value in state.items() if name != "head.regression_head.conv.2.0.weight"}
    no_body = {name: value for name, value in state.items() if not name.startswith("backbone.body.layer4.1")}
    refused: Callable[[Any], str] = lambda content: refusal_of(file, lambda file: foreign(content, file))  # noqa: E731
    assert "not a whole retinanet_resnet18_fpn" in refused(incomplete)
    assert "none of its ResNets" in refused(no_body)


# Names and settings


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="fasterrcnn_resnet18_fpn"):
        settings_of("fasterrcnn_resnet18fpn")


def test_defaults_are_torchvisions() -> None:
    for name in ("retinanet_resnet50_fpn", "fcos_resnet50_fpn", "fasterrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn"):
        with torch.device("meta"):
            model: Any = their_builder(name)
        finds = getattr(model, "roi_heads", model)
        config = recipes.defaults(settings_of(name))
        assert config.score_threshold == finds.score_thresh and config.nms_iou == finds.nms_thresh
        assert config.max_per_image == finds.detections_per_img
        if name.endswith("rcnn_resnet50_fpn"):
            assert settings_of(name).boxes_an_image == finds.fg_bg_sampler.batch_size_per_image
        view = TORCHVISION.view(settings_of(name))
        assert (view.short_sides_px, view.long_side_px) == (tuple(model.transform.min_size), model.transform.max_size)
        assert view.divisor == model.transform.size_divisible
        assert list(view.mean) == model.transform.image_mean and list(view.std) == model.transform.image_std


def test_the_rate_is_torchvisions_at_its_global_batch() -> None:
    config = recipes.torchvision(2, 8, settings_of("fasterrcnn_resnet50_fpn"))
    assert config.learning_rate * (config.batch_size * 8) / 32 == pytest.approx(0.02)
    assert recipes.torchvision(detector=settings_of("retinanet_resnet50_fpn")).learning_rate * 16 / 32 == pytest.approx(
        0.01
    )
