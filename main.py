#!/usr/bin/env python3
"""The command line: flags -> Config; wires data path, model and run.

Heavy imports stand inside the commands, after their flags are read.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd.config import DATA_PIPELINES, RECIPES, Config
from ssd.errors import InputError
from ssd.flags import benchmark_parser, config_of, evaluate_parser, show_data_parser, train_parser

if TYPE_CHECKING:
    from pipelines.annotations import Annotations
    from ssd.batch import TrainLoader
    from ssd.distributed import Ranks
    from ssd.train import Training

DEMO_FOLDER = Path("data/demo")

# Threads of torch that wait for work should sleep: by default they spin, and take the cores from the data paths'
# threads and processes. Read when torch is first imported; the user's own setting wins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _data_folder(config: Config) -> Path:
    if config.data != "demo":
        return Path(config.data)
    from pipelines.demo import write_demo_data

    return write_demo_data(DEMO_FOLDER)


def _read_split(config: Config, split: str) -> "Annotations":
    from pipelines.annotations import read_annotations

    return read_annotations(_data_folder(config), split)


def train(arguments: Sequence[str]) -> int:
    options = vars(train_parser().parse_args(arguments))
    local_rank, recipe = options.pop("local_rank"), options.pop("recipe")
    config = config_of(options, RECIPES[recipe]() if recipe else Config())

    from ssd.distributed import process_group

    with process_group(config.device, local_rank) as ranks:
        return _train(config, ranks)


def _train(config: Config, ranks: "Ranks") -> int:
    import pipelines
    from ssd import checkpoint
    from ssd.distributed import broadcast_object
    from ssd.evaluate import evaluate
    from ssd.precision import compute_dtype
    from ssd.record import Run, choose_folder
    from ssd.train import NonFiniteLossError
    from ssd.train import train as run_training

    train_split, val_split = _read_split(config, config.train_split), _read_split(config, config.val_split)
    if train_split.categories != val_split.categories:
        raise InputError(f"{val_split.file}: its categories are not those of {train_split.file}; make them equal")
    folder, resume_file = broadcast_object(choose_folder(_data_name(config), config.output, config.resume), ranks)
    resumed = checkpoint.load_run(resume_file) if resume_file else None
    if resumed and _is_over(resumed, config) and (folder / "results.json").exists():
        if ranks.is_main:
            print(f"{folder}: this run is over after {resumed['epoch']} epochs; pass --epochs with more to go on")
        return 0 if config.target is None or resumed["best_ap"] >= config.target else 1
    seed = config.seed
    if seed is None:
        seed = resumed["seed"] if resumed else broadcast_object(int.from_bytes(os.urandom(4)), ranks)
    config = replace(config, seed=seed, output=str(folder))

    loader = pipelines.build_train(
        config.data_pipeline, train_split, batch_size=config.batch_size, num_workers=config.num_workers,
        seed=seed, ranks=ranks,
    )  # fmt: skip
    val_loader = pipelines.build_eval(
        config.data_pipeline, val_split, batch_size=config.eval_batch_size, num_workers=config.num_workers, ranks=ranks
    )
    training, notes = _build_training(config, train_split, ranks, resumed, resume_file)
    identity = _data_identity(config, train_split, ranks)
    describe = {
        "backbone": config.backbone,
        "categories": [tuple(category) for category in train_split.categories],
        "seed": seed,
        "settings": config.to_dict(),
        "data": identity,
    }
    if resumed:
        notes.append(_resume(training, loader, resumed, identity, ranks))

    run = Run(folder, ranks)
    run.write_config(config, ranks)
    run.say(
        f"{config.data}: {len(train_split.trainable_indices())} of {len(train_split)} images to train on, "
        f"{len(val_split)} to judge by, {len(train_split.categories)} classes\n"
        f"SSD300-{config.backbone}, {config.data_pipeline}, {ranks.world_size} x {ranks.device.type}, "
        f"{str(compute_dtype(config, ranks.device) or 'float32').removeprefix('torch.')}, "
        f"batch {config.batch_size * ranks.world_size}, seed {seed}, in {folder}"
    )
    for warning in filter(None, (train_split.repairs_text, val_split.repairs_text)):
        run.say(f"warning: {warning}")
    for note in notes:
        run.say(f"note: {note}")

    ground_truth = val_split.ground_truth()
    try:
        results, reached = run_training(
            training, loader, lambda: evaluate(training.model, val_loader, ground_truth, config, ranks), run, describe
        )
    except NonFiniteLossError as error:
        if ranks.is_main:
            print(f"error: {error}", file=sys.stderr)
        return 1
    if ranks.is_main:
        run.write_results({**results, "seed": seed, "data_pipeline": config.data_pipeline, "backbone": config.backbone})
        minutes = results["train_seconds"] / 60
        run.show_metrics(results, f"{_data_name(config)} {config.val_split}, {minutes:.1f} minutes")
        run.say(f"wrote {folder}")
    if config.target is not None and not reached:
        run.say(f"--target {config.target} was not reached")
        return 1
    return 0


def _is_over(resumed: dict[str, Any], config: Config) -> bool:
    """Whether a checkpoint is a run's last: all epochs done, or the target reached."""
    return resumed["epoch"] >= config.epochs or (config.target is not None and resumed["best_ap"] >= config.target)


