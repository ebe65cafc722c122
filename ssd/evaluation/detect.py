"""A model's detections over a split, as rows of COCO results, and their masks and keypoints."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ssd.batch import Detections, EvalBatch, EvalLoader, GroundTruth, on_host
from ssd.boxes import ltrb_to_xywh
from ssd.config import Config
from ssd.detectors.contract import Forward
from ssd.detectors.table import detect_several_of, view_with
from ssd.detectors.tta.passes import TTA
from ssd.distributed import Ranks, gather_tensors
from ssd.masks import pasted_counts
from ssd.precision import autocast
from ssd.views import ObjectParts, View, num_looks, parts_of, pastes_closed


@dataclass(frozen=True, eq=False)
class Results:
    """Every detection of a split. Ids are the data set's own, pixels those of its images."""

    rows: np.ndarray
    """n x 7 float64: image id, x, y, w, h in pixels, score, category id."""
    masks: list[bytes] | None = None
    """n compressed run lengths of COCO's, over the whole image; None of a detector that finds none, as below."""
    keypoints: np.ndarray | None = None
    """n x P x 3 float64: x, y in pixels, and a score without bounds."""

    def __len__(self) -> int:
        return len(self.rows)


@torch.no_grad()
def detect_split(
    model: nn.Module,
    loader: EvalLoader,
    ground_truth: GroundTruth,
    config: Config,
    ranks: Ranks,
    tta: TTA | None = None,
    is_asked_to_end: Callable[[], bool] = lambda: False,
) -> Results | None:
    """Every detection of a split, on rank 0; None on the others. The model is left in the mode it was in. tta: whose
    looks the loader's view has. is_asked_to_end: asked before each batch; once it is True, the rest is left out."""
    training = model.training
    model.eval()
    detect = detect_several_of(config.detector, config.thresholds, tta)
    view = view_with(config.detector, tta)
    forward = in_precision(model, config, ranks.device)
    groups = takewhile(lambda _: not is_asked_to_end(), _in_groups(loader, num_looks(view)))
    found = _found(((detect(forward, batches), batches[0]) for batches in groups), ground_truth, view)
    model.train(training)
    parts = parts_of(view)
    # Which are compared with those of the split.
    parts = parts._replace(keypoints=parts.keypoints and ground_truth.skeleton is not None)
    return _joined(found.rows, found.masks, found.keypoints, parts, ranks)


class _Found(NamedTuple):
    """What one rank found, as `Results` has it, and whether its detections had masks and keypoints at all."""

    rows: torch.Tensor
    masks: list[bytes]
    keypoints: torch.Tensor
    had: ObjectParts


def _found(detected: Iterable[tuple[Detections, EvalBatch]], ground_truth: GroundTruth, view: View) -> _Found:
    points = len(ground_truth.skeleton.names) if ground_truth.skeleton else 0
    rows, keypoints = [torch.zeros(0, 7, dtype=torch.float64)], [torch.zeros(0, points, 3, dtype=torch.float64)]
    masks: list[bytes] = []
    had = ObjectParts()
    for on_device, batch in detected:
        detections = on_host(on_device)
        rows.append(_coco_rows(detections, batch.indices, ground_truth))
        sizes_px = torch.from_numpy(ground_truth.sizes_px[batch.indices.numpy()]).double()
        if detections.masks is not None:
            had = had._replace(masks=True)
            masks += _counts(detections, sizes_px, closed=pastes_closed(view))
        if detections.keypoints is not None and points:
            had = had._replace(keypoints=True)
            real = torch.arange(detections.scores.shape[1]) < detections.counts.unsqueeze(1)
            scale = torch.cat([sizes_px, torch.ones_like(sizes_px[:, :1])], dim=1).view(-1, 1, 1, 3)
            keypoints.append((detections.keypoints.double() * scale)[real])
    return _Found(torch.cat(rows), masks, torch.cat(keypoints), had)


def _in_groups(loader: Iterable[EvalBatch], size: int) -> Iterator[tuple[EvalBatch, ...]]:
    return zip(*[iter(loader)] * size, strict=True)


def _counts(detections: Detections, sizes_px: torch.Tensor, *, closed: bool) -> list[bytes]:
    found: list[bytes] = []
    assert detections.masks is not None
    for row, (width, height) in enumerate(sizes_px.int().tolist()):
        count = int(detections.counts[row])
        boxes_ltrb_px = detections.boxes_ltrb[row, :count] * torch.tensor([width, height] * 2)
        found += pasted_counts(detections.masks[row, :count], boxes_ltrb_px, (width, height), closed=closed)
    return found


def _joined(
    rows: torch.Tensor, masks: list[bytes], keypoints: torch.Tensor, parts: ObjectParts, ranks: Ranks
) -> Results | None:
    """Of all ranks, on rank 0."""
    of_ranks = gather_tensors(rows, ranks)
    counts, points, lengths = None, None, None
    if parts.masks:
        lengths = gather_tensors(torch.tensor([len(each) for each in masks], dtype=torch.int64), ranks)
        counts = gather_tensors(torch.frombuffer(bytearray(b"".join(masks)) or bytearray(1), dtype=torch.uint8), ranks)
    if parts.keypoints:
        points = gather_tensors(keypoints, ranks)
    if of_ranks is None:
        return None
    return Results(
        torch.cat(of_ranks).numpy(),
        None if counts is None or lengths is None else _split(counts, lengths),
        None if points is None else torch.cat(points).numpy(),
    )


def _split(counts: list[torch.Tensor], lengths: list[torch.Tensor]) -> list[bytes]:
    found = []
    for of_rank, ends in zip(counts, (each.cumsum(0).tolist() for each in lengths), strict=True):
        content = of_rank.numpy().tobytes()
        found += [content[first:end] for first, end in zip([0, *ends], ends, strict=False)]
    return found


def detect_alone(
    detect: Callable[[EvalBatch], Detections], loader: Iterable[EvalBatch], ground_truth: GroundTruth, view: View
) -> Results:
    """`detect_split` of one rank, by any function that detects a batch."""
    detected = ((detect(batch), batch) for batch in loader)
    rows, masks, keypoints, had = _found(detected, ground_truth, view)
    return Results(rows.numpy(), masks if had.masks else None, keypoints.numpy() if had.keypoints else None)


def in_precision(model: Forward, config: Config, device: torch.device) -> Forward:
    """The model, called in the run's precision."""

    def forward(*arguments: Any) -> Any:
        with autocast(config, device):
            return model(*arguments)

    return forward


def _coco_rows(detections: Detections, indices: torch.Tensor, ground_truth: GroundTruth) -> torch.Tensor:
    boxes_ltrb, scores, labels, counts, *_ = detections
    boxes_xywh = ltrb_to_xywh(boxes_ltrb)
    real = torch.arange(scores.shape[1]) < counts.unsqueeze(1)
    sizes_px = torch.from_numpy(ground_truth.sizes_px[indices.numpy()]).double()
    boxes_xywh_px = boxes_xywh.double() * sizes_px.repeat(1, 2).unsqueeze(1)
    image_ids = torch.from_numpy(ground_truth.image_ids[indices.numpy()]).double().unsqueeze(1).expand_as(scores)
    category_ids = torch.tensor([0, *ground_truth.category_ids], dtype=torch.float64)[labels]
    columns = [image_ids.unsqueeze(2), boxes_xywh_px, scores.double().unsqueeze(2), category_ids.unsqueeze(2)]
    return torch.cat(columns, dim=2)[real]
