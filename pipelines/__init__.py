"""The two data paths, "dali" and "no_dali": loaders with one contract, chosen by name once.

The contracts are `ssd.batch.TrainLoader` and `ssd.batch.EvalLoader`; a test holds the paths against each other.
"""

from types import ModuleType
from typing import Any

from pipelines.annotations import MIN_TRAINED_SIDE_PX, Annotations
from ssd.batch import EvalLoader, TrainLoader
from ssd.distributed import Ranks
from ssd.errors import InputError
from ssd.views import ShortSideView, View


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

    Raises InputError if there is nothing to train on.
    """
    if len(annotations.trainable_indices()) == 0:
        raise InputError(
            f"{annotations.file}: no image of {MIN_TRAINED_SIDE_PX} pixels a side or more has a box to learn from; "
            "pass another --train-split"
        )
    loader: TrainLoader = _path(name, view).TrainLoader(
        annotations, batch_size=batch_size, num_workers=num_workers, seed=seed, ranks=ranks, view=view
    )
    return loader


def build_eval(
    name: str, annotations: Annotations, *, batch_size: int, num_workers: int, ranks: Ranks, view: View
) -> EvalLoader:
    """name: one of ssd.config.DATA_PIPELINES. batch_size: images a rank."""
    loader: EvalLoader = _path(name, view).EvalLoader(
        annotations, batch_size=batch_size, num_workers=num_workers, ranks=ranks, view=view
    )
    return loader


def _path(name: str, view: View) -> ModuleType | Any:
    """The module of the data path's loaders for that view."""
    if name == "no_dali":
        from pipelines.no_dali import loaders, short_side

        return short_side if isinstance(view, ShortSideView) else loaders
    try:
        from pipelines.dali import loaders as dali_loaders
        from pipelines.dali import short_side as dali_short_side
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("nvidia"):
            raise
        raise InputError(
            "--data_pipeline dali: DALI is not installed; pip install nvidia-dali-cuda120 (on Linux), "
            "or pass --data_pipeline no_dali"
        ) from error
    return dali_short_side if isinstance(view, ShortSideView) else dali_loaders
