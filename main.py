#!/usr/bin/env python3
"""The command line: flags -> Config; wires data path, model and run.

Heavy imports stand inside the commands, after their flags are read.
"""

import difflib
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ssd.cli.benchmark_parsers import benchmark_data_parser, benchmark_parser, benchmark_steps_parser
from ssd.cli.flags import config_of
from ssd.cli.parsers import (
    check_parser,
    convert_parser,
    doctor_parser,
    download_parser,
    evaluate_parser,
    export_parser,
    plot_parser,
    predict_parser,
    show_data_parser,
    train_parser,
)
from ssd.cli.recipes import base_of
from ssd.config import DATA_PIPELINES, Config
from ssd.errors import InputError, LostRankError

if TYPE_CHECKING:
    import numpy as np

    from pipelines.annotations import Annotations
    from ssd.batch import EvalLoader, TrainLoader
    from ssd.distributed import Ranks
    from ssd.report.examples import Showcase
    from ssd.run.files import Run
    from ssd.run.trackers import Trackers
    from ssd.training.evaluations import Judge
    from ssd.training.resume import Origin
    from ssd.training.state import Training

DEMO_FOLDER = Path("data/demo")

# Threads of torch that wait for work should sleep: by default they spin, and take the cores from the data paths'
# threads and processes. Read when torch is first imported; the user's own setting wins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# But not at once: the next operator comes within microseconds, and waking a thread takes longer.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def _data_folder(config: Config) -> Path:
    if config.data != "demo":
        return Path(config.data)
    from pipelines.demo.data_set import write_demo_data

    return write_demo_data(DEMO_FOLDER)


def _read_split(config: Config, split: str) -> "Annotations":
    from pipelines.readers.splits import read_annotations

    return read_annotations(_data_folder(config), split)


def _read_split_to_run(config: Config, split: str, ranks: "Ranks") -> "Annotations":
    """The split, parsed once a host; without its bad images where the config says so."""
    if config.on_bad_image == "error":
        from pipelines.readers.once_a_host import read_once_a_host

        return read_once_a_host(lambda: _read_split(config, split), ranks)
    from pipelines.readers.scan import read_usable

    return read_usable(_data_folder(config), split, ranks)


def _judged_text(split: "Annotations") -> str:
    """What to say of a split to judge by that lacks images, or ''."""
    if not split.num_left_out:
        return ""
    whole = len(split) + split.num_left_out
    return f"{split.file}: the metrics are those of {len(split)} of its {whole} images, not comparable with all's"


def train(arguments: Sequence[str]) -> int:
    parser = train_parser()
    options = vars(parser.parse_args(arguments))
    local_rank, recipe = options.pop("local_rank"), options.pop("recipe")
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    config = config_of(options, base_of(recipe, parser, options.get("batch_size"), world_size))
    takes_backbone = recipe is None and "backbone" not in options

    from ssd.distributed import process_group
    from ssd.run.trackers import Trackers, require_packages

    require_packages(config.track)
    with (
        process_group(config.device, local_rank, config.timeout) as ranks,
        Trackers(config.track if ranks.is_main else ()) as trackers,
    ):
        return _train(config, ranks, trackers, takes_backbone)


def _with_backbone_of_checkpoint(config: Config) -> Config:
    if not config.checkpoint:
        return config
    from ssd.checkpoints import conversion

    return replace(config, backbone=conversion.load(Path(config.checkpoint))["backbone"])


