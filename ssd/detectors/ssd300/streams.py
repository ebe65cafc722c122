"""Which layers of SSD300 share channels: what has to change together when a filter goes."""

from typing import Any

from ssd.detectors.channels import Stream
from ssd.detectors.ssd300.model import SSD300

_FIRST_STAGE, _LAST_STAGE = 4, 6  # of the trunk's children


def streams_of(model: SSD300) -> list[Stream]:
    """All of them but the heads' outputs, which the classes and shapes fix."""
    streams: list[Stream] = []
    stage = Stream([[("trunk.0", "trunk.1")]], [])
    for index in range(_FIRST_STAGE, _LAST_STAGE + 1):
        blocks: Any = model.trunk[index]
        for number, block in enumerate(blocks):
            name = f"trunk.{index}.{number}"
            convolutions = [f"conv{i}" for i in (1, 2, 3) if hasattr(block, f"conv{i}")]
            pairs = [(f"{name}.{each}", f"{name}.{each.replace('conv', 'bn')}") for each in convolutions]
            streams += [Stream([[pair]], [reader]) for pair, (reader, _) in zip(pairs, pairs[1:], strict=False)]
            stage.readers.append(pairs[0][0])
            addition = [pairs[-1]]
            if block.downsample is not None:  # what was there is replaced, not added to
                stage.readers.append(f"{name}.downsample.0")
                streams.append(stage)
                stage = Stream([], [])
                addition.append((f"{name}.downsample.0", f"{name}.downsample.1"))
            stage.additions.append(addition)
    for level in range(len(model.extra_blocks)):
        stage.readers.extend([f"extra_blocks.{level}.0", f"box_heads.{level}", f"class_heads.{level}"])
        streams.append(stage)
        inner, outer = (
            [(f"extra_blocks.{level}.{i}", f"extra_blocks.{level}.{i + 1}")] for i in (0, 3)
        )  # fmt: skip
        streams.append(Stream([inner], [f"extra_blocks.{level}.3"]))
        stage = Stream([outer], [])
    last = len(model.extra_blocks)
    stage.readers.extend([f"box_heads.{last}", f"class_heads.{last}"])
    return [*streams, stage]
