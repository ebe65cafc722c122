"""The DALI data path: one graph, on GPU operators where there is a GPU and on CPU operators where there is none.

The graph draws all that is random, reads, crops, decodes, resizes and matches. Colour, flip and normalisation follow on
the whole uint8 batch on the training device, as in the torch path. Without a GPU the resize does too: DALI's CPU kernel
takes 2.2 ms for what torch's vectorised one, with the same filter, does in 0.4.

DALI never sees the user's annotation file. It crashes on some malformed ones and misreads others without a word, so it
gets a file of its own with what `pipelines.annotations` passed: clipped boxes, no crowd regions, image numbers for ids.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import nvidia.dali
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali import math as dali_math
from nvidia.dali._utils import dali_trace
from nvidia.dali.plugin.base_iterator import LastBatchPolicy
from nvidia.dali.plugin.pytorch import DALIRaggedIterator
from torch import Tensor

from pipelines import augmentation
from pipelines.annotations import Annotations
from pipelines.augmentation import Augmentation
from pipelines.readers.scan import read_image, require_headers
from ssd import images as ssd_images
from ssd.batch import IMAGE_SIZE_PX, Batch, EvalBatch
from ssd.detectors.ssd300 import anchors
from ssd.distributed import Ranks
from ssd.errors import InputError

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
def _train_graph(
    annotation_file: str, image_folder: str, shuffle_seed: int, ranks: Ranks, settings: Augmentation
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
        images = _decode_on_gpu(encoded)
    else:
        images = fn.decoders.image_slice(
            encoded,
            crop_anchor,
            crop_shape,
            device="cpu",
            output_type=types.RGB,
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,
        )
    colour = random_colour(settings.hue_degrees)
    flip = random_flip()
    boxes = fn.bb_flip(boxes, ltrb=True, horizontal=flip)
    if on_gpu:
        images = crop_and_resize(encoded, images, crop_anchor, crop_shape, antialias=settings.antialias)
        boxes, labels, colour, flip = boxes.gpu(), labels.gpu(), colour.gpu(), flip.gpu()
    offsets, labels = fn.box_encoder(
        boxes,
        labels,
        anchors=anchors.default_boxes_ltrb().flatten().tolist(),
        criteria=anchors.MATCH_IOU,
        offset=True,
        stds=list(anchors.OFFSET_STDS),
    )
    return images, colour, flip, offsets, labels, indices


def _graph_digest(ranks: Ranks, settings: Augmentation) -> str:
    """Of the training graph's operators and their settings, but for what a run chooses. DALI takes up the state of
    another graph, or of another version, without a word and yields other data."""
    # A serialised graph also has the lines of code that it comes from.
    dali_trace.set_tracing(enabled=False)
    try:
        pipeline = _train_graph(
            annotation_file="",
            image_folder="",
            shuffle_seed=0,
            ranks=Ranks(0, 0, 1, ranks.device),
            settings=settings,
            batch_size=1,
            num_threads=1,
            seed=0,
            device_id=None,  # it would be part of the digest, and all ranks resume from rank 0's checkpoint
        )
        return hashlib.sha256(pipeline.serialize()).hexdigest()[:16]
    finally:
        dali_trace.set_tracing(enabled=True)


@pipeline_def
def _eval_graph(annotation_file: str, image_folder: str, ranks: Ranks) -> Any:
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
        return resize(_decode_on_gpu(encoded)), indices
    images = fn.decoders.image(
        encoded, device="cpu", output_type=types.RGB, adjust_orientation=False, jpeg_fancy_upsampling=True
    )
    return images, indices


def _decode_on_gpu(encoded: Any) -> Any:
    """Whole images. The GPU's JPEG decoders refuse to decode a region of an image whose chroma is subsampled, unless
    the chroma may be upsampled coarsely, and DALI would then decode it on the CPU."""
    return fn.decoders.image(
        encoded,
        device="mixed",
        output_type=types.RGB,
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,
        preallocate_width_hint=_COCO_SIDE_PX,
        preallocate_height_hint=_COCO_SIDE_PX,
    )


def crop_and_resize(encoded: Any, images: Any, anchor: Any, shape: Any, *, antialias: bool) -> Any:
    """The pixels of `decoders.image_slice` and `resize`, of images that were decoded whole.

    anchor, shape: (x, y) and (width, height) as fractions. The edges are rounded to pixels as the slice rounds them:
    unrounded, the pixels would differ by 2/255 on average.
    """
    height_width = fn.cast(fn.peek_image_shape(encoded, adjust_orientation=False)[0:2], dtype=types.FLOAT)
    start, extent = (fn.stack(pair[1], pair[0]) for pair in (anchor, shape))
    start_px = dali_math.floor(start * height_width + 0.5)
    end_px = dali_math.max(dali_math.floor((start + extent) * height_width + 0.5), start_px + 1)
    return resize(images, antialias=antialias, roi_start=start_px, roi_end=end_px)


def resize(images: Any, *, antialias: bool = True, **region: Any) -> Any:
    """To 300 x 300, bilinear: the filter of `ssd.images.resize`."""
    return fn.resize(
        images,
        size=[IMAGE_SIZE_PX, IMAGE_SIZE_PX],
        interp_type=types.INTERP_LINEAR,
        antialias=antialias,
        **region,
    )


def _pixels(images: Tensor | list[Tensor], *, antialias: bool = True) -> Tensor:
    """The graph's images as B x 300 x 300 x 3 uint8: on a GPU they are; on a CPU they come in a list, of any size."""
    if isinstance(images, Tensor):
        return images
    return torch.from_numpy(np.stack([ssd_images.resize(image.numpy(), antialias=antialias) for image in images]))