def _train(config: Config, ranks: "Ranks", trackers: "Trackers", takes_backbone: bool) -> int:
    """takes_backbone: nothing says which one, so a file to start or to go on from does."""
    from ssd.distributed import broadcast_object
    from ssd.run.folder import run_folder
    from ssd.training import resume
    from ssd.training.step import require_device

    require_device(config, ranks)
    with run_folder(_data_name(config), config.output, config.resume, ranks) as (folder, files):
        origin = resume.find_checkpoint(files, ranks)
        if origin and resume.is_over(origin.content, config) and (folder / "results.json").exists():
            return _say_it_is_over(folder, origin.content, config, ranks)
        if takes_backbone:  # a run that goes on needs the file no more that it started from
            in_run = origin and origin.content["backbone"]
            config = replace(config, backbone=in_run) if in_run else _with_backbone_of_checkpoint(config)
        seed = config.seed
        if seed is None:
            seed = origin.content["seed"] if origin else broadcast_object(int.from_bytes(os.urandom(4)), ranks)
        return _train_in(folder, origin, replace(config, seed=seed, output=str(folder)), ranks, trackers)


def _say_it_is_over(folder: Path, content: dict[str, Any], config: Config, ranks: "Ranks") -> int:
    reached = config.target is None or content["best_ap"] >= config.target
    missed = "" if reached else f", and --target {config.target} was not reached"
    if ranks.is_main:
        print(f"{folder}: this run is over after epoch {content['epoch']}{missed}; pass --epochs with more to go on")
    return 0 if reached else 1


def _train_in(folder: Path, origin: "Origin | None", config: Config, ranks: "Ranks", trackers: "Trackers") -> int:
    from pipelines.augmentation import CROP_ATTEMPTS
    from pipelines.readers.splits import find_split
    from ssd.environment import hardware
    from ssd.mlperf.checker import check_run
    from ssd.mlperf.log import begin, run_seconds
    from ssd.report.examples import Showcase
    from ssd.run.files import Run
    from ssd.training import resume
    from ssd.training.build import build_training
    from ssd.training.interruption import EXIT_PREEMPTED, Preempted
    from ssd.training.loop import train as run_training
    from ssd.training.loss_log import NonFiniteLossError

    data = _data_folder(config)
    places = [*find_split(data, config.train_split), *find_split(data, config.val_split)]
    compliance = begin(config, folder, places, hardware(ranks.device)["device"], origin and origin.content, ranks)
    splits = train_split, val_split = _read_both_splits(config, ranks)
    loader, val_loader = _build_loaders(config, train_split, val_split, ranks)
    training, notes = build_training(config, train_split.categories, ranks, origin)
    describe = _describe(config, train_split, loader, ranks)
    if origin:
        notes = [*origin.notes, *notes, resume.resume(training, loader, origin.content, describe, config)]
    compliance.hyper_parameters(
        world_size=ranks.world_size,
        train_samples=len(train_split.trainable_indices()),
        eval_samples=len(val_split),
        crop_attempts=CROP_ATTEMPTS,
    )

    run = Run(folder, ranks, trackers)
    run.write_config(config, ranks)
    trackers.open(folder, config.to_dict(), training.step)
    # Also the log of a run that was killed before its first checkpoint.
    run.rewind(*(origin.content["step"], origin.content["judged_epoch"]) if origin else (0, 0))
    if origin:
        run.log("resumed", step=training.step, checkpoint=str(origin.file), world_size=ranks.world_size, how=notes[-1])
    _announce(run, config, splits, ranks, training.step, [*notes, *compliance.notes])

    showcase = Showcase(val_loader, val_split.ground_truth(), run, config.eval_engine)
    try:
        judge = _judge(training, showcase, config, ranks)
        results, reached = run_training(training, loader, judge, run, compliance, describe)
    except NonFiniteLossError as error:
        compliance.run_stop(success=False)
        if ranks.is_main:
            print(f"error: {error}", file=sys.stderr)
        return 1
    except Preempted as end:
        run.say(f"{end}; go on with --resume auto --output {folder}")
        return EXIT_PREEMPTED
    compliance.run_stop(success=reached or config.target is None)
    if compliance.file is not None:
        results["time_to_target_s"] = run_seconds(compliance.file) if reached else None
    if ranks.is_main:
        _write_results(run, results, config, val_split)
        showcase.write(plots=config.plots)
        run.say(f"wrote {folder}")
    complies = compliance.file is None or check_run(compliance.file, config, run, results["time_to_target_s"])
    if config.target is not None and not reached:
        run.say(f"--target {config.target} was not reached")
        return 1
    return 0 if complies else 1


