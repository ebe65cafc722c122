"""A schedule put beside a training."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssd.compression.schedules.binding import Bound
from ssd.compression.schedules.distiller_yaml import Schedule, load_schedule, read_schedule
from ssd.compression.schedules.masks import Compression
from ssd.compression.thinning.removal import thin_in_place
from ssd.config import Config
from ssd.console import say
from ssd.detectors.table import detector_of
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
    # Before anything looks at what its layers give.
    untouched = copy.deepcopy(training.model) if training.checks else None
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
    if companion.removers:
        if detector_of(config.detector).streams is None:
            raise InputError(f"{schedule.file}: nothing can go out of a {config.detector.name}; leave removers out")
        if untouched is not None:
            _require_room(training, companion, untouched)
        companion.remove_filters = partial(_remove_filters, training, companion)
    training.losses_of = companion.losses_of(training.losses_of)
    training.companions.append(companion)
    heads = detector_of(config.detector).fresh_heads(config.detector)
    return companion.notes + _notes_on_heads(schedule, companion, heads)


_OF_FILTERS = ("Filters", "3D")


def _notes_on_heads(schedule: Schedule, companion: Compression, heads: tuple[str, ...]) -> list[str]:
    """heads: prefixes of the weights that predict, each of whose filters stands for a class or a side of a box."""
    pruned = dict.fromkeys(
        name
        for each in companion.pruners
        if each.policy.instance.class_name.startswith("GlobalFilterPruner")
        or each.arguments.get("group_type") in _OF_FILTERS
        for name in each.tensors
        if name.startswith(heads)
    )
    if not pruned:
        return []
    return [
        f"{schedule.file}: prunes filters of {', '.join(pruned)}, each of which predicts a class or a side of a box "
        "that no other does; leave it out"
    ]


@torch.no_grad()
def _require_room(training: Training, companion: Compression, model: nn.Module) -> None:
    """Has the training's checks see the model as removers may leave it: without half of the filters and channels that
    are pruned before. model: a copy, which this uses up."""
    last = max(each.policy.epochs[-1] for each in companion.removers)
    weights = dict(model.named_parameters())
    zeroing = [each for each in companion.regularizers if each.arguments.get("threshold_criteria")]
    for each in (*companion.pruners, *zeroing):
        for name in each.tensors if each.policy.epochs[0] <= last else []:
            half = weights[name].shape[0] // 2, weights[name].shape[min(1, weights[name].dim() - 1)] // 2
            group_type = _group_type(each, name)
            if group_type == "Filters":
                weights[name][: half[0]] = 0
            elif group_type == "Channels":
                weights[name][:, : half[1]] = 0
    streams: Any = detector_of(training.config.detector).streams
    if thin_in_place([model], streams(model)) is not None:
        for check in training.checks:
            check(model)


def _group_type(each: Bound, name: str) -> str:
    """What a policy takes out of a tensor as a whole, such as "Filters"; "" for single weights."""
    given = each.arguments
    if isinstance(given.get("reg_regims"), dict) and isinstance(given["reg_regims"].get(name), tuple | list):
        return str(given["reg_regims"][name][1])
    return str(given.get("group_type", "Filters" if "Filter" in each.policy.instance.class_name else ""))


def _remove_filters(training: Training, companion: Compression) -> None:
    """Takes filters of zeros, and what is read with zeros only, out of the model that trains and out of its average."""
    model, average = training.model, training.average
    streams: Any = detector_of(training.config.detector).streams
    momentum = {
        name: training.optimizer.state[p]["momentum_buffer"]
        for name, p in model.named_parameters()
        if "momentum_buffer" in training.optimizer.state.get(p, {})
    }
    cut = thin_in_place([model, *([average.model] if average is not None else [])], streams(model))
    if cut is None:
        return
    training.take_up_layers({name: cut(name, buffer) for name, buffer in momentum.items()})
    companion.cut(model, None if average is None else average.model, cut)
    companion.hook(training.optimizer)
    if training.ranks.is_main:
        weights = sum(p.numel() for p in model.parameters())
        say(f"epoch {companion.epoch}: filters of zeros are taken out, {weights:,} weights are left")
