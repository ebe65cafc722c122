"""What Detectron's R-CNNs are shown of a data set: objects with an extent, in images that have some."""

from pathlib import Path
from typing import Any

import numpy as np
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
from ssd.detectors.detectron.targets import targets_of
from ssd.errors import InputError
from ssd.views import ObjectParts, ShortSideView

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