def _read_both_splits(config: Config, ranks: "Ranks") -> "tuple[Annotations, Annotations]":
    """To train on and to judge by; of the former, the crowd regions are objects too where the config learns them."""
    from pipelines.augmentation import AUGMENTATIONS

    train_split = _read_split_to_run(config, config.train_split, ranks)
    val_split = _read_split_to_run(config, config.val_split, ranks)
    if train_split.categories != val_split.categories:
        raise InputError(f"{val_split.file}: its categories are not those of {train_split.file}; make them equal")
    if AUGMENTATIONS[config.augmentation].learns_crowds:
        train_split = replace(train_split, is_crowd=train_split.is_crowd & False)
    return train_split, val_split


def _build_loaders(
    config: Config, train_split: "Annotations", val_split: "Annotations", ranks: "Ranks"
) -> "tuple[TrainLoader, EvalLoader]":
    import pipelines
    from pipelines.augmentation import AUGMENTATIONS

    loader = pipelines.build_train(
        config.data_pipeline, train_split, batch_size=config.batch_size, num_workers=config.num_workers,
        seed=config.seed or 0, ranks=ranks, settings=AUGMENTATIONS[config.augmentation],
    )  # fmt: skip
    val_loader = pipelines.build_eval(
        config.data_pipeline, val_split, batch_size=config.eval_batch_size, num_workers=config.num_workers, ranks=ranks
    )
    return loader, val_loader


def _describe(config: Config, split: "Annotations", loader: "TrainLoader", ranks: "Ranks") -> dict[str, Any]:
    """What every checkpoint says of its run."""
    from pipelines.readers.splits import annotation_files
    from ssd.training import resume

    return {
        "backbone": config.backbone,
        "categories": [tuple(category) for category in split.categories],
        "seed": config.seed,
        "settings": config.to_dict(),
        "data": resume.data_identity(config, split.fingerprint(), loader, ranks),
        "annotations": resume.annotations_digest(annotation_files(split.file), ranks),
    }


def _announce(
    run: "Run",
    config: Config,
    splits: "tuple[Annotations, Annotations]",
    ranks: "Ranks",
    step: int,
    notes: Sequence[str],
) -> None:
    """Says, and logs, what is about to be trained on what, at which rate, and what the user should know of it."""
    from ssd.precision import compute_dtype
    from ssd.schedule import REFERENCE_BATCH, peak_lr

    train_split, val_split = splits
    global_batch_size = config.batch_size * ranks.world_size
    peak = peak_lr(config.learning_rate, global_batch_size)
    run.say(
        f"{config.data}: {len(train_split.trainable_indices())} of {len(train_split)} images to train on, "
        f"{len(val_split)} to judge by, {len(train_split.categories)} classes\n"
        f"SSD300-{config.backbone}, {config.data_pipeline}, {ranks.world_size} x {ranks.device.type}, "
        f"{str(compute_dtype(config, ranks.device) or 'float32').removeprefix('torch.')}, "
        f"batch {global_batch_size}, seed {config.seed}, in {run.folder}\n"
        f"learning rate {config.learning_rate:g} x batch {global_batch_size} / {REFERENCE_BATCH} = {peak:g}, "
        f"{config.schedule}" + (f" after {config.warmup} steps of warm-up" if config.warmup else "")
    )
    run.log("learning_rate", step=step, base=config.learning_rate, global_batch_size=global_batch_size,
            reference_batch_size=REFERENCE_BATCH, peak=peak, schedule=config.schedule)  # fmt: skip
    for warning in filter(None, (train_split.repairs_text, val_split.repairs_text, _judged_text(val_split))):
        run.say(f"warning: {warning}")
    for split in splits:
        if split.left_out:
            run.log("images_left_out", annotations=str(split.file), images=len(split), left_out=split.left_out)
    for note in notes:
        run.say(f"note: {note}")


