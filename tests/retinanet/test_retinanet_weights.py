"""detectron2's and MSRA's files become RetinaNets here, and RetinaNets go back to detectron2."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.models import resnet18

from ssd.batch import RGB_MEAN, RGB_STD
from ssd.checkpoints import checkpoint, conversion
from ssd.coco_categories import coco_categories
from ssd.detectors.retinanet.backbone import load_backbone
from ssd.detectors.retinanet.model import build
from ssd.detectors.retinanet.names import OF_BLOBS, our_name, their_name
from ssd.detectors.retinanet.settings import RetinaNetSettings
from ssd.detectors.retinanet.weights import foreign, from_bgr_255, to_bgr_255
from ssd.errors import InputError
from ssd.images import normalise
from ssd.storage.pickles import pickled, read_pickle

NORM = ("weight", "bias", "running_mean", "running_var")
BLOCKS = {"r18": (2, 2, 2, 2), "r50": (3, 4, 6, 3), "r101": (3, 4, 23, 3)}


def their_names(body: str) -> Iterator[str]:
    """As detectron2's modules nest: written down here once more, by its code and not by ours."""

    def convolution(name: str, norm: bool = True) -> Iterator[str]:
        yield f"{name}.weight"
        yield from (f"{name}.norm.{each}" for each in NORM) if norm else (f"{name}.bias",)

    yield from convolution("backbone.bottom_up.stem.conv1")
    convolutions = 2 if body == "r18" else 3
    for stage, blocks in zip((2, 3, 4, 5), BLOCKS[body], strict=True):
        for block in range(blocks):
            name = f"backbone.bottom_up.res{stage}.{block}"
            if block == 0 and (stage > 2 or body != "r18"):
                yield from convolution(f"{name}.shortcut")
            for place in range(convolutions):
                yield from convolution(f"{name}.conv{place + 1}")
    for level in (3, 4, 5):
        yield from convolution(f"backbone.fpn_lateral{level}", norm=False)
        yield from convolution(f"backbone.fpn_output{level}", norm=False)
    for name in ("backbone.top_block.p6", "backbone.top_block.p7", "head.cls_score", "head.bbox_pred"):
        yield from convolution(name, norm=False)
    for subnet in ("cls_subnet", "bbox_subnet"):
        for place in (0, 2, 4, 6):
            yield from convolution(f"head.{subnet}.{place}", norm=False)


def shapes_of(body: str, classes: int) -> dict[str, torch.Size]:
    with torch.device("meta"):
        state = build(RetinaNetSettings(f"retinanet_{body}_fpn"), classes + 1).state_dict()
    return {name: value.shape for name, value in state.items() if name != "loss_normaliser.mean"}


@pytest.mark.parametrize(("body", "count"), [("r50", 301), ("r101", 556), ("r18", 136)])
def test_names_are_a_bijection(body: str, count: int) -> None:
    theirs = list(their_names(body))
    ours = [our_name(name) for name in theirs]
    assert len(theirs) == len(set(theirs)) == count
    assert sorted(ours) == sorted(shapes_of(body, 80))
    assert [their_name(name) for name in ours] == theirs
    assert our_name("roi_heads.box_predictor.cls_score.weight") == "roi_heads.box_predictor.cls_score.weight"


def some_arrays(classes: int = 3) -> dict[str, Any]:
    """A small RetinaNet under detectron2's names."""
    generator = np.random.default_rng(0)
    shapes = shapes_of("r18", classes)
    return {
        name: 0.1 + generator.random(tuple(shapes[our_name(name)]), dtype=np.float32) for name in their_names("r18")
    }


@pytest.fixture(scope="module")
def arrays() -> dict[str, Any]:
    return some_arrays()


FIXED = {
    "pixel_mean": np.array([103.53, 116.28, 123.675], np.float32).reshape(3, 1, 1),
    "pixel_std": np.ones((3, 1, 1), np.float32),
    "anchor_generator.cell_anchors.0": np.zeros((9, 4), np.float32),
}


