"""main.py predict: objects in pictures."""

import os
from collections.abc import Sequence
from pathlib import Path

from ssd.config import EXIF, Config
from ssd.errors import InputError
from ssd.options.detectors import add_set_flags
from ssd.options.flags import (
    CHECKPOINT_HELP,
    COUNT,
    FRACTION,
    Parser,
    add_device_flags,
    add_tta_flag,
    config_of,
    flag,
    require_folder_of,
)


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
    parser.add_argument("--pdf", metavar="FILE", help="write the pictures into one PDF too, a page each")
    parser.add_argument(
        "--score", dest="score_threshold", type=FRACTION, default=0.4, metavar="P",
        help="detections score more (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=COUNT, metavar="N",
        help="images at once (default: 8; of Detectron's detectors, and with test-time augmentation, 1)",
    )  # fmt: skip
    parser.add_argument(
        "--num-workers", type=COUNT, metavar="N", help="threads that read and draw (default: one a core)"
    )
    flag(
        parser, "--exif", dest="exif", choices=EXIF,
        help="turn pictures as their EXIF data say, or not, as a detector of images that were not (default: upright)",
    )  # fmt: skip
    add_tta_flag(parser)
    add_set_flags(parser)
    add_device_flags(parser.add_argument_group("machine"))
    return parser


def predict(arguments: Sequence[str]) -> int:
    options = vars(predict_parser().parse_args(arguments))
    sources, output = options.pop("source"), Path(options.pop("output"))
    batch_size, threads = options.pop("batch_size"), options.pop("num_workers") or os.cpu_count() or 1
    words, pdf, is_tta_asked = options.pop("set", ()), options.pop("pdf"), options.pop("tta", None)
    require_folder_of(pdf, "--pdf")
    if pdf is not None and Path(pdf).suffix.lower() != ".pdf":
        raise InputError(f"--pdf {pdf}: pass a name that ends in .pdf")
    if "TEST.SCORE_THRESH" in words:
        raise InputError("--set TEST.SCORE_THRESH: here --score says which detections count; pass that")
    config = config_of(options, Config(), needs_data=False)

    from ssd.console import Console
    from ssd.inference import predict as prediction
    from ssd.inference.predictor import load_predictor

    files = prediction.find_images(sources, output)
    detector = load_predictor(config.checkpoint or "", config, words, is_tta_asked)
    console = Console(soft_wrap=True)
    return prediction.predict(
        detector,
        files,
        output,
        batch_size=batch_size or detector.usual_batch_size,
        threads=threads,
        console=console,
        upright=config.exif != "stored",
        pdf=Path(pdf) if pdf else None,
    )
