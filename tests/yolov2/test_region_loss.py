"""The region loss of YOLOv2: by hand, and its gradient beside the differences that darknet writes down."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from darknet_networks import TINY
from torch import Tensor

from ssd.batch import RaggedBatch
from ssd.detectors.table import detector_of
from ssd.detectors.yolov2.darknet.model import Raw
from ssd.detectors.yolov2.darknet.sections import Region
from ssd.detectors.yolov2.loss import PRIOR_IMAGES, region_losses
from ssd.detectors.yolov2.settings import YOLOv2Settings

REGION = Region(
    anchors=(1.0, 1.0, 2.0, 1.0), num=2, classes=2, softmax=True, bias_match=True, rescore=True, thresh=0.6,
    object_scale=5.0,
)  # fmt: skip
SIZE_PX = 64


def batch_of(images: list[list[tuple[int, float, float, float, float]]]) -> RaggedBatch:
    """Of each image its objects: (class from 0, centre x, centre y, width, height) in [0, 1]."""
    rows = [row for image in images for row in image]
    boxes = torch.tensor([row[1:] for row in rows], dtype=torch.float32).view(-1, 4)
    boxes_ltrb = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)
    return RaggedBatch(
        images=torch.zeros(len(images), 3, SIZE_PX, SIZE_PX),
        sizes_px=torch.full((len(images), 2), SIZE_PX),
        boxes_ltrb_px=boxes_ltrb * SIZE_PX,
        labels=torch.tensor([row[0] + 1 for row in rows], dtype=torch.int64),
        counts=torch.tensor([len(image) for image in images]),
        image_ids=torch.arange(len(images)),
    )


def losses_of(
    values: Tensor, batch: RaggedBatch, *, seen: int = PRIOR_IMAGES, region: Region = REGION, form: str = "darknet"
) -> dict[str, float]:
    losses = region_losses(Raw(values, torch.tensor(seen)), batch, region, form)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    return {name: value.item() for name, value in losses.items()}


ONE = [[(1, 0.7, 0.3, 0.5, 0.25)]]


def test_the_example_by_hand() -> None:
    """2 x 2 cells, all outputs 0: the object is the first anchor's in the right upper cell. There x is to be .4 and y
    .6 instead of .5, the height half the anchor's, the weight 2 - w h is 1.875 and the IoU 3 / 7."""
    values = torch.zeros(1, 14, 2, 2, requires_grad=True)
    losses = losses_of(values, batch_of(ONE))
    assert losses["box"] == pytest.approx(1.875 / 2 * (0.02 + math.log(2) ** 2), abs=1e-6)
    assert losses["box"] == pytest.approx(0.018750 + 0.450425, abs=2e-6)
    assert losses["objectness"] == pytest.approx(5 / 2 * (0.5 - 3 / 7) ** 2, abs=1e-6)
    assert losses["background"] == pytest.approx(7 / 2 * 0.25)
    assert losses["class"] == pytest.approx(math.log(2))
    assert losses["prior"] == 0 and sum(losses.values()) == pytest.approx(2.050077, abs=2e-6)
    assert values.grad is not None
    of_box = values.grad[0, :7, 0, 1].tolist()
    assert of_box == pytest.approx([0.046875, -0.046875, 0, 1.299651, 0.089286, 0.5, -0.5], abs=1e-6)
    objectness = values.grad[0, [4, 11]].flatten().tolist()
    assert objectness == pytest.approx([0.125, 0.089286, 0.125, 0.125, 0.125, 0.125, 0.125, 0.125], abs=1e-6)
    assert values.grad.count_nonzero() == 13


def test_other_boxes_are_drawn_to_their_anchors_for_the_first_12800_images() -> None:
    values = torch.zeros(1, 14, 2, 2)
    values[0, 9, 1, 1] = 1  # the width of a box that learns nothing
    values[0, 2, 0, 1] = 1  # and of the one that learns
    early = losses_of(values.clone().requires_grad_(), batch_of(ONE), seen=PRIOR_IMAGES - 1)
    late = losses_of(values.clone().requires_grad_(), batch_of(ONE), seen=PRIOR_IMAGES)
    assert early.pop("prior") == pytest.approx(0.005) and late.pop("prior") == 0
    assert early == late