def test_a_pkl_of_detectron2_becomes_a_checkpoint_and_goes_back(arrays: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "model.pkl"
    file.write_bytes(pickled({"model": {**arrays, **FIXED}, "__author__": "detectron2"}))
    content = conversion.load(file)
    settings = checkpoint.settings_of(content)
    assert settings == RetinaNetSettings("retinanet_r18_fpn", norm="frozen", stride_in="1x1")
    assert content["categories"] == [(1, "class 1"), (2, "class 2"), (3, "class 3")]
    model = checkpoint.build_model(content, file).state_dict()
    assert model["loss_normaliser.mean"] == 100
    for name, value in arrays.items():
        if not name.endswith("stem.conv1.weight"):
            assert np.array_equal(model[our_name(name)], value), name
    back = tmp_path / "back.pkl"
    conversion.save(back, content)
    found = read_pickle(back, "a model")
    assert found["model"].keys() == arrays.keys() and isinstance(found["__author__"], str)
    first = "backbone.bottom_up.stem.conv1.weight"
    for name, value in arrays.items():
        assert np.array_equal(found["model"][name], value) or name == first, name
    np.testing.assert_allclose(found["model"][first], arrays[first], rtol=2e-7)


def test_what_convert_writes_keeps_classes_and_stride(arrays: dict[str, Any], tmp_path: Path) -> None:
    content = foreign({"model": arrays}, Path("x"))
    assert content is not None
    content["categories"], content["detector"]["stride_in"] = [(7, "cat"), (8, "dog"), (9, "emu")], "3x3"
    conversion.save(tmp_path / "one.pkl", content)
    again = conversion.load(tmp_path / "one.pkl")
    assert again["categories"] == content["categories"] and again["detector"] == content["detector"]


def test_a_checkpoint_of_detectron2s_training_is_read(arrays: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "model_final.pth"
    state = {name: torch.from_numpy(value) for name, value in arrays.items()}
    torch.save({"model": state, "optimizer": {}, "iteration": 89999}, file)
    content = conversion.load(file)
    assert content["detector"]["builder"] == "retinanet_r18_fpn"
    assert torch.equal(content["model"]["head.regression_head.bbox_reg.bias"], state["head.bbox_pred.bias"])


def test_the_student_of_a_distillation_by_detectron2_is_read(arrays: dict[str, Any]) -> None:
    """Distill_GID_detectron2 saves the teacher beside it."""
    plain = foreign({"model": arrays}, Path("x"))
    both = {f"student.{name}": value for name, value in arrays.items()}
    both |= {f"teacher.{name}": value + 1 for name, value in arrays.items()}
    found = foreign({"model": both, "iteration": 4999}, Path("x"))
    assert found is not None and plain is not None and found["detector"] == plain["detector"]
    assert all(torch.equal(found["model"][name], value) for name, value in plain["model"].items())
    assert foreign({"model": {f"teacher.{name}": value for name, value in arrays.items()}}, Path("x")) is None


def test_80_classes_are_cocos() -> None:
    arrays = some_arrays(80)
    content = foreign({"model": arrays}, Path("x"))
    assert content is not None and content["categories"] == coco_categories()


def test_the_first_convolution_says_the_same_of_normalised_rgb() -> None:
    torch.manual_seed(0)
    pixels = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
    weight = torch.randn(64, 3, 7, 7) / 100
    mean = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    theirs = F.conv2d(pixels.flip(1).float() - mean, weight, stride=2, padding=3)
    ours = F.conv2d(normalise(pixels, RGB_MEAN, RGB_STD), from_bgr_255(weight), stride=2, padding=3)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)  # sums of 147 terms of up to some tens
    torch.testing.assert_close(to_bgr_255(from_bgr_255(weight)), weight, rtol=2e-7, atol=0)


def test_what_does_not_fit_is_listed(arrays: dict[str, Any]) -> None:
    state = dict(arrays)
    del state["head.cls_subnet.2.bias"], state["backbone.top_block.p6.weight"]
    state["proposal_generator.x.weight"] = np.zeros(1, np.float32)
    state["head.bbox_pred.bias"] = np.zeros(35, np.float32)
    with pytest.raises(InputError) as caught:
        foreign({"model": state}, Path("a.pkl"))
    said = str(caught.value)
    assert said.startswith("a.pkl: not a whole RetinaNet of detectron2: 1 unused (proposal_generator.x.weight), ")
    missing = "2 missing (backbone.fpn.extra_blocks.p6.weight, head.classification_head.conv.1.0.bias)"
    assert f"{missing}, 1 of another shape (head.regression_head.bbox_reg.bias: 35, not 36)" in said


def test_weights_for_other_colours_are_refused(arrays: dict[str, Any]) -> None:
    rgb = np.array([123.675, 116.28, 103.53], np.float32)
    with pytest.raises(InputError, match=r"a\.pkl: its pixel_mean is 123.675, 116.28, 103.53, not that of"):
        foreign({"model": {**arrays, "pixel_mean": rgb}}, Path("a.pkl"))
    with pytest.raises(InputError, match=r"a\.pkl: head.cls_score.bias is a list, no array"):
        foreign({"model": {**arrays, "head.cls_score.bias": [1.0]}}, Path("a.pkl"))


@pytest.mark.parametrize(
    "content", [None, [1], {}, {"model": {"a": 1}}, {"conv1_w": 1}, {"backbone.bottom_up.stem.conv1.weight": 1}]
)
def test_what_is_no_retinanet_of_detectron2(content: Any) -> None:
    assert foreign(content, Path("x")) is None


def test_a_thinned_model_has_no_pkl(arrays: dict[str, Any], tmp_path: Path) -> None:
    content = foreign({"model": arrays}, Path("x"))
    assert content is not None
    with pytest.raises(InputError, match="thinned RetinaNet"):
        conversion.save(tmp_path / "x.pkl", {**content, "channels": {"head.x": 3}})


# The body


def test_blobs_have_every_name_of_a_body() -> None:
    for body in ("r50", "r101", "r18"):
        own = {name.removeprefix("backbone.body.") for name in shapes_of(body, 1) if name.startswith("backbone.body.")}
        assert own <= set(OF_BLOBS.values())
    assert OF_BLOBS["res4_5_branch2b_bn_s"] == "layer3.5.bn2.weight"
    assert OF_BLOBS["res2_0_branch1_w"] == "layer1.0.downsample.0.weight"


def blobs_of_r18() -> dict[str, Any]:
    """As MSRA's files: scales and biases without statistics, biases of 0, and a classifier behind the body."""
    of_names = {ours: blob for blob, ours in OF_BLOBS.items()}
    blobs: dict[str, Any] = {"fc1000_w": np.ones((1000, 512), np.float32), "fc1000_b": np.ones(1000, np.float32)}
    generator = np.random.default_rng(0)
    for name, shape in shapes_of("r18", 1).items():
        name = name.removeprefix("backbone.body.")
        if name in of_names and "running" not in name:
            blobs[of_names[name]] = generator.random(tuple(shape), dtype=np.float32)
    blobs["conv1_b"] = blobs["res2_0_branch2a_b"] = np.zeros(64, np.float32)
    blobs["conv1_w_momentum"] = np.ones((64, 3, 7, 7), np.float32)
    return blobs


SETTINGS = RetinaNetSettings("retinanet_r18_fpn")


@pytest.fixture(scope="module")
def model() -> Any:
    return build(SETTINGS, 3)


def test_msras_blobs_fill_the_body(model: Any, tmp_path: Path) -> None:
    file, blobs = tmp_path / "R-18.pkl", blobs_of_r18()
    file.write_bytes(pickled({"blobs": blobs}))
    assert load_backbone(model, SETTINGS, str(file)) is None
    body = model.backbone.body.state_dict()
    assert np.array_equal(body["layer2.0.downsample.1.weight"], blobs["res3_0_branch1_bn_s"])
    assert np.array_equal(body["layer4.1.conv2.weight"], blobs["res5_1_branch2b_w"])
    torch.testing.assert_close(body["conv1.weight"], from_bgr_255(torch.from_numpy(blobs["conv1_w"])))
    # A norm with these statistics only scales and shifts.
    norm, x = model.backbone.body.layer1[0].bn2, torch.randn(1, 64, 2, 2)
    scale, shift = (torch.from_numpy(blobs[f"res2_0_branch2b_bn_{each}"]).view(1, 64, 1, 1) for each in "sb")
    torch.testing.assert_close(norm(x), x * scale + shift)


def test_torchvisions_weights_fill_the_body(model: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = resnet18()
    torch.save(whole.state_dict(), tmp_path / "body.pth")
    assert load_backbone(model, SETTINGS, str(tmp_path / "body.pth")) is None
    assert torch.equal(model.backbone.body.layer3[1].conv1.weight, whole.layer3[1].conv1.weight)  # type: ignore[union-attr]
    assert torch.equal(model.backbone.body.conv1.weight, whole.conv1.weight)


def test_bodies_that_do_not_fit_are_refused(model: Any, tmp_path: Path) -> None:
    file = tmp_path / "R.pkl"

    def refusal(content: Any) -> str:
        file.write_bytes(pickled(content))
        with pytest.raises(InputError) as caught:
            load_backbone(model, SETTINGS, str(file))
        return str(caught.value)

    blobs = blobs_of_r18()
    del blobs["res5_1_branch2b_bn_b"]
    blobs["res9_w"] = np.zeros(1, np.float32)
    blobs["conv1_b"] = np.ones(64, np.float32)  # which no body here could add
    said = refusal(blobs)
    assert "2 unused (conv1_b, res9_w), 1 missing (layer4.1.bn2.bias)" in said
    assert "not a classifier of Caffe2" in refusal({"stem.conv1.weight": 1})
    assert "not a classifier of Caffe2" in refusal([1])
    with pytest.raises(InputError, match="frozen norms"):
        load_backbone(model, SETTINGS, "none")


def test_a_stride_that_the_weights_have_not_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RetinaNetSettings("retinanet_r50_fpn", stride_in="1x1")
    with torch.device("meta"):
        model = build(settings, 3)
    monkeypatch.setattr("ssd.detectors.retinanet.backbone.read_backbone", lambda source, name: {})
    monkeypatch.setattr("ssd.detectors.retinanet.backbone.fill", lambda *_: None)
    said = load_backbone(model, settings, "imagenet")
    assert said is not None and "pass --stride-in 3x3" in said
