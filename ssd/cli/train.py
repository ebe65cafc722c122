"""main.py [train]: its flags."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ssd.config import (
    MLPERF_DIVISIONS,
    MLPERF_STATUSES,
    OPTIMIZERS,
    SCHEDULES,
    TRACKERS,
    Config,
    Recipe,
)
from ssd.detectors.names import family_of
from ssd.distillation.detectron2_config.translate import said_of_student
from ssd.distillation.settings import METHODS
from ssd.options.detectors import add_detector_flags, detector_in, set_in
from ssd.options.distillation import files_in, method_or_file, named_student, start_with
from ssd.options.flags import (
    ABOVE_0,
    BATCH,
    COUNT,
    COUNT_FROM_0,
    DECAY,
    FRACTION,
    MOMENTUM,
    POSITIVE,
    SEED,
    TRAINING_EXIT_CODES,
    Parser,
    add_data_flags,
    add_evaluation_flags,
    add_gradient_compression_flag,
    add_machine_flags,
    add_step_flags,
    add_timeout_flag,
    config_of,
    distill_setting,
    flag,
    interval,
)
from ssd.options.recipes import base_of, said_in
from ssd.training.interruption import end_with_launcher

_OTHER_COMMANDS = (
    ("evaluate --data DIR --checkpoint FILE [flags]", "computes the metrics of a checkpoint"),
    ("predict --checkpoint FILE IMAGE|FOLDER|GLOB... [flags]", "draws detections, writes JSON and CSV"),
    ("export --checkpoint FILE --output FILE [flags]", "makes one file with the post-processing inside"),
    ("check --data DIR [flags]", "lists all that is wrong with a data set"),
    ("show-data --data DIR [flags]", "draws what the detector learns from"),
    ("benchmark data|train|inference [flags]", "measures speed"),
    ("plot RUN... [flags]", "draws the curves of several runs over each other"),
    ("convert IN OUT", "converts weights of other programs, and to other forms"),
    ("summary --checkpoint FILE | --detector NAME [flags]", "lists tensors with their zeros and FLOPs"),
    ("sensitivity --checkpoint FILE --data DIR --output DIR [flags]", "says what pruning each tensor would cost"),
    ("thin --checkpoint FILE --output FILE [flags]", "takes filters out of a detector for good"),
    ("compare FILE... --data DIR --output DIR [flags]", "holds AP, size, memory and speed of files side by side"),
    ("download --data DIR [flags]", "fetches a public data set"),
    ("doctor [flags]", "checks what a run needs of this machine"),
)


def train_parser(settings: Any = Config.detector) -> Parser:
    """settings: of the detector that --detector names, whose own flags are shown."""
    family = family_of(settings)
    # Which of a family's detectors MLPerf has a benchmark of depends on the settings.
    recipes = {
        name: recipe for name, recipe in family.recipes.items() if name != "mlperf" or family.benchmark(settings)
    }
    parser = Parser(
        "main.py",
        usage="\n".join(
            [
                "main.py [train] --data DIR [flags]",
                *(f"       main.py {words}\n           {does}" for words, does in _OTHER_COMMANDS),
                "Each has its own --help. The flags below are those of train.",
            ]
        ),
        base=family.defaults(settings),
        description="Train a detector. Under torchrun every process is a rank.",
        epilog=f"recipes:\n{_recipes_help(recipes)}\n\n"
        f"example: torchrun --nproc_per_node=8 main.py --fp16 --data /coco\n{TRAINING_EXIT_CODES}",
    )
    parser.add_argument(
        "--recipe", metavar="NAME|FILE.toml",
        help="start from these settings: one of those below, or a file with some of config.json's",
    )  # fmt: skip
    add_data_flags(parser, training=True)

    add_detector_flags(parser, settings)
    group = parser.add_argument_group("model")
    flag(
        group, "--backbone-weights", dest="backbone_weights", metavar="{imagenet,none,FILE}",
        help="torchvision's, downloaded; none; or a file (torch or safetensors) with a torchvision state dict",
    )  # fmt: skip
    flag(
        group, "--checkpoint", dest="checkpoint", metavar="FILE",
        help="fine-tune from this: a run's, NVIDIA's DLE SSD, torchvision's, or of convert; classes may differ",
    )  # fmt: skip
    flag(
        group, "--freeze-backbone", dest="freeze_backbone", action="store_true",
        help="leave the backbone as it is, its batch norm too; the extra layers and heads train",
    )  # fmt: skip

    flag(
        group, "--compress", dest="compress", metavar="FILE.yaml",
        help="prune or regularize by this schedule, in the YAML language of Intel's Distiller",
    )  # fmt: skip

    group = parser.add_argument_group("distillation")
    flag(
        group, "--teacher", dest="teacher", metavar="FILE",
        help="a detector to learn from too: a file as of --checkpoint, of any detector that sees the same images",
    )  # fmt: skip
    flag(
        group, "--distill", dest="distill", type=method_or_file, nargs="+",
        metavar=f"{{{','.join(METHODS)}}}|FILE.yaml|NAME",
        help="how: by its feature maps (pkd, cwd, mgd), by the boxes that the two differ about (gid), by its head "
        "(crosskd); several add up; or as a configuration of Distill_GID_detectron2 says, which is a student and a run",
    )  # fmt: skip
    flag(
        group, "--distill-weight", dest="distill_weight", type=POSITIVE, metavar="W",
        help="what their losses are multiplied by; 0: no teacher",
    )  # fmt: skip
    flag(
        group, "--distill-settings", dest="distill_settings", type=distill_setting, nargs="+",
        metavar="METHOD.KEY=VALUE",
        help="of the methods, such as pkd.weight=5 gid.count=20; in a recipe file a table, [distill_settings.pkd]",
    )  # fmt: skip
    flag(
        group, "--no-judge-teacher", dest="judge_teacher", action="store_false",
        help="do not evaluate the teacher before the first step",
    )  # fmt: skip

    group = parser.add_argument_group("training")
    flag(group, "--epochs", "-e", dest="epochs", type=COUNT, metavar="N", help="times through the data")
    flag(
        group, "--steps", dest="steps", type=COUNT, metavar="N",
        help="the length in steps in the place of epochs; --multistep and --evaluation then count steps, and what "
        "a recipe has in epochs keeps its share of the run; fewer than 20 are a trial, judged at its end",
    )  # fmt: skip
    flag(
        group, "--minutes", dest="minutes", type=ABOVE_0, metavar="M",
        help="the length in minutes, of training and evaluations: as many steps as a few say; --multistep and "
        "--evaluation keep their shares of --epochs, warm-up and --ema's memory become a tenth of the run at most; "
        "the start, --compress's epochs and the report are not counted",
    )  # fmt: skip
    batch = BATCH if family.least_part > 1 else COUNT
    flag(group, "--batch-size", "--bs", "-b", dest="batch_size", type=batch, metavar="N", help="images a rank")
    flag(
        group, "--learning-rate", "--lr", dest="learning_rate", type=POSITIVE, metavar="LR",
        help="rate at a global batch of 32; the run's is this x ranks x batch size / 32",
    )  # fmt: skip
    flag(
        group, "--accumulate", dest="accumulate", type=COUNT, metavar="N",
        help="compute each batch in N parts, for less memory; it learns as from the whole, but for batch norm",
    )  # fmt: skip
    flag(group, "--optimizer", dest="optimizer", choices=OPTIMIZERS, help="SGD, torch's or apex's; both are fused")
    flag(group, "--momentum", "-m", dest="momentum", type=MOMENTUM, metavar="M", help="of SGD")
    flag(
        group,
        "--weight-decay",
        "--wd",
        dest="weight_decay",
        type=POSITIVE,
        metavar="W",
        help="not on biases and norms, which have flags of their own",
    )
    flag(
        group, "--bias-rate", dest="bias_rate", type=POSITIVE, metavar="X",
        help="the rate of biases is this times the others'; Detectron's is twice it",
    )  # fmt: skip
    flag(group, "--bias-decay", dest="bias_decay", type=POSITIVE, metavar="W", help="weight decay of biases")
    flag(group, "--norm-decay", dest="norm_decay", type=POSITIVE, metavar="W", help="weight decay of norms' scales")
    flag(
        group, "--clip-norm", dest="clip_norm", type=ABOVE_0, metavar="X",
        help="shorten gradients whose L2 norm is greater to it",
    )  # fmt: skip
    flag(
        group, "--ema", dest="ema", type=DECAY, metavar="DECAY",
        help="evaluate and save a moving average of the weights, such as 0.999",
    )  # fmt: skip
    flag(
        group, "--schedule", dest="schedule", choices=SCHEDULES,
        help="how the rate falls; cosine: by half a cosine, to 0 at the end of the run",
    )  # fmt: skip
    flag(group, "--warmup", dest="warmup", type=COUNT_FROM_0, metavar="STEPS", help="steps of warm-up, linear")
    flag(
        group, "--warmup-power", dest="warmup_power", type=POSITIVE, metavar="P",
        help="the rate rises by this power of the steps; 4 is darknet's",
    )  # fmt: skip
    flag(
        group, "--warmup-factor", dest="warmup_factor", type=FRACTION, metavar="F",
        help="share of the rate that the warm-up starts from (default: that of one step, 1 / STEPS)",
    )  # fmt: skip
    flag(
        group, "--multistep", dest="multistep", type=COUNT, nargs="*", metavar="EPOCH",
        help="the rate falls to a tenth after these epochs",
    )  # fmt: skip
    flag(
        group, "--multistep-factors", dest="multistep_factors", type=POSITIVE, nargs="*", metavar="X",
        help="what the rate is multiplied by at each of --multistep in the place of a tenth",
    )  # fmt: skip
    flag(group, "--seed", "-s", dest="seed", type=SEED, metavar="N", help="default: drawn and recorded")

    group = parser.add_argument_group("evaluation")
    flag(
        group, "--evaluation", dest="evaluation", type=COUNT, nargs="*", metavar="EPOCH",
        help="evaluate after these epochs, and after the last",
    )  # fmt: skip
    flag(group, "--target", dest="target", type=FRACTION, metavar="AP", help="end at this AP; exit 1 if never reached")
    flag(
        group, "--target-masks", dest="target_masks", type=FRACTION, metavar="AP",
        help="with --target: the same evaluation has to reach this AP of masks too",
    )  # fmt: skip
    add_evaluation_flags(group, of_checkpoint=False)

    group = add_machine_flags(parser)
    add_step_flags(group)
    add_gradient_compression_flag(group)

    group = parser.add_argument_group("run")
    flag(group, "--output", dest="output", metavar="DIR", help="the run's folder (default: runs/<data>-<time>)")
    flag(
        group, "--resume", dest="resume", metavar="{auto,FILE}",
        help="go on from a checkpoint; auto: the last one of --output, without --output that of the newest run of "
        "this data in runs/, and none where there is none",
    )  # fmt: skip
    flag(
        group, "--resume-anyway", dest="resume_anyway", action="store_true",
        help="go on though data, seed, batch size or data path are not the checkpoint's; images come in a new order",
    )  # fmt: skip
    flag(
        group, "--checkpoint-every", dest="checkpoint_every", type=interval, metavar="'N steps|minutes|epochs'",
        help="how often to write one, also within an epoch; always before an evaluation and at the end",
    )  # fmt: skip
    flag(
        group, "--keep-checkpoints", dest="keep_checkpoints", type=COUNT, metavar="K",
        help="how many of the newest stay, beside the best",
    )  # fmt: skip
    add_timeout_flag(group, "another rank, a step or an evaluation")
    flag(group, "--log-interval", dest="log_interval", type=COUNT, metavar="STEPS", help="steps a line of log.jsonl")
    flag(
        group, "--track", dest="track", choices=TRACKERS, nargs="+",
        help="show the run there too (each a pip extra): curves, and at each evaluation predictions",
    )  # fmt: skip
    flag(group, "--no-plots", dest="plots", action="store_false", help="write no plots/ and report.html at the end")

    group = parser.add_argument_group("mlperf")
    flag(group, "--mlperf", dest="mlperf", action="store_true", help="write mlperf.log and check it at the end")
    flag(group, "--mlperf-org", dest="mlperf_org", metavar="NAME", help="who submits")
    flag(group, "--mlperf-platform", dest="mlperf_platform", metavar="NAME", help="default: the name of the device")
    flag(group, "--mlperf-division", dest="mlperf_division", choices=MLPERF_DIVISIONS, help="rules to be checked by")
    flag(group, "--mlperf-status", dest="mlperf_status", choices=MLPERF_STATUSES, help="where the platform stands")
    return parser


def _recipes_help(recipes: dict[str, Recipe]) -> str:
    width = max(map(len, recipes), default=0) + 2
    return "\n".join(f"  {name:<{width}}{(recipe.__doc__ or '').splitlines()[0]}" for name, recipe in recipes.items())


def set_by_recipe(config: Config, settings: Any) -> set[str]:
    """The names of what a recipe says. settings: what --detector stands for; where the recipe leaves them as they are,
    a checkpoint may say others, such as the points of its keypoints."""
    usual = asdict(settings)
    own = {name for name, value in asdict(config.detector).items() if value == usual.get(name)}
    return set(config.to_dict()) - own


def train(arguments: Sequence[str]) -> int:
    end_with_launcher()
    files = files_in(arguments)
    settings = detector_in(arguments) if files is None else named_student(files)
    parser = train_parser(settings)
    options = vars(parser.parse_args(arguments))
    local_rank, recipe = options.pop("local_rank"), options.pop("recipe")
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    notes: list[str] = []
    if files is None:
        base = base_of(recipe, parser, settings, options.get("batch_size"), world_size)
    else:
        base, notes = start_with(files, options, recipe, world_size)
    config = config_of(options, base)
    given = set(options) | set_in(arguments)
    if recipe is not None:
        said = said_in(recipe)
        given |= set_by_recipe(config, settings) if said is None else said
    elif files is not None:
        given |= set_by_recipe(config, family_of(settings).settled(settings, config.backbone_weights))
        given |= said_of_student(files)

    from ssd.cli.training_run import train_run
    from ssd.distributed import process_group
    from ssd.run.trackers import Trackers, require_packages

    require_packages(config.track)
    with (
        process_group(config.device, local_rank, config.timeout) as ranks,
        Trackers(config.track if ranks.is_main else ()) as trackers,
    ):
        return train_run(config, ranks, trackers, given, files, notes, set(options))
