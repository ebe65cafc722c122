"""Which layers of a ResNet of torchvision share channels."""

from typing import Any, NamedTuple

from torch import nn

from ssd.detectors.channels import Stream


class ResNetStreams(NamedTuple):
    """within: those within blocks, and the stem's where it has one of its own. stages: by the name of a stage, the
    stream that comes out of it, to which what reads it outside of the ResNet is to be added; two stages have one where
    the second has no downsample at its beginning."""

    within: list[Stream]
    stages: dict[str, Stream]


def resnet_streams(model: nn.Module, stem: tuple[str, str], stages: list[str]) -> ResNetStreams:
    """model: the whole one. stem: the names in it of the first convolution and its batch norm. stages: those of its
    Sequentials of blocks, in order."""
    within: list[Stream] = []
    streams: dict[str, Stream] = {}
    stream = Stream([[stem]], [])
    for stage in stages:
        blocks: Any = model.get_submodule(stage)
        for number, block in enumerate(blocks):
            name = f"{stage}.{number}"
            convolutions = [f"conv{i}" for i in (1, 2, 3) if hasattr(block, f"conv{i}")]
            pairs = [(f"{name}.{each}", f"{name}.{each.replace('conv', 'bn')}") for each in convolutions]
            for pair, (reader, _) in zip(pairs, pairs[1:], strict=False):
                if all(_is_plain(model.get_submodule(each)) for each in (pair[0], reader)):
                    within.append(Stream([[pair]], [reader]))
            stream.readers.append(pairs[0][0])
            addition = [pairs[-1]]
            if block.downsample is not None:  # what was there is replaced, not added to
                stream.readers.append(f"{name}.downsample.0")
                if not streams:  # the stem's own, which no stage adds to
                    within.append(stream)
                stream = Stream([], [])
                addition.append((f"{name}.downsample.0", f"{name}.downsample.1"))
            stream.additions.append(addition)
        streams[stage] = stream
    return ResNetStreams(within, streams)


def _is_plain(layer: Any) -> bool:
    """Not in groups, whose channels go together."""
    return bool(layer.groups == 1)