def _judge(training: "Training", showcase: "Showcase", config: Config, ranks: "Ranks") -> "Judge":
    from ssd.evaluation.coco import coco_metrics
    from ssd.evaluation.detect import detect_split
    from ssd.training.evaluations import Judge

    ground_truth = showcase.ground_truth

    def detect() -> "np.ndarray | None":
        found = detect_split(training.judged_model, showcase, ground_truth, config, ranks)
        if found is not None:
            showcase.take(found, training.step)
        return found

    return Judge(detect, partial(coco_metrics, ground_truth, engine=config.eval_engine))


def _write_results(run: "Run", results: dict[str, Any], config: Config, val_split: "Annotations") -> None:
    from ssd.run.metrics_table import published_band

    about = {"val_images": len(val_split), "val_images_left_out": val_split.num_left_out}
    run.write_results(
        {**results, **about, "seed": config.seed, "data_pipeline": config.data_pipeline, "backbone": config.backbone}
    )
    run.show_metrics(results, f"{_data_name(config)} {config.val_split}, {results['train_seconds'] / 60:.1f} minutes")
    if _is_as_published(config, val_split, results):
        run.say(published_band(results["AP"]))


def _is_as_published(config: Config, val_split: "Annotations", results: dict[str, Any]) -> bool:
    """Whether a run is one that NVIDIA's published figure is for: SSD300-R50, 65 epochs, the whole of COCO 2017."""
    whole_coco = config.val_split == "val2017" and len(val_split) == 5000 and len(val_split.categories) == 80
    return whole_coco and config.backbone == "resnet50" and results["epochs"] == 65


def _data_name(config: Config) -> str:
    return Path(config.data).resolve().name


def evaluate(arguments: Sequence[str]) -> int:
    options = vars(evaluate_parser().parse_args(arguments))
    local_rank, json_file = options.pop("local_rank"), options.pop("json")
    config = config_of(options, Config())
    _require_folder_of(json_file, "--json")

    from ssd.distributed import process_group

    with process_group(config.device, local_rank, config.timeout) as ranks:
        return _evaluate(config, ranks, json_file)


def _require_folder_of(file: str | None, flag: str) -> None:
    """Raises InputError, before the work, if a result could not be written."""
    if file is not None and (Path(file).is_dir() or not Path(file).parent.is_dir()):
        raise InputError(f"{flag} {file}: not a file in an existing folder; pass another path")


def _require_picture(file: str | None, flag: str) -> None:
    """Raises InputError, before the work, if a picture could not be written."""
    _require_folder_of(file, flag)
    if file is not None and Path(file).suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise InputError(f"{flag} {file}: pass a name that ends in .png or .jpg")


def _evaluate(config: Config, ranks: "Ranks", json_file: str | None) -> int:
    import json

    import torch

    import pipelines
    from ssd.checkpoints import checkpoint, conversion
    from ssd.evaluation.coco import coco_metrics
    from ssd.evaluation.detect import detect_split
    from ssd.run.metrics_table import show_metrics

    file = Path(config.checkpoint or "")
    content = conversion.load(file)
    split = _read_split_to_run(config, config.val_split, ranks)
    checkpoint.require_categories(content, file, list(split.categories), config.data)
    model = checkpoint.build_model(content, file).to(ranks.device).to(memory_format=torch.channels_last)
    loader = pipelines.build_eval(
        config.data_pipeline, split, batch_size=config.eval_batch_size, num_workers=config.num_workers, ranks=ranks
    )
    ground_truth = split.ground_truth()
    results = detect_split(model, loader, ground_truth, config, ranks)
    if results is not None:
        if len(results) == 0:  # in training that is a bad beginning, here it is a mistake
            raise InputError(
                f"{file}: detects nothing in {len(split)} images of {config.val_split}; lower --score-threshold "
                f"(it is {config.score_threshold}), or pass a checkpoint that was trained for longer"
            )
        metrics = coco_metrics(ground_truth, results, config.eval_engine)
        for warning in filter(None, (split.repairs_text, _judged_text(split))):
            print(f"warning: {warning}", file=sys.stderr)
        show_metrics(metrics, f"{_data_name(config)} {config.val_split}, {len(split)} images, {file}")
        if json_file:
            about = {"images": len(split), "images_left_out": split.num_left_out}
            Path(json_file).write_text(json.dumps({**metrics, **about}, indent=2) + "\n")
    return 0


