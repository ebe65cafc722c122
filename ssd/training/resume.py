"""Where a run starts: with ImageNet's weights, another run's, or where it was interrupted itself."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ssd.batch import TrainLoader
from ssd.checkpoints import checkpoint
from ssd.config import Config
from ssd.distributed import Ranks, broadcast_object
from ssd.errors import InputError
from ssd.schedule import plan_of, reached_target, step_after_change
from ssd.training.state import Training


def is_over(resumed: dict[str, Any], config: Config) -> bool:
    """Whether a checkpoint is a run's last: all epochs or steps done, or the target reached."""
    is_done = resumed["step"] >= plan_of(config, resumed["steps_per_epoch"]).total_steps
    return is_done or has_reached(resumed, config)


def has_reached(resumed: dict[str, Any], config: Config) -> bool:
    """Whether the target is among what a checkpoint's run has done."""
    return reached_target(config, resumed["best_ap"], resumed.get("reached_by"))


class Origin(NamedTuple):
    """The checkpoint that a run goes on from, its content, and what the user should know of others."""

    file: Path
    content: dict[str, Any]
    notes: list[str]


def find_checkpoint(files: list[Path], ranks: Ranks) -> Origin | None:
    """The newest of these checkpoints that is whole; None of no files.

    Raises InputError where none is whole, or where the ranks do not read the same one.
    """
    if not files:
        return None
    file: Path | None = None
    content: dict[str, Any] | None = None
    notes: list[str] = []
    if ranks.is_main:
        file, content, notes = checkpoint.load_newest(files)
        if notes:
            notes.append(f"going on from {file} instead")
    file = broadcast_object(file, ranks)
    content = content or checkpoint.load_run(file)
    step = broadcast_object(content["step"], ranks)
    if content["step"] != step:
        raise InputError(
            f"{file}: rank {ranks.rank} reads one of step {content['step']} where rank 0 reads one of step "
            f"{step}; make --output one folder that all hosts share, as it is at one time"
        )
    return Origin(file, content, notes)


# Of a detector's settings: its own names, and what the data's fingerprint says too.
_NOT_OF_DATA = ("name", "backbone", "keypoints", "keypoint_links", "keypoint_labels")
# What detectors can be told beside what the first ones could, and what it was before: checkpoints from then do not have
# it.
_LATER = {"resize": "", "rules": "detectron", "boxes_an_image": 512}


def data_identity(
    config: Config, fingerprint: str, loader: TrainLoader, ranks: Ranks, compress: str | None = None
) -> dict[str, Any]:
    """What must be equal for a data path's saved state, and for a number of steps, to mean the same.

    compress: the digest of the schedule of --compress, if any.
    """
    return {
        "data": fingerprint,
        "data_pipeline": config.data_pipeline,
        **{
            name: value
            for name, value in asdict(config.detector).items()
            if name not in _NOT_OF_DATA and (name not in _LATER or value != _LATER[name])
        },
        **loader.identity,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "world_size": ranks.world_size,
        "compress": compress,
    }


def annotations_digest(files: Iterable[Path], ranks: Ranks) -> str:
    """Of the bytes of rank 0's annotation files."""
    digest = hashlib.blake2b(digest_size=8)
    if ranks.is_main:
        for file in files:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return str(broadcast_object(digest.hexdigest(), ranks))


def _differs(name: str, was: Any, now: Any, settings: Any) -> bool:
    """settings: the detector's, which may know what of its configuration decides nothing in training."""
    of_training = getattr(settings, f"{name}_of_training", None)
    if of_training is not None and isinstance(was, str):
        return bool(of_training(was) != of_training(now))
    return bool(was != now)


def _change(name: str, was: Any, now: Any) -> str:
    """In one line: the text of a file has several."""
    return f"{name} is another" if "\n" in f"{was}{now}" else f"{name} was {was} and is {now}"


def resume(
    training: Training, loader: TrainLoader, resumed: dict[str, Any], describe: dict[str, Any], config: Config
) -> str:
    """Puts training and loader where the checkpoint is; returns what the user should know of it.

    describe: as the checkpoint's "data", and "annotations" of `annotations_digest`. On another number of ranks, or
    with other images left out by --on-bad-image skip, the run goes on at the step of `schedule.step_after_change`.
    Raises InputError where anything else is not as it was, unless --resume-anyway.
    """
    ranks, was, identity = training.ranks, resumed["data"], describe["data"]
    if resumed["settings"].get("freeze_backbone", False) != config.freeze_backbone:
        remedy = "leave it out" if config.freeze_backbone else "pass it"
        raise InputError(f"--resume: --freeze-backbone is not as it was; {remedy}, or start anew with --checkpoint")
    judged_by = resumed["settings"].get("metrics", ("coco",))[0]
    if judged_by != config.metrics[0]:
        raise InputError(f"--resume: the best checkpoint was chosen by {judged_by}; name it first in --metrics")
    was, is_now = {**_LATER, **was}, {**_LATER, **identity}
    changed = {
        n: _change(n, was.get(n), now) for n, now in is_now.items() if _differs(n, was.get(n), now, config.detector)
    }
    same_ranks, same_data = "world_size" not in changed, changed.keys() <= {"world_size"}
    may_change = {"world_size"}
    if config.on_bad_image == "skip" and resumed.get("annotations") == describe["annotations"]:
        may_change.add("data")  # of the same annotations, so it is the images that can be used that are others
    if not (changed.keys() <= may_change or config.resume_anyway):
        raise InputError(
            f"--resume: this is not how the checkpoint was trained: {', '.join(changed.values())}; "
            "change it back, or pass --resume-anyway to go on with the images in a new order"
        )
    training.restore(resumed)
    training.step, training.judged_step = (
        step_after_change(
            step,
            steps_per_epoch=resumed["steps_per_epoch"],
            global_batch_size=resumed["global_batch_size"],
            new_steps_per_epoch=loader.steps_per_epoch,
            new_global_batch_size=config.batch_size * ranks.world_size,
        )
        for step in (resumed["step"], resumed["judged_step"])
    )
    goes_on = same_data and (same_ranks or loader.ranks_share_state)
    if goes_on:
        loader.restore(bytes(resumed["data_states"][ranks.rank if same_ranks else 0].tolist()))
    if same_ranks:
        torch.set_rng_state(resumed["rng_states"]["cpu"][ranks.rank])
        if ranks.device.type == "cuda" and "cuda" in resumed["rng_states"]:
            torch.cuda.set_rng_state(resumed["rng_states"]["cuda"][ranks.rank], ranks.device)

    epoch, into_epoch = divmod(training.step, loader.steps_per_epoch)
    steps = f" and {into_epoch} of {loader.steps_per_epoch} steps" if into_epoch else ""
    if "data" in changed and "data" in may_change:
        changed["data"] = "other images than then can be used"
    why = f": {', '.join(changed.values())}" if changed else ""
    order = "" if goes_on else "; the images come in a new order"
    return f"resuming after epoch {epoch}{steps}{why}{order}"
