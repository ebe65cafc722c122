"""RoIAlign for the CPU: torchvision's operator, written as a weighted sum of the map's cells.

torchvision's kernel for the CPU walks over the planes of a map in one thread when it computes gradients. Here a map is
a table with a row of C numbers for each of its cells, and a value of the result is a weighted sum of such rows, which
is what `embedding_bag` computes, in several threads and with vectors along C. The values are the operator's.
"""

import torch
from torch import Tensor
from torch.nn import functional


def roi_align_cpu(features: Tensor, rois: Tensor, side: int, scale: float, samples: int) -> Tensor:
    """As `torchvision.ops.roi_align(features, rois, side, scale, samples)`.

    features: B x C x H x W float; fast where it is channels_last. rois: R x 5 of the same dtype, the image and the box
    in pixels. scale: cells of the map a pixel. samples: of a cell of the result in each direction, at least 1.
    Returns R x C x side x side, which is channels_last too. Gradients reach the features alone.
    """
    count, channels, height, width = features.shape
    left, top, right, bottom = (rois[:, 1:].detach() * scale).unbind(1)
    rows, row_weights = _between(top, bottom, side, samples, height)
    columns, column_weights = _between(left, right, side, samples, width)
    image = rois[:, 0].to(torch.int32).view(-1, 1, 1, 1, 1)
    # R x side x side x (a cell's samples down, two neighbours each) x (the same across).
    cells = (image * height + rows[:, :, None, :, None]) * width + columns[:, None, :, None, :]
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    table = features.permute(0, 2, 3, 1).reshape(count * height * width, channels)
    bags = (rois.shape[0] * side * side, (2 * samples) ** 2)
    sums = functional.embedding_bag(cells.reshape(bags), table, mode="sum", per_sample_weights=weights.reshape(bags))
    return sums.view(-1, side, side, channels).permute(0, 3, 1, 2)


def _between(low: Tensor, high: Tensor, side: int, samples: int, length: int) -> tuple[Tensor, Tensor]:
    """Where samples lie along one direction of a map, between its cells. low, high: R, the boxes' edges in cells.

    Returns two neighbours of each sample, int32, and their weights, both R x side x 2 samples. A box is at least one
    cell long. A sample more than a cell outside of the map counts as 0; nearer than that, as the cell at the edge.
    """
    place = (torch.arange(side * samples, device=low.device, dtype=low.dtype) + 0.5) / samples
    at = low.unsqueeze(1) + place * ((high - low).clamp(min=1) / side).unsqueeze(1)
    share = ((at >= -1) & (at <= length)).to(at.dtype) / samples
    at = at.clamp(0, length - 1)
    first = at.floor()
    beyond = at - first
    neighbours = torch.stack([first, (first + 1).clamp(max=length - 1)], dim=2)
    weights = torch.stack([(1 - beyond) * share, beyond * share], dim=2)
    shape = (low.shape[0], side, 2 * samples)
    return neighbours.to(torch.int32).view(shape), weights.view(shape)
