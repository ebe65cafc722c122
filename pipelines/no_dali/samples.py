"""One image at a time: read, cropped, resized, with what is to be done to it yet."""

from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from pipelines import augmentation
from pipelines.annotations import Annotations
from pipelines.readers.scan import read_image
from ssd.images import resize
from ssd.views import SquareView


class Sample(NamedTuple):
    """One cropped and resized image, and what is to be done to it yet.

    pixels: S x S x 3 uint8. colour: 4 of `random_colour`. flip: whether to mirror the pixels, as the boxes are.
    boxes_ltrb: n x 4 float32. labels: n int64. image_id: the data set's own.
    """

    pixels: np.ndarray
    colour: np.ndarray
    flip: bool
    boxes_ltrb: np.ndarray
    labels: np.ndarray
    image_id: int


class TrainSamples(Dataset[Sample]):
    """Augmented samples by (pass through the images, image index)."""

    def __init__(self, annotations: Annotations, seed: int, view: SquareView):
        self.annotations = annotations
        self.seed = seed
        self.size_px = (view.size_px, view.size_px)
        self.settings = view.augmentation

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        number, index = key
        rng = np.random.default_rng((self.seed, number, index))
        rows = self.annotations.boxes_of(index)
        trains = ~self.annotations.is_crowd[rows]
        boxes_ltrb, labels = self.annotations.boxes_ltrb[rows][trains], self.annotations.labels[rows][trains]

        crop = augmentation.random_crop(boxes_ltrb, rng)
        image = read_image(self.annotations, index)
        left, top, right, bottom = augmentation.window_px(crop.window_ltrb, image.shape[1], image.shape[0])
        pixels = resize(image[top:bottom, left:right], self.size_px, antialias=self.settings.antialias)
        boxes_ltrb = crop.boxes_ltrb
        flip = augmentation.random_flip(rng)
        if flip:
            left, top, right, bottom = boxes_ltrb.T
            boxes_ltrb = np.stack([1 - right, top, 1 - left, bottom], axis=1)
        colour = augmentation.random_colour(rng, self.settings.hue_degrees)
        return Sample(pixels, colour, flip, boxes_ltrb, labels[crop.kept], int(self.annotations.image_ids[index]))


class EvalSamples(Dataset[tuple[int, np.ndarray]]):
    """(image index, the whole image resized to S x S x 3 uint8)."""

    def __init__(self, annotations: Annotations, view: SquareView):
        self.annotations = annotations
        self.size_px = (view.size_px, view.size_px)
        self.antialias = view.antialias

    def __getitem__(self, index: int) -> tuple[int, np.ndarray]:
        return index, resize(read_image(self.annotations, index), self.size_px, antialias=self.antialias)
