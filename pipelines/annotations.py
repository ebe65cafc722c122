"""A split of a data set as the data paths and evaluation take it, whichever reader it comes from: all of it clean."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipelines.box_counts import BoxCounts
from pipelines.object_parts import Keypoints, Masks
from ssd.batch import GroundTruth
from ssd.errors import InputError

MAX_IMAGE_SIDE_PX = 65_535
"""JPEG's limit. It also keeps a box of the smallest side from vanishing in float32."""


MIN_TRAINED_SIDE_PX = 4
"""A random crop, 0.3 of a side at the least, must hold a pixel of it; DALI's decoder dies over one that does not."""


HELD_OUT_SHARE = 0.2
"""Of the images of a data set's only split, to judge by."""
_HELD_OUT_SEED = "1"


class Category(NamedTuple):
    """One kind of object, with the file's own id, which may have gaps."""

    id: int
    name: str


@dataclass(frozen=True, eq=False)
class Annotations:
    """One split of a data set: N images, M boxes grouped by image, K classes. Images keep the file's order."""

    file: Path
    """What it was read from: COCO's JSON, or VOC's list of images."""
    image_folder: Path
    categories: tuple[Category, ...]
    """In the file's order: category i has label i + 1, and 0 is background."""
    image_ids: np.ndarray
    """N int64, as in the file."""
    file_names: list[str]
    """N, relative to `image_folder`, '/' between folders; each exists and lies inside it."""
    sizes_px: np.ndarray
    """N x 2 int32, (width, height), 1..MAX_IMAGE_SIDE_PX."""
    box_starts: np.ndarray
    """N + 1 int64: image i has the rows box_starts[i]:box_starts[i + 1] of what follows, in the file's order."""
    boxes_ltrb: np.ndarray
    """M x 4 float32 in [0, 1] of the image's size, clipped to it, left < right and top < bottom."""
    boxes_xywh_px: np.ndarray
    """M x 4 float64, finite, as the file states them: evaluation needs the original numbers."""
    areas_px: np.ndarray
    """M float64, finite: `area` of the file (in COCO, of the mask), width x height where it states no finite one."""
    labels: np.ndarray
    """M int64, 1..K-1."""
    is_crowd: np.ndarray
    """M bool: the box holds a group of objects, to be ignored rather than learned."""
    annotation_ids: np.ndarray
    """M int64, unique and positive: the file's, or numbered from 1 where it lacks any or has one below 1."""
    repaired_rows: dict[str, np.ndarray]
    """Rows of the file's 'annotations', by what was done to their boxes: {"zero-size boxes dropped": [4, 17]}."""
    states_sizes: bool = True
    """False where the sizes are the images' own, because the files state none."""
    is_upright: bool = False
    """Whether EXIF turns the images before use; `sizes_px` and boxes are those of the turned ones then."""
    was_looked_at: bool = False
    """Whether the heads of all images that will be read were looked at, see `pipelines.exif`."""
    box_counts: BoxCounts = BoxCounts()
    """Of the boxes that the file states, also of those that were dropped and of images left out."""
    mended: dict[str, int] = field(default_factory=dict)
    """What was written in another way and read all the same, and how often: {"sizes read from the images": 7}."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Names of the images that `without` took out, by what is wrong with them, such as {"missing": ["b.jpg"]}."""
    masks: Masks | None = None
    """Of the M objects, where a detector asks for them, and so with the keypoints."""
    keypoints: Keypoints | None = None

    def __len__(self) -> int:
        return len(self.file_names)

    @property
    def num_classes(self) -> int:
        """K: the categories and the background."""
        return len(self.categories) + 1

    @property
    def num_left_out(self) -> int:
        return sum(map(len, self.left_out.values()))

    @property
    def repairs(self) -> dict[str, int]:
        """What was dropped, clipped or left out and how often, such as {"zero-size boxes dropped": 2}."""
        boxes = {what: len(rows) for what, rows in self.repaired_rows.items()}
        return boxes | {f"{what} images left out": len(names) for what, names in self.left_out.items()}

    @property
    def repairs_text(self) -> str:
        """One line to warn with, or '' when the file needed no repair."""
        counts = ", ".join(f"{what}: {count}" for what, count in self.repairs.items())
        return counts and f"{self.file}: {counts}"

    @property
    def mended_text(self) -> str:
        """One line to note, or '' when all was written as the strict reader takes it."""
        counts = ", ".join(f"{what}: {count}" for what, count in self.mended.items())
        return counts and f"{self.file}: {counts}"

    def fingerprint(self) -> str:
        """A digest of all that training sees of the split, but for the pixels."""
        digest = hashlib.sha256("\n".join(self.file_names).encode(errors="surrogatepass"))
        for array in (self.sizes_px, self.box_starts, self.boxes_ltrb, self.labels, self.is_crowd):
            digest.update(array.tobytes())
        if (trains := self.trains()).sum() < (~self.is_crowd).sum():
            digest.update(trains.tobytes())
        if self.is_upright:
            digest.update(b"upright")
        if self.masks is not None:
            for array in (self.masks.row_starts, self.masks.starts, self.masks.numbers, self.masks.is_rle):
                digest.update(array.tobytes())
        if self.keypoints is not None:
            digest.update(repr(self.keypoints.skeleton).encode(errors="surrogatepass"))
            digest.update(self.keypoints.points.tobytes())
        return digest.hexdigest()[:16]

    def boxes_of(self, i: int) -> slice:
        """The rows of image i (an index, not an id) in the arrays of boxes."""
        return slice(int(self.box_starts[i]), int(self.box_starts[i + 1]))

    def trainable_indices(self, *, with_empty: bool = False) -> np.ndarray:
        """Int64 indices, ascending, of the images with a box to learn from; with_empty: and of those without, which
        teach what is no object."""
        if with_empty:
            return np.flatnonzero(self.sizes_px.min(axis=1) >= MIN_TRAINED_SIDE_PX)
        return np.unique(self.image_of_box()[self.trains()])

    def trains(self) -> np.ndarray:
        """M bool: the boxes to learn from, no crowd regions, and of images with MIN_TRAINED_SIDE_PX or more a side."""
        is_large = self.sizes_px.min(axis=1) >= MIN_TRAINED_SIDE_PX
        return ~self.is_crowd & is_large[self.image_of_box()]

    def without(self, bad_images: dict[str, str]) -> "Annotations":
        """This split less some images and their boxes. bad_images: file name -> what is wrong, such as "unreadable".

        Names that are not in the split (any more) are noted in `left_out` like the others.
        """
        kept = np.array([name not in bad_images for name in self.file_names], dtype=bool)
        left_out = {what: list(names) for what, names in self.left_out.items()}
        for name, what in bad_images.items():
            left_out.setdefault(what, []).append(name)
        return replace(self._only(kept), left_out=left_out)

    def part(self, which: str) -> "Annotations":
        """Of a split to train on and to judge by: "val" is HELD_OUT_SHARE of its images, "train" the others.

        Which images those are depends on their names alone: more images later leave most where they are.
        """
        if len(self) < 2:
            raise InputError(
                f"{self.file}: has one image, of which none can be held out; pass --val-split with another"
            )
        draws = [
            hashlib.blake2b(f"{_HELD_OUT_SEED} {name}".encode(errors="surrogatepass")).digest()
            for name in self.file_names
        ]
        order = sorted(range(len(self)), key=draws.__getitem__)
        held_out = np.zeros(len(self), dtype=bool)
        held_out[order[: max(1, round(HELD_OUT_SHARE * len(self)))]] = True
        return self._only(held_out if which == "val" else ~held_out)

    def spread(self, count: int) -> "Annotations":
        """So many of its images, evenly spread over it; all of them where it has no more."""
        kept = np.zeros(len(self), dtype=bool)
        kept[np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int)] = True
        return self._only(kept)

    def _only(self, kept: np.ndarray) -> "Annotations":
        """kept: N bool."""
        rows = kept[self.image_of_box()]
        return replace(
            self,
            image_ids=self.image_ids[kept],
            file_names=[self.file_names[index] for index in np.flatnonzero(kept)],
            sizes_px=self.sizes_px[kept],
            box_starts=np.concatenate([[0], np.cumsum(np.diff(self.box_starts)[kept])]).astype(np.int64),
            boxes_ltrb=self.boxes_ltrb[rows],
            boxes_xywh_px=self.boxes_xywh_px[rows],
            areas_px=self.areas_px[rows],
            labels=self.labels[rows],
            is_crowd=self.is_crowd[rows],
            annotation_ids=self.annotation_ids[rows],
            masks=None if self.masks is None else self.masks.take(np.flatnonzero(rows)),
            keypoints=None if self.keypoints is None else self.keypoints.take(np.flatnonzero(rows)),
        )

    def ground_truth(self) -> GroundTruth:
        """What evaluation needs of this split."""
        return GroundTruth(
            image_ids=self.image_ids,
            sizes_px=self.sizes_px,
            category_ids=[category.id for category in self.categories],
            category_names=[category.name for category in self.categories],
            dataset=self.coco_dataset(),
            skeleton=None if self.keypoints is None else self.keypoints.skeleton,
        )

    def coco_dataset(self) -> dict[str, list[dict[str, Any]]]:
        """The data set as pycocotools wants it: all images, original ids, unclipped boxes; without what was dropped.

        Assign it to `COCO().dataset` and call `createIndex()`.
        """
        category_ids = np.array([category.id for category in self.categories], dtype=np.int64)
        columns = {
            "id": self.annotation_ids,
            "image_id": self.image_ids[self.image_of_box()],
            "category_id": category_ids[self.labels - 1],
            "bbox": self.boxes_xywh_px,
            "area": self.areas_px,
            "iscrowd": self.is_crowd.astype(np.int64),
        }
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        images = zip(self.image_ids.tolist(), self.file_names, self.sizes_px.tolist(), strict=True)
        annotations: list[dict[str, Any]] = [dict(zip(columns, row, strict=True)) for row in rows]
        self._add_parts(annotations)
        return {
            "images": [{"id": id, "file_name": name, "width": w, "height": h} for id, name, (w, h) in images],
            "annotations": annotations,
            "categories": [category._asdict() for category in self.categories],
        }

    def _add_parts(self, annotations: list[dict[str, Any]]) -> None:
        """Puts masks and keypoints, as COCO states them, to its annotations."""
        if self.masks is not None:
            sizes_px = self.sizes_px[self.image_of_box()].tolist()
            for i, (annotation, (width, height)) in enumerate(zip(annotations, sizes_px, strict=True)):
                annotation["segmentation"] = self.masks.segmentation(i, (width, height))
        if self.keypoints is not None:
            for annotation, points in zip(annotations, self.keypoints.points, strict=True):
                annotation["keypoints"] = points.ravel().tolist()
                annotation["num_keypoints"] = int((points[:, 2] > 0).sum())

    def image_of_box(self) -> np.ndarray:
        """M int64: the index of each box's image."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.box_starts))