def test_the_last_of_two_objects_in_one_box_is_learned_and_a_box_near_an_object_is_no_background() -> None:
    first, second = (0, 0.7, 0.3, 0.5, 0.25), (1, 0.7, 0.3, 0.5, 0.25)
    both = losses_of(torch.zeros(1, 14, 2, 2, requires_grad=True), batch_of([[first, second]]))
    alone = losses_of(torch.zeros(1, 14, 2, 2, requires_grad=True), batch_of([[second]]))
    assert both == alone
    # In the cell's middle an anchor lies on the object, which its neighbour of the other shape learns.
    wide = (0, 0.75, 0.25, 0.5, 0.5 - 1e-3)
    values = torch.zeros(1, 14, 2, 2, requires_grad=True)
    assert losses_of(values, batch_of([[wide]]))["background"] == pytest.approx(7 / 2 * 0.25)
    loose = REGION._replace(thresh=0.45)  # the second anchor has an IoU of 1 / 2 with it
    assert losses_of(values, batch_of([[wide]]), region=loose)["background"] == pytest.approx(6 / 2 * 0.25)


def test_images_without_objects_train() -> None:
    values = torch.zeros(2, 14, 2, 2, requires_grad=True)
    losses = losses_of(values, batch_of([[], []]))
    assert losses == pytest.approx({"box": 0, "objectness": 0, "background": 1, "class": 0, "prior": 0})
    assert values.grad is not None and values.grad.isfinite().all() and values.grad[:, 4].abs().min() > 0
    one_of_two = losses_of(torch.zeros(2, 14, 2, 2, requires_grad=True), batch_of([[], ONE[0]]))
    assert one_of_two["class"] == pytest.approx(math.log(2) / 2)  # a mean over images


def test_objects_beyond_darknets_thirty_are_learned() -> None:
    """Forty, each in a cell of its own: darknet's code would stop at `max`."""
    centres = [((column + 0.5) / 8, (row + 0.5) / 8) for row in range(5) for column in range(8)]
    values = torch.zeros(1, 14, 8, 8, requires_grad=True)
    losses = losses_of(values, batch_of([[(0, x, y, 0.1, 0.1) for x, y in centres]]))
    assert REGION.max == 30 and losses["class"] == pytest.approx(40 * math.log(2), rel=1e-5)


def test_a_broken_output_makes_the_loss_broken() -> None:
    """So that a step is left out and its images are named, instead of being learned in part."""
    values = torch.zeros(1, 14, 2, 2)
    values[0, 2, 0, 1] = torch.nan
    assert not math.isfinite(sum(losses_of(values.requires_grad_(), batch_of(ONE)).values()))


def test_square_roots_by_hand() -> None:
    """Of YOLOv1's paper: sides by their square roots without a weight, classes by squares."""
    losses = losses_of(torch.zeros(1, 14, 2, 2, requires_grad=True), batch_of(ONE), form="square-root")
    assert losses["box"] == pytest.approx(0.5 * (0.02 + (1 - math.sqrt(0.5)) ** 2), abs=1e-6)
    assert losses["class"] == pytest.approx(0.25)
    assert losses["objectness"] == pytest.approx(5 / 2 * (0.5 - 3 / 7) ** 2, abs=1e-6)
    tiny = torch.zeros(1, 14, 2, 2)
    tiny[0, 2:4] = -60
    values = tiny.requires_grad_()
    losses_of(values, batch_of(ONE), form="square-root")
    assert values.grad is not None and values.grad.isfinite().all()  # the slope of a root at 0 is not


def iou(a: Any, b: Any) -> float:
    """Of two boxes by centre and sides."""
    width, height = (
        min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2) - max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2) for i in (0, 1)
    )
    if width <= 0 or height <= 0:
        return 0.0
    return float(width * height / (a[2] * a[3] + b[2] * b[3] - width * height))


