"""A training, put together: data path, model, run, evaluations, and what is said of them."""

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pipelines
from pipelines.annotations import Annotations
from pipelines.augmentation import CROP_ATTEMPTS
from pipelines.categories import require_points
from pipelines.exif import look_at_images
from pipelines.plausibility import look_at_both
from pipelines.ragged.learned import shown_indices
from pipelines.ragged.targets import boxes_left_out
from pipelines.readers.layouts.source import Source
from pipelines.readers.reading import annotation_files
from ssd.batch import EvalLoader, TrainLoader
from ssd.checkpoints import checkpoint, conversion
from ssd.cli.splits import data_name, find_splits, held_out_texts, judged_text, read_both_splits
from ssd.compression.attach import compress, read_for_all
from ssd.compression.schedules.distiller_yaml import Schedule
from ssd.config import Config
from ssd.console import say, say_on_stderr
from ssd.detectors.names import family_of
from ssd.detectors.table import detector_of, to_dict, view_of
from ssd.distillation.attach import distill, identity_of, require_same
from ssd.distillation.detectron2_config.files import Files
from ssd.distillation.detectron2_config.translate import require_student, require_teacher
from ssd.distillation.mosaic import InstancesPicture
from ssd.distillation.teacher import Teacher, judge_teacher, knows, load_teacher
from ssd.distributed import Ranks, broadcast_object
from ssd.environment import hardware
from ssd.errors import InputError
from ssd.evaluation.detect import Results, detect_split
from ssd.evaluation.metrics import DECIDING, metrics_of
from ssd.mlperf.checker import check_run
from ssd.mlperf.log import begin, run_seconds
from ssd.options.detectors import for_detector
from ssd.precision import compute_dtype
from ssd.report.examples import Showcase
from ssd.report.history import INSTANCES
from ssd.run.files import Run
from ssd.run.folder import run_folder
from ssd.run.printed_metrics import published_band
from ssd.run.trackers import Trackers
from ssd.schedule import REFERENCE_BATCH, Pace, as_begun, notes_on_rate, peak_lr, plan_of, within_minutes
from ssd.speed.steps import seconds_of_step
from ssd.training import resume
from ssd.training.build import build_training
from ssd.training.evaluations import Judge
from ssd.training.interruption import EXIT_PREEMPTED, Preempted
from ssd.training.loop import train as run_training
from ssd.training.loss_log import NonFiniteLossError
from ssd.training.resume import Origin
from ssd.training.state import Training
from ssd.training.step import require_device
from ssd.views import StretchView, View, described, for_a_few_steps, for_run, parts_of


def with_detector_of_checkpoint(config: Config, given: set[str], configuration: Files | None = None) -> Config:
    """given: the settings of the command line or a recipe; of its detector, the others are --checkpoint's.
    configuration: of the distillation, if a file says whose student it is."""
    if not config.checkpoint:
        return config
    settings = checkpoint.settings_of(conversion.load(Path(config.checkpoint)))
    if configuration is not None:
        require_student(configuration, config.checkpoint, settings)
    return for_detector(settings, config, given)


def train_run(
    config: Config,
    ranks: Ranks,
    trackers: Trackers,
    given: set[str],
    configuration: Files | None = None,
    told: Sequence[str] = (),
    flags: Collection[str] = (),
) -> int:
    """given: as in `with_detector_of_checkpoint`. A run that goes on takes the others from its own checkpoint.
    configuration: of the distillation, if a file says it. told: what the user should know of the settings. flags: the
    settings of the command line alone."""
    require_device(config, ranks)
    schedule = read_for_all(config, ranks)
    with run_folder(data_name(config), config.output, config.resume, ranks) as (folder, files):
        origin = resume.find_checkpoint(files, ranks)
        if origin:  # a run that goes on needs the file no more that it started from
            config = for_detector(checkpoint.settings_of(origin.content), config, given)
            then = origin.content["global_batch_size"]
            scale = then / (config.batch_size * ranks.world_size)
            config = as_begun(config, origin.content.get("settings", {}), scale, flags)
            if resume.is_over(origin.content, config) and (folder / "results.json").exists():
                return _say_it_is_over(folder, origin.content, config, ranks)
        else:
            config = with_detector_of_checkpoint(config, given, configuration)
        if config.target_masks is not None and not parts_of(view_of(config.detector)).masks:
            raise InputError(f"--target-masks: {config.detector.name} finds no masks; leave it out")
        teacher = load_teacher(config, ranks)
        if teacher is not None and configuration is not None:
            require_teacher(configuration, str(teacher.file), teacher.settings)
        seed = config.seed
        if seed is None:
            seed = origin.content["seed"] if origin else broadcast_object(int.from_bytes(os.urandom(4)), ranks)
        config = replace(config, seed=seed, output=str(folder))
        return _train_in(folder, origin, config, ranks, trackers, schedule, teacher, told)


