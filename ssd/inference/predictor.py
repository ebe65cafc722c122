"""A trained detector for images as they come, by the steps and settings of the evaluation."""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssd.checkpoints import checkpoint, conversion
from ssd.config import Config
from ssd.detectors.ssd300.model import SSD300
from ssd.detectors.ssd300.postprocess import detect, on_host
from ssd.distributed import runs_on_gpu
from ssd.images import ImageLike, is_file, normalise, resize, rgb_of
from ssd.precision import autocast


class ImageDetections(NamedTuple):
    """What was found in one image, best score first; tensors on the CPU.

    boxes_ltrb_px: n x 4 float32 left, top, right, bottom in pixels of the image; of a file or PIL image, turned upright
    as its EXIF orientation says.
    scores: n float32 in [0, 1]. labels: n int64 in [1, K), as in `batch.Detections`. names: the labels' class names.
    """

    boxes_ltrb_px: Tensor
    scores: Tensor
    labels: Tensor
    names: list[str]


class ModelInput(NamedTuple):
    """An image as the model takes it: 300 x 300 x 3 uint8 RGB, and the (width, height) that it had before."""

    pixels: np.ndarray
    size_px: tuple[int, int]


def model_input(image: ImageLike) -> ModelInput:
    """The whole image, resized as in evaluation. Raises as `images.rgb_of`."""
    pixels = rgb_of(image)
    return ModelInput(resize(pixels), (pixels.shape[1], pixels.shape[0]))


class Predictor:
    """A model with its classes. Calls from several threads are not safe.

    categories: the (id, name) of the data set that it was trained on; label i + 1 is categories[i].
    """

    def __init__(self, model: SSD300, categories: Sequence[tuple[int, str]], config: Config) -> None:
        self.categories = list(categories)
        self.device = torch.device("cuda" if runs_on_gpu(config.device) else "cpu")
        self._model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self._config = config

    def __call__(self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 8) -> list[ImageDetections]:
        """The detections of each image.

        images: one or several of `images.ImageLike`, of any sizes, also a generator, of which a batch at a time is
        read; or a batch of them as one array B x H x W x 3 or tensor B x 3 x H x W. batch_size: how many go through the
        model at once.
        Raises InputError that names a file which is no image, ValueError for an array which is none,
        TypeError that says what to pass for anything else.
        """
        several, found = _each_of(images), []
        while inputs := [model_input(image) for image in islice(several, batch_size)]:
            found += self.detect(inputs)
        return found

    @torch.no_grad()
    def detect(self, inputs: Sequence[ModelInput]) -> list[ImageDetections]:
        """The detections of one batch."""
        pixels = torch.from_numpy(np.stack([image.pixels for image in inputs])).to(self.device)
        with autocast(self._config, self.device):
            predictions = self._model(normalise(pixels.permute(0, 3, 1, 2)))
        detections = detect(
            predictions,
            score_threshold=self._config.score_threshold,
            nms_iou=self._config.nms_iou,
            max_per_class=self._config.max_per_class,
            max_per_image=self._config.max_per_image,
        )
        boxes_ltrb, scores, labels, counts = on_host(detections)
        sizes_px = torch.tensor([image.size_px for image in inputs])
        boxes_ltrb_px = boxes_ltrb * sizes_px.repeat(1, 2).unsqueeze(1)
        return [
            ImageDetections(boxes[:count], scores[:count], labels[:count], self._names(labels[:count]))
            for boxes, scores, labels, count in zip(boxes_ltrb_px, scores, labels, counts.tolist(), strict=True)
        ]

    def __repr__(self) -> str:
        return f"<SSD300-{self._model.backbone} of {len(self.categories)} classes on {self.device}>"

    def _names(self, labels: Tensor) -> list[str]:
        return [self.categories[label - 1][1] for label in labels.tolist()]


def _each_of(images: ImageLike | Iterable[ImageLike]) -> Iterator[ImageLike]:
    if isinstance(images, np.ndarray | Tensor):
        return iter(list(images) if images.ndim == 4 else [images])
    one = str | os.PathLike | bytes | bytearray | memoryview | Image.Image
    if isinstance(images, one) or is_file(images) or not isinstance(images, Iterable):
        return iter([cast(ImageLike, images)])  # `images.rgb_of` refuses what is none
    return iter(images)


def load_predictor(file: str | os.PathLike[str], config: Config) -> Predictor:
    """The detector of a checkpoint with config's device, precision and post-processing. Raises InputError for a file
    that is no checkpoint."""
    path = Path(file)
    content = conversion.load(path)
    return Predictor(checkpoint.build_model(content, path), [tuple(each) for each in content["categories"]], config)
