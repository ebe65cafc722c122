"""main.py sensitivity: what pruning each tensor would cost."""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd.cli.splits import split_to_judge
from ssd.config import Config
from ssd.errors import InputError
from ssd.options.detectors import for_detector
from ssd.options.flags import (
    CHECKPOINT_HELP,
    COUNT,
    EXIT_CODES,
    FRACTION,
    Parser,
    add_data_flags,
    add_evaluation_flags,
    add_machine_flags,
    config_of,
    number,
)

if TYPE_CHECKING:
    from torch import nn

    from ssd.compression.analysis.sensitivity import Judged
    from ssd.distributed import Ranks

_LEVEL = number(float, 0.001, 1)
_BATCH = 8


def sensitivity_parser() -> Parser:
    parser = Parser(
        "main.py sensitivity",
        description="Prune one tensor after the other, to one level after the other, and see what AP and loss become\n"
        "on some images, without training. Writes sensitivity.csv, a point a line as it is measured, sensitivity.png,\n"
        "and schedule.yaml for --compress: of each tensor the highest level that costs little. Interrupted, the same\n"
        "command goes on.",
        epilog="example: main.py sensitivity --checkpoint runs/dense/checkpoints/best.pt --data /mydata "
        f"--group filter --output sensitivity\n{EXIT_CODES}",
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help=CHECKPOINT_HELP)
    parser.add_argument("--output", required=True, metavar="DIR", help="where to write, or an analysis to go on with")
    group = parser.add_argument_group("analysis")
    group.add_argument(
        "--group", choices=("element", "filter", "channel"), default="element",
        help="what is pruned: single weights, or what thin can take out (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--levels", nargs="+", type=_LEVEL, default=[0.25, 0.5, 0.75, 0.9], metavar="SHARE",
        help="of each tensor that is pruned (default: 0.25 0.5 0.75 0.9)",
    )  # fmt: skip
    group.add_argument(
        "--tensors", nargs="+", metavar="PATTERN", help="only those, such as 'trunk.6.*'; main.py summary lists them"
    )
    group.add_argument(
        "--images", type=COUNT, default=100, metavar="N",
        help="of the validation split, spread over it; they are held in memory (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--max-drop", type=FRACTION, default=0.01, metavar="AP",
        help="what a level in the schedule may cost a tensor (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--schedule-epochs", type=number(int, 2), default=10, metavar="N",
        help="over which the schedule prunes (default: %(default)s)",
    )  # fmt: skip
    add_data_flags(parser, training=False)
    add_evaluation_flags(parser.add_argument_group("evaluation"))
    add_machine_flags(parser)
    return parser


def sensitivity(arguments: Sequence[str]) -> int:
    given = vars(sensitivity_parser().parse_args(arguments))
    names = ("output", "group", "levels", "tensors", "images", "max_drop", "schedule_epochs", "local_rank")
    options = {name: given.pop(name) for name in names}
    config = config_of(given, Config())

    from ssd.distributed import process_group

    with process_group(config.device, options["local_rank"], config.timeout) as ranks:
        if ranks.world_size > 1:
            raise InputError("main.py sensitivity runs in one process; start it without torchrun")
        return _analyse(config, set(given), options, ranks)


