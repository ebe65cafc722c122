"""What Detectron's R-CNNs are shown of a data set: objects with an extent, in images that have some, and where they lie
there."""

from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron_models import small
from parts_data import document, write
from ragged_data import train_loader

from pipelines import plausibility
from pipelines.annotations import Annotations
from pipelines.ragged.draws import Sample
from pipelines.ragged.learned import shown_indices
from pipelines.ragged.targets import boxes_and_labels, keypoints_of, masks_of, ragged_batch
from pipelines.readers.coco import read_annotations
from ssd.detectors.detectron.builders import build
from ssd.detectors.detectron.detector import DETECTRON
from ssd.detectors.detectron.rcnn.boxes import anchors_ltrb_px, cells_of
from ssd.detectors.detectron.targets import targets_of
from ssd.detectors.torchvision.targets import Targets
from ssd.errors import InputError
from ssd.masks import pasted_counts
from ssd.views import ObjectParts, ResizeRule, ShortSideView, pastes_closed

PARTS = ObjectParts(masks=True, keypoints=True)
VIEW = ShortSideView((48,), 96, divisor=8, parts=PARTS, resize_rule="detectron")
# Of the first image, 48 x 32: widths in pixels, and whether Detectron learns the box. The last hangs over the right
# edge, and its first pixel and its last are the image's last.
THIN = [(0.1, False), (0.4, False), (1.0, False), (1.25, True), (30.0, True)]


def thin_boxes() -> dict[str, Any]:
    content = document()
    (first,) = (row for row in content["annotations"] if row["id"] == 11)
    boxes = [[4.5, 4, width, 24] for width, _ in THIN] + [[47.5, 4, 9, 9], [4, 4.5, 30, 0.75]]
    content["annotations"] = [row for row in content["annotations"] if row["id"] != 11] + [
        {**first, "id": 20 + number, "bbox": box} for number, box in enumerate(boxes)
    ]
    return content


