"""Weights of other programs: DLE's checkpoints say the same here as there, torchvision's fill the trunk, and
safetensors files hold either."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from model_files import refusal_of, seeded
from torch import Tensor, nn
from torchvision import models

import main
from ssd.checkpoints import checkpoint, conversion
from ssd.coco_categories import coco_categories
from ssd.detectors.ssd300.anchors import NUM_BOXES, default_boxes_cxcywh
from ssd.detectors.ssd300.model import FEATURE_CHANNELS, SSD300
from ssd.detectors.ssd300.settings import BACKBONES, SSD300Settings
from ssd.errors import InputError
from ssd.matching import decode

Refusal = Callable[..., str]
Edit = Callable[[Path, str, Callable[[dict[str, Any]], None]], Path]

# Any three of COCO's, with the gaps that its ids have.
SOME_OF_COCO = {1: (1, "person"), 12: (13, "stop sign"), 80: (90, "toothbrush")}


class DleSSD(nn.Module):
    """DLE's SSD300 said anew: its names, and its heads, which put the four numbers of a box before its shape."""

    def __init__(self, backbone: str):
        super().__init__()
        resnet = models.get_model(backbone, weights=None)
        self.feature_extractor = nn.Module()
        self.feature_extractor.feature_extractor = nn.Sequential(*list(resnet.children())[:7])
        for conv in (resnet.layer3[0].conv1, resnet.layer3[0].conv2, resnet.layer3[0].downsample[0]):
            conv.stride = (1, 1)
        channels, shapes = FEATURE_CHANNELS[backbone], (4, 6, 6, 6, 4, 4)
        self.additional_blocks = nn.ModuleList()
        for level, mid in enumerate((256, 256, 128, 128, 128)):
            step = {"stride": 2, "padding": 1} if level < 3 else {}
            block = [nn.Conv2d(channels[level], mid, 1, bias=False), nn.BatchNorm2d(mid), nn.ReLU()]
            wide = channels[level + 1]
            block += [nn.Conv2d(mid, wide, 3, bias=False, **step), nn.BatchNorm2d(wide), nn.ReLU()]
            self.additional_blocks.append(nn.Sequential(*block))
        self.loc = nn.ModuleList(nn.Conv2d(c, s * 4, 3, padding=1) for c, s in zip(channels, shapes, strict=True))
        self.conf = nn.ModuleList(nn.Conv2d(c, s * 81, 3, padding=1) for c, s in zip(channels, shapes, strict=True))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """B x 4 x A and B x 81 x A."""
        maps = [self.feature_extractor.feature_extractor(images)]
        for block in self.additional_blocks:
            maps.append(block(maps[-1]))
        offsets = [head(x).reshape(len(x), 4, -1) for head, x in zip(self.loc, maps, strict=True)]
        logits = [head(x).reshape(len(x), 81, -1) for head, x in zip(self.conf, maps, strict=True)]
        return torch.cat(offsets, dim=2), torch.cat(logits, dim=2)


def dle_model(backbone: str, images: Tensor) -> DleSSD:
    """In eval mode, with the statistics of these images, so that no layer's output vanishes or explodes."""
    torch.manual_seed(1)
    model = DleSSD(backbone)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def dle_content(model: DleSSD) -> dict[str, Any]:
    """All that DLE's training writes into a checkpoint."""
    optimizer = torch.optim.SGD(model.parameters(), lr=2.6e-3, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[43, 54], gamma=0.1)
    names = ["background", *(name for _, name in coco_categories())]
    return {
        "epoch": 65,
        "iteration": 1000,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "label_map": dict(enumerate(names)),
        "model": model.state_dict(),
    }


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 300, 300, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def dle_r18(images: Tensor) -> DleSSD:
    return dle_model("resnet18", images)


@pytest.fixture
def dle_file(dle_r18: DleSSD, tmp_path: Path) -> Path:
    torch.save(dle_content(dle_r18), tmp_path / "dle.pt")
    return tmp_path / "dle.pt"