def predict(arguments: Sequence[str]) -> int:
    options = vars(predict_parser().parse_args(arguments))
    sources, output = options.pop("source"), Path(options.pop("output"))
    batch_size, threads = options.pop("batch_size"), options.pop("num_workers") or os.cpu_count() or 1
    config = config_of(options, Config(), needs_data=False)

    from ssd.console import Console
    from ssd.inference import predict as prediction
    from ssd.inference.predictor import load_predictor

    files = prediction.find_images(sources, output)
    detector = load_predictor(config.checkpoint or "", config)
    console = Console(soft_wrap=True)
    return prediction.predict(detector, files, output, batch_size=batch_size, threads=threads, console=console)


def export(arguments: Sequence[str]) -> int:
    options = vars(export_parser().parse_args(arguments))
    form, output = options.pop("format"), Path(options.pop("output"))
    config = config_of(options, Config(), needs_data=False)
    _require_folder_of(str(output), "--output")

    from ssd.inference import export as exporting

    print(exporting.export(Path(config.checkpoint or ""), output, form, config))
    return 0


def doctor(arguments: Sequence[str]) -> int:
    options = doctor_parser().parse_args(arguments)

    from ssd.cli import doctor as checkup
    from ssd.console import Console

    findings = checkup.examine(Path(options.output))
    checkup.show(findings, Console())
    return checkup.exit_code(findings)


def check(arguments: Sequence[str]) -> int:
    options = vars(check_parser().parse_args(arguments))
    threads, json_file = options.pop("num_workers") or os.cpu_count() or 1, options.pop("json")
    config = config_of(options, Config())
    _require_folder_of(json_file, "--json")

    from pipelines import check as data_check
    from ssd.console import Console

    reports = data_check.check(_data_folder(config), config.train_split, config.val_split, threads)
    data_check.show(reports, Console())
    if json_file:
        data_check.write_json(Path(json_file), reports)
    return data_check.exit_code(reports)


def show_data(arguments: Sequence[str]) -> int:
    options = vars(show_data_parser().parse_args(arguments))
    output, rows, columns = Path(options.pop("output")), options.pop("rows"), options.pop("columns")
    names = _pipelines_named(options.pop("data_pipeline"))
    config = config_of(options, Config(seed=0))
    _require_picture(str(output), "--output")

    import torch

    import pipelines
    from pipelines.show import write_mosaic
    from ssd.distributed import Ranks

    split = _read_split(config, config.train_split)
    here = Ranks(0, 0, 1, torch.device("cpu"))
    loaders = {
        name: pipelines.build_train(name, split, batch_size=columns, num_workers=1, seed=config.seed or 0, ranks=here)
        for name in names
    }
    write_mosaic(output, loaders, [category.name for category in split.categories], rows=rows, columns=columns)
    print(f"wrote {output}")
    return 0


def benchmark(arguments: Sequence[str]) -> int:
    what = benchmark_parser().parse_args(arguments[:1]).what
    return _benchmark_data(arguments[1:]) if what == "data" else _benchmark_steps(what, arguments[1:])


