#!/usr/bin/env python3
"""The command line: flags -> Config; wires data path, model and run.

Heavy imports stand inside the commands, so that --help and mistakes in flags are answered at once.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ssd.config import BACKBONES, DATA_PIPELINES, RECIPES, Config
from ssd.errors import InputError

if TYPE_CHECKING:
    from pipelines.annotations import Annotations
    from ssd.batch import TrainLoader
    from ssd.distributed import Ranks
    from ssd.train import Training

DEMO_FOLDER = Path("data/demo")

EXIT_CODES = "exit codes: 0 done, 1 --target not reached or the loss became infinite, 2 bad input, 130 interrupted"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def _number(convert: Callable[[str], Any], low: float, high: float = float("inf")) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = convert(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not in {low:g}..{high:g}")
        return value

    parse.__name__ = convert.__name__
    return parse


_COUNT = _number(int, 1)
_COUNT_FROM_0 = _number(int, 0)
_FRACTION = _number(float, 0, 1)
_POSITIVE = _number(float, 0)


def _default(name: str) -> str:
    value = getattr(Config, name)
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
    return "" if value is None or isinstance(value, bool) else f" (default: {shown})"


def _flag(group: Any, *names: str, dest: str, help: str, **arguments: Any) -> None:
    group.add_argument(*names, dest=dest, default=argparse.SUPPRESS, help=help + _default(dest), **arguments)


def _add_data_flags(parser: argparse.ArgumentParser, *, training: bool) -> None:
    group = parser.add_argument_group("data")
    _flag(
        group, "--data", "-d", dest="data", metavar="DIR",
        help='COCO-style folder (DIR/train2017 or DIR/images/train2017, and DIR/annotations), or "demo": written once',
    )  # fmt: skip
    if training:
        _flag(group, "--train-split", dest="train_split", metavar="NAME", help="split to train on")
    _flag(group, "--val-split", dest="val_split", metavar="NAME", help="split to evaluate on")
    _flag(
        group, "--data_pipeline", dest="data_pipeline", choices=DATA_PIPELINES,
        help="NVIDIA DALI, or pure PyTorch: the same augmentation either way",
    )  # fmt: skip
    _flag(group, "--num-workers", dest="num_workers", type=_COUNT_FROM_0, metavar="N", help="threads or processes")


def _add_machine_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("machine")
    _flag(group, "--fp16", dest="fp16", action="store_true", help="mixed precision in float16 (on a CPU bfloat16)")
    _flag(group, "--bf16", dest="bf16", action="store_true", help="mixed precision in bfloat16")
    _flag(group, "--device", dest="device", choices=("auto", "cpu", "cuda"), help="where to run; auto: a GPU if any")
    group.add_argument("--local_rank", "--local-rank", type=int, default=None, help="for launchers older than torchrun")


def _add_evaluation_flags(group: Any) -> None:
    _flag(group, "--eval-batch-size", "--ebs", dest="eval_batch_size", type=_COUNT, metavar="N", help="images a rank")
    _flag(group, "--score-threshold", dest="score_threshold", type=_FRACTION, metavar="P", help="detections score more")
    _flag(group, "--nms-iou", dest="nms_iou", type=_FRACTION, metavar="IOU", help="overlap that drops the weaker one")
    _flag(group, "--max-per-class", dest="max_per_class", type=_COUNT, metavar="N", help="candidates a class and image")
    _flag(group, "--max-per-image", dest="max_per_image", type=_COUNT, metavar="N", help="detections an image")


def train_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main.py",
        usage="main.py [train] --data DIR [flags]\n       main.py evaluate --data DIR --checkpoint FILE [flags]",
        description="Train an SSD300 detector. Under torchrun every process is a rank.",
        epilog=f"example: torchrun --nproc_per_node=8 main.py --fp16 --data /coco\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", choices=tuple(RECIPES), help="start from these settings instead of the defaults")
    _add_data_flags(parser, training=True)

    group = parser.add_argument_group("model")
    _flag(group, "--backbone", dest="backbone", choices=BACKBONES, help="the ResNet under the detector")
    _flag(
        group, "--backbone-weights", dest="backbone_weights", metavar="{imagenet,none,FILE}",
        help="torchvision's, downloaded; none; or a file with a torchvision state dict",
    )  # fmt: skip
    _flag(group, "--checkpoint", dest="checkpoint", metavar="FILE", help="fine-tune from this; classes may differ")

    group = parser.add_argument_group("training")
    _flag(group, "--epochs", "-e", dest="epochs", type=_COUNT, metavar="N", help="times through the data")
    _flag(group, "--batch-size", "--bs", "-b", dest="batch_size", type=_COUNT, metavar="N", help="images a rank")
    _flag(
        group, "--learning-rate", "--lr", dest="learning_rate", type=_POSITIVE, metavar="LR",
        help="rate at a global batch of 32; the run's is this x ranks x batch size / 32",
    )  # fmt: skip
    _flag(group, "--momentum", "-m", dest="momentum", type=_FRACTION, metavar="M", help="of SGD")
    _flag(
        group,
        "--weight-decay",
        "--wd",
        dest="weight_decay",
        type=_POSITIVE,
        metavar="W",
        help="not on biases and batch norm",
    )
    _flag(group, "--warmup", dest="warmup", type=_COUNT_FROM_0, metavar="STEPS", help="steps of linear warm-up")
    _flag(
        group, "--multistep", dest="multistep", type=_COUNT, nargs="*", metavar="EPOCH",
        help="the rate falls to a tenth after these epochs",
    )  # fmt: skip
    _flag(group, "--seed", "-s", dest="seed", type=_COUNT_FROM_0, metavar="N", help="default: drawn and recorded")

    group = parser.add_argument_group("evaluation")
    _flag(
        group, "--evaluation", dest="evaluation", type=_COUNT, nargs="*", metavar="EPOCH",
        help="evaluate after these epochs, and after the last",
    )  # fmt: skip
    _flag(
        group, "--target", dest="target", type=_FRACTION, metavar="AP", help="end at this AP; exit 1 if never reached"
    )
    _add_evaluation_flags(group)

    _add_machine_flags(parser)

    group = parser.add_argument_group("run")
    _flag(group, "--output", dest="output", metavar="DIR", help="the run's folder (default: runs/<data>-<time>)")
    _flag(
        group, "--resume", dest="resume", metavar="{auto,FILE}",
        help="go on from a checkpoint; auto: the run's own last one, if any",
    )  # fmt: skip
    _flag(group, "--log-interval", dest="log_interval", type=_COUNT, metavar="STEPS", help="steps a line of log.jsonl")
    return parser


def evaluate_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main.py evaluate",
        description="Judge a checkpoint on a data set by the COCO metrics.",
        epilog=f"example: main.py evaluate --data /coco --checkpoint runs/coco/checkpoints/best.pt\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a run's checkpoints/best.pt or last.pt")
    _add_data_flags(parser, training=False)
    _add_evaluation_flags(parser.add_argument_group("evaluation"))
    _add_machine_flags(parser)
    parser.add_argument("--json", metavar="FILE", help="write the metrics there too")
    return parser


def _config(flags: dict[str, Any], base: Config) -> Config:
    flags = {name: tuple(value) if isinstance(value, list) else value for name, value in flags.items()}
    config = replace(base, **flags)
    if not config.data:
        raise InputError('--data is missing: pass a COCO-style folder, or "demo"')
    if config.fp16 and config.bf16:
        raise InputError("--fp16 and --bf16 exclude each other; pass one")
    return config


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
    config = _config(options, RECIPES[recipe]() if recipe else Config())

    from ssd.distributed import process_group

    with process_group(config.device, local_rank) as ranks:
        return _train(config, ranks)


def _train(config: Config, ranks: "Ranks") -> int:
    import pipelines
    from ssd import checkpoint
    from ssd.distributed import broadcast_object
    from ssd.evaluate import evaluate
    from ssd.record import Run, choose_folder
    from ssd.train import NonFiniteLossError
    from ssd.train import train as run_training

    train_split, val_split = _read_split(config, config.train_split), _read_split(config, config.val_split)
    if train_split.categories != val_split.categories:
        raise InputError(f"{val_split.file}: its categories are not those of {train_split.file}; make them equal")
    folder, resume_file = broadcast_object(choose_folder(_data_name(config), config.output, config.resume), ranks)
    resumed = checkpoint.load(resume_file) if resume_file else None
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
        "dali": versions()["nvidia-dali-cuda120"] if config.data_pipeline == "dali" else None,
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
    config = _config(options, Config())

    from ssd.distributed import process_group

    with process_group(config.device, local_rank) as ranks:
        return _evaluate(config, ranks, json_file)


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


COMMANDS = {"train": train, "evaluate": evaluate}


def main(arguments: Sequence[str]) -> int:
    name, rest = (arguments[0], arguments[1:]) if arguments and arguments[0] in COMMANDS else ("train", arguments)
    try:
        return COMMANDS[name](rest)
    except InputError as error:
        rank = int(os.environ.get("RANK", 0))
        print(f"error: {error}" if rank == 0 else f"error on rank {rank}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
