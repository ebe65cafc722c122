"""Post-training quantisation of an exported ONNX file to 8 bits by onnxruntime's own quantiser.

Convolutions compute in 8 bits, and what lies between them. In float32 stay the heads, which are the convolutions that
predict, and what comes after them: anchors, decoding and suppression. Where the file would then find other objects than
before, its first convolution stays so too.
"""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssd.batch import Detections, EvalBatch
from ssd.boxes import pairwise_iou
from ssd.detectors.table import detector_of, view_of
from ssd.errors import InputError
from ssd.inference.export import METADATA_KEY
from ssd.inference.exported import feed_of, load_exported, pixels_of
from ssd.keypoints import Skeleton
from ssd.storage.files import written_whole

AGREEMENT = 0.95
"""From this share of detections on that a float file and an 8-bit one have in common, no more is left in float32."""
_WORTH = 0.02
"""What layers in float32 must add to it, as they make the file larger and slower."""
CONFIDENT = 0.3
"""Detections of this score or more are held against each other."""
_MATCHING_IOU, _MATCHING_SHARE, _BEST = 0.5, 0.1, 10
# What passes 8 bits on between convolutions. All else costs more to convert than to compute.
_BETWEEN = ("Relu", "Clip", "Add", "MaxPool", "Resize")


def to_int8(source: Path, target: Path, batches: Sequence[EvalBatch], say: Callable[[str], None]) -> float:
    """Writes source's detector in 8 bits to target, whole or not at all; returns the `agreement` of the two.

    source: a file of `export`. batches: images to calibrate by, of any shapes that the file takes.
    Raises InputError where onnxruntime is not installed, or the file has no convolution.
    """
    try:
        import onnx
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ModuleNotFoundError as error:
        raise InputError(f"--int8: {error.name} is not installed; pip install -e '.[export]'") from error
    exported = load_exported(source)
    view = view_of(exported.settings)
    skeleton = detector_of(exported.settings).skeleton(exported.settings)
    feeds = [feed_of(pixels_of(each, view), each.placed_ltrb_px, exported.input_names) for each in batches]
    expected = [exported.run(feed) for feed in feeds]
    with tempfile.TemporaryDirectory() as folder, _without_advice():
        prepared = Path(folder, "prepared.onnx")
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(prepared)
        convolutions, heads, between = _layers_of(model)
        if not convolutions:
            raise InputError(f"{source}: has no convolution; pass a file of main.py export")
        choices: list[tuple[str, set[str]]] = [
            ("all convolutions but the heads", heads),
            ("all convolutions but the heads and the first", heads | {convolutions[0]}),
        ]
        best: tuple[float, str, Path] | None = None
        for place, (text, in_float) in enumerate(choices):
            file = Path(folder, f"{place}.onnx")
            nodes = [name for name in (*convolutions, *between) if name not in in_float]
            _quantise(prepared, file, feeds, nodes)
            agrees = agreement(expected, _detections_of(file, feeds), skeleton)
            say(f"{text} in 8 bits: {agrees:.1%} of its surest detections are those in float32")
            if best is None or agrees >= best[0] + _WORTH:
                best = (agrees, text, file)
            if agrees >= AGREEMENT:
                break
        assert best is not None
        quantised = onnx.load(best[2])
        del quantised.metadata_props[:]
        about = {each.key: each.value for each in onnx.load(source, load_external_data=False).metadata_props}
        quantised.metadata_props.add(key=METADATA_KEY, value=about[METADATA_KEY])
        with written_whole(target) as temporary:
            onnx.save(quantised, temporary)
    say(f"written: {best[1]} in 8 bits")
    return best[0]


