"""The two data paths, "dali" and "no_dali": loaders with one contract, chosen by name once.

The contracts are `ssd.batch.TrainLoader` and `ssd.batch.EvalLoader`; a test holds the paths against each other.
"""

from types import ModuleType
from typing import Any

import numpy as np

from pipelines import plausibility
from pipelines.annotations import Annotations
from pipelines.exif import look_at_images
from pipelines.ragged.learned import shown_indices
from ssd.batch import EvalLoader, TrainLoader
from ssd.distributed import Ranks
from ssd.errors import InputError
from ssd.views import SquareView, View


def build_train(
    name: str,
    annotations: Annotations,
    *,
    batch_size: int,
    num_workers: int,
    seed: int,
    ranks: Ranks,
    view: View,
) -> TrainLoader:
    """name: one of ssd.config.DATA_PIPELINES. batch_size: images a rank. view: what the detector sees.

    Raises InputError if there is nothing to train on, or an image cannot be used.
    """
    if len(annotations.trainable_indices()) == 0:
        raise InputError(f"{annotations.file}: {plausibility.of_training(annotations)[0]}")
    indices = shown_indices(annotations, view)
    if len(indices) == 0:
        raise InputError(f"{annotations.file}: {plausibility.of_view(annotations, view)[0]}")
    if not annotations.was_looked_at:
        annotations = _looked_at(annotations, indices, ranks)
    loader: TrainLoader = _path(name, view).TrainLoader(
        annotations, batch_size=batch_size, num_workers=num_workers, seed=seed, ranks=ranks, view=view
    )
    return loader


def build_eval(
    name: str, annotations: Annotations, *, batch_size: int, num_workers: int, ranks: Ranks, view: View
) -> EvalLoader:
    """name: one of ssd.config.DATA_PIPELINES. batch_size: images a rank."""
    if not annotations.was_looked_at:
        annotations = _looked_at(annotations, np.arange(len(annotations)), ranks)
    loader: EvalLoader = _path(name, view).EvalLoader(
        annotations, batch_size=batch_size, num_workers=num_workers, ranks=ranks, view=view
    )
    return loader


def _looked_at(annotations: Annotations, indices: np.ndarray, ranks: Ranks) -> Annotations:
    """Each rank looks at all for itself: who has several look together before."""
    (looked,), _ = look_at_images([annotations], [indices], Ranks(0, 0, 1, ranks.device))
    return looked


def _path(name: str, view: View) -> ModuleType | Any:
    """The module of the data path's loaders for that view."""
    if name == "no_dali":
        from pipelines.no_dali import loaders, ragged

        return loaders if isinstance(view, SquareView) else ragged
    try:
        from pipelines.dali import loaders as dali_loaders
        from pipelines.dali import ragged as dali_ragged
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("nvidia"):
            raise
        raise InputError(
            "--data_pipeline dali: DALI is not installed; pip install nvidia-dali-cuda120 (on Linux), "
            "or pass --data_pipeline no_dali"
        ) from error
    return dali_loaders if isinstance(view, SquareView) else dali_ragged
