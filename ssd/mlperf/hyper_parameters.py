"""What MLPerf's rules want stated of a run's settings, by key of the log."""

import math
from typing import Any

from mlperf_logging.mllog import constants as keys

from ssd.config import Config
from ssd.detectors.names import family_of
from ssd.detectors.table import view_of
from ssd.mlperf.benchmarks import MASK_RCNN, RETINANET, Benchmark
from ssd.schedule import peak_lr, plan_of, warmth_at, warmup_of
from ssd.views import ShortSideView


def hyper_parameters_of(
    config: Config,
    benchmark: Benchmark,
    *,
    world_size: int,
    train_samples: int,
    eval_samples: int,
    crop_attempts: int,
    steps_per_epoch: int,
) -> dict[str, Any]:
    """train_samples, eval_samples: images. crop_attempts: a round of the random crop, SSD's max_samples."""
    global_batch_size = config.batch_size * world_size
    common = {
        keys.SEED: config.seed,
        keys.TRAIN_SAMPLES: train_samples,
        keys.EVAL_SAMPLES: eval_samples,
        keys.GLOBAL_BATCH_SIZE: global_batch_size,
        keys.OPT_BASE_LR: peak_lr(config.learning_rate, global_batch_size),
        keys.OPT_WEIGHT_DECAY: config.weight_decay,
    }
    if benchmark == MASK_RCNN:
        return common | _of_mask_rcnn(config, steps_per_epoch)
    if benchmark == RETINANET:
        return common | {
            keys.GRADIENT_ACCUMULATION_STEPS: config.accumulate,
            keys.OPT_NAME: keys.SGD,
            keys.OPT_LR_WARMUP_EPOCHS: config.warmup / math.ceil(train_samples / global_batch_size),
            keys.OPT_LR_WARMUP_FACTOR: config.warmup_factor or 0,
        }
    return common | {
        keys.GRADIENT_ACCUMULATION_STEPS: 1,
        keys.MODEL_BN_SPAN: config.batch_size,  # each rank normalises by its own images
        keys.OPT_LR_WARMUP_STEPS: config.warmup,
        keys.OPT_LR_WARMUP_FACTOR: 0,  # the reference's code for a rise in a straight line from 0
        keys.OPT_LR_DECAY_BOUNDARY_EPOCHS: list(config.multistep),
        keys.MAX_SAMPLES: crop_attempts,
    }


def _of_mask_rcnn(config: Config, steps_per_epoch: int) -> dict[str, Any]:
    view, candidates = view_of(config.detector), family_of(config.detector).candidates
    assert isinstance(view, ShortSideView) and candidates is not None
    falls = plan_of(config, steps_per_epoch).falls
    factors = sorted({factor for _, factor in falls})
    return {
        keys.GRADIENT_ACCUMULATION_STEPS: config.accumulate,
        keys.OPT_LR_WARMUP_STEPS: config.warmup,
        keys.OPT_LR_WARMUP_FACTOR: warmth_at(0, warmup_of(config)),  # the share of the rate that the first step has
        keys.OPT_LR_DECAY_FACTOR: factors[0] if len(factors) == 1 else factors,
        keys.OPT_LR_DECAY_STEPS: [step for step, _ in falls],
        # Of what one pass of the model looks at; MLPerf's rules allow 1000, or 1000 an image of a chip's batch.
        keys.NUM_IMAGE_CANDIDATES: candidates(config.detector, config.batch_size // config.accumulate),
        keys.MIN_IMAGE_SIZE: min(view.short_sides_px),
        keys.MAX_IMAGE_SIZE: view.long_side_px,
    }
