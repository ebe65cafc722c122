"""Masks and keypoints of detections in a graph of fixed shapes: ONNX or torch.export."""

import torch
from torch import Tensor

from ssd.batch import FIELDS_OF_BOXES
from ssd.detectors.postprocess.candidates import PartMaps

# Of Keys' cubic convolution, as torch has it.
_CUBIC = -0.75


def outputs_of(*, masks: bool, keypoints: bool) -> tuple[str, ...]:
    """`contract.Exportable.outputs` of a detector that finds these."""
    return (*FIELDS_OF_BOXES, *(("masks",) if masks else ()), *(("keypoints",) if keypoints else ()))


def with_parts(
    detections: dict[str, Tensor],
    said: PartMaps,
    have_points: Tensor,
    boxes_ltrb_px: Tensor,
    limits_px: Tensor,
    canvas_px: tuple[int, int],
) -> dict[str, Tensor]:
    """The detections of `detections_in_graph`, with the masks and keypoints of `batch.Detections`.

    have_points: B x D bool. boxes_ltrb_px: B x D x 4, those that points are placed in. limits: B x 1 x 4, of the
    images. canvas: (height, width), no box is larger.
    """
    real = detections["labels"] > 0
    found = dict(detections)
    if said.masks is not None:
        found["masks"] = torch.where(real.unsqueeze(2).unsqueeze(3), said.masks.sigmoid(), 0)
    if said.keypoints is not None:
        keypoints = keypoints_in_graph(said.keypoints, boxes_ltrb_px, have_points, canvas_px)
        x_and_y = keypoints[..., :2] / limits_px[:, :, None, 2:]
        found["keypoints"] = torch.cat([x_and_y, keypoints[..., 2:]], dim=3)
    return found


def keypoints_in_graph(
    heatmaps: Tensor, boxes_ltrb_px: Tensor, have_points: Tensor, canvas_px: tuple[int, int]
) -> Tensor:
    """`parts.keypoints_found`, one box a round of a loop: B x D x P x 3.

    A map is enlarged by two products with matrices, whose rows are as many as the canvas has; those beyond the box do
    not count.
    """
    batch, most, points, side, _ = heatmaps.shape
    maps, corners = heatmaps.flatten(0, 1), boxes_ltrb_px[..., :2].flatten(0, 1)
    sides = (boxes_ltrb_px[..., 2:] - boxes_ltrb_px[..., :2]).clamp(min=1).flatten(0, 1)
    rows, columns = (torch.arange(length, dtype=torch.float32, device=heatmaps.device) for length in canvas_px)
    cells = torch.arange(side, device=heatmaps.device)
    number = have_points.flatten().to(torch.int64).cumsum(0)  # of each that has points: 1, 2, ...
    number = torch.where(have_points.flatten(), number, 0)
    places = torch.arange(number.shape[0], device=heatmaps.device)

    def some_are_left(done: Tensor, found: Tensor) -> Tensor:
        return (number > done).any()

    def find_the_next(done: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        is_next = number == done + 1
        place = is_next.to(torch.int32).argmax(dim=0, keepdim=True)
        corner, size = corners.index_select(0, place), sides.index_select(0, place)
        width, height = size.ceil().unbind(1)
        across = maps.index_select(0, place).squeeze(0) @ _enlarging(columns, cells, width).transpose(0, 1)
        enlarged = _enlarging(rows, cells, height) @ across
        is_beyond = (rows >= height).unsqueeze(1) | (columns >= width)
        of_rows, column = enlarged.masked_fill(is_beyond, -torch.inf).max(dim=2)
        logit, row = of_rows.max(dim=1)
        column = column.gather(1, row.unsqueeze(1)).squeeze(1)
        middle = torch.stack([column, row], dim=1) + 0.5
        x_and_y = middle * (size / size.ceil()) + corner
        own = torch.cat([x_and_y, logit.unsqueeze(1)], dim=1)
        is_own = (places == place).view(-1, 1, 1)
        return done + 1, torch.where(is_own, own, found)

    first = torch.zeros(1, dtype=torch.int64, device=heatmaps.device)
    nothing = torch.zeros(batch * most, points, 3, device=heatmaps.device)
    _, found = torch.while_loop(some_are_left, find_the_next, (first, nothing))
    return found.unflatten(0, (-1, most))


def _enlarging(pixels: Tensor, cells: Tensor, size: Tensor) -> Tensor:
    """Which parts of S cells a row of L pixels consists of, after cubic interpolation of the cells to `size` pixels:
    L x S. Beyond the first and the last cell lie others as they are. size: float32, one number."""
    side = len(cells)
    source = (pixels + 0.5) * (side / size) - 0.5
    first = source.floor()
    after = source - first
    matrix = torch.zeros(1, device=pixels.device)
    for step in (-1, 0, 1, 2):
        cell = (first + step).clamp(0, side - 1).to(torch.int64)
        weight = _cubic((after - step).abs(), is_near=step in (0, 1))
        matrix = matrix + torch.where(cell.unsqueeze(1) == cells, weight.unsqueeze(1), 0)
    return matrix


def _cubic(distance: Tensor, *, is_near: bool) -> Tensor:
    """The weight of a cell at a distance of up to 1 if it is near, else of 1 to 2."""
    if is_near:
        return ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance * distance + 1
    return ((_CUBIC * distance - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC
