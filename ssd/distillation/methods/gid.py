"""GID (Dai et al. 2021, section 3.2): the features, relations and responses of general instances.

On a GPU all shapes are fixed, so that the host does not wait for it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from ssd.distillation.methods.instances import Instances
from ssd.distillation.methods.maps import Adapted, Channels
from ssd.distillation.methods.ranks import joined, scaled_gradient, share, summed, world_size

# Where choosing costs no wait for the device, each map is sampled for its own boxes only, and of anchors only those are
# looked at that learn a box.
_CHOOSES_ON = ("cpu",)
_OUTSIDE_PX = -1e5
_LEAST_DISTANCE = 1e-6


class Adapter(nn.Module):
    """A convolution that makes the student's maps comparable: one for all where their channels are the same."""

    def __init__(self, channels: Channels, kernel: int, shares: bool) -> None:
        super().__init__()
        self.levels = list(channels)
        self.shares = shares and len(set(channels.values())) == 1
        own = {"all": next(iter(channels.values()))} if self.shares else channels
        self.convs = nn.ModuleDict(
            {name: nn.Conv2d(count, other, kernel, padding=kernel // 2) for name, (count, other) in own.items()}
        )

    def forward(self, maps: Mapping[str, Tensor]) -> Adapted:
        return {name: self.convs["all" if self.shares else name](maps[name]) for name in self.levels}


class RoiFeatures(NamedTuple):
    """What RoIAlign makes of R boxes: R x C x cells x cells float32 of teacher and student. real: R bool."""

    teacher: Tensor
    student: Tensor
    real: Tensor


def roi_features(
    maps: Sequence[Tensor], scales: Sequence[float], level: Tensor, rois: Tensor, cells: int, samples: int = 2
) -> Tensor:
    """Each box in its own map: R x C x cells x cells float32, filled up with zeros to the channels of the widest map.

    maps: B x C x H x W each. scales: their cells a pixel. level: R int64, the place of each box's map. rois: R x 5.
    samples: of a cell in each direction; 0 for as many as it has cells of the map.
    """
    widest = max(each.shape[1] for each in maps)
    found = maps[0].new_zeros(len(rois), widest, cells, cells, dtype=torch.float32)
    for place, (features, scale) in enumerate(zip(maps, scales, strict=True)):
        is_own = level == place
        own = is_own.nonzero().squeeze(1) if rois.device.type in _CHOOSES_ON else None
        if own is None:  # a box far outside of a map shows 0
            sampled = torch.cat([rois[:, :1], torch.where(is_own.unsqueeze(1), rois[:, 1:], _OUTSIDE_PX)], dim=1)
        else:
            sampled = rois[own]
        values = roi_align(features.float(), sampled, cells, scale, samples, aligned=True)
        values = F.pad(values, (0, 0, 0, 0, 0, widest - values.shape[1]))
        found = found + values if own is None else found.index_copy(0, own, values)
    return found


def rois_of(instances: Instances) -> Tensor:
    """Their boxes with their image in front: BK x 5 float32."""
    boxes = instances.boxes_ltrb_px
    image = torch.arange(len(boxes), device=boxes.device).view(-1, 1, 1).expand(-1, boxes.shape[1], 1)
    return torch.cat([image.to(boxes.dtype), boxes], dim=2).flatten(0, 1).float()


def feature_loss(features: RoiFeatures, form: str) -> Tensor:
    """Of all ranks' instances the mean distance of student and teacher; form "seed": of the squared distances, divided
    by the cells of one. 0 without instances."""
    difference = features.student.flatten(1) - features.teacher.flatten(1)
    if form == "seed":
        each = difference.square().sum(dim=1) / features.student[0, 0].numel()
    else:
        each = torch.linalg.vector_norm(difference, dim=1)
    count = share(features.real.sum())
    return torch.where(features.real, each, 0).sum() / torch.where(count > 0, count, 1)


def relation_loss(features: RoiFeatures, beta: float = 1.0) -> Tensor:
    """How differently the instances of all ranks lie to each other: smooth L1 between the distances of all pairs, in
    units of their mean, averaged over pairs. 0 of less than three, whose only distance is its own mean."""
    real = joined(features.real)
    pair = real.unsqueeze(0) & real.unsqueeze(1) & ~torch.eye(len(real), dtype=torch.bool, device=real.device)
    own, other = (_relative_distances(joined(each.flatten(1)), pair) for each in (features.student, features.teacher))
    count = real.sum()
    terms = torch.where(pair, F.smooth_l1_loss(own, other, beta=beta, reduction="none"), 0)
    loss = torch.where(count > 2, terms.sum() / pair.sum().clamp(min=1), 0)
    return scaled_gradient(loss, world_size())


class _Distances(torch.autograd.Function):
    """Rows N x M -> the distances of all pairs, N x N, at least `_LEAST_DISTANCE`. On a GPU torch's own backward pass
    takes N x N x M numbers: 42 GB for 320 instances of SSD300-R50."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        # By products of matrices, small distances of long rows would be noise.
        distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
        ctx.save_for_backward(rows, distances)
        return distances.clamp(min=_LEAST_DISTANCE)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        rows, distances = ctx.saved_tensors
        each = torch.where(distances > _LEAST_DISTANCE, gradient / distances, 0)
        each = each + each.T  # a distance is that of two rows
        return each.sum(dim=1, keepdim=True) * rows - each @ rows


def _relative_distances(rows: Tensor, pair: Tensor) -> Tensor:
    distances: Tensor = _Distances.apply(rows.to(torch.promote_types(rows.dtype, torch.float32)))
    mean = torch.where(pair, distances, 0).sum() / pair.sum().clamp(min=1)
    return distances / mean.clamp(min=_LEAST_DISTANCE)


def rows_of(learns: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
    """Rows R x K of parts B x A x K, and before them which rows count, R bool. On a CPU these are the anchors that
    learn, B x A bool; elsewhere all anchors, those that learn nothing as zeros, for a broken number would break the
    gradients even of a row that does not count. That takes a few times the memory of the parts."""
    if learns.device.type not in _CHOOSES_ON:
        return learns.flatten(), *(torch.where(learns.unsqueeze(2), part, 0).flatten(0, 1) for part in parts)
    image, anchor = learns.nonzero(as_tuple=True)
    return torch.ones_like(image, dtype=torch.bool), *(part[image, anchor] for part in parts)


def response_sums(values: Tensor, counted: Tensor) -> Tensor:
    """R values of a rank's anchors -> the sum of those that count over ranks, divided by their number: as a rank's own
    term, whose mean over ranks that is. 0 of no anchor."""
    count = share(counted.sum())
    return torch.where(counted, values, 0).sum() / torch.where(count > 0, count, 1)


def offset_distance(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """R x 4 offsets each -> the smooth L1 of all four, R; L1 where beta is 0."""
    return F.smooth_l1_loss(student, teacher, beta=beta, reduction="none").sum(dim=1)


def counts(instances: Instances) -> Tensor:
    """Of all ranks' instances: () int64."""
    return summed(instances.real.sum())
