"""The flags of each command but `benchmark`, with what --help says of them."""

from ssd.cli.flags import (
    ABOVE_0,
    BATCH,
    COUNT,
    COUNT_FROM_0,
    DECAY,
    FRACTION,
    MOMENTUM,
    POSITIVE,
    SEED,
    Parser,
    add_data_flags,
    add_data_folder_flag,
    add_detection_flags,
    add_device_flags,
    add_evaluation_flags,
    add_gradient_compression_flag,
    add_machine_flags,
    add_several_pipelines_flag,
    add_step_flags,
    add_timeout_flag,
    flag,
    interval,
    recipe_name,
)
from ssd.config import BACKBONES, MLPERF_DIVISIONS, MLPERF_STATUSES, OPTIMIZERS, SCHEDULES, TRACKERS
from ssd.detectors.ssd300.recipes import RECIPES

EXIT_CODES = "exit codes: 0 done, 2 bad input, 130 interrupted"
TRAINING_EXIT_CODES = (
    "exit codes: 0 done, 1 --target not reached, MLPerf log not compliant, loss infinite for good or --timeout,\n"
    "2 bad input, 3 another rank lost, 75 asked to end by SIGTERM or SIGUSR1 (saved; --resume auto), 130 interrupted"
)


CHECKPOINT_HELP = "a run's checkpoints/best.pt or last.pt, NVIDIA's DLE SSD, or of convert"