def _benchmark_data(arguments: Sequence[str]) -> int:
    options = vars(benchmark_data_parser().parse_args(arguments))
    names = _pipelines_named(options.pop("data_pipeline"))
    chosen = {name: options.pop(name) for name in ("workers", "rounds", "batches", "through", "json", "plot")}
    local_rank = options.pop("local_rank")
    config = config_of(options, Config(batch_size=32, seed=0, backbone_weights="none"))
    _require_folder_of(chosen["json"], "--json")
    _require_picture(chosen["plot"], "--plot")
    workers = chosen["workers"] or list(range(1, (os.cpu_count() or 1) + 1))

    from pipelines import speed as data_benchmark
    from ssd.console import Console
    from ssd.distributed import process_group
    from ssd.environment import hardware, versions
    from ssd.speed.steps import through_training
    from ssd.training.build import build_training

    with process_group(config.device, local_rank) as ranks:
        if ranks.world_size > 1:
            raise InputError("benchmark measures one process; start it without torchrun")
        split = _read_split(config, config.train_split)
        about = {"batch_size": config.batch_size, "rounds": chosen["rounds"], "timed_batches": chosen["batches"]}
        about |= {"data": _data_name(config), "hardware": hardware(ranks.device), "versions": versions()}
        found = data_benchmark.benchmark(
            split,
            subjects=(data_benchmark.DECODE_ONLY, *names),
            workers=workers,
            batch_size=config.batch_size,
            timed_batches=chosen["batches"],
            rounds=chosen["rounds"],
            ranks=ranks,
            progress=lambda text: print(text, file=sys.stderr),
        )
        data_benchmark.show_table(found, Console())
        if chosen["through"] == "train":
            about["through_train"] = through_training(
                build_training(config, split.categories, ranks)[0],
                {
                    name: partial(data_benchmark.endless, split, name, max(workers), ranks, config.batch_size)
                    for name in names
                },
                timed_steps=chosen["batches"],
            )
    if chosen["json"]:
        data_benchmark.write_json(Path(chosen["json"]), found, about)
    if chosen["plot"]:
        data_benchmark.write_plot(Path(chosen["plot"]), found, _data_name(config))
    return 0


def _benchmark_steps(subject: Literal["train", "inference"], arguments: Sequence[str]) -> int:
    options = vars(benchmark_steps_parser(subject).parse_args(arguments))
    chosen = {name: options.pop(name) for name in ("synthetic", "json", "plot", "profile")}
    precisions, batch_sizes = options.pop("precisions"), options.pop("batch_sizes")
    compiled = {"off": [False], "on": [True], "both": [False, True]}[options.pop("compile")]
    warmup_steps, timed_steps = options.pop("warmup_steps"), options.pop("steps")
    if chosen["synthetic"] == ("data" in options):
        raise InputError(f"benchmark {subject} takes --data DIR or --synthetic; pass one of them")
    config = config_of({"data": "synthetic", **options}, Config(seed=0, backbone_weights="none"))
    if "backbone" not in options:
        config = _with_backbone_of_checkpoint(config)
    for name in ("json", "plot", "profile"):
        _require_folder_of(chosen[name], f"--{name}")

    from pipelines import speed as data_benchmark
    from ssd.checkpoints.conversion import coco_categories
    from ssd.detectors.ssd300.synthetic import endless_synthetic
    from ssd.distributed import process_group
    from ssd.speed import comparison
    from ssd.training.step import require_device

    with process_group(config.device) as ranks:
        if ranks.world_size > 1:
            raise InputError("benchmark measures one process; start it without torchrun")
        require_device(config, ranks)
        categories: Sequence[tuple[int, str]] = coco_categories()
        batches_of: Callable[[int], Iterator[Any]]
        if chosen["synthetic"]:
            batches_of = partial(endless_synthetic, 1 + len(categories), ranks.device)
        else:
            trains = subject == "train"
            split = _read_split(config, config.train_split if trains else config.val_split)
            categories = split.categories
            batches_of = partial(
                data_benchmark.endless, split, config.data_pipeline, config.num_workers, ranks, training=trains
            )
        rows = comparison.compare(
            subject, config, categories, batches_of, ranks,
            precisions=precisions, compiled=compiled, batch_sizes=batch_sizes,
            warmup_steps=warmup_steps, timed_steps=timed_steps,
            trace=Path(chosen["profile"]) if chosen["profile"] else None,
            progress=lambda text: print(text, file=sys.stderr),
        )  # fmt: skip
        comparison.show_table(subject, rows)
        if chosen["json"]:
            data = "synthetic" if chosen["synthetic"] else f"{_data_name(config)}, {config.data_pipeline}"
            about = {"data": data, **comparison.about(config, 1 + len(categories), rows, subject, ranks)}
            comparison.write_json(Path(chosen["json"]), rows, about)
    if chosen["plot"]:
        comparison.write_plot(Path(chosen["plot"]), subject, rows)
    return 0


