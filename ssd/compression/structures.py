"""Groups of a weight's elements: what belongs together, how large a group is, and masks that keep groups whole.

Group types, for a weight F x C x h x w of a convolution or F x C of a linear layer:

Filters, 3D: F groups, of C x h x w. Channels: C groups, of F x h x w, or the columns of a linear layer.
2D: F x C groups, the kernels. Rows, Cols: the F rows and the C columns of a linear layer's weight as torch has it.
Blocks [r, d, 1, 1]: r filters x d channels at one place of the kernel. 4D: one group, of all elements.

A transposed convolution's weight is in x out x h x w: its "filters" are its inputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_DIMENSIONS = {
    "Filters": (4,), "3D": (4,), "Channels": (2, 4), "2D": (4,), "Rows": (2,), "Cols": (2,), "Blocks": (4,), "4D": (4,),
}  # fmt: skip


def misfit(shape: Sequence[int], group_type: str, block_shape: Sequence[int] | None = None) -> str | None:
    """Why a weight of this shape has no such groups; None if it has."""
    for part in group_type.split("+"):
        if len(shape) not in _DIMENSIONS[part]:
            wanted = " or ".join(map(str, _DIMENSIONS[part]))
            return f"has {len(shape)} dimensions, and {part} need {wanted}"
    if block_shape is not None and (shape[0] % block_shape[0] or shape[1] % block_shape[1]):
        return f"is {shape[0]} x {shape[1]}, which blocks of {block_shape[0]} x {block_shape[1]} do not divide"
    return None


def groups(weight: Tensor, group_type: str, block_shape: Sequence[int] | None = None) -> Tensor:
    """A weight as G x n: its G groups of n elements each."""
    if group_type in ("Filters", "3D", "Rows"):
        return weight.flatten(1)
    if group_type in ("Channels", "Cols"):
        return weight.transpose(0, 1).flatten(1)
    if group_type == "2D":
        return weight.flatten(2).flatten(0, 1)
    if group_type == "4D":
        return weight.reshape(1, -1)
    r, d = _of_block(block_shape)
    parts = weight.flatten(2).unflatten(0, (-1, r)).unflatten(2, (-1, d))  # F/r x r x C/d x d x hw
    return parts.permute(0, 2, 4, 1, 3).flatten(3).flatten(0, 2)


def spread(
    of_groups: Tensor, shape: Sequence[int], group_type: str, block_shape: Sequence[int] | None = None
) -> Tensor:
    """A value a group (G) as a tensor of a weight's shape, in which each element has the value of its group."""
    ones = [1] * (len(shape) - 2)
    if group_type in ("Filters", "3D", "Rows"):
        return of_groups.view(-1, 1, *ones).expand(*shape).contiguous()
    if group_type in ("Channels", "Cols"):
        return of_groups.view(1, -1, *ones).expand(*shape).contiguous()
    if group_type == "2D":
        return of_groups.view(shape[0], shape[1], 1, 1).expand(*shape).contiguous()
    if group_type == "4D":
        return of_groups.expand(*shape).contiguous()
    r, d = _of_block(block_shape)
    parts = of_groups.view(shape[0] // r, 1, shape[1] // d, 1, -1)
    return parts.expand(-1, r, -1, d, -1).reshape(*shape)


def _of_block(block_shape: Sequence[int] | None) -> tuple[int, int]:
    assert block_shape is not None
    return block_shape[0], block_shape[1]


def mean_norm(of_groups: Tensor, p: int) -> Tensor:
    """The Lp norm of each row of G x n, divided by n: what structures are ranked by, as Distiller does (for L2 too)."""
    return torch.linalg.vector_norm(of_groups.float(), p, dim=1) / of_groups.shape[1]


def criterion(of_groups: Tensor, kind: str) -> Tensor:
    """What of each row of G x n is held against a threshold: the largest or the mean magnitude. kind: Max, Mean_Abs."""
    magnitudes = of_groups.abs()
    return magnitudes.amax(dim=1) if kind == "Max" else magnitudes.mean(dim=1)


def number_to_prune(count: int, sparsity: float) -> int:
    """floor(sparsity * count), but never all of them, unless sparsity is 1."""
    pruned = int(sparsity * count)
    return count - 1 if pruned == count and sparsity != 1 else pruned


def keep_highest(scores: Tensor, num_pruned: int) -> Tensor:
    """Prunes the lowest of G scores, of equal ones those that come first: G float, 1 to keep and 0 to prune."""
    kept = torch.ones_like(scores, dtype=torch.float32)
    kept[scores.sort(stable=True).indices[:num_pruned]] = 0
    return kept


def ranked_groups(scores: Tensor, sparsity: float) -> Tensor | None:
    """Which of G groups to keep: all but the `number_to_prune` of lowest score, and none whose score is 0, which were
    pruned before. scores: of 0 or more. None where there are too few groups to prune any."""
    num_pruned = number_to_prune(len(scores), sparsity)
    return keep_highest(scores, num_pruned) * (scores != 0) if num_pruned else None
