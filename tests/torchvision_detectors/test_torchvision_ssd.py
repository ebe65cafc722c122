"""torchvision's SSDs: what they find, their losses, their default boxes and their files are torchvision's own."""

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision.models.detection as theirs
from runs import last_of, log_of, write_small_data
from torch import Tensor, nn
from torchvision.models import get_model_weights, mobilenet_v3_large
from torchvision_models import NUM_CLASSES, AsItIs, assert_same_detections

import main
import pipelines
from pipelines import augmentation
from pipelines.readers.coco import read_annotations
from ssd.batch import RGB_MEAN, RGB_STD, EvalBatch, MatchedBatch, whole
from ssd.boxes import cxcywh_to_ltrb
from ssd.checkpoints import checkpoint
from ssd.config import Thresholds
from ssd.detectors.torchvision.square import recipes
from ssd.detectors.torchvision.square.detector import TORCHVISION_SSD
from ssd.detectors.torchvision.square.model import SSD, build
from ssd.detectors.torchvision.square.settings import MOBILENET, NAMES, VGG, SquareSettings, settings_of
from ssd.detectors.torchvision.square.weights import foreign, fresh_heads, load_backbone
from ssd.distributed import Ranks
from ssd.errors import InputError
from ssd.images import normalise
from ssd.inference.export import to_program
from ssd.matching import encode

THRESHOLDS = Thresholds(score_threshold=0.05, nms_iou=0.45, max_per_class=200, max_per_image=60)
HERE = Ranks(0, 0, 1, torch.device("cpu"))


@functools.cache
def their_model(name: str) -> Any:
    """torchvision's builder's model from scratch, without weights."""
    options = dict(
        zip(("score_thresh", "nms_thresh", "topk_candidates", "detections_per_img"), THRESHOLDS, strict=True)
    )
    with torch.device("meta"):
        return getattr(theirs, name)(weights=None, weights_backbone=None, num_classes=NUM_CLASSES, **options)


@functools.cache
def images_of(name: str) -> Tensor:
    side = TORCHVISION_SSD.input_size_px(settings_of(name))[0]
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@functools.cache
def our_model(name: str) -> SSD:
    """Whose logits and offsets differ as much as those of one that has learned. Not to be changed."""
    torch.manual_seed(0)
    model = build(settings_of(name, "none"), NUM_CLASSES).eval()
    with torch.no_grad():
        said = model(images_of(name))
        for head, values, spread in (("classification_head", said.logits, 1.5), ("regression_head", said.offsets, 0.7)):
            for part in getattr(model.head, head).module_list:
                last = part[-1] if isinstance(part, nn.Sequential) else part
                last.weight *= spread / values.std()
    return model


