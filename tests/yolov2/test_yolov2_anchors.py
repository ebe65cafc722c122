"""Anchors for a data set: k-means on IoU."""

from pathlib import Path

import numpy as np
import pytest
import torch
from darknet_networks import TINY
from runs import write_small_data

import main
from ssd.checkpoints import checkpoint
from ssd.detectors.yolov2.anchors import kmeans_anchors
from ssd.detectors.yolov2.detector import YOLOV2
from ssd.detectors.yolov2.settings import AUTO, YOLOv2Settings
from ssd.errors import InputError


def boxes_of(sides: np.ndarray) -> torch.Tensor:
    """Boxes of these sides, somewhere in the image."""
    left_top = np.random.default_rng(1).uniform(0, 1, sides.shape) * (1 - sides)
    return torch.from_numpy(np.hstack([left_top, left_top + sides]).astype(np.float32))


def test_groups_of_like_boxes_are_found() -> None:
    shapes = np.array([[0.5, 0.5], [0.05, 0.1], [0.3, 0.1]])
    sides = np.repeat(shapes, 50, axis=0) * np.random.default_rng(0).uniform(0.95, 1.05, (150, 2))
    anchors, iou = kmeans_anchors(boxes_of(sides), 3, (20, 10))
    expected = [0.05 * 20, 0.1 * 10, 0.3 * 20, 0.1 * 10, 0.5 * 20, 0.5 * 10]  # small ones first
    assert anchors == pytest.approx(expected, rel=0.02) and 0.93 < iou < 1
    assert kmeans_anchors(boxes_of(sides)[torch.randperm(150)], 3, (20, 10)) == (anchors, pytest.approx(iou))


def test_more_anchors_fit_better_and_they_are_means_of_their_boxes() -> None:
    sides = np.random.default_rng(2).uniform(0.02, 0.6, (300, 2))
    fits = [kmeans_anchors(boxes_of(sides), count, (13, 13))[1] for count in (1, 3, 5, 9)]
    assert fits == sorted(fits) and fits[-1] > 0.7 > fits[0]
    (width, height), _ = kmeans_anchors(boxes_of(sides), 1, (13, 13))
    assert (width, height) == pytest.approx(tuple(13 * sides.mean(axis=0)), rel=1e-3)


def test_too_few_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="boxes of 1 shapes make no 2 anchors"):
        kmeans_anchors(torch.tensor([[0, 0, 0.5, 0.5]] * 9), 2, (4, 4))
    with pytest.raises(InputError, match="boxes of 0 shapes"):
        kmeans_anchors(torch.zeros(0, 4), 2, (4, 4))


def test_settings_take_the_anchors_of_the_data() -> None:
    """As the network sees their boxes: stretched, or in images that keep their shapes."""
    boxes = boxes_of(np.random.default_rng(0).uniform(0.1, 0.6, (40, 2)))
    assert YOLOV2.fitted is not None
    images_px = torch.tensor([[400, 300]]).expand(40, 2)
    settings, said = YOLOV2.fitted(YOLOv2Settings("x.cfg", TINY, anchors=AUTO), boxes, images_px)
    assert settings.anchors == kmeans_anchors(boxes, 2, (4, 4))[0]
    assert "anchors of 40 boxes, in cells of 4 x 4" in said
    same, said = YOLOV2.fitted(settings, boxes[:1], images_px[:1])
    assert same == settings and said == ""
    # An image of 4 x 3 that keeps its shape is three of four cells high, one of 1 x 2 two of four cells wide.
    boxes[20:, 2:] = boxes[20:, :2] + 0.25
    images_px = torch.tensor([[400, 300]] * 20 + [[50, 100]] * 20)
    letterboxed = YOLOv2Settings("x.cfg", TINY, anchors=AUTO, resize="letterbox")
    expected = torch.cat([boxes[:20] * torch.tensor([1, 0.75, 1, 0.75]), boxes[20:] * torch.tensor([0.5, 1, 0.5, 1])])
    assert YOLOV2.fitted(letterboxed, boxes, images_px)[0].anchors == kmeans_anchors(expected, 2, (4, 4))[0]
    with pytest.raises(InputError, match="or auto"):
        YOLOv2Settings("x.cfg", TINY, anchors=("auto", 1.0))


@pytest.mark.slow
def test_a_run_prints_and_keeps_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, cfg, folder = write_small_data(tmp_path / "data"), tmp_path / "tiny.cfg", tmp_path / "run"
    cfg.write_text(TINY)
    flags = "--anchors auto --bs 2 --accumulate 1 --epochs 1 --device cpu --num-workers 0 --no-plots --seed 1".split()
    flags += ["--detector", str(cfg), "--data", str(data), "--data_pipeline", "no_dali", "--output", str(folder)]
    assert main.main(flags) == 0
    anchors = checkpoint.settings_of(checkpoint.load(folder / "checkpoints" / "last.pt")).anchors
    assert len(anchors) == 4 and "boxes, in cells of 4 x 4: " + " ".join(map(str, anchors)) in capsys.readouterr().out
    assert main.main([*flags, "--epochs", "2", "--resume", "auto"]) == 0  # the same again