def equal_states(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def refused(file: Path, load: Callable[[Path], Any] = conversion.load) -> str:
    return refusal_of(file, load)


def load_and_build(file: Path) -> SSD300:
    return checkpoint.build_model(conversion.load(file), file)


# --- NVIDIA's DeepLearningExamples ---


def test_coco_categories_are_those_of_its_annotation_file(coco256: Path) -> None:
    rows = json.loads((coco256 / "annotations" / "instances_val2017.json").read_text())["categories"]
    assert coco_categories() == [(row["id"], row["name"]) for row in rows]


def test_some_of_coco_categories() -> None:
    """80 categories, whose ids have ten gaps between 1 and 90, in the order of their ids."""
    categories = coco_categories()
    assert len(categories) == len(set(categories)) == 80
    assert [id for id, _ in categories] == sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
    assert {label: coco_categories()[label - 1] for label in SOME_OF_COCO} == SOME_OF_COCO


@pytest.mark.parametrize(
    "backbone",
    [pytest.param(name, marks=[] if name in ("resnet18", "resnet50") else pytest.mark.slow) for name in BACKBONES],
)
def test_a_dle_checkpoint_says_the_same_here(backbone: str, images: Tensor, tmp_path: Path) -> None:
    theirs = dle_model(backbone, images)
    file = tmp_path / "dle.pt"
    torch.save(dle_content(theirs), file)
    content = conversion.load(file)
    assert content["detector"] == {"family": "ssd300", "backbone": backbone}
    assert {label: content["categories"][label - 1] for label in SOME_OF_COCO} == SOME_OF_COCO
    ours = checkpoint.build_model(content, file).eval()
    with torch.no_grad():
        offsets, logits = theirs(images)
        predictions = ours(images)
    assert offsets.shape == (2, 4, NUM_BOXES) and offsets.std() > 0.1 and logits.std() > 0.1
    probabilities = predictions.logits.softmax(dim=2)
    torch.testing.assert_close(probabilities, logits.softmax(dim=1).transpose(1, 2), rtol=0, atol=1e-5)
    # DLE's own order of the numbers of a box and its two scales.
    x, y, w, h = offsets.unbind(dim=1)
    default_x, default_y, default_w, default_h = default_boxes_cxcywh().unbind(dim=1)
    x, y = 0.1 * x * default_w + default_x, 0.1 * y * default_h + default_y
    w, h = (0.2 * w).exp() * default_w, (0.2 * h).exp() * default_h
    boxes_ltrb = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=2)
    torch.testing.assert_close(decode(predictions.offsets, default_boxes_cxcywh()), boxes_ltrb, rtol=0, atol=1e-5)


def test_dle_weights_in_other_wrappings(dle_r18: DleSSD, dle_file: Path, tmp_path: Path) -> None:
    expected = load_and_build(dle_file).state_dict()
    state, distributed = dle_r18.state_dict(), tmp_path / "distributed.pt"
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, distributed)
    assert equal_states(load_and_build(distributed).state_dict(), expected)
    file = tmp_path / "dle.safetensors"
    safetensors.torch.save_file({name: value.contiguous() for name, value in state.items()}, file)
    assert equal_states(load_and_build(file).state_dict(), expected)


def test_fine_tuning_from_dle_onto_other_classes(dle_file: Path) -> None:
    content = conversion.load(dle_file)
    model, fresh = seeded(2, "resnet18", 4), seeded(2, "resnet18", 4).state_dict()
    assert len(checkpoint.load_for_fine_tuning(model, SSD300Settings("resnet18"), content, dle_file)) == 12
    for name, value in model.state_dict().items():
        assert torch.equal(value, fresh[name] if name.startswith("class_heads.") else content["model"][name]), name
    with pytest.raises(InputError, match="pass --backbone resnet18$"):
        checkpoint.load_for_fine_tuning(seeded(2, "resnet50", 81), SSD300Settings(), content, dle_file)


def without(state: dict[str, Any], *prefixes: str) -> dict[str, Any]:
    return {name: value for name, value in state.items() if not name.startswith(prefixes)}


def test_other_models_with_dle_names_are_refused(dle_r18: DleSSD, tmp_path: Path) -> None:
    state, file = dle_r18.state_dict(), tmp_path / "dle.pt"
    trunk = "feature_extractor.feature_extractor."
    loc_of_ten_values = {**state, "loc.0.bias": torch.zeros(10)}
    for wrong, named in (
        (without(state, f"{trunk}6.1."), "layer3 is that of no ResNet"),
        (without(state, f"{trunk}6."), "layer3 is that of no ResNet"),
        ({**state, "conf.0.weight": torch.zeros(4 * 21, 256, 3, 3)}, "conf.0.weight is no head for boxes of 81"),
        (loc_of_ten_values, "loc.0.bias is no head"),
        ({**state, "loc.0.bias": 3}, "loc.0.bias is no head"),
        ({**state, "loc.0.bias": torch.tensor(3.0)}, "loc.0.bias is no head"),
        (without(state, "loc.3."), "do not fit"),
        ({**state, "loc.6.weight": torch.zeros(4, 1, 3, 3)}, "do not fit"),
        ({**state, f"{trunk}0.weight": torch.zeros(64, 3, 3, 3)}, "do not fit"),
        ({**state, f"{trunk}0.weight": 3}, "do not fit"),
        ({**state, "surprise": torch.zeros(1)}, "do not fit"),
    ):
        torch.save({"model": wrong}, file)
        assert named in refused(file, load_and_build)


def test_a_dle_model_of_other_categories_is_refused(dle_r18: DleSSD, tmp_path: Path) -> None:
    content, file = dle_content(dle_r18), tmp_path / "dle.pt"
    for label_map in ({0: "background", 1: "balloon"}, {**content["label_map"], 3: "zeppelin"}, [1, 2], {}):
        torch.save({**content, "label_map": label_map}, file)
        assert "label_map is not COCO's 80 categories" in refused(file)


