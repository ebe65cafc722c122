"""Small networks in darknet's cfg language, and an independent walk over one in numpy."""

import numpy as np
import torch

from ssd.detectors.yolov2.darknet.cfg import fitted, parse, write
from ssd.detectors.yolov2.darknet.model import Darknet
from ssd.detectors.yolov2.darknet.sections import Convolutional, Network

TINY = """
[net]
batch=4
subdivisions=2
width=64
height=64
channels=3
learning_rate=0.001
[conv]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky
[maxpool]
size=2
stride=2
[convolutional]
batch_normalize=1
filters=8
size=3
pad=1
activation=leaky
[maxpool]
size=2
stride=2
[convolutional]
batch_normalize=1
filters=16
size=3
pad=1
activation=leaky
[route]
layers=-3
[reorg]
stride=2
[route]
layers=-1,4
[maxpool]
size=2
stride=2
[maxpool]
size=2
stride=1
[convolutional]
filters=14
size=1
pad=1
activation=linear
[region]
anchors=1,1, 1.5,2.5
num=2
classes=2
softmax=1
bias_match=1
rescore=1
thresh=.6
object_scale=5
jitter=.2
"""
"""Everything that YOLOv2 is made of, on an input of 64 x 64, with 4 x 4 cells of two anchors and two classes."""


def walk(network: Network, tensors: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """The output of the layer before [region], by plain loops over the cfg: images B x C x H x W float64.

    tensors: layer index and what it is in a file of weights, such as "0.weights", "0.biases", "0.scales", "0.mean",
    "0.variance".
    """
    outputs: list[np.ndarray] = []
    for index, layer in enumerate(network.layers):
        kind = type(layer).__name__
        if kind == "Convolutional":
            images = _convolution(
                layer, {k.partition(".")[2]: v for k, v in tensors.items() if k.startswith(f"{index}.")}, images
            )
        elif kind == "MaxPool":
            images = _max_pool(layer, images)
        elif kind == "Route":
            images = np.concatenate([outputs[n if n >= 0 else index + n] for n in layer.layers], axis=1)  # type: ignore[union-attr]
        elif kind == "Reorg":
            images = np.stack([reorg_loop(image) for image in images])
        elif kind == "Reorg3d":
            images = np.concatenate([images[:, :, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)], axis=1)
        outputs.append(images)
    return images


def reorg_loop(image: np.ndarray) -> np.ndarray:
    """C x H x W by darknet's addresses: output element i is input element f(i)."""
    channels, height, width = image.shape
    source, target = image.reshape(-1), np.empty(image.size, image.dtype)
    few = channels // 4
    place = 0
    for k in range(channels):
        for j in range(height):
            for i in range(width):
                offset, channel = divmod(k, few)
                dy, dx = divmod(offset, 2)
                target[place] = source[2 * i + dx + 2 * width * (2 * j + dy + 2 * height * channel)]
                place += 1
    return target.reshape(4 * channels, height // 2, width // 2)


def _convolution(layer: object, tensors: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    size, stride, groups = layer.size, layer.stride, layer.groups  # type: ignore[attr-defined]
    padding = size // 2 if layer.pad else layer.padding  # type: ignore[attr-defined]
    padded = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]
    weights = tensors["weights"]
    share_in, share_out = images.shape[1] // groups, len(weights) // groups
    parts = [
        np.einsum(
            "bchwij,ocij->bohw",
            windows[:, g * share_in : (g + 1) * share_in],
            weights[g * share_out : (g + 1) * share_out],
            optimize=True,
        )
        for g in range(groups)
    ]
    result = np.concatenate(parts, axis=1)

    def by_channel(name: str) -> np.ndarray:
        return tensors[name].reshape(1, -1, 1, 1)

    if layer.batch_normalize:  # type: ignore[attr-defined]
        result = (result - by_channel("mean")) / np.sqrt(by_channel("variance") + 1e-5) * by_channel("scales")
    result = result + by_channel("biases")
    activation = layer.activation  # type: ignore[attr-defined]
    if activation == "leaky":
        return np.where(result > 0, result, 0.1 * result)
    if activation == "logistic":
        return 1 / (1 + np.exp(-result))
    return np.maximum(result, 0) if activation == "relu" else result


def _max_pool(layer: object, images: np.ndarray) -> np.ndarray:
    stride = layer.stride  # type: ignore[attr-defined]
    size = layer.size or stride  # type: ignore[attr-defined]
    padding = size - 1 if layer.padding < 0 else layer.padding  # type: ignore[attr-defined]
    rows, columns = ((side + padding - size) // stride + 1 for side in images.shape[2:])
    result = np.empty((*images.shape[:2], rows, columns))
    for row in range(rows):
        for column in range(columns):
            top, left = row * stride - padding // 2, column * stride - padding // 2
            window = images[:, :, max(0, top) : top + size, max(0, left) : left + size]
            result[:, :, row, column] = window.max(axis=(2, 3))
    return result


def fill(model: Darknet, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights in a model; returns them as `walk` takes them."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for index, module in model.convolutions():
        weights = rng.normal(scale=np.sqrt(2 / module.conv.weight[0].numel()), size=tuple(module.conv.weight.shape))
        biases = rng.normal(scale=0.1, size=len(weights))
        tensors |= {f"{index}.weights": weights, f"{index}.biases": biases}
        module.conv.weight.data.copy_(torch.from_numpy(weights))
        if module.norm is None:
            assert module.conv.bias is not None
            module.conv.bias.data.copy_(torch.from_numpy(biases))
            continue
        of_norm = {
            "scales": rng.uniform(0.5, 1.5, len(weights)),
            "mean": rng.normal(scale=0.1, size=len(weights)),
            "variance": rng.uniform(0.5, 1.5, len(weights)),
        }
        tensors |= {f"{index}.{name}": value for name, value in of_norm.items()}
        module.norm.bias.data.copy_(torch.from_numpy(biases))
        module.norm.weight.data.copy_(torch.from_numpy(of_norm["scales"]))
        assert module.norm.running_mean is not None and module.norm.running_var is not None
        module.norm.running_mean.copy_(torch.from_numpy(of_norm["mean"]))
        module.norm.running_var.copy_(torch.from_numpy(of_norm["variance"]))
    return tensors


def narrow(network: Network, factor: int) -> Network:
    """The same network with a part of its channels, on 64 x 64 pixels, for a test that is quick."""
    layers = tuple(
        layer._replace(filters=max(4, layer.filters // factor))
        if isinstance(layer, Convolutional) and layer.batch_normalize
        else layer
        for layer in network.layers
    )
    small = parse(write(network._replace(layers=layers)), network.name)
    return fitted(small, classes=3, anchors=small.region.anchors, size_px=(64, 64))


def tensors_of(model: Darknet) -> dict[str, np.ndarray]:
    """A model's weights, float64, as `walk` takes them."""
    tensors: dict[str, np.ndarray] = {}
    for index, module in model.convolutions():
        named = {"weights": module.conv.weight, "biases": module.conv.bias}
        if module.norm is not None:
            norm = module.norm
            named |= {"biases": norm.bias, "scales": norm.weight, "mean": norm.running_mean}
            named["variance"] = norm.running_var
        tensors |= {f"{index}.{name}": value.detach().double().numpy() for name, value in named.items()}
    return tensors