def _data_name(config: Config) -> str:
    return Path(config.data).resolve().name


def _build_training(
    config: Config, split: "Annotations", ranks: "Ranks", resumed: dict[str, Any] | None, resume_file: Path | None
) -> "tuple[Training, list[str]]":
    """The model on its device with its optimiser, and what the user should know of where its weights come from."""
    import torch

    from ssd import checkpoint
    from ssd.loss import ssd_losses
    from ssd.model import SSD300
    from ssd.precision import grad_scaler
    from ssd.train import Training, build_optimizer

    notes = []
    if config.fp16 and ranks.device.type == "cpu":
        notes.append("--fp16 on a CPU computes in bfloat16")
    torch.manual_seed(config.seed or 0)
    model = SSD300(config.backbone, split.num_classes)
    if resumed and resume_file:
        if resumed["backbone"] != config.backbone:
            raise InputError(f"{resume_file}: pass --backbone {resumed['backbone']}, which it was trained with")
        checkpoint.require_categories(resumed, resume_file, list(split.categories), config.data)
        model = checkpoint.build_model(resumed, resume_file)
    elif config.checkpoint:
        file = Path(config.checkpoint)
        fresh = checkpoint.load_for_fine_tuning(model, checkpoint.load(file), file)
        notes.append(f"starting from {file}" + (", with new class heads" if fresh else ""))
    else:
        checkpoint.load_backbone(model, config.backbone_weights)
    model = model.to(ranks.device).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, config, ranks.device)
    return Training(model, optimizer, grad_scaler(config, ranks.device), ssd_losses, config, ranks), notes


def _data_identity(config: Config, split: "Annotations", ranks: "Ranks") -> dict[str, Any]:
    """What must be equal for a data path's saved state to mean the same."""
    from ssd.record import versions

    return {
        "data_pipeline": config.data_pipeline,
        "dali": versions()["dali"] if config.data_pipeline == "dali" else None,
        "images": len(split),
        "boxes": len(split.labels),
        "batch_size": config.batch_size,
        "world_size": ranks.world_size,
        "seed": config.seed,
    }


def _resume(
    training: "Training", loader: "TrainLoader", resumed: dict[str, Any], identity: dict[str, Any], ranks: "Ranks"
) -> str:
    training.restore(resumed)
    epoch = resumed["epoch"]
    training.step = epoch * loader.steps_per_epoch
    if resumed["data"] == identity:
        loader.restore(bytes(resumed["data_states"][ranks.rank].tolist()))
        return f"resuming after epoch {epoch}"
    changed = ", ".join(name for name in identity if resumed["data"].get(name) != identity[name])
    return f"resuming after epoch {epoch}; the images come in a new order, because of another {changed}"


def evaluate(arguments: Sequence[str]) -> int:
    options = vars(evaluate_parser().parse_args(arguments))
    local_rank, json_file = options.pop("local_rank"), options.pop("json")
    config = config_of(options, Config())
    _require_folder_of(json_file, "--json")

    from ssd.distributed import process_group

    with process_group(config.device, local_rank) as ranks:
        return _evaluate(config, ranks, json_file)


def _require_folder_of(file: str | None, flag: str) -> None:
    """Raises InputError, before the work, if a result could not be written."""
    if file is not None and (Path(file).is_dir() or not Path(file).parent.is_dir()):
        raise InputError(f"{flag} {file}: not a file in an existing folder; pass another path")


