"""What a detector is to the rest of the house: one record of plain functions.

Training, evaluation, checkpoints, prediction and the command line take this record and never ask which detector it is.
`S` below is the detector's own settings, a frozen dataclass of plain values.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from ssd.batch import Detections, EvalBatch
from ssd.config import Thresholds
from ssd.views import View

Forward = Callable[..., Any]
"""A model as training calls it: compiled, over ranks, or plain."""
LossesOf = Callable[[Forward, Any], dict[str, Tensor]]
"""(forward, a batch of the view's kind) -> losses by name, float32 scalars with the same names at each step. Training
minimises their sum."""
Detect = Callable[[nn.Module, EvalBatch], Detections]
"""(the model in evaluation mode, batch) -> what it finds, on the model's device."""


class Detector(NamedTuple):
    """A family of detectors. What is None a command refuses, by the detector's name.

    name: in checkpoints, config.json and messages.
    settings: the class of S.
    title: S -> what a person calls it, such as "SSD300-resnet50".
    build: (S, K) -> a model with fresh weights; K classes with 0 the background.
    load_backbone: (model, S, source) fills the trunk: source is "imagenet", "none" or a file. Raises InputError.
    freeze_backbone: leaves the trunk as it is in training too; None: it has none that can be left.
    fresh_heads: S -> the prefixes of the weights that depend on the classes, which fine-tuning on others begins anew.
    view: S -> what a data path makes of images.
    losses_of: (S, whether to compile what is no part of the model) -> LossesOf.
    detect: (S, thresholds) -> Detect.
    one_shape: S -> whether all training batches have one shape, which --compile and --cuda-graphs need.
    trace: (model, images) runs every layer once, for FLOPs and summaries.
    foreign: (content of a file, file) -> content of our checkpoint without its format, or None if it is not another
    program's file of this detector.
    exportable: (model, S, thresholds) -> a module of uint8 images to `Detections._asdict()`, or None.
    """

    name: str
    settings: type
    title: Callable[[Any], str]
    build: Callable[[Any, int], nn.Module]
    load_backbone: Callable[[nn.Module, Any, str], None]
    freeze_backbone: Callable[[nn.Module], None] | None
    fresh_heads: Callable[[Any], tuple[str, ...]]
    view: Callable[[Any], View]
    losses_of: Callable[[Any, bool], LossesOf]
    detect: Callable[[Any, Thresholds], Detect]
    one_shape: Callable[[Any], bool]
    trace: Callable[[nn.Module, Tensor], Any]
    foreign: Callable[[Any, Path], dict[str, Any] | None]
    exportable: Callable[[nn.Module, Any, Thresholds], nn.Module] | None
