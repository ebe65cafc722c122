"""A schedule put beside a training."""

from pathlib import Path

from ssd.compression.schedules.distiller_yaml import Schedule, load_schedule, read_schedule
from ssd.compression.schedules.masks import Compression
from ssd.config import Config
from ssd.distributed import Ranks, broadcast_object
from ssd.errors import InputError
from ssd.schedule import peak_lr, plan_of, warmup_of
from ssd.training.state import Training


def read_for_all(config: Config, ranks: Ranks) -> Schedule | None:
    """The schedule of --compress as rank 0 reads it, if there is one. Raises InputError for one that cannot be used."""
    if config.compress is None:
        return None
    if config.cuda_graphs:
        raise InputError("--cuda-graphs freezes a step that --compress changes as it goes; leave one of them out")
    file = Path(config.compress)
    text = broadcast_object(load_schedule(file).text if ranks.is_main else None, ranks)
    schedule = read_schedule(text, file)
    if config.compile and any(each.instance.class_name.startswith("Activation") for each in schedule.policies):
        raise InputError(
            f"--compile: {file} ranks filters by what they say, which a compiled step does not tell; leave it out"
        )
    return schedule


def compress(training: Training, schedule: Schedule, steps_per_epoch: int) -> list[str]:
    """Has the training follow the schedule; returns what the user should know of it.

    Before `Training.restore`. Raises InputError where the schedule does not fit the model.
    """
    config = training.config
    companion = Compression(
        schedule,
        training.model,
        None if training.average is None else training.average.model,
        training.ranks,
        steps_per_epoch=steps_per_epoch,
        num_epochs=-(-plan_of(config, steps_per_epoch).total_steps // steps_per_epoch),
        base_lr=peak_lr(config.learning_rate, config.batch_size * training.ranks.world_size),
        warmup=warmup_of(config),
        seed=config.seed or 0,
    )
    companion.hook(training.optimizer)
    training.losses_of = companion.losses_of(training.losses_of)
    training.companions.append(companion)
    return companion.notes