def _say_it_is_over(folder: Path, content: dict[str, Any], config: Config, ranks: Ranks) -> int:
    reached = config.target is None or resume.has_reached(content, config)
    missed = "" if reached else f", and {_target_text(config)} was not reached"
    if ranks.is_main:
        unit = "step" if config.steps else "epoch"
        say(f"{folder}: this run is over after {unit} {content[unit]}{missed}; pass --{unit}s with more to go on")
    return 0 if reached else 1


def _target_text(config: Config) -> str:
    of_masks = "" if config.target_masks is None else f" with --target-masks {config.target_masks}"
    return f"--target {config.target}{of_masks}"


def _train_in(
    folder: Path,
    origin: Origin | None,
    config: Config,
    ranks: Ranks,
    trackers: Trackers,
    schedule: Schedule | None,
    teacher: Teacher | None,
    told: Sequence[str],
) -> int:
    sources = find_splits(config)
    config = replace(config, train_split=sources[0].name, val_split=sources[1].name)  # which config.json records
    places = [place for source in sources for place in (source.image_folder, source.file)]
    compliance = begin(config, folder, places, hardware(ranks.device)["device"], origin and origin.content, ranks)
    splits = train_split, val_split = read_both_splits(config, sources, ranks)
    config = _with_points_of(config, train_split, origin)
    suspicions = look_at_both(*splits, view_of(config.detector))
    indices = [shown_indices(train_split, view_of(config.detector)), np.arange(len(val_split))]
    (train_split, val_split), exif_text = look_at_images(splits, indices, ranks, config.exif)
    splits = train_split, val_split
    config, fitted_text = _fitted(config, train_split)
    length_text = ""
    if config.minutes is not None and origin is None:
        config, length_text = _within_minutes(config, splits, ranks, teacher)
    view = for_run(view_of(config.detector), config.steps or 0)
    loader = _build_train_loader(config, train_split, ranks, view)
    val_loader = _build_eval_loader(config, val_split, ranks, view)
    training, notes = build_training(config, train_split.categories, ranks, origin)
    notes = [*told, *filter(None, [fitted_text, length_text]), *notes]
    if teacher is not None:
        file = folder / "plots" / INSTANCES if ranks.is_main and config.plots else None
        chosen = InstancesPicture(file, view_of(config.detector), loader.steps_per_epoch * config.accumulate)
        notes += distill(training, teacher, train_split.categories, chosen.show)
        training.at_log_lines.append(chosen.draw)
    if notes_of := family_of(config.detector).notes:
        notes = [*notes_of(config.detector), *notes]
    if schedule is not None:
        notes += compress(training, schedule, loader.steps_per_epoch)
    describe = _describe(config, train_split, sources[0], loader, ranks, schedule)
    if identity := identity_of(config, teacher):
        describe["distillation"] = identity
    if plan := getattr(training.model, "channel_plan", {}):
        describe["channels"] = plan
    if origin:
        require_same(origin.content.get("distillation", {}), identity)
        notes = [*origin.notes, *notes, resume.resume(training, loader, origin.content, describe, config)]
    compliance.hyper_parameters(
        world_size=ranks.world_size,
        train_samples=len(shown_indices(train_split, view)),
        eval_samples=len(val_split),
        crop_attempts=CROP_ATTEMPTS,
        steps_per_epoch=loader.steps_per_epoch,
    )

    if config.resume == "auto" and not origin and (folder / "log.jsonl").exists():
        notes.append(f"{folder} has no checkpoint yet: the run begins anew")
    run = Run(folder, ranks, trackers)
    run.write_config(config, ranks)
    trackers.open(folder, config.to_dict(), training.step)
    # Also the log of a run that was killed before its first checkpoint.
    run.rewind(*(origin.content["step"], origin.content["judged_step"]) if origin else (0, 0))
    if origin:
        run.log("resumed", step=training.step, checkpoint=str(origin.file), world_size=ranks.world_size, how=notes[-1])
    mended = [split.mended_text for split in splits if split.mended_text]
    notes = [*held_out_texts(*sources), *mended, *([exif_text] if exif_text else []), *notes, *compliance.notes]
    notes += notes_on_rate(config, loader.steps_per_epoch)
    if ranks.is_main and not origin and isinstance(view, StretchView) and view.jitter:
        batch_size = config.batch_size * ranks.world_size
        left_out, of_all = boxes_left_out(train_split, view, batch_size=batch_size, seed=config.seed or 0)
        run.log("boxes_left_out", boxes=of_all, left_out=left_out)
        if left_out:
            notes.append(
                f"jitter moves {left_out} of the first {of_all} boxes out of their images: they are not learned"
            )
    _announce(run, config, splits, ranks, training.step, notes, suspicions)

    detector = detector_of(config.detector)
    coverage = detector.coverage and partial(detector.coverage, config.detector)
    ground_truth = val_split.ground_truth()
    view = view_of(config.detector)
    if teacher is not None and config.judge_teacher and not origin and knows(teacher, train_split.categories):
        judge_teacher(teacher, val_loader, ground_truth, run, config, ranks)
    showcase = Showcase(val_loader, ground_truth, run, config.eval_engine, view, coverage, plots=config.plots)
    try:
        judge = _judge(training, showcase, config, ranks)
        results, reached = run_training(training, loader, judge, run, compliance, describe)
    except NonFiniteLossError as error:
        compliance.run_stop(success=False)
        if ranks.is_main:
            say_on_stderr(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        if run.last_checkpoint.exists():
            run.say(f"go on from the last checkpoint with the same flags and --resume auto --output {folder}")
        else:
            run.say("nothing was saved yet: Ctrl-C ends at once, SIGTERM would have saved before")
        raise
    except Preempted as end:
        run.say(f"{end}; go on with the same flags and --resume auto --output {folder}")
        return EXIT_PREEMPTED
    compliance.run_stop(success=reached or config.target is None)
    if compliance.file is not None:
        results["time_to_target_s"] = run_seconds(compliance.file) if reached else None
    if ranks.is_main:
        _write_results(run, results, config, val_split)
        showcase.write()
        report = folder / "report.html"
        run.say(f"wrote {folder}" + (f"; look at {report}" if report.exists() else ""))
    complies = compliance.file is None or check_run(compliance.file, config, run, results["time_to_target_s"])
    if config.target is not None and not reached:
        run.say(f"{_target_text(config)} was not reached")
        return 1
    return 0 if complies else 1


def _fitted(config: Config, train_split: Annotations) -> tuple[Config, str]:
    """With what of the detector's settings depends on the data."""
    fitted = detector_of(config.detector).fitted
    if fitted is None:
        return config, ""
    learned = ~train_split.is_crowd
    images_px = np.repeat(train_split.sizes_px, np.diff(train_split.box_starts), axis=0)
    boxes = torch.from_numpy(train_split.boxes_ltrb[learned]), torch.from_numpy(images_px[learned])
    settings, text = fitted(config.detector, *boxes)
    return config.with_detector(settings), text


def _with_points_of(config: Config, split: Annotations, origin: Origin | None) -> Config:
    """The config with a detector of the keypoints that the split's objects have, if it finds any. Raises InputError
    where a run that goes on finds others."""
    detector = detector_of(config.detector)
    if split.keypoints is None or detector.with_skeleton is None:
        return config
    # A command that names the detector again says nothing of the points that it was given when the run began.
    if origin and (skeleton := detector.skeleton(checkpoint.settings_of(origin.content))):
        require_points(skeleton.names, split, origin.file.name)
    return config.with_detector(detector.with_skeleton(config.detector, split.keypoints.skeleton))


def _build_train_loader(config: Config, split: Annotations, ranks: Ranks, view: View) -> TrainLoader:
    return pipelines.build_train(
        config.data_pipeline, split, batch_size=config.batch_size, num_workers=config.num_workers,
        seed=config.seed or 0, ranks=ranks, view=view,
    )  # fmt: skip


def _build_eval_loader(config: Config, split: Annotations, ranks: Ranks, view: View) -> EvalLoader:
    return pipelines.build_eval(
        config.data_pipeline, split, batch_size=config.eval_batch_size, num_workers=config.num_workers, ranks=ranks,
        view=view,
    )  # fmt: skip


def _within_minutes(
    config: Config, splits: tuple[Annotations, Annotations], ranks: Ranks, teacher: Teacher | None
) -> tuple[Config, str]:
    """With as many steps as a few of them say, which a model and a loader take that are then thrown away."""
    train_split, val_split = splits
    loader = _build_train_loader(config, train_split, ranks, for_a_few_steps(view_of(config.detector)))
    training, _ = build_training(config, train_split.categories, ranks)
    if teacher is not None:
        distill(training, teacher, train_split.categories, lambda images, instances: None)
    step_s = seconds_of_step(training, loader.batches(0))
    global_batch_size = config.batch_size * ranks.world_size
    # Detection is about a third of a step's work.
    pace = Pace(step_s, len(val_split) / global_batch_size * step_s / 3)
    config = within_minutes(config, pace)
    plan = plan_of(config, loader.steps_per_epoch)
    return config, (
        f"{config.minutes:g} minutes are about {plan.total_steps} steps of {step_s:.2g} s, "
        f"{plan.total_steps / loader.steps_per_epoch:.2g} epochs, and {len(plan.judged)} evaluations of some "
        f"{pace.evaluation_s:.2g} s by estimate"
    )


def _describe(
    config: Config,
    split: Annotations,
    source: Source,
    loader: TrainLoader,
    ranks: Ranks,
    schedule: Schedule | None,
) -> dict[str, Any]:
    """What every checkpoint says of its run."""
    return {
        "detector": to_dict(config.detector),
        "categories": [tuple(category) for category in split.categories],
        "seed": config.seed,
        "settings": config.to_dict(),
        "data": resume.data_identity(config, split.fingerprint(), loader, ranks, schedule.digest if schedule else None),
        "annotations": resume.annotations_digest(annotation_files(source), ranks),
    }


def _announce(
    run: Run,
    config: Config,
    splits: tuple[Annotations, Annotations],
    ranks: Ranks,
    step: int,
    notes: Sequence[str],
    suspicions: Sequence[str],
) -> None:
    """Says, and logs, what is about to be trained on what, at which rate, and what the user should know of it."""
    train_split, val_split = splits
    trained = len(shown_indices(train_split, view_of(config.detector)))
    global_batch_size = config.batch_size * ranks.world_size
    peak = peak_lr(config.learning_rate, global_batch_size)
    run.say(
        f"{config.data}: {trained} of {len(train_split)} images to train on, "
        f"{len(val_split)} to judge by, {len(train_split.categories)} classes\n"
        f"{detector_of(config.detector).title(config.detector)}, {config.data_pipeline}, "
        f"{ranks.world_size} x {ranks.device.type}, "
        f"{str(compute_dtype(config, ranks.device) or 'float32').removeprefix('torch.')}, "
        f"batch {global_batch_size}, seed {config.seed}, in {run.folder}\n"
        f"learning rate {config.learning_rate:g} x batch {global_batch_size} / {REFERENCE_BATCH} = {peak:g}, "
        f"{config.schedule}" + (f" after {config.warmup} steps of warm-up" if config.warmup else "")
    )
    run.log("learning_rate", step=step, base=config.learning_rate, global_batch_size=global_batch_size,
            reference_batch_size=REFERENCE_BATCH, peak=peak, schedule=config.schedule)  # fmt: skip
    repairs = (train_split.repairs_text, val_split.repairs_text, judged_text(val_split))
    for warning in filter(None, (*suspicions, *repairs)):
        run.say(f"warning: {warning}")
    for split in splits:
        if split.left_out:
            run.log("images_left_out", annotations=str(split.file), images=len(split), left_out=split.left_out)
    for note in filter(None, notes):
        run.say(f"note: {note}")


def _judge(training: Training, showcase: Showcase, config: Config, ranks: Ranks) -> Judge:
    ground_truth = showcase.ground_truth

    def detect(is_asked_to_end: Callable[[], bool]) -> Results | None:
        found = detect_split(
            training.judged_model, showcase, ground_truth, config, ranks, is_asked_to_end=is_asked_to_end
        )
        if found is not None and not is_asked_to_end():
            showcase.take(found, training.step)
        return found

    return Judge(detect, partial(metrics_of, ground_truth, names=config.metrics, engine=config.eval_engine))


def _write_results(run: Run, results: dict[str, Any], config: Config, val_split: Annotations) -> None:
    about = {
        "val_images": len(val_split),
        "val_images_left_out": val_split.num_left_out,
        "best_by": DECIDING[config.metrics[0]],
        "seed": config.seed,
        "data_pipeline": config.data_pipeline,
        **config.of_detector(),
        **described(view_of(config.detector)),
        **config.thresholds._asdict(),
    }
    run.write_results({**results, **about})
    run.show_metrics(results, f"{data_name(config)} {config.val_split}, {results['train_seconds'] / 60:.1f} minutes")
    published = detector_of(config.detector).published(config.detector)
    whole_coco = config.val_split == "val2017" and len(val_split) == 5000 and len(val_split.categories) == 80
    if published is not None and whole_coco and results["epochs"] == published.epochs:
        run.say(published_band(results["AP"], published))
