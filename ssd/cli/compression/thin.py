"""main.py thin: a checkpoint's model without its filters of zeros, or without those that matter least."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssd.errors import InputError
from ssd.options.flags import CHECKPOINT_HELP, COUNT, EXIT_CODES, Parser, number, require_folder_of


def thin_parser() -> Parser:
    parser = Parser(
        "main.py thin",
        description="Take filters out of a checkpoint's model, for good: those that are 0, so that the smaller one\n"
        "says the same but for rounding; or, with --flops, those that matter least, to be fine-tuned after it. It is\n"
        "evaluated, exported and trained on as any other.",
        epilog="example: main.py thin --checkpoint runs/dense/checkpoints/last.pt --output thin.pt --flops 0.5 "
        f"--round-to 8\n{EXIT_CODES}",
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help=CHECKPOINT_HELP)
    parser.add_argument("--output", required=True, metavar="FILE", help="a name that ends in .pt, .pth or .safetensors")
    parser.add_argument(
        "--flops", type=number(float, 0.001, 0.999), metavar="SHARE",
        help="remove the filters of the lowest rank until this share of the FLOPs is left, such as 0.5",
    )  # fmt: skip
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

    from ssd.checkpoints import checkpoint, conversion
    from ssd.compression.summary import flops_by_weight, parts_of, pass_of, summarize_detector
    from ssd.compression.thinning.momentum import cut_momentum, momentum_of
    from ssd.compression.thinning.ranking import without_lowest
    from ssd.compression.thinning.removal import thin as thinned_of
    from ssd.console import say
    from ssd.detectors.table import detector_of

    content = conversion.load(source)
    settings = checkpoint.settings_of(content)
    detector = detector_of(settings)
    if detector.streams is None:
        raise InputError(f"{source}: holds {checkpoint.title_of(content)}, which cannot be thinned yet")
    model: Any = checkpoint.build_model(content, source).eval()
    streams = detector.streams(model)
    if not streams:
        raise InputError(f"{source}: holds {checkpoint.title_of(content)}, of which no filter can go alone")
    fresh = detector.build(settings, len(content["categories"]) + 1)
    try:
        dense = model
        if options.flops is not None:
            flops = flops_by_weight(model, pass_of(model, settings))
            dense = without_lowest(model, streams, flops, options.flops, round_to=options.round_to)
        found = thinned_of(dense, fresh, streams, round_to=options.round_to)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    stay = in_no_stream(dense, streams)
    names = ", ".join(stay[:3]) + (f" and {len(stay) - 3} more" if len(stay) > 3 else "")
    if found.removed == 0:
        hint = f"; those of {names} are, and cannot go alone" if stay else ""
        raise InputError(
            f"{source}: no filter that can go is all 0{hint}; prune filters first, unless a FilterRemover has taken "
            "them out already, or pass --flops"
        )
    smaller: Any = found.model.eval()
    written = {key: content[key] for key in ("format", "detector", "categories")}
    written |= {"model": smaller.state_dict(), "channels": smaller.channel_plan}
    note = ""
    if target.suffix == ".safetensors":
        conversion.save(target, written)
    else:
        if content.get("settings", {}).get("freeze_backbone") and detector.freeze_backbone is not None:
            detector.freeze_backbone(model)
        if momentum := momentum_of(content, model):
            written["momentum"] = cut_momentum(momentum, found.cut)
            note = "; the optimiser's momentum goes with them"
        checkpoint.save(target, written)
    before, after = (parts_of(summarize_detector(each, settings))[-1] for each in (model, smaller))
    for name, total in (("before", before), ("after", after)):
        say(f"{name}: {total.weights:,} weights, {total.flops / 1e9:.3f} GFLOP an image")
    if stay:
        say(f"filters of zeros of {names} stay: they cannot go alone")
    if options.flops is not None:
        say(f"wrote {target}: {after.flops / before.flops:.1%} of the FLOPs, without {found.removed} filters{note}")
        say(f"it misses what these filters found: train it on with --checkpoint {target}")
        return 0
    difference = largest_difference(model, smaller, settings)
    say(
        f"wrote {target}: without {found.removed} filters of zeros ({found.left} stay){note}; on two images of noise "
        f"its output differs by {difference:.1e} at most"
    )
    return 0


def in_no_stream(model: Any, streams: Any) -> list[str]:
    """The names of the convolutions and linear layers that have filters of zeros which `streams` do not let go."""
    written = {name for stream in streams for name, _ in stream.layers}
    return [
        name
        for name, layer in model.named_modules()
        if type(layer).__name__ in ("Conv2d", "ConvTranspose2d", "Linear") and name not in written
        if bool((layer.weight == 0).flatten(1).all(dim=1).any())
    ]


def largest_difference(model: Any, smaller: Any, settings: Any) -> float:
    """Of the raw outputs of two models of one detector, on two images of noise; in order of size, as rounding may make
    two proposals change places."""
    import torch

    from ssd.detectors.table import detector_of

    detector = detector_of(settings)
    width, height = detector.input_size_px(settings)
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = [detector.trace(each, images) for each in (model, smaller)]
    pairs = [tuple(each.flatten().sort().values for each in pair) for pair in zip(*outputs, strict=True)]
    return max(float((a - b).abs().max()) for a, b in pairs)