def with_equal_weights(name: str) -> Any:
    model = their_model(name)
    state = {key: value.clone() for key, value in our_model(name).state_dict().items()}
    model.load_state_dict(state, assign=True)
    images = images_of(name)
    model.transform = AsItIs(SimpleNamespace(images=images, sizes_px=whole(images)[:, 2:]))  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_detections_are_torchvisions(name: str) -> None:
    images = images_of(name)
    batch = EvalBatch(images, whole(images), torch.arange(2))
    found = TORCHVISION_SSD.detect(settings_of(name), THRESHOLDS)(our_model(name), batch)
    expected = with_equal_weights(name).eval()(list(images))
    for image, other in enumerate(expected):
        count = found.counts[image]
        assert count == len(other["scores"]) > 30
        torch.testing.assert_close(found.scores[image, :count], other["scores"], rtol=1e-4, atol=1e-5)
        of_image = other["boxes"] / images.shape[2]
        torch.testing.assert_close(found.boxes_ltrb[image, :count], of_image, rtol=1e-4, atol=1e-4)
        assert torch.equal(found.labels[image, :count], other["labels"])


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_torchvisions(name: str) -> None:
    """Of an image with boxes and one without, matched as the data paths do it; of the light one gradients too."""
    generator = torch.Generator().manual_seed(2)
    left_top, sides = torch.rand(5, 2, generator=generator) * 0.5, 0.1 + torch.rand(5, 2, generator=generator) * 0.4
    boxes_ltrb, labels = torch.cat([left_top, left_top + sides], dim=1), torch.tensor([1, 2, 3, 3, 1])
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    view = TORCHVISION_SSD.view(settings_of(name))
    encoded = [encode(*image, view.defaults_cxcywh) for image in ((boxes_ltrb, labels), none)]
    offsets, default_labels = (torch.stack(part) for part in zip(*encoded, strict=True))
    images = images_of(name)
    batch = MatchedBatch(images, offsets, default_labels, torch.arange(2))
    model = build(settings_of(name, "none"), NUM_CLASSES)
    model.load_state_dict({key: value.clone() for key, value in our_model(name).state_dict().items()}, assign=True)
    other = with_equal_weights(name)
    targets = [{"boxes": boxes * images.shape[2], "labels": own} for boxes, own in ((boxes_ltrb, labels), none)]
    with torch.set_grad_enabled(name == MOBILENET):
        losses = TORCHVISION_SSD.losses_of(settings_of(name), False)(model.train(), batch)
        expected = other.train()(list(images), targets)
    assert losses.keys() == expected.keys()
    for key, value in losses.items():
        assert value.dtype == torch.float32 and value.shape == () and value > 0
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)
    if name == MOBILENET:
        sum(losses.values()).backward()
        sum(expected.values()).backward()
        for own, their in zip(model.parameters(), other.parameters(), strict=True):
            scale = their.grad.abs().max().item()  # sums of thousands of products in another order
            torch.testing.assert_close(own.grad, their.grad, rtol=1e-3, atol=1e-4 * scale + 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        model = getattr(theirs, name)(weights=None, weights_backbone=None)
    view = TORCHVISION_SSD.view(settings_of(name))
    assert list(view.mean) == model.transform.image_mean and list(view.std) == model.transform.image_std
    assert (view.size_px, view.size_px) == model.transform.fixed_size
    with torch.device("meta"):
        parameters = list(build(settings_of(name, "none"), 91).parameters())
    published = get_model_weights(name).COCO_V1.meta["num_params"]
    assert sum(parameter.numel() for parameter in parameters) == published
    config = recipes.defaults(settings_of(name))
    assert config.score_threshold == model.score_thresh and config.nms_iou == model.nms_thresh
    assert (config.max_per_class, config.max_per_image) == (model.topk_candidates, model.detections_per_img)
    cells = TORCHVISION_SSD_CELLS[name]
    image = SimpleNamespace(tensors=torch.empty(1, 3, *model.transform.fixed_size), image_sizes=[None])
    (expected,) = model.anchor_generator(image, [torch.empty(1, 1, side, side) for side in cells])
    found = cxcywh_to_ltrb(view.defaults_cxcywh) * view.size_px
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


# A side of each feature map, as the papers have it.
TORCHVISION_SSD_CELLS = {VGG: (38, 19, 10, 5, 3, 1), MOBILENET: (20, 10, 5, 3, 2, 1)}


def test_the_rates_are_torchvisions_at_its_global_batch() -> None:
    """references/detection: 0.002 at 8 x 4 images, 0.15 at 8 x 24."""
    for name, rate in ((VGG, 0.002), (MOBILENET, 0.15)):
        config = recipes.torchvision(None, 8, settings_of(name))
        assert config.learning_rate * config.batch_size * 8 / 32 == pytest.approx(rate)


# --- weights ---


def test_the_body_comes_from_a_classifiers_file_and_can_be_left_as_it_is(tmp_path: Path) -> None:
    classifier = mobilenet_v3_large()
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    settings = settings_of(MOBILENET)
    model = build(settings, NUM_CLASSES)
    load_backbone(model, settings, str(tmp_path / "classifier.pth"))
    first, last = classifier.features[0][0].weight, classifier.features[-1][0].weight
    assert torch.equal(model.state_dict()["backbone.features.0.0.0.weight"], first)
    assert torch.equal(model.state_dict()["backbone.features.1.3.0.weight"], last)
    reduced = settings_of(MOBILENET, "none")
    with pytest.raises(InputError, match="not the weights of a torchvision mobilenet_v3_large"):
        load_backbone(build(reduced, NUM_CLASSES), reduced, str(tmp_path / "classifier.pth"))
    model.freeze_body()
    model.train()
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {norm.training for norm in norms} == {True, False}  # of the layers after the body, and of the body
    assert not any(parameter.requires_grad for parameter in model.backbone.features.parameters())
    assert all(parameter.requires_grad for parameter in model.head.parameters())


def test_the_vggs_layers_are_those_of_the_classifier() -> None:
    with torch.device("meta"):
        model = build(settings_of(VGG), NUM_CLASSES)
    names = {id(value): name for name, value in model.named_parameters()}
    found = {name: names[id(value)] for name, value in model.body.named_parameters()}
    assert len(found) == 26
    assert (found["0.weight"], found["21.bias"]) == ("backbone.features.0.weight", "backbone.features.21.bias")
    assert (found["24.weight"], found["28.bias"]) == ("backbone.extra.0.1.weight", "backbone.extra.0.5.bias")
    # Four of five parts learn: all but the two layers before the first pooling.
    frozen = {name for name, value in model.body.named_parameters() if not value.requires_grad}
    assert frozen == {"0.weight", "0.bias", "2.weight", "2.bias"}


@pytest.mark.parametrize("name", NAMES)
def test_torchvisions_coco_files_are_taken(name: str, tmp_path: Path) -> None:
    """91 labels, of which 80 are in use: the heads' rows are theirs."""
    with torch.device("meta"):
        state = getattr(theirs, name)(weights=None, weights_backbone=None).state_dict()
    state = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in state.items()}
    heads = fresh_heads(settings_of(name))
    for key, value in state.items():
        if key.startswith(heads):
            value += torch.arange(91).repeat(len(value) // 91).view(-1, *[1] * (value.dim() - 1))
    content = foreign({"model": state}, tmp_path / "coco.pth")
    assert content is not None and len(content["categories"]) == 80
    labels = torch.tensor([0, *(id for id, _ in content["categories"])])
    biases = [value for key, value in content["model"].items() if key.startswith(heads) and key.endswith("bias")]
    assert len(biases) == 6 and all(torch.equal(bias.view(-1, 81)[-1], labels.float()) for bias in biases)
    settings = checkpoint.settings_of({"format": checkpoint.FORMAT, **content})
    assert settings == SquareSettings(name, settings_of(name).trainable_layers, name == MOBILENET)
    with torch.device("meta"):
        build(settings, 81).load_state_dict(content["model"], assign=True)


def test_other_files_are_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    assert foreign({"model": {"conv1.weight": torch.zeros(1)}}, file) is None
    assert foreign({"format": 2}, file) is None
    head = {"head.classification_head.module_list.0.weight": torch.zeros(1)}
    for beside in ({}, {"backbone.scale_weight": torch.zeros(512)}):
        with pytest.raises(InputError, match=r"other.pth: not a whole SSD.* of torchvision"):
            foreign({**head, **beside}, file)


# --- what the data paths give ---


def test_colour_is_normalised_by_the_view() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (2, 8, 8, 3), dtype=torch.uint8, generator=generator)
    colour = torch.tensor([[0.0, 1, 1, 1], [10, 0.6, 1.1, 0.9]])
    mean, std = (0.5, 0.4, 0.3), (1 / 255, 0.5, 0.2)
    usual = augmentation.finish(pixels, colour)
    levels = usual * torch.tensor(RGB_STD).view(3, 1, 1) + torch.tensor(RGB_MEAN).view(3, 1, 1)
    expected = (levels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(augmentation.finish(pixels, colour, mean=mean, std=std), expected, rtol=1e-4, atol=1e-3)


def test_both_paths_evaluate_the_same_images_without_antialiasing(demo_data: Path) -> None:
    split = read_annotations(demo_data, "val2017")
    view = TORCHVISION_SSD.view(settings_of(MOBILENET))
    images = {}
    for path in ("dali", "no_dali"):
        loader = pipelines.build_eval(path, split, batch_size=8, num_workers=0, ranks=HERE, view=view)
        images[path] = torch.cat([batch.images for batch in loader])
    assert images["dali"].shape == (5, 3, 320, 320)
    assert (images["dali"] - images["no_dali"]).abs().mean() < 1 / 255
    smooth = pipelines.build_eval(
        "no_dali", split, batch_size=8, num_workers=0, ranks=HERE, view=view._replace(antialias=True)
    )
    assert (next(iter(smooth)).images - images["no_dali"]).abs().mean() > 1 / 255


# --- commands ---


@pytest.mark.slow
@torch.no_grad()
def test_an_exported_one_finds_the_same(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    settings = settings_of(MOBILENET, "none")
    exported = TORCHVISION_SSD.exportable(our_model(MOBILENET), settings, THRESHOLDS)  # type: ignore[misc]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = torch.onnx.export(
            to_program(exported), input_names=["images"], output_names=["boxes", "scores", "labels", "counts"]
        )
    assert converted is not None
    converted.save(tmp_path / "model.onnx", external_data=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    images = torch.randint(256, (3, 3, 320, 320), dtype=torch.uint8)
    found = session.run(None, {"images": images.numpy()})
    view = TORCHVISION_SSD.view(settings)
    finished = normalise(images, view.mean, view.std)
    batch = EvalBatch(finished, whole(finished), torch.arange(3))
    expected = TORCHVISION_SSD.detect(settings, THRESHOLDS)(our_model(MOBILENET), batch)
    assert_same_detections(found, expected)


@pytest.mark.slow
def test_it_trains_evaluates_and_predicts(tmp_path: Path) -> None:
    data, run = write_small_data(tmp_path / "data"), tmp_path / "run"
    common = ["--data", str(data), "--device", "cpu", "--num-workers", "0"]
    training = "--backbone-weights none --bs 2 --epochs 1 --warmup 0 --seed 3 --log-interval 1 --evaluation".split()
    flags = [*common, "--detector", MOBILENET, *training, "--data_pipeline", "dali", "--output", str(run)]
    assert main.main(flags) == 0
    lines = log_of(run, "train")
    assert len(lines) == 3 and {"classification_loss", "bbox_regression_loss"} <= lines[0].keys()
    settings = checkpoint.settings_of(last_of(run))
    assert settings == SquareSettings(MOBILENET, 6, True)
    file = str(run / "checkpoints" / "last.pt")
    assert main.main(["evaluate", *common, "--checkpoint", file, "--data_pipeline", "no_dali"]) == 0
    found = ["--output", str(tmp_path / "found"), "--device", "cpu", "--score", "0"]
    assert main.main(["predict", str(data / "val2017"), "--checkpoint", file, *found]) == 0
    assert (tmp_path / "found" / "detections.json").is_file()


def test_bad_settings_are_named(refusal: Callable[..., str]) -> None:
    named = ["--data", "x", "--detector", VGG]
    assert "--min-size; that is an option of other detectors" in refusal(*named, "--min-size", "9").replace(" 9", "")
    assert "ssd300_vgg16 has 5 parts" in refusal(*named, "--trainable-layers", "6")
    assert "did you mean ssd300_vgg16?" in refusal("--data", "x", "--detector", "ssd300_vgg19")
