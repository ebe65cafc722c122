"""Exported files give the detections of `postprocess.detect`, for any number of images, and need no code of ours."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

import main
from ssd.batch import Detections
from ssd.checkpoints import checkpoint
from ssd.config import Thresholds
from ssd.detectors.postprocess.graph_nms import greedy_nms
from ssd.detectors.ssd300.export import exportable
from ssd.detectors.ssd300.model import SSD300
from ssd.detectors.ssd300.postprocess import detect
from ssd.detectors.ssd300.settings import SSD300Settings
from ssd.images import normalise
from ssd.inference import export

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {"score_threshold": 0.6, "nms_iou": 0.45, "max_per_class": 50, "max_per_image": 60}


@pytest.fixture(scope="module")
def decided_checkpoint(demo_checkpoint: Path) -> Path:
    """`demo_checkpoint`, but less sure of its classes: some boxes above the threshold and many below."""
    content = checkpoint.load(demo_checkpoint)
    for name, value in content["model"].items():
        if name.startswith("class_heads.") and name.endswith(".weight"):
            value.mul_(0.4)
    file = demo_checkpoint.with_name("decided.pt")
    checkpoint.save(file, content)
    return file


@pytest.fixture(scope="module")
def model(decided_checkpoint: Path) -> SSD300:
    return checkpoint.build_model(checkpoint.load(decided_checkpoint), decided_checkpoint).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    """4 x 3 x 300 x 300: blurs, of which the detector thinks differently."""
    noise = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.interpolate(noise, (300, 300), mode="bicubic").mul(255).clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def files(decided_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By format, written by the command from one graph, which takes seconds to make."""
    folder = tmp_path_factory.mktemp("exported")
    to_program, made = export.to_program, []

    def once(module: export.Exportable) -> torch.export.ExportedProgram:
        if not made:
            made.append(to_program(module))
        return made[0]

    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    found = {"onnx": folder / "ssd.onnx", "torch": folder / "ssd.pt2"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "to_program", once)
        for form, file in found.items():
            command = ["export", "--checkpoint", str(decided_checkpoint), "--format", form, "--output", str(file)]
            assert main.main([*command, *flags]) == 0
    assert {file.name for file in folder.iterdir()} == {"ssd.onnx", "ssd.pt2"}
    return found


def onnx_runner(file: Path) -> tuple[Callable[[Tensor], dict[str, Tensor]], dict[str, Any]]:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> dict[str, Tensor]:
        outputs = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        return dict(zip(names, map(torch.from_numpy, outputs), strict=True))

    return run, json.loads(session.get_modelmeta().custom_metadata_map["ssd300"])


def test_a_graph_gives_boxes_only(model: SSD300, images: Tensor) -> None:
    """Not also masks and keypoints, which it has not."""
    program = export.to_program(exportable(model, SSD300Settings("resnet18"), Thresholds()))
    assert list(program.module()(images)) == ["boxes_ltrb", "scores", "labels", "counts"]


def torch_runner(file: Path) -> tuple[Callable[[Tensor], dict[str, Tensor]], dict[str, Any]]:
    extra = {"ssd300": ""}
    module = torch.export.load(file, extra_files=extra).module()
    called = {
        str(node.target) for part in module.modules() if isinstance(part, GraphModule) for node in part.graph.nodes
    }
    assert "aten.conv2d.default" in called and not {name for name in called if name.startswith(("ssd", "torchvision"))}
    return module, json.loads(extra["ssd300"])


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_exported_files_detect_the_same(form: str, files: dict[str, Path], model: SSD300, images: Tensor) -> None:
    run, about = {"onnx": onnx_runner, "torch": torch_runner}[form](files[form])
    with torch.no_grad():
        expected = detect(model(normalise(images)), **SETTINGS)
    counts = expected.counts.tolist()
    assert len(set(counts)) > 1 and max(counts) > 5, counts
    for batch in (slice(0, 4), slice(0, 1), slice(2, 4)):
        found = Detections(**run(images[batch]))
        assert torch.equal(found.counts, expected.counts[batch])
        assert torch.equal(found.labels, expected.labels[batch])
        torch.testing.assert_close(found.scores, expected.scores[batch], rtol=0, atol=2e-5)
        torch.testing.assert_close(found.boxes_ltrb, expected.boxes_ltrb[batch], rtol=0, atol=2e-5)
    assert about["score_threshold"] == 0.6 and about["max_per_image"] == 60
    assert about["categories"][0] == [1, "balloon"] and "uint8 B x 3 x 300 x 300" in about["input"]


def test_suppression_in_a_graph_is_torchvisions() -> None:
    from torchvision.ops import nms

    generator = torch.Generator().manual_seed(0)
    centre, size = torch.rand(2, 3, 30, 2, generator=generator), 0.4 * torch.rand(2, 3, 30, 2, generator=generator)
    boxes_ltrb = torch.cat([centre - size, centre + size], dim=3)
    candidate = torch.arange(30) < torch.tensor([[30, 1, 0], [17, 5, 30]]).unsqueeze(2)
    survives = greedy_nms(boxes_ltrb, candidate, 0.3)
    for boxes, taking_part, found in zip(
        boxes_ltrb.flatten(0, 1), candidate.flatten(0, 1), survives.flatten(0, 1), strict=True
    ):
        kept = nms(boxes[taking_part], torch.arange(30, 0, -1)[taking_part].float(), 0.3)
        assert found.nonzero().squeeze(1).tolist() == sorted(kept.tolist())


def test_mistakes(demo_checkpoint: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    assert "pass another name" in refusal("export", "--checkpoint", demo_checkpoint, "--output", demo_checkpoint)
    assert "existing folder" in refusal("export", "--checkpoint", demo_checkpoint, "--output", tmp_path / "no" / "x")
    missing = tmp_path / "missing.pt"
    assert "no such file" in refusal("export", "--checkpoint", missing, "--output", tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []
