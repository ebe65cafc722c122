"""Which layers of SSD300 share channels: what has to change together when a filter goes."""

from ssd.detectors.channels import Stream
from ssd.detectors.resnet_streams import resnet_streams
from ssd.detectors.ssd300.model import SSD300

_STAGES = ["trunk.4", "trunk.5", "trunk.6"]


def streams_of(model: SSD300) -> list[Stream]:
    """All of them but the heads' outputs, which the classes and shapes fix."""
    trunk = resnet_streams(model, ("trunk.0", "trunk.1"), _STAGES)
    streams = [*trunk.within, *list({id(each): each for each in trunk.stages.values()}.values())[:-1]]
    stage = trunk.stages[_STAGES[-1]]
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