def train_parser() -> Parser:
    parser = Parser(
        "main.py",
        usage="main.py [train] --data DIR [flags]\n"
        "       main.py evaluate --data DIR --checkpoint FILE [flags]\n"
        "       main.py predict --checkpoint FILE IMAGE|FOLDER|GLOB... [flags]\n"
        "       main.py export --checkpoint FILE --output FILE [flags]\n"
        "       main.py check --data DIR [flags]\n"
        "       main.py show-data --data DIR [flags]\n"
        "       main.py benchmark data|train|inference [flags]\n"
        "       main.py plot RUN... [flags]\n"
        "       main.py convert IN OUT\n"
        "       main.py download --data DIR [flags]\n"
        "       main.py doctor [flags]\n"
        "Each has its own --help.",
        description="Train an SSD300 detector. Under torchrun every process is a rank.",
        epilog=f"recipes:\n{_recipes_help()}\n\n"
        f"example: torchrun --nproc_per_node=8 main.py --fp16 --data /coco\n{TRAINING_EXIT_CODES}",
    )
    parser.add_argument(
        "--recipe", type=recipe_name, metavar="NAME|FILE.toml",
        help="start from these settings: one of those below, or a file with some of config.json's",
    )  # fmt: skip
    add_data_flags(parser, training=True)

    group = parser.add_argument_group("model")
    flag(group, "--backbone", dest="backbone", choices=BACKBONES, help="the ResNet under the detector")
    flag(
        group, "--backbone-weights", dest="backbone_weights", metavar="{imagenet,none,FILE}",
        help="torchvision's, downloaded; none; or a file (torch or safetensors) with a torchvision state dict",
    )  # fmt: skip
    flag(
        group, "--checkpoint", dest="checkpoint", metavar="FILE",
        help="fine-tune from this: a run's, NVIDIA's DLE SSD, or of convert; classes may differ",
    )  # fmt: skip
    flag(
        group, "--freeze-backbone", dest="freeze_backbone", action="store_true",
        help="leave the ResNet as it is, its batch norm too; the extra layers and heads train",
    )  # fmt: skip

    group = parser.add_argument_group("training")
    flag(group, "--epochs", "-e", dest="epochs", type=COUNT, metavar="N", help="times through the data")
    flag(group, "--batch-size", "--bs", "-b", dest="batch_size", type=BATCH, metavar="N", help="images a rank")
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
        help="not on biases and batch norm",
    )
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
    flag(group, "--warmup", dest="warmup", type=COUNT_FROM_0, metavar="STEPS", help="steps of linear warm-up")
    flag(
        group, "--multistep", dest="multistep", type=COUNT, nargs="*", metavar="EPOCH",
        help="the rate falls to a tenth after these epochs",
    )  # fmt: skip
    flag(group, "--seed", "-s", dest="seed", type=SEED, metavar="N", help="default: drawn and recorded")

    group = parser.add_argument_group("evaluation")
    flag(
        group, "--evaluation", dest="evaluation", type=COUNT, nargs="*", metavar="EPOCH",
        help="evaluate after these epochs, and after the last",
    )  # fmt: skip
    flag(group, "--target", dest="target", type=FRACTION, metavar="AP", help="end at this AP; exit 1 if never reached")
    add_evaluation_flags(group)

    group = add_machine_flags(parser)
    add_step_flags(group)
    add_gradient_compression_flag(group)

    group = parser.add_argument_group("run")
    flag(group, "--output", dest="output", metavar="DIR", help="the run's folder (default: runs/<data>-<time>)")
    flag(
        group, "--resume", dest="resume", metavar="{auto,FILE}",
        help="go on from a checkpoint; auto: the run's own last one, if any",
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


def _recipes_help() -> str:
    return "\n".join(f"  {name:<11}{(recipe.__doc__ or '').splitlines()[0]}" for name, recipe in RECIPES.items())


def evaluate_parser() -> Parser:
    parser = Parser(
        "main.py evaluate",
        description="Judge a checkpoint on a data set by the COCO metrics.",
        epilog="example: main.py evaluate --data /coco --checkpoint runs/coco/checkpoints/best.pt\n"
        "exit codes: 0 done, 2 bad input, 3 another rank lost, 130 interrupted",
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help=CHECKPOINT_HELP)
    add_data_flags(parser, training=False)
    add_evaluation_flags(parser.add_argument_group("evaluation"))
    add_machine_flags(parser)
    group = parser.add_argument_group("run")
    add_timeout_flag(group, "another rank")
    group.add_argument("--json", metavar="FILE", help="write the metrics there too")
    return parser


def predict_parser() -> Parser:
    parser = Parser(
        "main.py predict",
        description="Detect objects in image files of any size and mode, turned upright as their EXIF data say.\n"
        "Writes a picture of each with its detections, detections.json (COCO results) and detections.csv.",
        epilog="example: main.py predict --checkpoint runs/coco/checkpoints/best.pt photos 'more/*.png'\n"
        "exit codes: 0 done, 1 a file could not be read and was skipped, 2 bad input or no file could be read,\n"
        "130 interrupted",
    )
    parser.add_argument("source", nargs="+", metavar="IMAGE|FOLDER|GLOB", help="of folders, all images below them")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help=CHECKPOINT_HELP)
    parser.add_argument("--output", default="predictions", metavar="DIR", help="(default: %(default)s)")
    parser.add_argument(
        "--score", dest="score_threshold", type=FRACTION, default=0.4, metavar="P",
        help="detections score more (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=COUNT, default=8, metavar="N", help="images at once (default: %(default)s)"
    )
    parser.add_argument(
        "--num-workers", type=COUNT, metavar="N", help="threads that read and draw (default: one a core)"
    )
    add_device_flags(parser.add_argument_group("machine"))
    return parser


def export_parser() -> Parser:
    parser = Parser(
        "main.py export",
        description="Write a checkpoint's detector, post-processing included, as a file that needs none of this code.\n"
        "In: images, uint8 B x 3 x 300 x 300 RGB, B any; each the whole image resized, bilinear with antialiasing.\n"
        "Out: boxes_ltrb B x D x 4 in [0, 1] of the image, scores B x D, labels B x D (0 is none), counts B.\n"
        "Class names and settings stand in the file's metadata. Needs pip install -e '.[export]' for onnx.",
        epilog="example: main.py export --checkpoint runs/coco/checkpoints/best.pt --format onnx --output ssd300.onnx\n"
        "exit codes: 0 done, 2 bad input, 130 interrupted",
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help=CHECKPOINT_HELP)
    parser.add_argument(
        "--format", choices=("onnx", "torch"), default="onnx",
        help="torch: for torch.export.load (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--output", required=True, metavar="FILE", help="such as ssd300.onnx or ssd300.pt2")
    add_detection_flags(parser.add_argument_group("post-processing"))
    return parser


