"""DALI's graphs, on GPU operators where there is a GPU and on CPU operators where there is none.

The training graph draws all that is random, reads, crops, decodes, resizes and matches. Colour, flip and normalisation
follow on the whole uint8 batch on the training device, as in the torch path. Without a GPU the resize does too: DALI's
CPU kernel takes 2.2 ms for what torch's vectorised one, with the same filter, does in 0.4.
"""

import hashlib
from typing import Any

from nvidia.dali import fn, pipeline_def, types
from nvidia.dali import math as dali_math
from nvidia.dali._utils import dali_trace

from pipelines import augmentation
from ssd.boxes import cxcywh_to_ltrb
from ssd.distributed import Ranks
from ssd.matching import MATCH_IOU, OFFSET_STDS
from ssd.views import SquareView

_COCO_SIDE_PX = 640
"""COCO's longest side: memory for such images is there before the first batch. Larger ones are decoded as well."""


def random_crop(boxes: Any, labels: Any) -> Any:
    """Crop anchor and shape as fractions of the image, and the boxes and labels that live in it."""
    return fn.random_bbox_crop(
        boxes,
        labels,
        bbox_layout="xyXY",
        thresholds=list(augmentation.CROP_MIN_IOUS),
        allow_no_crop=True,
        scaling=list(augmentation.CROP_SIDE),
        aspect_ratio=list(augmentation.CROP_ASPECT),
        num_attempts=augmentation.CROP_ATTEMPTS,
        total_num_attempts=augmentation.CROP_MAX_ROUNDS,
    )


def random_colour(hue_degrees: tuple[float, float] | None = None) -> Any:
    """The four numbers of `augmentation.random_colour`."""
    hue = hue_degrees or augmentation.HUE_DEGREES
    ranges = (hue, augmentation.SATURATION, augmentation.BRIGHTNESS, augmentation.CONTRAST)
    return fn.stack(*(fn.random.uniform(range=list(bounds)) for bounds in ranges))


def random_flip() -> Any:
    return fn.random.coin_flip(probability=augmentation.FLIP_PROBABILITY)


@pipeline_def(enable_checkpointing=True)
def train_graph(
    annotation_file: str, image_folder: str, shuffle_seed: int, ranks: Ranks, view: SquareView, upright: bool
) -> Any:
    encoded, boxes, labels, indices = fn.readers.coco(
        file_root=image_folder,
        annotations_file=annotation_file,
        image_ids=True,
        ratio=True,
        ltrb=True,
        skip_empty=True,
        # Unlike random_shuffle's buffer of 1024 samples this is a shuffle, and the same on all ranks.
        shuffle_after_epoch=True,
        shuffle_after_epoch_seed=shuffle_seed,
        shard_id=ranks.rank,
        num_shards=ranks.world_size,
        dont_use_mmap=True,  # a mapped file that is cut short would kill the process
        name="reader",
    )
    crop_anchor, crop_shape, boxes, labels = random_crop(boxes, labels)
    on_gpu = ranks.device.type == "cuda"
    if on_gpu:
        images = decode_on_gpu(encoded, upright=upright)
    else:
        images = fn.decoders.image_slice(
            encoded,
            crop_anchor,
            crop_shape,
            device="cpu",
            output_type=types.RGB,
            adjust_orientation=upright,
            jpeg_fancy_upsampling=True,
        )
    colour = random_colour(view.augmentation.hue_degrees)
    flip = random_flip()
    boxes = fn.bb_flip(boxes, ltrb=True, horizontal=flip)
    if on_gpu:
        images = crop_and_resize(encoded, images, crop_anchor, crop_shape, view, upright=upright)
        boxes, labels, colour, flip = boxes.gpu(), labels.gpu(), colour.gpu(), flip.gpu()
    offsets, labels = fn.box_encoder(
        boxes,
        labels,
        anchors=cxcywh_to_ltrb(view.defaults_cxcywh).flatten().tolist(),
        criteria=MATCH_IOU,
        offset=True,
        stds=list(OFFSET_STDS),
    )
    return images, colour, flip, offsets, labels, indices


def graph_digest(ranks: Ranks, view: SquareView, upright: bool = False) -> str:
    """Of the training graph's operators and their settings, but for what a run chooses. DALI takes up the state of
    another graph, or of another version, without a word and yields other data."""
    # A serialised graph also has the lines of code that it comes from.
    dali_trace.set_tracing(enabled=False)
    try:
        pipeline = train_graph(
            annotation_file="",
            image_folder="",
            shuffle_seed=0,
            ranks=Ranks(0, 0, 1, ranks.device),
            view=view,
            upright=upright,
            batch_size=1,
            num_threads=1,
            seed=0,
            device_id=None,  # it would be part of the digest, and all ranks resume from rank 0's checkpoint
        )
        return hashlib.sha256(pipeline.serialize()).hexdigest()[:16]
    finally:
        dali_trace.set_tracing(enabled=True)


@pipeline_def
def eval_graph(annotation_file: str, image_folder: str, ranks: Ranks, view: SquareView, upright: bool) -> Any:
    encoded, _, _, indices = fn.readers.coco(
        file_root=image_folder,
        annotations_file=annotation_file,
        image_ids=True,
        stick_to_shard=True,
        shard_id=ranks.rank,
        num_shards=ranks.world_size,
        pad_last_batch=True,
        dont_use_mmap=True,  # a mapped file that is cut short would kill the process
        name="reader",
    )
    if ranks.device.type == "cuda":
        return resize(decode_on_gpu(encoded, upright=upright), view.size_px, antialias=view.antialias), indices
    images = fn.decoders.image(
        encoded, device="cpu", output_type=types.RGB, adjust_orientation=upright, jpeg_fancy_upsampling=True
    )
    return images, indices


def decode_on_gpu(encoded: Any, *, upright: bool) -> Any:
    """Whole images. The GPU's JPEG decoders refuse to decode a region of an image whose chroma is subsampled, unless
    the chroma may be upsampled coarsely, and DALI would then decode it on the CPU."""
    return fn.decoders.image(
        encoded,
        device="mixed",
        output_type=types.RGB,
        adjust_orientation=upright,
        jpeg_fancy_upsampling=True,
        preallocate_width_hint=_COCO_SIDE_PX,
        preallocate_height_hint=_COCO_SIDE_PX,
    )


def crop_and_resize(
    encoded: Any, images: Any, anchor: Any, shape: Any, view: SquareView, *, upright: bool = False
) -> Any:
    """The pixels of `decoders.image_slice` and `resize`, of images that were decoded whole.

    anchor, shape: (x, y) and (width, height) as fractions. The edges are rounded to pixels as the slice rounds them:
    unrounded, the pixels would differ by 2/255 on average.
    """
    height_width = fn.cast(fn.peek_image_shape(encoded, adjust_orientation=upright)[0:2], dtype=types.FLOAT)
    start, extent = (fn.stack(pair[1], pair[0]) for pair in (anchor, shape))
    start_px = dali_math.floor(start * height_width + 0.5)
    end_px = dali_math.max(dali_math.floor((start + extent) * height_width + 0.5), start_px + 1)
    return resize(images, view.size_px, antialias=view.augmentation.antialias, roi_start=start_px, roi_end=end_px)


def resize(images: Any, size_px: int, *, antialias: bool = True, **region: Any) -> Any:
    """To a square, bilinear: the filter of `ssd.images.resize`."""
    return fn.resize(
        images,
        size=[size_px, size_px],
        interp_type=types.INTERP_LINEAR,
        antialias=antialias,
        **region,
    )