class Touch:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_dle_checkpoint_runs_no_code(dle_r18: DleSSD, tmp_path: Path, refusal: Refusal) -> None:
    file, trace = tmp_path / "evil.pt", tmp_path / "trace"
    torch.save({**dle_content(dle_r18), "extra": Touch(trace)}, file)
    assert "holds more than plain weights" in refused(file)
    assert str(file) in refusal("convert", file, tmp_path / "out.pt")
    assert not trace.exists() and not (tmp_path / "out.pt").exists()
    torch.load(file, weights_only=False)
    assert trace.exists()  # the file was dangerous


# --- the command line ---


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_convert(suffix: str, dle_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / f"ours{suffix}"
    assert main.main(["convert", str(dle_file), str(target)]) == 0
    assert capsys.readouterr().out == f"wrote {target}: SSD300-resnet18, 80 categories\n"
    content, original = conversion.load(target), conversion.load(dle_file)
    assert content.keys() == {"format", "detector", "categories", "model"}
    assert equal_states(content["model"], original["model"])
    assert content["detector"]["backbone"] == "resnet18"
    checkpoint.require_categories(content, target, original["categories"], "DIR")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_convert_strips_a_run(demo_run_checkpoint: Path, tmp_path: Path) -> None:
    file, back = tmp_path / "demo.safetensors", tmp_path / "demo.pt"
    assert main.main(["convert", str(demo_run_checkpoint), str(file)]) == 0
    assert main.main(["convert", str(file), str(back)]) == 0
    run, content = checkpoint.load(demo_run_checkpoint), checkpoint.load(back)
    assert content.keys() == {"format", "detector", "categories", "model"}
    assert equal_states(content["model"], dict(run["model"]))
    checkpoint.require_categories(content, back, [tuple(category) for category in run["categories"]], "DIR")


def test_convert_refuses(refusal: Refusal, demo_checkpoint: Path, tmp_path: Path) -> None:
    assert "no such file" in refusal("convert", tmp_path / "none.pt", tmp_path / "out.pt")
    assert ".safetensors" in refusal("convert", demo_checkpoint, tmp_path / "out.onnx")
    assert "existing folder" in refusal("convert", demo_checkpoint, tmp_path / "none" / "out.pt")
    assert "over itself" in refusal("convert", demo_checkpoint, demo_checkpoint)
    wrong = tmp_path / "wrong.pt"
    checkpoint.save(
        wrong, {**checkpoint.load(demo_checkpoint), "detector": {"family": "ssd300", "backbone": "resnet34"}}
    )
    assert "do not fit" in refusal("convert", wrong, tmp_path / "out.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.pt"]


def rename_to_coco(document: dict[str, Any]) -> None:
    for row in document["annotations"]:
        row["category_id"] = 13 if row["category_id"] == 12 else row["category_id"]  # COCO has no 12
    document["categories"] = [{"id": id, "name": name} for id, name in coco_categories()]


def test_evaluate_takes_dle_checkpoints(
    dle_file: Path, data_copy: Path, edit_annotations: Edit, refusal: Refusal, tmp_path: Path
) -> None:
    fixed = ["--data", str(data_copy), "--device", "cpu", "--num-workers", "0", "--data_pipeline", "no_dali"]
    line = refusal("evaluate", *fixed, "--checkpoint", dle_file)
    assert str(dle_file) in line and "trained on 80 categories" in line and "has 6" in line

    edit_annotations(data_copy, "val2017", rename_to_coco)
    converted = tmp_path / "ours.safetensors"
    assert main.main(["convert", str(dle_file), str(converted)]) == 0
    found = []
    for file in (dle_file, converted):
        flags = ["--checkpoint", str(file), "--score-threshold", "0", "--json", str(tmp_path / "metrics.json")]
        assert main.main(["evaluate", *fixed, *flags]) == 0
        found.append(json.loads((tmp_path / "metrics.json").read_text()))
    assert found[0] == found[1] and found[0]["AP"] > -1


@pytest.mark.slow
def test_training_starts_from_a_dle_checkpoint(
    dle_file: Path, demo_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", str(demo_data), "--checkpoint", str(dle_file), "--backbone", "resnet18", "--output"]
    flags += [str(tmp_path / "run"), "--epochs", "1", "--bs", "4", "--lr", "0", "--device", "cpu"]
    assert main.main([*flags, "--num-workers", "0", "--data_pipeline", "no_dali"]) == 0
    assert f"starting from {dle_file}, with new class heads" in capsys.readouterr().out
    trained, original = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt"), conversion.load(dle_file)
    for name in ("trunk.0.weight", "extra_blocks.4.3.weight", "box_heads.5.bias"):
        assert torch.equal(trained["model"][name], original["model"][name])


# --- safetensors ---