def _analyse(config: Config, given: set[str], options: dict[str, Any], ranks: "Ranks") -> int:
    import hashlib
    import json

    from ssd.checkpoints import checkpoint, conversion
    from ssd.compression.analysis import records
    from ssd.compression.analysis.sensitivity import bearable, measure, prunable, schedule_text
    from ssd.console import Console, say

    file, folder, group = Path(config.checkpoint or ""), Path(options["output"]), options["group"]
    content = conversion.load(file)
    config = for_detector(checkpoint.settings_of(content), config, given)
    model = checkpoint.build_model(content, file).to(ranks.device).eval()
    tensors = prunable(model, group)
    if options["tensors"]:
        chosen = [name for name in tensors if any(fnmatch(name, pattern) for pattern in options["tensors"])]
        for pattern in options["tensors"]:
            if not any(fnmatch(name, pattern) for name in tensors):
                raise InputError(f"--tensors {pattern}: fits no tensor with {group}s; main.py summary lists them")
        tensors = chosen
    levels = sorted(set(options["levels"]))
    judge, split_text = _judge(model, content, file, config, options["images"], ranks)
    digest = hashlib.blake2b(digest_size=8)
    for name, value in content["model"].items():
        digest.update(name.encode() + value.detach().cpu().contiguous().view(-1).numpy().tobytes())
    about = {
        "model": digest.hexdigest(), "images": split_text, "group": group, "device": ranks.device.type,
        "thresholds": config.thresholds._asdict(), "metrics": config.metrics[0],
    }  # fmt: skip
    done = records.open_records(folder, json.loads(json.dumps(about)))
    total = 1 + len(tensors) * len(levels)
    if done:
        say(f"going on with {folder}, which has {len(done)} points")
    points = []
    with _progress(Console(), total) as advance:
        for point in measure(model, tensors, levels, group, judge, done):
            if (point.tensor, point.level) not in done:
                records.add_record(folder, point)
            points.append(point)
            advance(f"{point.tensor or 'dense'} {point.level:g}: AP {point.ap:.3f}, loss {point.loss:.3f}")
    records.write_plot(folder / records.PLOT, points)
    found = bearable(points, options["max_drop"])
    say(f"wrote {folder / records.TABLE} and {folder / records.PLOT}; dense AP {points[0].ap:.3f} on {split_text}")
    if not found:
        say(f"no schedule: every level costs more than {options['max_drop']} AP; pass smaller --levels")
        return 0
    text = schedule_text(found, group, options["schedule_epochs"])
    (folder / records.SCHEDULE).write_text(
        f"# {len(found)} of {len(tensors)} tensors, to what costs each alone at most {options['max_drop']} AP.\n{text}"
    )
    say(f"wrote {folder / records.SCHEDULE}, for --compress; together they cost more than each alone, so train")
    return 0


def _judge(
    model: "nn.Module", content: dict[str, Any], file: Path, config: Config, images: int, ranks: "Ranks"
) -> "tuple[Any, str]":
    """(what says AP and loss of the model as it is, what it says them of)."""
    from itertools import islice

    import torch

    import pipelines
    from ssd.compression.analysis.sensitivity import Judged
    from ssd.detectors.table import detector_of
    from ssd.evaluation.detect import detect_split
    from ssd.evaluation.metrics import DECIDING, metrics_of

    detector = detector_of(config.detector)
    view = detector.view(config.detector)
    source, split, _ = split_to_judge(content, file, config, ranks)
    split = split.spread(images)
    build: dict[str, Any] = {"num_workers": config.num_workers, "ranks": ranks, "view": view}
    to_judge = list(
        pipelines.build_eval(config.data_pipeline, split, batch_size=min(_BATCH, config.eval_batch_size), **build)
    )
    # Drawn once: the same crops and colours for every point.
    loader = pipelines.build_train(config.data_pipeline, split, batch_size=min(_BATCH, len(split)), seed=0, **build)
    batches = loader.batches(0)
    to_learn = list(islice(batches, loader.steps_per_epoch))
    del batches
    ground_truth = split.ground_truth()
    losses_of = detector.losses_of(config.detector, False)

    @torch.no_grad()
    def judge() -> "Judged":
        results = detect_split(model, to_judge, ground_truth, config, ranks)
        assert results is not None
        metrics = metrics_of(ground_truth, results, names=config.metrics, engine=config.eval_engine)
        torch.manual_seed(0)  # of the anchors and proposals that have a loss
        losses = [float(torch.stack(list(losses_of(model, batch).values())).sum()) for batch in to_learn]
        return Judged(metrics[DECIDING[config.metrics[0]]], sum(losses) / len(losses))

    return judge, f"{len(split)} images of {source.name}, {split.fingerprint()}"


class _progress:
    """A bar in a terminal, else a line now and then: called with what has just been measured."""

    def __init__(self, console: Any, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._total, self._done, self._said_at = total, 0, 0.0
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Any:
        self._bar.start()
        return self._advance

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _advance(self, text: str) -> None:
        import time

        from ssd.console import say_on_stderr

        self._done += 1
        self._bar.update(self._task, advance=1, description=text)
        now = time.monotonic()
        if self._bar.disable and now - self._said_at > 15:
            self._said_at = now
            say_on_stderr(f"{self._done} of {self._total}  {text}")
