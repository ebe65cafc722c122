"""main.py convert: the model of a checkpoint in this program's form."""

from collections.abc import Sequence
from pathlib import Path

from ssd.errors import InputError
from ssd.options.flags import (
    COUNT_FROM_0,
    EXIT_CODES,
    Parser,
    require_folder_of,
)

_OURS = (".pt", ".pth", ".safetensors")
# By the end of the name, whose file it is.
_OTHERS = {
    ".weights": "YOLOv2 of darknet",
    ".cfg": "YOLOv2 of darknet",
    ".names": "YOLOv2 of darknet",
    ".pkl": "RetinaNet of detectron2 or an R-CNN of Detectron",
}


def convert_parser() -> Parser:
    parser = Parser(
        "main.py convert",
        description="Write the model of a checkpoint, without the rest of its run, in this program's form.\n"
        "Checkpoints of NVIDIA's DeepLearningExamples (DLE) SSD300 on any ResNet can be read, too, torchvision's,\n"
        ".weights of darknet's YOLOv2, and .pkl of detectron2's RetinaNet and Detectron's R-CNNs. The last three are\n"
        "also written: as darknet's .weights, .cfg and .names, and as .pkl.",
        epilog=f"example: main.py convert nvidia_ssd.pt ssd300-r50.safetensors\n{EXIT_CODES}",
    )
    parser.add_argument(
        "source", metavar="IN", help="a checkpoint of a run or of DLE, as .pt or .safetensors; .weights of darknet"
    )
    parser.add_argument(
        "target",
        metavar="OUT",
        help=f"a name that ends in {', '.join((*_OURS, *_OTHERS))}",
    )
    parser.add_argument(
        "--seen", type=COUNT_FROM_0, metavar="N",
        help="of YOLOv2: how many images the model has seen, instead of what IN says; 0 begins anew",
    )  # fmt: skip
    return parser


def convert(arguments: Sequence[str]) -> int:
    options = convert_parser().parse_args(arguments)
    source, target = Path(options.source), Path(options.target)
    if target.suffix not in (*_OURS, *_OTHERS):
        raise InputError(f"{target}: pass a name that ends in {', '.join(_OURS)} or {', '.join(_OTHERS)}")
    if target.exists() and target.samefile(source):
        raise InputError(f"{target}: would be written over itself; pass another name")
    require_folder_of(str(target), "convert")

    from ssd.checkpoints import checkpoint, conversion
    from ssd.console import say, say_on_stderr

    content = conversion.load(source)
    checkpoint.build_model(content, source)
    if target.suffix in _OTHERS and target.suffix not in checkpoint.detector_of_content(content).foreign_files:
        title, owner = checkpoint.title_of(content), _OTHERS[target.suffix]
        raise InputError(f"{target}: {title} has no such file; convert a {owner}, or pass .pt")
    if options.seen is not None:
        if "seen" not in content["model"]:
            raise InputError(f"--seen: {checkpoint.title_of(content)} does not count images; leave it out")
        content["model"]["seen"].fill_(options.seen)
    conversion.save(target, content)
    for note in content.get("notes", ()):
        say_on_stderr(f"note: {note}")
    say(f"wrote {target}: {checkpoint.title_of(content)}, {len(content['categories'])} categories")
    return 0
