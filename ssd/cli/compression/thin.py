"""main.py thin: a checkpoint's model without its filters of zeros."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssd.errors import InputError
from ssd.options.flags import CHECKPOINT_HELP, COUNT, EXIT_CODES, Parser, require_folder_of


def thin_parser() -> Parser:
    parser = Parser(
        "main.py thin",
        description="Take the filters that are 0 out of a checkpoint's model, for good. The smaller one says the same\n"
        "but for rounding; it is evaluated, exported and trained on as any other.",
        epilog="example: main.py thin --checkpoint runs/sparse/checkpoints/best.pt --output thin.pt --round-to 8\n"
        f"{EXIT_CODES}",
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help=CHECKPOINT_HELP)
    parser.add_argument("--output", required=True, metavar="FILE", help="a name that ends in .pt, .pth or .safetensors")
    parser.add_argument(
        "--round-to", type=COUNT, default=1, metavar="N",
        help="keep numbers of channels multiples of this, which many machines compute faster (default: %(default)s)",
    )  # fmt: skip
    return parser


def thin(arguments: Sequence[str]) -> int:
    options = thin_parser().parse_args(arguments)
    source, target = Path(options.checkpoint), Path(options.output)
    if target.suffix not in (".pt", ".pth", ".safetensors"):
        raise InputError(f"--output {target}: pass a name that ends in .pt, .pth or .safetensors")
    if target.exists() and source.exists() and target.samefile(source):
        raise InputError(f"--output {target}: would be written over itself; pass another name")
    require_folder_of(options.output, "--output")

    import torch

    from ssd.checkpoints import checkpoint, conversion
    from ssd.compression.summary import parts_of, summarize
    from ssd.compression.thinning import thin as thinned_of
    from ssd.detectors.ssd300.anchors import IMAGE_SIZE_PX
    from ssd.detectors.ssd300.model import SSD300
    from ssd.detectors.ssd300.streams import streams_of

    content = conversion.load(source)
    model: Any = checkpoint.build_model(content, source).eval()
    if not isinstance(model, SSD300):
        raise InputError(f"{source}: holds {checkpoint.title_of(content)}, and only SSD300 can be thinned yet")
    try:
        fresh = SSD300(model.backbone, model.num_classes)
        found = thinned_of(model, fresh, streams_of(model), round_to=options.round_to)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    if found.removed == 0:
        raise InputError(f"{source}: no filter that can go is all 0; prune filters first, see docs/compression.rst")
    smaller: Any = found.model.eval()
    images = torch.randn(2, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        differences = [float((a - b).abs().max()) for a, b in zip(model(images), smaller(images), strict=True)]
    kept = {key: content[key] for key in ("format", "detector", "categories")}
    conversion.save(target, {**kept, "model": smaller.state_dict(), "channels": smaller.channel_plan})
    for name, each in (("before", model), ("after", smaller)):
        total = parts_of(summarize(each, lambda each=each: each.every_layer(images[:1])))[-1]  # type: ignore[misc]
        print(f"{name}: {total.weights:,} weights, {total.flops / 1e9:.3f} GFLOP an image")
    print(
        f"wrote {target}: without {found.removed} filters of zeros ({found.left} stay); on two images of noise its "
        f"output differs by {max(differences):.1e} at most"
    )
    return 0
