"""A trained detector for images as they come, by the steps and settings of the evaluation."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ssd.batch import Detections, EvalBatch, on_host, whole
from ssd.checkpoints import checkpoint, conversion
from ssd.config import Config
from ssd.detectors.names import family_of
from ssd.detectors.table import detect_several_of, detector_of, tta_of, tta_text, view_with
from ssd.detectors.tta.passes import TTA
from ssd.distributed import runs_on_gpu
from ssd.evaluation.detect import in_precision
from ssd.images import ImageLike, fitted, is_file, normalise, normalise_padded, resize, rgb_of
from ssd.masks import pasted_counts
from ssd.views import SquareView, StretchView, View, every_look, pastes_closed, placed_ltrb_px, scale_of_sides


class ImageDetections(NamedTuple):
    """What was found in one image, best score first; tensors on the CPU.

    boxes_ltrb_px: n x 4 float32 left, top, right, bottom in pixels of the image; of a file or PIL image, turned upright
    as its EXIF orientation says.
    scores: n float32 in [0, 1]. labels: n int64 in [1, K), as in `batch.Detections`. names: the labels' class names.
    masks: of a detector that finds them, n run lengths as COCO's files have them, {"size": [height, width], "counts":
    text}, which pycocotools.mask.decode takes. keypoints_px: of a detector that finds them, n x P x 3 float32: x, y and
    a score without bounds; NaN of classes that have no points.
    """

    boxes_ltrb_px: Tensor
    scores: Tensor
    labels: Tensor
    names: list[str]
    masks: list[dict[str, Any]] | None = None
    keypoints_px: Tensor | None = None


class ModelInput(NamedTuple):
    """An image as the view takes it: H x W x 3 uint8 RGB, the (width, height) that it had before, and the factor that
    both sides were scaled by, where it is one exactly. further: the view's further looks at it."""

    pixels: np.ndarray
    size_px: tuple[int, int]
    scale: float | None = None
    further: "tuple[ModelInput, ...]" = ()


def model_input(image: ImageLike, view: View) -> ModelInput:
    """The whole image, resized as in evaluation. Raises as `images.rgb_of`."""
    pixels = rgb_of(image)
    size_px = (pixels.shape[1], pixels.shape[0])
    if isinstance(view, SquareView):
        return ModelInput(resize(pixels, (view.size_px, view.size_px), antialias=view.antialias), size_px)
    if isinstance(view, StretchView):
        place = placed_ltrb_px(view, size_px)
        return ModelInput(fitted(pixels, place, view.size_px, antialias=view.antialias), size_px)
    looks = []
    for (in_px, scale), stretched_px in every_look(view, size_px):
        of_sides = scale_of_sides(scale, size_px, stretched_px)
        seen = resize(pixels, in_px, antialias=view.antialias, scale=of_sides)
        looks.append(ModelInput(seen, stretched_px or size_px, scale))
    return looks[0]._replace(further=tuple(looks[1:]))


def model_batch(inputs: Sequence[ModelInput], view: View, device: torch.device) -> EvalBatch:
    """Of several images, on the device."""
    indices = torch.arange(len(inputs))
    if isinstance(view, SquareView):
        pixels = torch.from_numpy(np.stack([image.pixels for image in inputs])).to(device)
        images = normalise(pixels.permute(0, 3, 1, 2), view.mean, view.std)
        return EvalBatch(images, whole(images), indices)
    images = normalise_padded([torch.from_numpy(image.pixels).to(device) for image in inputs], view)
    if isinstance(view, StretchView):
        return EvalBatch(images, torch.tensor([placed_ltrb_px(view, image.size_px) for image in inputs]), indices)
    placed = torch.tensor([(0, 0, image.pixels.shape[1], image.pixels.shape[0]) for image in inputs])
    scales = [image.scale for image in inputs if image.scale is not None]
    if not scales:
        return EvalBatch(images, placed, indices)
    stated_px = torch.tensor([image.size_px for image in inputs])
    return EvalBatch(images, placed, indices, torch.tensor(scales, dtype=torch.float64), stated_px)


