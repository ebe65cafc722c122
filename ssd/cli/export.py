"""main.py export: a detector as a file that needs none of this code."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssd.config import Config
from ssd.errors import InputError
from ssd.options.detectors import add_set_flags, for_detector
from ssd.options.flags import (
    CHECKPOINT_HELP,
    COUNT,
    Parser,
    add_data_flags,
    add_detection_flags,
    config_of,
    require_folder_of,
)

_CALIBRATION_BATCH = 8


def export_parser() -> Parser:
    parser = Parser(
        "main.py export",
        description="Write a checkpoint's detector, post-processing included, as a file that needs none of this code.\n"
        "In: images, uint8 B x 3 x H x W RGB, B any, resized as the file's metadata say: an SSD's to a square,\n"
        "YOLOv2's to its network's input or, with --resize letterbox, into the middle of gray, with placed_ltrb_px\n"
        "B x 4 beside them; those of all others by their short side, with sizes_px B x 2 beside them.\n"
        "Out: boxes_ltrb B x D x 4 in [0, 1] of the image, scores B x D, labels B x D (0 is none), counts B;\n"
        "where the detector finds them, masks B x D x S x S and keypoints B x D x P x 3.\n"
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
    parser.refused["--tta"] = "a file looks at an image in one pass; evaluate and predict have --tta"
    add_detection_flags(parser.add_argument_group("post-processing"), of_checkpoint=True)
    add_set_flags(parser)
    group = parser.add_argument_group("8 bits")
    group.add_argument(
        "--int8", action="store_true",
        help="compute the convolutions of the ONNX file in 8 bits, calibrated on images of --data; layers that this "
        "would change too much stay in float32",
    )  # fmt: skip
    group.add_argument(
        "--calibration-images", type=COUNT, metavar="N",
        help="how many, spread over the training split (default: 128)",
    )  # fmt: skip
    add_data_flags(parser, training=True)
    return parser


def export(arguments: Sequence[str]) -> int:
    options = vars(export_parser().parse_args(arguments))
    form, output = options.pop("format"), Path(options.pop("output"))
    in_8_bits, count = options.pop("int8"), options.pop("calibration_images")
    if in_8_bits and form != "onnx":
        raise InputError(f"--format {form}: --int8 writes ONNX; leave one of them out")
    if not in_8_bits and (count is not None or options.get("data")):
        name = "--data" if options.get("data") else "--calibration-images"
        raise InputError(f"{name} is for --int8, which calibrates by images; pass both or neither")
    words = options.pop("set", ())
    config = config_of(options, Config(), needs_data=in_8_bits)
    require_folder_of(str(output), "--output")

    from ssd.checkpoints import checkpoint, conversion
    from ssd.console import say
    from ssd.inference import export as exporting

    source = Path(config.checkpoint or "")
    settings = checkpoint.settings_of(conversion.with_words(conversion.load(source), words))
    config = for_detector(settings, config, set(options))
    if not in_8_bits:
        say(exporting.export(source, output, form, config, words))
        return 0
    batches = _calibration_batches(config, count or 128)

    from ssd.inference.int8 import to_int8

    with tempfile.TemporaryDirectory() as folder:
        in_float = Path(folder, "float.onnx")
        said = exporting.export(source, in_float, form, config, words)
        images = sum(len(batch.images) for batch in batches)
        say(f"calibrating on {images} images of {config.data}")
        to_int8(in_float, output, batches, say)
        sizes = [file.stat().st_size / 1e6 for file in (in_float, output)]
        say(said.replace(str(in_float), str(output)).replace(f"{sizes[0]:.0f} MB", f"{sizes[1]:.1f} MB", 1))
        say(f"{sizes[1] / sizes[0]:.0%} of the file in float32; main.py compare says what it costs and gains")
    return 0


def _calibration_batches(config: Config, count: int) -> list[Any]:
    """Images of the training split as evaluation has them, spread over it. Raises InputError where there are none."""
    import pipelines
    from ssd.cli.splits import read_split
    from ssd.detectors.table import view_of
    from ssd.distributed import process_group

    view = view_of(config.detector)
    with process_group("cpu", None, config.timeout) as ranks:
        split = read_split(config, "train")
        if len(split) == 0:
            raise InputError(f"{split.file}: has no images to calibrate by; pass another --data or --train-split")
        loader = pipelines.build_eval(
            config.data_pipeline, split.spread(count), batch_size=min(_CALIBRATION_BATCH, config.eval_batch_size),
            num_workers=config.num_workers, ranks=ranks, view=view,
        )  # fmt: skip
        return list(loader)