def doctor_parser() -> Parser:
    parser = Parser(
        "main.py doctor",
        description="Look at what a run needs of this machine: packages, GPUs, DALI, memory, files and disk.",
        epilog="example: main.py doctor --output /scratch/runs\n"
        "exit codes: 0 nothing would stop a run, 1 something would, 2 bad input, 130 interrupted",
    )
    parser.add_argument(
        "--output", default="runs", metavar="DIR", help="where runs will be written (default: %(default)s)"
    )
    return parser


def check_parser() -> Parser:
    parser = Parser(
        "main.py check",
        description="Read every annotation and decode every image of a data set, and list all that is wrong with it.\n"
        "Changes nothing; --on-bad-image skip need not read the images again after it.",
        epilog="example: main.py check --data /coco --json findings.json\n"
        "exit codes: 0 clean, or only harmless findings, 1 findings that would stop a run or change what it learns or\n"
        "scores, 2 bad input, 130 interrupted",
    )
    group = parser.add_argument_group("data")
    add_data_folder_flag(group)
    flag(group, "--train-split", dest="train_split", metavar="NAME", help="split to train on")
    flag(group, "--val-split", dest="val_split", metavar="NAME", help="split to evaluate on")
    group.add_argument("--num-workers", type=COUNT, metavar="N", help="threads that decode (default: one a core)")
    parser.add_argument(
        "--json", metavar="FILE", help="write every finding there; the console shows a few of each kind"
    )
    return parser


def show_data_parser() -> Parser:
    parser = Parser(
        "main.py show-data",
        description="Write a picture of what the detector learns from: augmented images, their boxes (thick) and the\n"
        "default boxes matched to them (thin).",
        epilog=f"example: main.py show-data --data demo --data_pipeline both --output data.png\n{EXIT_CODES}",
    )
    group = parser.add_argument_group("data")
    add_data_folder_flag(group)
    flag(group, "--train-split", dest="train_split", metavar="NAME", help="split to show")
    add_several_pipelines_flag(group)
    flag(group, "--seed", "-s", dest="seed", type=SEED, metavar="N", help="default: 0")
    group = parser.add_argument_group("picture")
    group.add_argument("--output", default="show-data.png", metavar="FILE", help="PNG or JPEG (default: %(default)s)")
    group.add_argument("--rows", type=COUNT, default=3, metavar="N", help="(default: %(default)s)")
    group.add_argument("--columns", type=COUNT, default=3, metavar="N", help="a data path (default: %(default)s)")
    return parser


def plot_parser() -> Parser:
    parser = Parser(
        "main.py plot",
        description="Draw what the folders of runs tell: plots as PNG, metrics.csv, and report.html, which needs no\n"
        "other file. Several runs are overlaid. A run that is over has all of this already.",
        epilog=f"example: main.py plot runs/bccd-dali runs/bccd-torch --output comparison\n{EXIT_CODES}",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder; one that is going on will do")
    parser.add_argument("--output", metavar="DIR", help="where to (default: the run's own folder, if it is one)")
    return parser


def convert_parser() -> Parser:
    parser = Parser(
        "main.py convert",
        description="Write the model of a checkpoint, without the rest of its run, in this program's form.\n"
        "Checkpoints of NVIDIA's DeepLearningExamples (DLE) SSD300 on any ResNet can be read, too.",
        epilog=f"example: main.py convert nvidia_ssd.pt ssd300-r50.safetensors\n{EXIT_CODES}",
    )
    parser.add_argument("source", metavar="IN", help="a checkpoint of a run or of DLE, as .pt or .safetensors")
    parser.add_argument("target", metavar="OUT", help="a name that ends in .pt, .pth or .safetensors")
    return parser


def download_parser() -> Parser:
    parser = Parser(
        "main.py download",
        description="Fetch COCO 2017 (20 GB, and as much again while it is unpacked) into a folder to train on.\n"
        "Run again after an interruption, it goes on where it was.",
        epilog=f"example: main.py download --data /coco\n{EXIT_CODES}",
    )
    parser.add_argument("--data", "-d", required=True, metavar="DIR", help="folder for it; made if it is not there")
    parser.add_argument(
        "--url", default="http://images.cocodataset.org", metavar="URL",
        help="a server that has COCO's archives under COCO's paths (default: %(default)s)",
    )  # fmt: skip
    return parser