def _pipelines_named(choice: str) -> tuple[str, ...]:
    return DATA_PIPELINES if choice == "both" else (choice,)


def plot(arguments: Sequence[str]) -> int:
    options = plot_parser().parse_args(arguments)
    folders = [Path(run) for run in options.runs]
    if options.output is None and len(folders) > 1:
        raise InputError("--output is missing: pass a folder for the plots of several runs")
    output = Path(options.output or folders[0])

    from ssd.report.page import write_plots_and_report

    write_plots_and_report(folders, output)
    print(f"wrote {output / 'report.html'} and {output / 'plots'}")
    return 0


def convert(arguments: Sequence[str]) -> int:
    options = convert_parser().parse_args(arguments)
    source, target = Path(options.source), Path(options.target)
    if target.suffix not in (".pt", ".pth", ".safetensors"):
        raise InputError(f"{target}: pass a name that ends in .pt, .pth or .safetensors")
    if target.exists() and target.samefile(source):
        raise InputError(f"{target}: would be written over itself; pass another name")
    _require_folder_of(str(target), "convert")

    from ssd.checkpoints import checkpoint, conversion

    content = conversion.load(source)
    model = checkpoint.build_model(content, source)
    conversion.save(target, content)
    print(f"wrote {target}: SSD300-{model.backbone}, {len(content['categories'])} categories")
    return 0


def download(arguments: Sequence[str]) -> int:
    options = download_parser().parse_args(arguments)
    folder = Path(options.data)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--data {folder}: not a folder; pass another path")

    from pipelines import download as coco

    fetched = coco.download(folder, options.url)
    print(f"{folder}: fetched {', '.join(fetched)}" if fetched else f"{folder}: COCO 2017 is there already")
    return 0


COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "check": check,
    "show-data": show_data,
    "benchmark": benchmark,
    "plot": plot,
    "convert": convert,
    "download": download,
    "doctor": doctor,
}


def main(arguments: Sequence[str]) -> int:
    named = bool(arguments) and not arguments[0].startswith("-")
    name, rest = (arguments[0], arguments[1:]) if named else ("train", arguments)
    try:
        if name not in COMMANDS:
            nearest = "".join(f"did you mean {near}? " for near in difflib.get_close_matches(name, COMMANDS, n=1))
            raise InputError(f"no such command: {name}; {nearest}there are {', '.join(COMMANDS)}")
        return COMMANDS[name](rest)
    except InputError as error:
        return _refuse(error)
    except LostRankError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except (RuntimeError, MemoryError) as error:
        from pipelines.no_dali.loaders import worker_failure
        from ssd.errors import memory_failure

        failure = worker_failure(error) or memory_failure(error)
        if failure is None:
            raise
        return _refuse(failure)
    except OSError as error:  # a disk that is full, a folder that may not be written to
        print(f"error: {error.filename or 'the machine'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _refuse(error: InputError) -> int:
    rank = int(os.environ.get("RANK", 0))
    print(f"error: {error}" if rank == 0 else f"error on rank {rank}: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of what a console lacks; Python has stderr so already
    sys.exit(main(sys.argv[1:]))
