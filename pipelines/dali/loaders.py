"""The DALI data path: batches out of its graphs, errors by name, and what resumes them."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import nvidia.dali
import torch
from nvidia.dali.plugin.base_iterator import LastBatchPolicy
from nvidia.dali.plugin.pytorch import DALIRaggedIterator
from torch import Tensor

from pipelines import augmentation
from pipelines.annotations import Annotations
from pipelines.dali.clean_file import require_utf8, write_clean_file
from pipelines.dali.graph import eval_graph, graph_digest, train_graph
from pipelines.readers.scan import read_image
from ssd import images as ssd_images
from ssd.batch import EvalBatch, MatchedBatch, whole
from ssd.console import say_on_stderr
from ssd.distributed import Ranks
from ssd.errors import InputError
from ssd.views import SquareView


def _pixels(images: Tensor | list[Tensor], size_px: int, *, antialias: bool = True) -> Tensor:
    """The graph's images as B x S x S x 3 uint8: on a GPU they are; on a CPU they come in a list, of any size."""
    if isinstance(images, Tensor):
        return images
    resized = [ssd_images.resize(image.numpy(), (size_px, size_px), antialias=antialias) for image in images]
    return torch.from_numpy(np.stack(resized))


def _device_id(ranks: Ranks) -> int | None:
    return ranks.local_rank if ranks.device.type == "cuda" else None


def build_pipeline(graph: Any, annotations: Annotations, *, with_boxes: bool, ranks: Ranks, **arguments: Any) -> Any:
    """The graph as a built pipeline; the file that its reader parses is gone by then."""
    require_utf8(annotations)
    # DALI 2.4's CPU decoder can take the process down with it over a file that is no image at all.
    assert annotations.was_looked_at
    images = annotations.trainable_indices() if with_boxes else np.arange(len(annotations))
    if len(images) < ranks.world_size:
        raise InputError(
            f"{annotations.file}: {len(images)} images cannot be shared by {ranks.world_size} ranks of DALI; "
            "start fewer, or pass --data_pipeline no_dali"
        )
    with tempfile.TemporaryDirectory(prefix="ssd-annotations-") as folder:
        file = Path(folder) / "instances.json"
        write_clean_file(annotations, file, with_boxes=with_boxes)
        pipeline = graph(
            annotation_file=str(file),
            image_folder=str(annotations.image_folder),
            upright=annotations.is_upright,
            ranks=ranks,
            device_id=_device_id(ranks),
            **arguments,
        )
        pipeline.build()
        # The reader parses its file when it first runs.
        pipeline.reader_meta("reader")
    return pipeline


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
        say_on_stderr("DALI failed; reading the images again to find the one it could not read")
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
        view: SquareView,
    ):
        self._annotations, self._view = annotations, view
        self._batch_size, self._num_threads, self._seed = batch_size, max(1, num_workers), seed
        self._ranks = ranks
        self._start = 0
        self._checkpoint: bytes | None = None
        self._restored = b""
        self.identity = {
            "dali": nvidia.dali.__version__,
            "graph": graph_digest(ranks, view, annotations.is_upright),
        }
        self._iterator: Any = None
        self.steps_per_epoch = -(-len(annotations.trainable_indices()) // (batch_size * ranks.world_size))

    def batches(self, first_step: int) -> Iterator[MatchedBatch]:
        # Going on without a state must not repeat the beginning's order and crops; going on with one needs the seeds
        # that its run had.
        if self._checkpoint is None:
            self._start = first_step
        seeds = (
            np.random.SeedSequence((self._seed, self._start)).generate_state(1 + self._ranks.world_size) >> 1
        )  # 31 bits
        pipeline = build_pipeline(
            train_graph,
            self._annotations,
            with_boxes=True,
            ranks=self._ranks,
            batch_size=self._batch_size,
            num_threads=self._num_threads,
            shuffle_seed=int(seeds[0]),
            view=self._view,
            seed=int(seeds[1 + self._ranks.rank]),
            checkpoint=self._checkpoint,
        )
        settings = self._view.augmentation
        names = ["images", "colour", "flip", "offsets", "labels", "indices"]
        self._iterator = _iterator(pipeline, names, self._ranks, size=-1)  # never ends
        for output in _outputs(self._iterator, self._annotations):
            pixels = _pixels(output["images"], self._view.size_px, antialias=settings.antialias)
            images = augmentation.finish(
                pixels,
                output["colour"],
                output["flip"],
                settings.contrast_centre,
                mean=self._view.mean,
                std=self._view.std,
            )
            image_ids = torch.from_numpy(self._annotations.image_ids[output["indices"].flatten().cpu().numpy()])
            yield MatchedBatch(images, output["offsets"], output["labels"].long(), image_ids)

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

    def __init__(self, annotations: Annotations, *, batch_size: int, num_workers: int, ranks: Ranks, view: SquareView):
        self._annotations, self._view = annotations, view
        pipeline = build_pipeline(
            eval_graph,
            annotations,
            with_boxes=False,
            ranks=ranks,
            batch_size=batch_size,
            num_threads=max(1, num_workers),
            view=view,
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
            pixels = _pixels(output["images"], self._view.size_px, antialias=self._view.antialias)
            images = ssd_images.normalise(pixels.permute(0, 3, 1, 2), self._view.mean, self._view.std)
            yield EvalBatch(images, whole(images), output["indices"].flatten().long().cpu())
