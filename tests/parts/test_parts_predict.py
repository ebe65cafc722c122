"""Masks and keypoints in what `predict` writes, and in pictures."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import torch
from parts_data import POINTS, circle
from PIL import Image, ImageDraw
from square_view import VIEW
from test_parts_evaluation import ANIMAL, Says, truth_of

from ssd.batch import RGB_MEAN, RGB_STD, EvalBatch
from ssd.config import Config
from ssd.console import Console
from ssd.detectors.torchvision.names import settings_of
from ssd.distributed import Ranks
from ssd.evaluation.detect import Results
from ssd.inference.drawn import draw_detections
from ssd.inference.predict import predict
from ssd.inference.predictor import Predictor
from ssd.keypoints import Skeleton
from ssd.pictures.drawing import class_colour, draw_skeleton, tint
from ssd.report.examples import Showcase
from ssd.run.files import Run


def predictor(kind: str) -> Predictor:
    """Says that there is a box of label 2 from (16, 8) to (48, 24) in the first image, as it is when it is 64 wide."""
    settings = replace(settings_of(f"{kind}_resnet18_fpn"), short_sides_px=(32,), long_side_px=64)
    if settings.keypoints:
        settings = replace(settings, keypoints=tuple(POINTS), keypoint_links=((0, 1),), keypoint_labels=(2,))
    return Predictor(Says(kind), [(3, "stone"), (7, "animal")], Config(detector=settings, device="cpu"))


@pytest.mark.parametrize("kind", ["maskrcnn", "keypointrcnn"])
def test_results_are_cocos(kind: str, tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        Image.new("RGB", (128, 64), (128, 128, 128)).save(tmp_path / name)
    files = [tmp_path / "1.png", tmp_path / "2.png"]
    assert predict(predictor(kind), files, tmp_path / "out", batch_size=2, threads=1, console=Console(quiet=True)) == 0
    (row,) = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert (row["image_id"], row["category_id"], row["bbox"]) == (1, 7, [32, 16, 64, 32])
    if kind == "maskrcnn":
        assert "keypoints" not in row and row["segmentation"]["size"] == [64, 128]
        assert pycocotools.mask.decode(row["segmentation"])[16:48, 32:96].mean() > 0.97
    else:
        assert "segmentation" not in row and len(row["keypoints"]) == 15 and row["keypoints"][2::3] == [1] * 5
        assert row["keypoints"][0] == pytest.approx(48, abs=2) and len(row["keypoint_scores"]) == 5
    with Image.open(tmp_path / "out" / "1.jpg") as picture:
        scale = picture.width / 128
        x, y = (60, 40) if kind == "maskrcnn" else (47, 33)
        colour = picture.convert("RGB").getpixel((int(x * scale), int(y * scale)))
        outside = picture.convert("RGB").getpixel((int(110 * scale), int(56 * scale)))
    assert np.abs(np.subtract(outside, 128)).max() < 12 and np.abs(np.subtract(colour, 128)).max() > 25


def test_classes_without_points_have_none() -> None:
    detector = predictor("keypointrcnn")
    assert detector.skeleton == Skeleton(tuple(POINTS), ((0, 1),), (2,))
    detector.skeleton = Skeleton(tuple(POINTS), (), (1,))
    image = np.full((64, 128, 3), 128, dtype=np.uint8)
    found, _ = detector([image, image])
    assert found.keypoints_px is not None and found.keypoints_px.isnan().all() and found.labels.tolist() == [2]
    draw_detections(Image.fromarray(image), found, detector.skeleton)


def test_masks_are_tinted_and_points_linked() -> None:
    picture = Image.new("RGB", (40, 30), "white")
    mask = np.zeros((30, 40), dtype=np.uint8)
    mask[10:20, 10:30] = 1
    tint(picture, mask, 1)
    own = np.array(tuple(int(class_colour(1)[i : i + 2], 16) for i in (1, 3, 5)))
    pixels = np.asarray(picture).astype(int)
    assert (pixels[5, 5] == 255).all() and np.abs(pixels[15, 20] - (255 + 0.45 * (own - 255))).max() <= 1
    assert (pixels[10, 20] == own).all()
    picture = Image.new("RGB", (60, 40), "white")
    skeleton = Skeleton(("a", "b", "c"), ((0, 1), (1, 2)))
    draw_skeleton(ImageDraw.Draw(picture), [(5, 20), (55, 20), None], skeleton, 1, 3)
    pixels = np.asarray(picture).astype(int)
    assert (pixels[20, 30] == own).all() and (pixels[20, 5] == 255).all() and (pixels[20, 9] < 30).all()
    assert (pixels[35, 30] == 255).all()
    assert torch.tensor(pixels).min() == 0


def test_examples_of_an_evaluation_have_them_too(tmp_path: Path) -> None:
    """A white picture of 320 x 240: where there is an object, and a point, it is white no more."""
    here = Ranks(0, 0, 1, torch.device("cpu"))
    truth = truth_of(1)._replace(image_ids=np.array([100]), sizes_px=np.array([[320, 240]]))
    row = {**truth.dataset["annotations"][0], "category_id": ANIMAL, "bbox": [8, 8, 9, 9]}
    row |= {"segmentation": [circle(60, 120, 30)], "keypoints": [200.0, 60, 2] * 5}
    truth = truth._replace(dataset={**truth.dataset, "annotations": [row]})
    white = (1 - torch.tensor(RGB_MEAN)) / torch.tensor(RGB_STD)
    batch = EvalBatch(white.view(1, 3, 1, 1).expand(1, 3, 24, 32), torch.tensor([[0, 0, 32, 24]]), torch.tensor([0]))
    shown = Showcase([batch], truth, Run(tmp_path / "run", here), "faster", VIEW, plots=True)
    assert len(list(shown)) == 1
    mask = pycocotools.mask.frPyObjects([circle(260, 120, 30)], 240, 320)[0]["counts"]
    found = Results(np.array([[100, 300, 220, 9, 9, 0.9, ANIMAL]]), [mask], np.full((1, 5, 3), 130.0))
    shown.take(found, 1)
    with Image.open(tmp_path / "run" / "plots" / "predictions.jpg") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    scale = 300 / 320
    below = pixels.shape[0] // 2  # where the row of detections begins

    def is_white(x: float, y: float, first: int) -> bool:
        return bool((pixels[first + round(y * scale), 8 + round(x * scale)] > 240).all())

    assert not is_white(60, 120, 26) and is_white(260, 120, 26)
    assert is_white(60, 120, below + 22) and not is_white(260, 120, below + 22)