def darknets_deltas(values: np.ndarray, objects: list[Any], region: Region, seen: int) -> np.ndarray:
    """What darknet adds to an image's outputs of 2 x 5 entries x H x W on its way down, as it walks: box after box,
    then object after object."""
    _, _, height, width = values.shape
    sigmoid = 1 / (1 + np.exp(-values))
    delta = np.zeros_like(values)

    def box(n: int, row: int, column: int) -> list[float]:
        x, y = (column + sigmoid[n, 0, row, column]) / width, (row + sigmoid[n, 1, row, column]) / height
        sides = (
            region.anchors[2 * n + i] * math.exp(values[n, 2 + i, row, column]) / grid
            for i, grid in ((0, width), (1, height))
        )
        return [x, y, *sides]

    def slope(n: int, entry: int, row: int, column: int) -> float:
        return float(sigmoid[n, entry, row, column] * (1 - sigmoid[n, entry, row, column]))

    for n in range(region.num):
        for row in range(height):
            for column in range(width):
                at = (row, column)
                best = max((iou(box(n, row, column), each[1:]) for each in objects), default=0)
                if best <= region.thresh:
                    delta[(n, 4, *at)] = region.noobject_scale * -sigmoid[(n, 4, *at)] * slope(n, 4, *at)
                if seen < 12800:
                    for entry in (0, 1):
                        delta[(n, entry, *at)] = 0.01 * (0.5 - sigmoid[(n, entry, *at)]) * slope(n, entry, *at)
                    for entry in (2, 3):
                        delta[(n, entry, *at)] = 0.01 * -values[(n, entry, *at)]
    for label, x, y, w, h in objects:
        column, row = int(x * width), int(y * height)
        shapes = [
            (region.anchors[2 * n] / width, region.anchors[2 * n + 1] / height)
            if region.bias_match
            else box(n, row, column)[2:]
            for n in range(region.num)
        ]
        n = int(np.argmax([iou((0, 0, w, h), (0, 0, *shape)) for shape in shapes]))
        weight = region.coord_scale * (2 - w * h)
        for entry, target in ((0, x * width - column), (1, y * height - row)):
            delta[n, entry, row, column] = (
                weight * (target - sigmoid[n, entry, row, column]) * slope(n, entry, row, column)
            )
        for entry, target in (
            (2, math.log(w * width / region.anchors[2 * n])),
            (3, math.log(h * height / region.anchors[2 * n + 1])),
        ):
            delta[n, entry, row, column] = weight * (target - values[n, entry, row, column])
        sought = iou(box(n, row, column), (x, y, w, h)) if region.rescore else 1.0
        delta[n, 4, row, column] = (
            region.object_scale * (sought - sigmoid[n, 4, row, column]) * slope(n, 4, row, column)
        )
        logits = values[n, 5:, row, column]
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        delta[n, 5:, row, column] = region.class_scale * (np.eye(len(shares))[label] - shares)
    return delta


@pytest.mark.parametrize("seen", [0, PRIOR_IMAGES])
@pytest.mark.parametrize(
    "keys",
    [
        {"noobject_scale": 3.0},
        {"bias_match": False, "rescore": False, "coord_scale": 2.0, "class_scale": 0.5, "noobject_scale": 0.5},
    ],
)
def test_the_gradient_is_darknets(seen: int, keys: dict[str, Any]) -> None:
    """On random outputs and objects, some of them in one box, one image without any."""
    rng = np.random.default_rng(seen + len(keys))
    region = REGION._replace(anchors=(1.0, 1.0, 2.0, 1.5, 0.7, 2.0), num=3, classes=4, thresh=0.3, **keys)
    images: list[Any] = []
    for count in (6, 0, 30):
        sides = rng.uniform(0.05, 0.6, (count, 2))
        centres = sides / 2 + rng.uniform(0, 1, (count, 2)) * (1 - sides)
        images.append([(int(rng.integers(4)), *map(float, row)) for row in np.hstack([centres, sides])])
    values = rng.normal(size=(3, 3, 9, 3, 5))
    expected = np.stack([darknets_deltas(*each, region, seen) for each in zip(values, images, strict=True)])
    given = torch.from_numpy(values).float().flatten(1, 2).requires_grad_()
    losses_of(given, batch_of(images), seen=seen, region=region)
    assert given.grad is not None
    found = -given.grad.view(values.shape).numpy() * len(images)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-5)
    assert np.abs(expected).max() > 0.5


@pytest.mark.parametrize("images", [1, 3])
def test_a_network_learns_from_a_batch_of_negatives_only(images: int) -> None:
    """Also of one image: batch norm takes its moments from the cells."""
    torch.manual_seed(0)
    settings = YOLOv2Settings("tiny.cfg", TINY)
    model = detector_of(settings).build(settings, 3).train()
    batch = batch_of([[]] * images)._replace(images=torch.randn(images, 3, SIZE_PX, SIZE_PX))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for _ in range(10):
        losses = detector_of(settings).losses_of(settings, False)(model, batch)
        optimizer.zero_grad()
        torch.stack([*losses.values()]).sum().backward()
        optimizer.step()
        found.append(losses["background"].item())
    assert found[-1] < 0.5 * found[0] and losses["box"] == losses["class"] == losses["objectness"] == 0
    assert all(value.isfinite().all() for value in model.state_dict().values())
