"""What the convolutions and linear layers of an ONNX file hold and compute."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class OnnxSizes(NamedTuple):
    """As of `subjects.Size`."""

    parameters: int
    nonzeros: int
    flops: int
    nonzero_flops: int


def onnx_sizes(file: Path, width_px: int, height_px: int) -> OnnxSizes:
    """Of a file of `inference.export`, whose layers run once on an image of that size. Weights may be quantised."""
    import onnx
    import onnxruntime
    from onnx import numpy_helper

    model = onnx.load(file)
    constants = {each.name: each for each in model.graph.initializer}
    made_by = {output: node for node in model.graph.node for output in node.output}

    def constant_of(name: str) -> Any:
        """The values that an input has always, whole numbers where they are quantised."""
        node = made_by.get(name)
        while node is not None and node.op_type in ("DequantizeLinear", "Transpose", "Identity", "QuantizeLinear"):
            name = node.input[0]
            node = made_by.get(name)
        if node is not None and node.op_type == "Concat":  # two heads' weights, joined
            parts = [constant_of(each) for each in node.input]
            return None if any(part is None for part in parts) else np.concatenate(parts, node.attribute[0].i)
        return numpy_helper.to_array(constants[name]) if name in constants else None

    layers: list[tuple[Any, np.ndarray]] = []
    parameters = nonzeros = 0
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        held = [found for found in (constant_of(name) for name in node.input[1:]) if found is not None]
        if held and held[0].ndim > 1:
            layers.append((node, held[0]))
            parameters += sum(each.size for each in held)
            nonzeros += sum(int(np.count_nonzero(each)) for each in held)
    names = [node.output[0] for node, _ in layers]
    have = {each.name for each in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in have)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # so that each layer is there
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {
        "images": np.zeros((1, 3, height_px, width_px), dtype=np.uint8),
        "sizes_px": np.array([[width_px, height_px]], dtype=np.int64),
    }
    outputs = session.run(names, {each.name: given[each.name] for each in session.get_inputs()})
    flops = nonzero_flops = 0
    for (node, weight), output in zip(layers, outputs, strict=True):
        own = 2 * output.size * _products(node, weight)
        flops += own
        nonzero_flops += round(own * np.count_nonzero(weight) / weight.size)
    return OnnxSizes(parameters, nonzeros, flops, nonzero_flops)


def _products(node: Any, weight: np.ndarray) -> int:
    """How many go into one element of the output."""
    if node.op_type == "Conv":
        return int(weight[0].size)
    if node.op_type == "ConvTranspose":  # whose kernel, in x out, is spread over as many elements as its strides say
        said = {each.name: each for each in node.attribute}
        groups = said["group"].i if "group" in said else 1
        apart = int(np.prod(said["strides"].ints)) if "strides" in said else 1
        return int(weight.size // (weight.shape[1] * groups * apart))
    is_transposed = any(each.name == "transB" and each.i for each in node.attribute)
    return int(weight.shape[1] if is_transposed else weight.shape[-2])
