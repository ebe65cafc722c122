"""What the detector says of the default boxes: one convolution a feature map, for boxes and classes together.

The loss looks at few default boxes: those that learn an object, and three times as many others. Of all the rest its
gradient is exactly 0, and on a CPU the backward pass leaves their products out: the same sums without their zeros. On a
GPU, where choosing would mean waiting for the device, it is dense.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssd.batch import Predictions

# Above this share of places with a gradient, gathering them costs more than the dense convolution.
_DENSE_SHARE = 0.4
_SKIPS_ZEROS_ON = ("cpu",)


def predict(
    maps: Sequence[Tensor], box_heads: nn.ModuleList, class_heads: nn.ModuleList, num_classes: int
) -> Predictions:
    """maps: the feature maps, B x C x H x W each, with a 3x3 convolution each for boxes and for classes."""
    device, dtype = maps[0].device.type, maps[0].dtype
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    maps = [features.to(dtype) for features in maps]
    heads: list[Any] = list(zip(box_heads, class_heads, strict=True))
    # In 16 bits already: there is less to join.
    weights = [torch.cat([boxes.weight.to(dtype), classes.weight.to(dtype)]) for boxes, classes in heads]
    biases = [torch.cat([boxes.bias.to(dtype), classes.bias.to(dtype)]) for boxes, classes in heads]
    if device in _SKIPS_ZEROS_ON and torch.is_grad_enabled():
        return Predictions(*_SparseHeads.apply(num_classes, *maps, *weights, *biases))
    return _predict(maps, weights, biases, num_classes)


def _predict(
    maps: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor], num_classes: int
) -> Predictions:
    offsets, logits = [], []
    for features, weight, bias in zip(maps, weights, biases, strict=True):
        said = F.conv2d(features, weight, bias, padding=1)
        shapes = len(weight) // (4 + num_classes)
        of_boxes, of_classes = said.split([shapes * 4, shapes * num_classes], dim=1)
        offsets.append(_per_box(of_boxes, 4))
        logits.append(_per_box(of_classes, num_classes))
    return Predictions(torch.cat(offsets, dim=1), torch.cat(logits, dim=1))


def _per_box(head_map: Tensor, values: int) -> Tensor:
    """B x (shapes * values) x H x W -> B x (shapes * H * W) x values, in the order of the default boxes."""
    return head_map.unflatten(1, (-1, values)).permute(0, 1, 3, 4, 2).flatten(1, 3)


class _SparseHeads(torch.autograd.Function):
    """`_predict` with a backward pass that takes the zeros of its gradient for what they are."""

    @staticmethod
    def forward(context: Any, num_classes: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        levels = len(tensors) // 3
        context.save_for_backward(*tensors[: 2 * levels])
        return _predict(tensors[:levels], tensors[levels : 2 * levels], tensors[2 * levels :], num_classes)

    @staticmethod
    def backward(context: Any, of_offsets: Tensor, of_logits: Tensor) -> tuple[Tensor | None, ...]:
        levels = len(context.saved_tensors) // 2
        maps, weights = context.saved_tensors[:levels], context.saved_tensors[levels:]
        learns = _has_gradient(of_offsets) | _has_gradient(of_logits)
        shapes = [len(weight) // (of_offsets.shape[2] + of_logits.shape[2]) for weight in weights]
        counts = [n * m.shape[2] * m.shape[3] for n, m in zip(shapes, maps, strict=True)]
        of_levels = zip(*(part.split(counts, dim=1) for part in (learns, of_offsets, of_logits)), strict=True)
        of_inputs = [
            torch.ops.ssd.head_backward(*of_level, features, weight)
            for of_level, features, weight in zip(of_levels, maps, weights, strict=True)
        ]
        of_maps, of_weights, of_biases = zip(*of_inputs, strict=True)
        return None, *of_maps, *of_weights, *of_biases


def _has_gradient(gradient: Tensor) -> Tensor:
    """B x A x values -> B x A bool: whether any value is not 0."""
    if gradient.dtype == torch.bfloat16:  # as integers, without their sign, they compare faster
        return gradient.view(torch.int16).bitwise_and(0x7FFF).amax(dim=2) != 0
    return gradient.abs().amax(dim=2) != 0


# An operator, because a compiler must not look into what depends on the values. Not by `custom_op`, which imports all
# of torch's compiler, seconds of every start.
torch.library.define(
    "ssd::head_backward",
    "(Tensor learns, Tensor of_offsets, Tensor of_logits, Tensor features, Tensor weight) -> (Tensor, Tensor, Tensor)",
)


@torch.library.impl("ssd::head_backward", "cpu")
def _head_backward(
    learns: Tensor, of_offsets: Tensor, of_logits: Tensor, features: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a feature map and of its head's weight and bias.

    learns: B x (shapes * H * W) bool, false where of_offsets and of_logits are 0.
    """
    batch, channels, height, width = features.shape
    of_offsets, of_logits, learns = (
        part.unflatten(1, (-1, height * width)) for part in (of_offsets, of_logits, learns)
    )
    image, place = learns.any(dim=1).nonzero(as_tuple=True)
    if len(place) > _DENSE_SHARE * batch * height * width:
        parts = [part.transpose(2, 3).flatten(1, 2).unflatten(2, (height, width)) for part in (of_offsets, of_logits)]
        gradient = torch.cat(parts, dim=1).contiguous(memory_format=torch.channels_last)
        return torch.ops.aten.convolution_backward(
            gradient, features, weight, [len(weight)], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, True]
        )
    rows = torch.cat([part[image, :, place].flatten(1) for part in (of_offsets, of_logits)], dim=1)
    # With a border of zeros, the nine neighbours of a place lie at fixed distances from it.
    padded = F.pad(features.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    first = (image * (height + 2) + place // width) * (width + 2) + place % width
    steps = torch.arange(3).unsqueeze(1) * (width + 2) + torch.arange(3)
    neighbours = (first.unsqueeze(1) + steps.flatten()).flatten()
    patches = padded.view(-1, channels).index_select(0, neighbours).view(len(place), 9 * channels)
    of_weight = (rows.t() @ patches).view(len(weight), 3, 3, channels).permute(0, 3, 1, 2)
    of_patches = rows @ weight.permute(0, 2, 3, 1).reshape(len(weight), 9 * channels)
    of_padded = torch.zeros_like(padded)
    of_padded.view(-1, channels).index_add_(0, neighbours, of_patches.view(-1, channels))
    of_features = of_padded[:, 1:-1, 1:-1].permute(0, 3, 1, 2)
    return of_features.contiguous(memory_format=torch.channels_last), of_weight, rows.sum(dim=0)


@torch.library.register_fake("ssd::head_backward")
def _(
    learns: Tensor, of_offsets: Tensor, of_logits: Tensor, features: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(features, memory_format=torch.channels_last),
        torch.empty_like(weight, memory_format=torch.channels_last),
        weight.new_empty(len(weight)),
    )
