"""A detector in an ONNX file without an export: as small as such a file can be, with weights to choose."""

import json
from pathlib import Path

import numpy as np

from ssd.inference.export import METADATA_KEY

SIDE_PX, CELLS = 16, 4
CATEGORIES = [[7, "kite"]]


def write_small_onnx(file: Path, *, box_scale: float = 1.0, seed: int = 0) -> Path:
    """Three convolutions, the last of which says boxes and a score of 2 x 2 cells; all four are detections.

    box_scale: of what the last one says of boxes, which is undone after it.
    """
    from onnx import TensorProto, checker, helper, numpy_helper, save

    draw = np.random.default_rng(seed)
    head = draw.normal(size=(5, 8, 1, 1)).astype(np.float32)
    head[:4] *= box_scale
    head[4:] *= 4  # so that some are sure
    undo = np.array([1 / box_scale] * 4 + [1], dtype=np.float32)
    weights = {
        "first": draw.normal(scale=0.2, size=(8, 3, 4, 4)).astype(np.float32),
        "second": draw.normal(scale=0.3, size=(8, 8, 3, 3)).astype(np.float32),
        # A head whose weight is put together of two, as SSD300's are.
        "boxes": head[:4],
        "classes": head[4:],
        "undo": undo,
        # Each cell's box is in a quarter of its own.
        "spans": np.array([0.2, 0.2, 0.2, 0.2, 1], dtype=np.float32),
        "origins": np.array([[x, y, x + 0.25, y + 0.25, 0] for y in (0, 0.5) for x in (0, 0.5)], dtype=np.float32),
        "shape": np.array([0, 5, CELLS]),
        "zero": np.array([0]),
        "four": np.array([4]),
        "five": np.array([5]),
        "axis": np.array([2]),
        "last": np.array([1]),
        "none": np.array(0, dtype=np.float32),
        "scale": np.array(255, dtype=np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["cast"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Div", ["cast", "scale"], ["pixels"], "div"),
        helper.make_node("Conv", ["pixels", "first"], ["a"], "conv_first", strides=[4, 4]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "second"], ["c"], "conv_second", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "b"], ["d"], "add"),
        helper.make_node("Concat", ["boxes", "classes"], ["head"], "join", axis=0),
        helper.make_node("MaxPool", ["d"], ["e"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["e", "head"], ["said"], "conv_head"),
        helper.make_node("Reshape", ["said", "shape"], ["flat"], "flatten"),
        helper.make_node("Transpose", ["flat"], ["cells"], "transpose", perm=[0, 2, 1]),
        helper.make_node("Mul", ["cells", "undo"], ["undone"], "mul"),
        helper.make_node("Sigmoid", ["undone"], ["shares"], "sigmoid"),
        helper.make_node("Mul", ["shares", "spans"], ["spread"], "spread"),
        helper.make_node("Add", ["spread", "origins"], ["all"], "place"),
        helper.make_node("Slice", ["all", "zero", "four", "axis"], ["boxes_ltrb"], "slice_boxes"),
        helper.make_node("Slice", ["all", "four", "five", "axis"], ["column"], "slice_scores"),
        helper.make_node("Squeeze", ["column", "axis"], ["scores"], "squeeze"),
        helper.make_node("Greater", ["scores", "none"], ["real"], "greater"),
        helper.make_node("Cast", ["real"], ["labels"], "cast_labels", to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["labels", "last"], ["counts"], "count", keepdims=0),
    ]
    outputs = [
        helper.make_tensor_value_info("boxes_ltrb", TensorProto.FLOAT, ["B", CELLS, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", CELLS]),
        helper.make_tensor_value_info("labels", TensorProto.INT64, ["B", CELLS]),
        helper.make_tensor_value_info("counts", TensorProto.INT64, ["B"]),
    ]
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", 3, SIDE_PX, SIDE_PX])],
        outputs, [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    about = {"family": "ssd300", "backbone": "resnet18", "categories": CATEGORIES, "score_threshold": 0.05}
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps(about))
    checker.check_model(model)
    save(model, file)
    return file
