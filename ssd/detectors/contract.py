"""What a detector is to the rest of the house: one record of plain functions.

Training, evaluation, checkpoints, prediction and the command line take this record and never ask which detector it is.
`S` below is the detector's own settings, a frozen dataclass of plain values. Where a function takes a model, it is one
that the same record has built.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssd.batch import FIELDS_OF_BOXES, Batch, Detections, EvalBatch
from ssd.config import Thresholds
from ssd.detectors.channels import Stream
from ssd.detectors.distillation import DistillationParts
from ssd.detectors.tta.passes import TTA
from ssd.detectors.tta.rules import Suppression
from ssd.detectors.tta.steps import TTASteps
from ssd.keypoints import Skeleton
from ssd.views import View

Forward = Callable[..., Any]
"""A model as training calls it: compiled, over ranks, or plain."""
LossesOf = Callable[[Forward, Any], dict[str, Tensor]]
"""(forward, a batch of the view's kind) -> losses by name, float32 scalars with the same names at each step. Training
minimises their sum."""
Detect = Callable[[Forward, EvalBatch], Detections]
"""(the model in evaluation mode, in the run's precision; batch) -> what it finds, on the model's device."""


def _no_skeleton(settings: Any) -> Skeleton | None:
    return None


def _no_distillation(settings: Any) -> DistillationParts | None:
    return None


def _no_figure(settings: Any) -> "Published | None":
    return None


class Published(NamedTuple):
    """Somebody's figure for a detector on the whole of COCO 2017, of several seeds. ap, deviation: their mean and
    standard deviation, in [0, 1]. epochs: a run's length."""

    whose: str
    seeds: int
    ap: float
    deviation: float
    epochs: int


class Exportable(NamedTuple):
    """A detector with its post-processing as one graph.

    module: takes inputs, gives outputs by name. inputs: an example of each, by name. dynamic: torch.export's
    dynamic_shapes of them. input_text: what the user has to pass. outputs: the names of those fields of
    `batch.Detections` that it gives, in order.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    dynamic: dict[str, dict[int, Any]]
    input_text: str
    outputs: tuple[str, ...] = FIELDS_OF_BOXES


class Detector(NamedTuple):
    """A family of detectors. What is None a command refuses, by the detector's name.

    name: in checkpoints, config.json and messages.
    settings: the class of S.
    title: S -> what a person calls it, such as "SSD300-resnet50".
    build: (S, K) -> a model with fresh weights; K classes with 0 the background.
    load_backbone: (model, S, source) fills the trunk: source is "imagenet", "none" or a file. Returns what the user
    should know of it, if anything. Raises InputError.
    freeze_backbone: leaves the trunk as it is in training too; None: it has none that can be left.
    fresh_heads: S -> the prefixes of the weights that depend on the classes, which fine-tuning on others begins anew.
    view: S -> what a data path makes of images.
    losses_of: (S, whether to compile what is no part of the model) -> LossesOf.
    detect: (S, thresholds) -> Detect.
    input_size_px: S -> (width, height) that speed and FLOPs are stated for.
    synthetic: (S, K, device, batch size) -> a training batch out of nothing, for speed without data.
    one_shape: S -> whether all training batches have one shape, which --compile and --cuda-graphs need.
    trace: (model, images B x 3 x H x W) -> the raw outputs, from every layer once, for FLOPs and summaries.
    foreign: (content of a file, file) -> content of our checkpoint without its format, or None if it is not another
    program's file of this detector.
    exportable: (model, S, thresholds) -> what a file that runs without this program is made of.
    streams: the model -> which of its layers share channels, so that filters can be taken out of it.
    coverage: (S, boxes_ltrb N x 4 float32 in [0, 1]) -> how a data set's boxes suit the detector, for the report.
    fitted: (S, boxes_ltrb N x 4 in [0, 1] of the training split, the (width, height) of each one's image N x 2) -> S
    with what depends on the data, and what the user should know of it or "".
    foreign_files: by the end of a file's name, (content of our checkpoint) -> the bytes of another program's file.
    with_skeleton: (S, the points that a data set's objects have) -> S for these; of a detector that finds keypoints.
    skeleton: S -> the points that it finds, None for none.
    distillation_parts: S -> what it shows to the methods of distillation, as teacher or as student; None for nothing.
    published: S -> the figure that a run of it on the whole of COCO is held against; None for none.
    num_classes: S -> K of a model that no data were chosen for; None: COCO's (`table.num_classes_of`).
    tta: (S, whether the user asks for it) -> the passes of test-time augmentation; None where neither the user nor S
    asks for them. The field is None for a detector that can look at an image in one pass only.
    tta_steps: (S, thresholds, how boxes suppress each other) -> how it finds objects in several passes; where `tta` is.
    """

    name: str
    settings: type
    title: Callable[[Any], str]
    build: Callable[[Any, int], nn.Module]
    load_backbone: Callable[[Any, Any, str], str | None]
    freeze_backbone: Callable[[Any], None] | None
    fresh_heads: Callable[[Any], tuple[str, ...]]
    view: Callable[[Any], View]
    losses_of: Callable[[Any, bool], LossesOf]
    detect: Callable[[Any, Thresholds], Detect]
    input_size_px: Callable[[Any], tuple[int, int]]
    synthetic: Callable[[Any, int, torch.device, int], Batch]
    one_shape: Callable[[Any], bool]
    trace: Callable[[Any, Tensor], Sequence[Tensor]]
    foreign: Callable[[Any, Path], dict[str, Any] | None]
    exportable: Callable[[Any, Any, Thresholds], Exportable] | None
    streams: Callable[[Any], list[Stream]] | None
    coverage: Callable[[Any, Tensor], dict[str, Any]] | None
    fitted: Callable[[Any, Tensor, Tensor], tuple[Any, str]] | None = None
    foreign_files: dict[str, Callable[[dict[str, Any]], bytes]] = {}
    with_skeleton: Callable[[Any, Skeleton], Any] | None = None
    skeleton: Callable[[Any], Skeleton | None] = _no_skeleton
    distillation_parts: Callable[[Any], DistillationParts | None] = _no_distillation
    tta: Callable[[Any, bool], TTA | None] | None = None
    tta_steps: Callable[[Any, Thresholds, Suppression], TTASteps] | None = None
    published: Callable[[Any], Published | None] = _no_figure
    num_classes: Callable[[Any], int] | None = None