class Predictor:
    """A model with its classes. Calls from several threads are not safe.

    categories: the (id, name) of the data set that it was trained on; label i + 1 is categories[i].
    """

    def __init__(
        self, model: nn.Module, categories: Sequence[tuple[int, str]], config: Config, tta: TTA | None = None
    ) -> None:
        """config.detector: the settings that the model was built with. tta: of these settings."""
        self.categories = list(categories)
        self.device = torch.device("cuda" if runs_on_gpu(config.device) else "cpu")
        self._model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        detector = detector_of(config.detector)
        self.view = view_with(config.detector, tta)
        self._judged_at = config.eval_batch_size
        self.tta, self.tta_text = tta, tta_text(config.detector, tta)
        self.skeleton = detector.skeleton(config.detector)
        self._title = detector.title(config.detector)
        self._forward = in_precision(self._model, config, self.device)
        self._detect = detect_several_of(config.detector, config.thresholds, tta)

    def __call__(
        self, images: ImageLike | Iterable[ImageLike], *, batch_size: int | None = None
    ) -> list[ImageDetections]:
        """The detections of each image.

        images: one or several of `images.ImageLike`, of any sizes, also a generator, of which a batch at a time is
        read; or a batch of them as one array B x H x W x 3 or tensor B x 3 x H x W. batch_size: how many go through the
        model at once; None is `usual_batch_size`.
        Raises InputError that names a file which is no image, ValueError for an array which is none,
        TypeError that says what to pass for anything else.
        """
        several, found = _each_of(images), []
        batch_size = batch_size or self.usual_batch_size
        while inputs := [model_input(image, self.view) for image in islice(several, batch_size)]:
            found += self.detect(inputs)
        return found

    @property
    def usual_batch_size(self) -> int:
        """8. With test-time augmentation 1, as each image is in memory in several sizes; and 1 of a detector that is
        judged at 1, as Detectron's: padding to the largest image of a batch changes scores."""
        return 1 if self.tta is not None or self._judged_at == 1 else 8

    @torch.no_grad()
    def detect(self, inputs: Sequence[ModelInput]) -> list[ImageDetections]:
        """The detections of one batch."""
        looks = zip(*((image, *image.further) for image in inputs), strict=True)
        batches = [model_batch(look, self.view, self.device) for look in looks]
        found = on_host(self._detect(self._forward, batches))
        return [self._of_image(found, place, image.size_px) for place, image in enumerate(inputs)]

    def _of_image(self, found: Detections, place: int, size_px: tuple[int, int]) -> ImageDetections:
        count = int(found.counts[place])
        boxes_ltrb, scores, labels = (part[place, :count] for part in found[:3])
        masks, keypoints = (None if part is None else part[place, :count] for part in found[4:])
        boxes_ltrb_px = boxes_ltrb * torch.tensor([*size_px, *size_px])
        rles = None
        if masks is not None:
            counts = pasted_counts(masks, boxes_ltrb_px, size_px, closed=pastes_closed(self.view))
            rles = [{"size": [size_px[1], size_px[0]], "counts": each.decode()} for each in counts]
        if keypoints is not None and self.skeleton is not None:
            keypoints = keypoints * torch.tensor([*size_px, 1])
            keypoints = torch.where(self.skeleton.are_of(labels).view(-1, 1, 1), keypoints, torch.nan)
        return ImageDetections(boxes_ltrb_px, scores, labels, self._names(labels), rles, keypoints)

    def __repr__(self) -> str:
        return f"<{self._title} of {len(self.categories)} classes on {self.device}>"

    def _names(self, labels: Tensor) -> list[str]:
        return [self.categories[label - 1][1] for label in labels.tolist()]


def _each_of(images: ImageLike | Iterable[ImageLike]) -> Iterator[ImageLike]:
    if isinstance(images, np.ndarray | Tensor):
        return iter(list(images) if images.ndim == 4 else [images])
    one = str | os.PathLike | bytes | bytearray | memoryview | Image.Image
    if isinstance(images, one) or is_file(images) or not isinstance(images, Iterable):
        return iter([cast(ImageLike, images)])  # `images.rgb_of` refuses what is none
    return iter(images)


def load_predictor(
    file: str | os.PathLike[str], config: Config, words: Sequence[str] = (), tta: bool | None = None
) -> Predictor:
    """The detector of a checkpoint with config's device, precision and score threshold, and the rest of the
    post-processing as its kind of detector has it. words: of --set. tta: as of `table.tta_of`. Raises InputError for a
    file that is no checkpoint, and for test-time augmentation that the detector has not."""
    path = Path(file)
    content = conversion.with_words(conversion.load(path), words)
    settings = checkpoint.settings_of(content)
    own = family_of(settings).defaults(settings)
    kept = {name: getattr(own, name) for name in ("nms_iou", "max_per_class", "max_per_image", "eval_batch_size")}
    config = replace(config, detector=settings, **kept)
    passes = tta_of(settings, tta)
    model = checkpoint.build_model(content, path)
    return Predictor(model, [tuple(each) for each in content["categories"]], config, passes)