def _write_clean_file(annotations: Annotations, file: Path, *, with_boxes: bool) -> None:
    """A COCO file for DALI's reader. Image i has id i, and boxes are inside the image also in DALI's float32."""
    trains = annotations.trains() if with_boxes else np.zeros(len(annotations.labels), dtype=bool)
    images = annotations.image_of_box()[trains]
    boxes_xywh_px = _xywh_px_inside(annotations.boxes_ltrb[trains], annotations.sizes_px[images])
    sizes_and_names = zip(annotations.sizes_px, annotations.file_names, strict=True)
    tables: dict[str, Iterator[dict[str, Any]]] = {
        "images": (
            {"id": i, "width": int(width), "height": int(height), "file_name": name}
            for i, ((width, height), name) in enumerate(sizes_and_names)
        ),
        "categories": ({"id": i, "name": category.name} for i, category in enumerate(annotations.categories, start=1)),
        "annotations": (
            {"image_id": int(image), "category_id": int(label), "bbox": box.tolist(), "iscrowd": 0}
            for image, label, box in zip(images, annotations.labels[trains], boxes_xywh_px, strict=True)
        ),
    }
    with file.open("w") as stream:
        # Row by row: all rows of COCO as Python's objects take 800 MB, on every rank.
        for start, (name, rows) in zip("{,,", tables.items(), strict=True):
            stream.write(f'{start} "{name}": [')
            stream.writelines(f"{', ' * (i > 0)}{json.dumps(row)}" for i, row in enumerate(rows))
            stream.write("]")
        stream.write("}")


def _xywh_px_inside(boxes_ltrb: np.ndarray, sizes_px: np.ndarray) -> np.ndarray:
    """n x 4 ltrb in [0, 1] and n x 2 sizes -> n x 4 float32 xywh pixels with (x + w) / width <= 1 in float32.

    random_bbox_crop aborts on a box that leaves the image, if only by a rounding.
    """
    sizes = sizes_px.astype(np.float32)
    left_top = boxes_ltrb[:, :2] * sizes
    width_height = boxes_ltrb[:, 2:] * sizes - left_top
    while (outside := (left_top + width_height) / sizes > 1).any():
        width_height[outside] = np.nextafter(width_height[outside], np.float32(0))
    return np.concatenate([left_top, width_height], axis=1)


def _device_id(ranks: Ranks) -> int | None:
    return ranks.local_rank if ranks.device.type == "cuda" else None


def build_pipeline(graph: Any, annotations: Annotations, *, with_boxes: bool, ranks: Ranks, **arguments: Any) -> Any:
    """The graph as a built pipeline; the file that its reader parses is gone by then."""
    _require_utf8(annotations)
    # DALI 2.4's CPU decoder can take the process down with it over a file that is no image at all.
    images = annotations.trainable_indices() if with_boxes else np.arange(len(annotations))
    require_headers(annotations, images[ranks.rank :: ranks.world_size])
    if len(images) < ranks.world_size:
        raise InputError(
            f"{annotations.file}: {len(images)} images cannot be shared by {ranks.world_size} ranks of DALI; "
            "start fewer, or pass --data_pipeline no_dali"
        )
    with tempfile.TemporaryDirectory(prefix="ssd-annotations-") as folder:
        file = Path(folder) / "instances.json"
        _write_clean_file(annotations, file, with_boxes=with_boxes)
        pipeline = graph(
            annotation_file=str(file),
            image_folder=str(annotations.image_folder),
            ranks=ranks,
            device_id=_device_id(ranks),
            **arguments,
        )
        pipeline.build()
        # The reader parses its file when it first runs.
        pipeline.reader_meta("reader")
    return pipeline


def _require_utf8(annotations: Annotations) -> None:
    """Raises InputError for a name that is no UTF-8, in which Python has single surrogates; DALI takes none."""
    for name in (str(annotations.image_folder), *annotations.file_names):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{name}: this name is no UTF-8, and DALI cannot read it; rename it, or pass --data_pipeline no_dali"
            ) from None