def _detections_of(file: Path, feeds: Sequence[dict[str, np.ndarray]]) -> list[Detections]:
    """What a file that has no metadata yet finds."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return [
        Detections(**dict(zip(names, map(torch.from_numpy, session.run(names, feed)), strict=True))) for feed in feeds
    ]


def _quantise(source: Path, target: Path, feeds: Sequence[dict[str, np.ndarray]], nodes: list[str]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> Any:
            return next(self.left, None)

    quantize_static(
        str(source),
        str(target),
        Reader(),
        quant_format=QuantFormat.QDQ,
        nodes_to_quantize=nodes,
        per_channel=True,
        # A range is the mean of the batches' ranges: the widest of all is that of few pixels, too coarse for others.
        extra_options={"CalibMovingAverage": True},
        # A CPU without VNNI adds two products of 8 bits in 16, which overflow without a word; 7 bits of weight do not.
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def _layers_of(model: Any) -> tuple[list[str], set[str], list[str]]:
    """Names of nodes: the convolutions in the graph's order; the heads, after which no other one sees what they say;
    and what lies between convolutions and may be in 8 bits."""
    leads_to_one: dict[str, bool] = {}  # by tensor: whether a convolution comes of it
    convolutions: list[str] = []
    heads: set[str] = set()
    between: list[str] = []
    for node in reversed(model.graph.node):  # which are in an order of computation
        leads = any(leads_to_one.get(name, False) for name in node.output)
        if node.op_type == "Conv":
            convolutions.insert(0, node.name)
            if not leads:
                heads.add(node.name)
        elif leads and node.op_type in _BETWEEN:
            between.append(node.name)
        # What chooses boxes is a head, whatever is then seen in them.
        for name in node.input[: 1 if node.op_type == "RoiAlign" else None]:
            leads_to_one[name] = leads_to_one.get(name, False) or leads or node.op_type == "Conv"
    return convolutions, heads, between


def agreement(expected: Sequence[Detections], found: Sequence[Detections], skeleton: Skeleton | None = None) -> float:
    """In [0, 1]: of the detections of two detectors in the same images, the share that has a partner in the other's: of
    its label, with an IoU of 0.5 or more, of the masks too, and with points that are a tenth of the box's longer side
    away on average, or less. Of the confident ones; where there is none in any image, of each image's best. 1 where
    neither detects anything. skeleton: which labels have points; of the others they mean nothing and are not held
    against each other. None is all labels."""
    pairs = [
        (_of_image(one, image), _of_image(other, image))
        for one, other in zip(expected, found, strict=True)
        for image in range(len(one.counts))
    ]
    has_confident = any((each.scores >= CONFIDENT).any() for pair in pairs for each in pair)
    total = partners = 0
    for pair in pairs:
        a, b = (_first(each, int((each.scores >= CONFIDENT).sum()) if has_confident else _BEST) for each in pair)
        total += len(a.scores) + len(b.scores)
        if len(a.scores) and len(b.scores):
            fits = _fits(a, b, skeleton)
            partners += int(fits.any(dim=1).sum() + fits.any(dim=0).sum())
    return partners / total if total else 1.0


def _of_image(detections: Detections, image: int) -> Detections:
    """Of one image its n real ones, without a dimension of images."""
    own = Detections(*(None if part is None else part[image] for part in detections))  # type: ignore[arg-type]
    return _first(own, int(own.counts))


def _first(detections: Detections, most: int) -> Detections:
    """The first ones of an image, best first."""
    boxes_ltrb, scores, labels, counts, *parts = detections
    return Detections(
        boxes_ltrb[:most], scores[:most], labels[:most], counts,
        *(None if part is None else part[:most] for part in parts),
    )  # fmt: skip


def _fits(a: Detections, b: Detections, skeleton: Skeleton | None) -> torch.Tensor:
    """Which of n and m detections in one image are of one object: n x m bool."""
    fits = (pairwise_iou(a.boxes_ltrb, b.boxes_ltrb) >= _MATCHING_IOU) & (a.labels.unsqueeze(1) == b.labels)
    if a.masks is not None and b.masks is not None:
        cells, others = ((each > 0.5).flatten(1).float() for each in (a.masks, b.masks))
        both = cells @ others.T
        either = cells.sum(dim=1, keepdim=True) + others.sum(dim=1) - both
        fits &= both >= _MATCHING_IOU * either
    if a.keypoints is not None and b.keypoints is not None:
        apart = (a.keypoints[:, None, :, :2] - b.keypoints[:, :, :2]).norm(dim=3).mean(dim=2)
        longer_side = (a.boxes_ltrb[:, 2:] - a.boxes_ltrb[:, :2]).amax(dim=1, keepdim=True)
        near = apart <= _MATCHING_SHARE * longer_side
        if skeleton is not None and skeleton.labels:
            near |= ~torch.isin(a.labels, torch.tensor(skeleton.labels)).unsqueeze(1)
        fits &= near
    return fits


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """The quantiser logs advice to run what has been run."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