@pytest.fixture(scope="module")
def thin(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    return read_annotations(write(tmp_path_factory.mktemp("thin") / "data", thin_boxes()), "train", PARTS)


def test_boxes_whose_last_pixel_is_their_first_are_not_learned(thin: Annotations) -> None:
    sample = Sample(0, (72, 48), False, scale=1.5)
    boxes_ltrb_px, labels = boxes_and_labels(thin, sample)
    np.testing.assert_allclose(boxes_ltrb_px, np.array([[4.5, 4, 5.75, 28], [4.5, 4, 34.5, 28]]) * 1.5, rtol=1e-5)
    assert len(labels) == len(keypoints_of(thin, sample)) == len(masks_of(thin, sample)[0]) == 2
    others = sample._replace(scale=None)  # torchvision's view learns all
    assert len(boxes_and_labels(thin, others)[1]) == len(keypoints_of(thin, others)) == len(masks_of(thin, others)[0])
    assert len(boxes_and_labels(thin, others)[1]) == len(THIN) + 2


@pytest.mark.parametrize("kind", ["mask", "keypoints"])
def test_an_image_of_thin_boxes_has_a_loss(kind: str, thin: Annotations) -> None:
    """Enlarged, so that what is not dropped would end left of where it begins."""
    settings = small(kind)
    batch = ragged_batch(torch.randn(1, 3, 64, 96), [Sample(0, (72, 48), False, scale=1.5)], thin, PARTS)
    sides = targets_of(batch).boxes_ltrb_px[:, 2:] - targets_of(batch).boxes_ltrb_px[:, :2]
    assert (sides >= 1).all()
    model = build(settings, thin.num_classes)
    if kind == "keypoints":
        assert batch.keypoints_px is not None  # COCO's persons, which the small models find, have more
        batch = batch._replace(keypoints_px=batch.keypoints_px.repeat(1, 4, 1)[:, :17])
    losses = DETECTRON.losses_of(settings, False)(model, batch)
    assert all(loss.isfinite() for loss in losses.values())


def test_what_is_not_learned_is_named(thin: Annotations) -> None:
    (boxes,) = (each for each in plausibility.of_view(thin, VIEW) if not each.is_harmless)
    assert str(boxes).startswith(
        "boxes of one pixel, or of area 0, which Detectron does not learn: annotation 20 of 0.jpg, "
        "annotation 21 of 0.jpg, annotation 22 of 0.jpg, annotation 25 of 0.jpg, annotation 26 of 0.jpg; "
    )
    assert plausibility.of_view(thin, VIEW._replace(resize_rule="torchvision")) == []


def test_images_without_an_extent_are_not_shown(tmp_path: Path) -> None:
    content = document()
    for row in content["annotations"]:
        if row["image_id"] == 1:
            row["area"] = 0
        if row["id"] == 15:
            row["bbox"][2] = 0.5
    split = read_annotations(write(tmp_path / "data", content), "train", PARTS)
    assert split.trainable_indices().tolist() == [0, 1, 3] and shown_indices(split, VIEW).tolist() == [1]
    assert shown_indices(split, VIEW._replace(resize_rule="detectron2")).tolist() == [0, 1, 3]
    assert train_loader("no_dali", split, VIEW, batch=1).steps_per_epoch == 1


def test_images_without_a_stated_point_are_shown_to_other_detectors_only(tmp_path: Path) -> None:
    """Object 12, of a class without points, lies in an image with one that has some."""
    content = document()
    for row in content["annotations"]:
        if row["id"] == 15:
            row["keypoints"] = [0] * 15
    split = read_annotations(write(tmp_path / "data", content), "train", PARTS)
    assert shown_indices(split, VIEW).tolist() == [0, 1]
    assert shown_indices(split, VIEW._replace(resize_rule="detectron2")).tolist() == [0, 1]
    assert shown_indices(split, VIEW._replace(resize_rule="torchvision")).tolist() == [0, 1, 3]
    assert shown_indices(split, VIEW._replace(parts=ObjectParts(masks=True))).tolist() == [0, 1, 3]
    (images,) = plausibility.of_view(split, VIEW)
    assert images.is_harmless and images.where == ["3.jpg"]
    for row in content["annotations"]:
        row["keypoints"] = row["keypoints"] if row["iscrowd"] else []
    none = read_annotations(write(tmp_path / "none", content), "train", PARTS)
    with pytest.raises(InputError, match="nothing to learn from: no image has a stated point; annotate some"):
        train_loader("no_dali", none, VIEW)


# --- one scale for boxes, windows, points and pixels ---


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    return read_annotations(write(tmp_path_factory.mktemp("parts") / "data"), "train", PARTS)


# 48 x 32 pixels by 1.3 are 62.4 x 41.6, of which the resized image has 62 x 42.
SCALED = Sample(0, (62, 42), False, scale=1.3)
FLIPPED = SCALED._replace(flip=True)


def test_boxes_and_windows_are_scaled_by_the_factor_and_not_to_the_rounded_size(split: Annotations) -> None:
    """The object's box is 4 4 30 24, and its polygons reach from 4, 6 to 33.5, 27.5."""
    (box,), _ = boxes_and_labels(split, SCALED)
    np.testing.assert_allclose(box, [5.2, 5.2, 44.2, 36.4], rtol=1e-5)
    (mirrored,), _ = boxes_and_labels(split, FLIPPED)
    np.testing.assert_allclose(mirrored, [17.8, 5.2, 56.8, 36.4], rtol=1e-5)
    # A bitmap's frame is a pixel of it around the 110 x 110 of the object.
    frame = np.array([-29.5, -21.5, 29.5, 21.5]) / 110
    expected = (np.array([4, 6, 33.5, 27.5]) + frame) * 1.3
    (bitmap,), (window,) = masks_of(split, SCALED)
    np.testing.assert_allclose(window, expected, rtol=1e-5)
    (turned,), (window,) = masks_of(split, FLIPPED)
    np.testing.assert_allclose(window, [62 - expected[2], expected[1], 62 - expected[0], expected[3]], rtol=1e-5)
    assert np.array_equal(turned, bitmap[:, ::-1])


def test_a_mirrored_point_is_a_pixel_and_not_a_place(split: Annotations) -> None:
    """Of the file's 48 columns x becomes 47 - x, so of 62 after scaling 62 - 1.3 - 1.3 x. Left and right change."""
    stated = np.array([[10, 12, 2], [8.5, 11, 1], [12, 11, 2], [0, 0, 0], [13, 20, 2]])
    np.testing.assert_allclose(keypoints_of(split, SCALED)[0], stated * (1.3, 1.3, 1), rtol=1e-6)
    (found,) = keypoints_of(split, FLIPPED)
    expected = [[47.7, 15.6, 2], [45.1, 14.3, 2], [49.65, 14.3, 1], [43.8, 26, 2], [60.7, 0, 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # torchvision's rule, by which a point is a place: x becomes 62 - x, of 62 columns for 48.
    (place,) = keypoints_of(split, FLIPPED._replace(scale=None))
    np.testing.assert_allclose(place[0], [62 - 10 * 62 / 48, 12 * 42 / 32, 2], rtol=1e-6)


@pytest.mark.parametrize(
    ("rule", "last"), [("detectron", (28, 26)), ("detectron2", (29, 27)), ("torchvision", (29, 27))]
)
def test_masks_are_pasted_from_the_first_pixel_to_the_last(rule: ResizeRule, last: tuple[int, int]) -> None:
    """A full mask in a box of 10 8 20 20, whose pixels are 10 to 29 and 8 to 27. Grown by 30 / 28 about its centre and
    cut to whole pixels, Detectron's is 9 to 29, 21 pixels for 30 cells: the first one and the last are less than half
    covered. The others' is 9 to 30."""
    closed = pastes_closed(VIEW._replace(resize_rule=rule))
    counts = pasted_counts(torch.ones(1, 28, 28), torch.tensor([[10.0, 8, 30, 28]]), (48, 40), closed=closed)
    found = pycocotools.mask.decode({"size": [40, 48], "counts": counts[0]})
    expected = np.zeros((40, 48), dtype=np.uint8)
    expected[8 : last[1] + 1, 10 : last[0] + 1] = 1
    assert np.array_equal(found, expected)


def test_proposals_of_training_are_cut_to_the_image_and_not_to_its_padding() -> None:
    """The first of two images padded to 64 x 64 has 62 x 42 pixels, the second all."""
    model: Any = build(small("faster"), 3)
    maps = [torch.zeros(2, 8, 64 // stride, 64 // stride) for stride in (4, 8, 16, 32, 64)]
    anchors = anchors_ltrb_px(cells_of(model.settings), maps)

    class Grows(torch.nn.Module):
        """Each box becomes sixteen times as large or larger."""

        def forward(self, maps: list[torch.Tensor]) -> Any:
            grown = torch.tensor([0.0, 0, 4, 4]).repeat(3).view(1, 12, 1, 1)
            return [m.new_zeros(2, 3, *m.shape[2:]) for m in maps], [grown.expand(2, 12, *m.shape[2:]) for m in maps]

    model.rpn = torch.nn.ModuleDict({"head": Grows()})
    empty = torch.zeros(0, 4)
    targets = Targets(empty, torch.zeros(0, dtype=torch.int64), (0, 0), ((62, 42), (64, 64)))
    found = model._training_proposals(maps, anchors, targets)
    for boxes, real, limits in zip(found.boxes_ltrb_px, found.real, ([62.0, 42.0], [64.0, 64.0]), strict=True):
        assert real.any() and boxes[real][:, 2:].amax(dim=0).tolist() == limits
