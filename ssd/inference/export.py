"""The detector with its post-processing as one graph, in a file that runs without this program: ONNX or torch.export.

`postprocess.detect` works on as many candidates as there are, which no graph of fixed shapes can. `Exportable` always
takes as many of each class and does the same arithmetic on them; a test holds its detections against `detect`'s.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssd.batch import IMAGE_SIZE_PX, Detections
from ssd.checkpoints import checkpoint, conversion
from ssd.config import Config
from ssd.detectors.export_nms import greedy_nms
from ssd.detectors.ssd300.anchors import NUM_BOXES, decode, default_boxes_cxcywh
from ssd.detectors.ssd300.model import SSD300
from ssd.errors import InputError
from ssd.files import written_whole
from ssd.images import normalise

METADATA_KEY = "ssd300"
"""Where a file has its metadata as JSON: in an ONNX model's metadata_props, in torch.export's extra_files."""
INPUT_NAME = "images"


class Exportable(nn.Module):
    """Images to detections: uint8 B x 3 x 300 x 300 RGB, each the whole image resized as `images.resize` does it, to
    a dict of `batch.Detections` by config's post-processing. D is max_per_image, or all candidates if those are fewer.

    Where scores are equal, another one may come first than in `detect`.
    """

    defaults_cxcywh: Tensor

    def __init__(self, model: SSD300, config: Config) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("defaults_cxcywh", default_boxes_cxcywh())
        self.score_threshold, self.nms_iou = config.score_threshold, config.nms_iou
        self.per_class = min(config.max_per_class, NUM_BOXES)
        self.per_image = min(config.max_per_image, self.per_class * (model.num_classes - 1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        offsets, logits = self.model(normalise(images))
        probabilities = logits.float().softmax(dim=2)[..., 1:].transpose(1, 2)
        scores, box = probabilities.topk(self.per_class, dim=2)
        scores = torch.where(scores > self.score_threshold, scores, 0)
        of_image = decode(offsets.float(), self.defaults_cxcywh).unsqueeze(1).expand(-1, scores.shape[1], -1, -1)
        boxes_ltrb = of_image.gather(2, box.unsqueeze(3).expand(-1, -1, -1, 4))
        scores = torch.where(greedy_nms(boxes_ltrb, scores > 0, self.nms_iou), scores, 0)

        scores, place = scores.flatten(1).topk(self.per_image, dim=1)
        boxes_ltrb = boxes_ltrb.flatten(1, 2).gather(1, place.unsqueeze(2).expand(-1, -1, 4)).clamp(0, 1)
        real = scores > 0
        detections = Detections(
            boxes_ltrb=torch.where(real.unsqueeze(2), boxes_ltrb, 0),
            scores=scores,
            labels=torch.where(real, place // self.per_class + 1, 0),
            counts=real.sum(dim=1),
        )
        return detections._asdict()  # a file of torch.export knows no type of ours


def metadata(model: SSD300, categories: list[tuple[int, str]], config: Config) -> dict[str, Any]:
    """What the user of an exported file has to know."""
    return {
        "input": f"{INPUT_NAME}: uint8 B x 3 x {IMAGE_SIZE_PX} x {IMAGE_SIZE_PX} RGB; each the whole image, resized to "
        f"{IMAGE_SIZE_PX} x {IMAGE_SIZE_PX} whatever its aspect ratio, bilinear with antialiasing",
        "outputs": "boxes_ltrb: float32 B x D x 4 left, top, right, bottom in [0, 1] of the image, best score first; "
        "scores: float32 B x D; labels: int64 B x D, label i + 1 is categories[i], 0 none; "
        "counts: int64 B, how many rows are real",
        "backbone": model.backbone,
        "categories": categories,
        "score_threshold": config.score_threshold,
        "nms_iou": config.nms_iou,
        "max_per_class": config.max_per_class,
        "max_per_image": config.max_per_image,
    }


def export(source: Path, target: Path, form: str, config: Config) -> str:
    """Writes the detector of checkpoint source to target, whole or not at all; returns what the user should read.

    form: "onnx" or "torch". Raises InputError for a file that is no checkpoint, and where onnx is not installed.
    """
    if target.exists() and source.exists() and target.samefile(source):
        raise InputError(f"--output {target}: is the checkpoint; pass another name")
    content = conversion.load(source)
    model = checkpoint.build_model(content, source).eval()
    about = metadata(model, [tuple(each) for each in content["categories"]], config)
    program = to_program(Exportable(model, config).eval())
    with written_whole(target) as temporary:
        (_save_onnx if form == "onnx" else _save_torch)(program, about, temporary)
    names = ", ".join(name for _, name in about["categories"])
    return (
        f"wrote {target}: SSD300-{model.backbone}, {target.stat().st_size / 1e6:.0f} MB\n"
        f"in   {about['input']}\nout  {about['outputs'].replace('; ', chr(10) + '     ')}\n"
        f"detections score more than {config.score_threshold}; classes: {names}"
    )


@torch.no_grad()
def to_program(module: Exportable) -> torch.export.ExportedProgram:
    """The module's graph for any number of images."""
    sample = torch.zeros(2, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX, dtype=torch.uint8)
    return torch.export.export(module, (sample,), dynamic_shapes={INPUT_NAME: {0: torch.export.Dim("batch", min=1)}})


def _save_torch(program: torch.export.ExportedProgram, about: dict[str, Any], file: Path) -> None:
    with file.open("wb") as stream:  # to a path, torch wants a name that ends in .pt2
        torch.export.save(program, stream, extra_files={METADATA_KEY: json.dumps(about)})


def _save_onnx(program: torch.export.ExportedProgram, about: dict[str, Any], file: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(f"--format onnx: {error.name} is not installed; pip install -e '.[export]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of onnxscript's own, about its own calls
        converted = torch.onnx.export(
            program, input_names=[INPUT_NAME], output_names=list(Detections._fields), verbose=False
        )
    assert converted is not None
    converted.model.metadata_props[METADATA_KEY] = json.dumps(about)
    converted.save(file, external_data=False)
