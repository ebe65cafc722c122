"""Post-training quantisation of an exported ONNX file to 8 bits by onnxruntime's own quantiser.

Convolutions compute in 8 bits, and what lies between them; what comes after the last of them stays in float32: anchors,
decoding and suppression. Where the file would then find other objects than before, its heads stay in float32 too, and
then its first convolution.
"""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssd.batch import FIELDS_OF_BOXES, Detections, EvalBatch
from ssd.boxes import pairwise_iou
from ssd.detectors.table import view_of
from ssd.errors import InputError
from ssd.inference.export import METADATA_KEY
from ssd.inference.exported import feed_of, load_exported, pixels_of
from ssd.storage.files import written_whole

AGREEMENT = 0.95
"""From this share of detections on that a float file and an 8-bit one have in common, no more is left in float32."""
_WORTH = 0.02
"""What layers in float32 must add to it, as they make the file larger and slower."""
CONFIDENT = 0.3
"""Detections of this score or more are held against each other."""
_MATCHING_IOU, _BEST = 0.5, 10
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
            ("all convolutions", set()),
            ("all convolutions but the heads", heads),
            ("all convolutions but the heads and the first", heads | {convolutions[0]}),
        ]
        best: tuple[float, str, Path] | None = None
        for place, (text, in_float) in enumerate(choices):
            file = Path(folder, f"{place}.onnx")
            nodes = [name for name in (*convolutions, *between) if name not in in_float]
            _quantise(prepared, file, feeds, nodes)
            agrees = agreement(expected, _detections_of(file, feeds))
            say(f"{text} in 8 bits: {agrees:.1%} of its confident detections are those in float32")
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
    return [Detections(*map(torch.from_numpy, session.run(list(FIELDS_OF_BOXES), feed))) for feed in feeds]


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
        # A CPU without VNNI adds two products of 8 bits in 16, which overflow without a word; 7 bits of weight do not.
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def _layers_of(model: Any) -> tuple[list[str], set[str], list[str]]:
    """Names of nodes: the convolutions in the graph's order; those of them after which no other one comes; and what
    lies between convolutions and may be in 8 bits."""
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
        for name in node.input:
            leads_to_one[name] = leads_to_one.get(name, False) or leads or node.op_type == "Conv"
    return convolutions, heads, between


def agreement(expected: Sequence[Detections], found: Sequence[Detections]) -> float:
    """In [0, 1]: of the detections of two detectors in the same images, the share that has a partner in the other's: of
    its label, with an IoU of 0.5 or more. Of the confident ones; where there is none in any image, of each image's
    best. 1 where neither detects anything."""
    pairs = [
        (_rows(one, image), _rows(other, image))
        for one, other in zip(expected, found, strict=True)
        for image in range(len(one.counts))
    ]
    least = CONFIDENT if any((each[:, 5] >= CONFIDENT).any() for pair in pairs for each in pair) else 0.0
    total = partners = 0
    for pair in pairs:
        a, b = (each[each[:, 5] >= least] if least else each[:_BEST] for each in pair)
        total += len(a) + len(b)
        if len(a) and len(b):
            fits = (pairwise_iou(a[:, :4], b[:, :4]) >= _MATCHING_IOU) & (a[:, 4].unsqueeze(1) == b[:, 4])
            partners += int(fits.any(dim=1).sum() + fits.any(dim=0).sum())
    return partners / total if total else 1.0


def _rows(detections: Detections, image: int) -> torch.Tensor:
    """n x 6, best first: left, top, right, bottom, label, score."""
    real = slice(int(detections.counts[image]))
    columns = (detections.boxes_ltrb, detections.labels.unsqueeze(2), detections.scores.unsqueeze(2))
    return torch.cat([each[image, real].float() for each in columns], dim=1)


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """The quantiser logs advice to run what has been run."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