def _evaluate(config: Config, ranks: "Ranks", json_file: str | None) -> int:
    import json

    import torch

    import pipelines
    from ssd import checkpoint
    from ssd.evaluate import evaluate as judge
    from ssd.record import show_metrics

    file = Path(config.checkpoint or "")
    content = checkpoint.load(file)
    split = _read_split(config, config.val_split)
    checkpoint.require_categories(content, file, list(split.categories), config.data)
    model = checkpoint.build_model(content, file).to(ranks.device).to(memory_format=torch.channels_last)
    loader = pipelines.build_eval(
        config.data_pipeline, split, batch_size=config.eval_batch_size, num_workers=config.num_workers, ranks=ranks
    )
    metrics = judge(model, loader, split.ground_truth(), config, ranks)
    if metrics is not None:
        if split.repairs_text:
            print(f"warning: {split.repairs_text}", file=sys.stderr)
        show_metrics(metrics, f"{_data_name(config)} {config.val_split}, {len(split)} images, {file}")
        if json_file:
            Path(json_file).write_text(json.dumps(metrics, indent=2) + "\n")
    return 0


def show_data(arguments: Sequence[str]) -> int:
    options = vars(show_data_parser().parse_args(arguments))
    output, rows, columns = Path(options.pop("output")), options.pop("rows"), options.pop("columns")
    names = _pipelines_named(options.pop("data_pipeline"))
    config = config_of(options, Config(seed=0))
    _require_folder_of(str(output), "--output")
    if output.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise InputError(f"--output {output}: pass a name that ends in .png or .jpg")

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
    options = vars(benchmark_parser().parse_args(arguments))
    names = _pipelines_named(options.pop("data_pipeline"))
    chosen = {name: options.pop(name) for name in ("what", "workers", "rounds", "batches", "through", "json", "plot")}
    local_rank = options.pop("local_rank")
    config = config_of(options, Config(batch_size=32, seed=0, backbone_weights="none"))
    _require_folder_of(chosen["json"], "--json")
    _require_folder_of(chosen["plot"], "--plot")
    workers = chosen["workers"] or list(range(1, (os.cpu_count() or 1) + 1))

    from pipelines import benchmark as data_benchmark
    from ssd.distributed import process_group
    from ssd.record import hardware, versions

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
        data_benchmark.show_table(found)
        if chosen["through"] == "train":
            about["through_train"] = _benchmark_training(config, split, names, max(workers), chosen, ranks)
    if chosen["json"]:
        data_benchmark.write_json(Path(chosen["json"]), found, about)
    if chosen["plot"]:
        data_benchmark.write_plot(Path(chosen["plot"]), found, _data_name(config))
    return 0


def _benchmark_training(
    config: Config, split: "Annotations", names: Sequence[str], workers: int, chosen: dict[str, Any], ranks: "Ranks"
) -> dict[str, Any]:
    """Training steps fed by each data path, beside the same steps on one batch that lies in memory."""
    import itertools

    import pipelines
    from ssd.benchmark import measure_training

    training, _ = _build_training(config, split, ranks, None, None)
    found: dict[str, Any] = {}
    in_memory = None
    for name in names:
        loader = pipelines.build_train(
            name, split, batch_size=config.batch_size, num_workers=workers, seed=config.seed or 0, ranks=ranks
        )
        batches = loader.batches(0)
        in_memory = next(batches)
        speed = measure_training(training, batches, warmup_steps=2, timed_steps=chosen["batches"])
        found[name] = speed._asdict()
        del batches
    if in_memory is not None:
        batches = itertools.repeat(in_memory)
        found["in_memory"] = measure_training(
            training, batches, warmup_steps=1, timed_steps=chosen["batches"]
        )._asdict()
    for name, speed in found.items():
        print(f"training on {name}: {speed['images_per_second']:.1f} img/s, {speed['data_wait_fraction']:.0%} waiting")
    return found


def _pipelines_named(choice: str) -> tuple[str, ...]:
    return DATA_PIPELINES if choice == "both" else (choice,)


COMMANDS = {"train": train, "evaluate": evaluate, "show-data": show_data, "benchmark": benchmark}


def main(arguments: Sequence[str]) -> int:
    named = bool(arguments) and not arguments[0].startswith("-")
    name, rest = (arguments[0], arguments[1:]) if named else ("train", arguments)
    try:
        if name not in COMMANDS:
            raise InputError(f"no such command: {name}; there are {', '.join(COMMANDS)}")
        return COMMANDS[name](rest)
    except InputError as error:
        rank = int(os.environ.get("RANK", 0))
        print(f"error: {error}" if rank == 0 else f"error on rank {rank}: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a disk that is full, a folder that may not be written to
        print(f"error: {error.filename or 'the machine'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