def _iterator(pipeline: Any, names: list[str], ranks: Ranks, **arguments: Any) -> DALIRaggedIterator:
    """Tensors by name; "images" as a list of tensors where they have not been resized yet."""
    kinds = [
        DALIRaggedIterator.SPARSE_LIST_TAG
        if name == "images" and ranks.device.type != "cuda"
        else DALIRaggedIterator.DENSE_TAG
        for name in names
    ]
    # The first batch is left to the first step, where `_outputs` explains what goes wrong.
    return DALIRaggedIterator(pipeline, names, output_types=kinds, prepare_first_batch=False, **arguments)


def _outputs(iterator: Any, annotations: Annotations) -> Iterator[dict[str, Any]]:
    """The iterator's outputs. DALI does not name the file it failed on, so then they are read again."""
    try:
        for (output,) in iterator:
            yield output
    except RuntimeError:
        print("DALI failed; reading the images again to find the one it could not read", file=sys.stderr)
        for index in range(len(annotations)):
            read_image(annotations, index)
        raise


class TrainLoader:
    """See `ssd.batch.TrainLoader` for the contract. num_workers: DALI's threads."""

    ranks_share_state = False

    def __init__(
        self,
        annotations: Annotations,
        *,
        batch_size: int,
        num_workers: int,
        seed: int,
        ranks: Ranks,
        settings: Augmentation,
    ):
        self._annotations, self._settings = annotations, settings
        self._batch_size, self._num_threads, self._seed = batch_size, max(1, num_workers), seed
        self._ranks = ranks
        self._start = 0
        self._checkpoint: bytes | None = None
        self._restored = b""
        self.identity = {"dali": nvidia.dali.__version__, "graph": _graph_digest(ranks, settings)}
        self._iterator: Any = None
        self.steps_per_epoch = -(-len(annotations.trainable_indices()) // (batch_size * ranks.world_size))

    def batches(self, first_step: int) -> Iterator[Batch]:
        # Going on without a state must not repeat the beginning's order and crops; going on with one needs the seeds
        # that its run had.
        if self._checkpoint is None:
            self._start = first_step
        seeds = (
            np.random.SeedSequence((self._seed, self._start)).generate_state(1 + self._ranks.world_size) >> 1
        )  # 31 bits
        pipeline = build_pipeline(
            _train_graph,
            self._annotations,
            with_boxes=True,
            ranks=self._ranks,
            batch_size=self._batch_size,
            num_threads=self._num_threads,
            shuffle_seed=int(seeds[0]),
            settings=self._settings,
            seed=int(seeds[1 + self._ranks.rank]),
            checkpoint=self._checkpoint,
        )
        names = ["images", "colour", "flip", "offsets", "labels", "indices"]
        self._iterator = _iterator(pipeline, names, self._ranks, size=-1)  # never ends
        for output in _outputs(self._iterator, self._annotations):
            pixels = _pixels(output["images"], antialias=self._settings.antialias)
            images = augmentation.finish(pixels, output["colour"], output["flip"], self._settings.contrast_centre)
            image_ids = torch.from_numpy(self._annotations.image_ids[output["indices"].flatten().cpu().numpy()])
            yield Batch(images, output["offsets"], output["labels"].long(), image_ids)

    def state(self) -> bytes:
        if self._iterator is None:
            return self._restored
        (checkpoint,) = self._iterator.checkpoints()
        return self._start.to_bytes(8) + checkpoint

    def restore(self, state: bytes) -> None:
        self._restored = state
        if state:
            self._start, self._checkpoint = int.from_bytes(state[:8]), state[8:]


class EvalLoader:
    """See `ssd.batch.EvalLoader` for the contract."""

    def __init__(self, annotations: Annotations, *, batch_size: int, num_workers: int, ranks: Ranks):
        self._annotations = annotations
        pipeline = build_pipeline(
            _eval_graph,
            annotations,
            with_boxes=False,
            ranks=ranks,
            batch_size=batch_size,
            num_threads=max(1, num_workers),
        )
        self._iterator = _iterator(
            pipeline,
            ["images", "indices"],
            ranks,
            reader_name="reader",
            last_batch_policy=LastBatchPolicy.PARTIAL,
            auto_reset=True,
        )

    def __iter__(self) -> Iterator[EvalBatch]:
        for output in _outputs(self._iterator, self._annotations):
            if len(output["indices"]) == 0:  # a rank with fewer images than others has a batch of padding at the end
                continue
            images = ssd_images.normalise(_pixels(output["images"]).permute(0, 3, 1, 2))
            yield EvalBatch(images, output["indices"].flatten().long().cpu())
