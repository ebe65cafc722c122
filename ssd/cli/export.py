"""main.py export: a detector as a file that needs none of this code."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssd.config import Config
from ssd.options.flags import (
    CHECKPOINT_HELP,
    Parser,
    add_detection_flags,
    config_of,
    require_folder_of,
)

if TYPE_CHECKING:
    pass


def export_parser() -> Parser:
    parser = Parser(
        "main.py export",
        description="Write a checkpoint's detector, post-processing included, as a file that needs none of this code.\n"
        "In: images, uint8 B x 3 x H x W RGB, B any, resized as the file's metadata say: an SSD's to a square; those\n"
        "of torchvision's other detectors by their short side, with sizes_px B x 2 beside them.\n"
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


def export(arguments: Sequence[str]) -> int:
    options = vars(export_parser().parse_args(arguments))
    form, output = options.pop("format"), Path(options.pop("output"))
    config = config_of(options, Config(), needs_data=False)
    require_folder_of(str(output), "--output")

    from ssd.inference import export as exporting

    print(exporting.export(Path(config.checkpoint or ""), output, form, config))
    return 0
