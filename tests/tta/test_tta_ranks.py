"""Two ranks find in several passes what one does."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from detectron_models import NUM_CLASSES, batch_for, eval_batch_for, small
from two_ranks import on_two_ranks

from ssd.batch import EvalBatch, GroundTruth
from ssd.config import Config
from ssd.detectors.detectron.builders import build
from ssd.detectors.tta.passes import TTA, Pass
from ssd.distributed import Ranks
from ssd.evaluation.detect import Results, detect_split
from ssd.views import Look

FURTHER = Look((40, 90))


class Shares:
    """One rank's batches of two images, in two looks each."""

    def __init__(self, rank: int, world_size: int):
        batch = eval_batch_for(batch_for(small("mask")))
        self.batches = [(image, _one(batch, image)) for image in range(rank, 2, world_size)]

    def __iter__(self) -> Iterator[EvalBatch]:
        for image, batch in self.batches:
            of_image = batch._replace(indices=torch.tensor([image]))
            yield from (of_image, of_image._replace(images=of_image.images * 0.5))


def _one(batch: EvalBatch, image: int) -> EvalBatch:
    row = slice(image, image + 1)
    assert batch.scales is not None and batch.stated_px is not None
    return EvalBatch(
        batch.images[row], batch.placed_ltrb_px[row], batch.indices[row], batch.scales[row], batch.stated_px[row]
    )


def judged(ranks: Any) -> Results | None:
    passes = (Pass(), Pass(flip=True), Pass(FURTHER), Pass(FURTHER, flip=True))
    settings = small("mask")
    torch.manual_seed(0)
    model = build(settings, NUM_CLASSES)
    truth = GroundTruth(np.array([7, 9]), np.array([[40, 60], [90, 130]]), [1, 2, 3], ["a", "b", "c"], {})
    config = Config(detector=settings, score_threshold=0.0, max_per_image=5)
    return detect_split(model, Shares(ranks.rank, ranks.world_size), truth, config, ranks, TTA(passes, passes))


@pytest.mark.slow
def test_two_ranks_find_in_several_passes_what_one_does() -> None:
    alone = judged(Ranks(0, 0, 1, torch.device("cpu")))
    together, none = on_two_ranks(judged)
    assert none is None and alone is not None and len(alone) == 10
    np.testing.assert_allclose(together.rows, alone.rows, rtol=1e-5, atol=1e-4)
    assert together.masks is not None and len(together.masks) == 10
