"""The sections of darknet's cfg language, as far as YOLOv2 has them. A field is a key of the file, with its default.

`line`: of the section's head in the file, from 1; 0 of what comes from no file.
"""

from typing import NamedTuple


class Net(NamedTuple):
    """[net]: the input and the recipe. batch: images an update; subdivisions: in how many parts they are computed.
    angle has no effect on detectors. letter_box: whether images are fitted in with their shape; AlexeyAB's darknet has
    this key, pjreddie's always does so and knows none."""

    line: int = 0
    batch: int = 1
    subdivisions: int = 1
    width: int = 0
    height: int = 0
    channels: int = 0
    momentum: float = 0.9
    decay: float = 1e-4
    angle: float = 0.0
    saturation: float = 1.0
    exposure: float = 1.0
    hue: float = 0.0
    learning_rate: float = 1e-3
    burn_in: int = 0
    power: float = 4.0
    policy: str = "constant"
    steps: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()
    max_batches: int = 0
    letter_box: bool = False


class Convolutional(NamedTuple):
    """[convolutional]. pad=1 stands for padding = size / 2, rounded down. The last five are about files of weights:
    what of the layer a file has, and how."""

    line: int = 0
    batch_normalize: bool = False
    filters: int = 1
    size: int = 1
    stride: int = 1
    pad: bool = False
    padding: int = 0
    groups: int = 1
    activation: str = "logistic"
    dontload: bool = False
    dontsave: bool = False
    dontloadscales: bool = False
    numload: int = 0
    flipped: bool = False

    @property
    def padding_px(self) -> int:
        return self.size // 2 if self.pad else self.padding


class MaxPool(NamedTuple):
    """[maxpool]. size: 0 is the stride. padding: of both sides together; -1 is size - 1."""

    line: int = 0
    size: int = 0
    stride: int = 1
    padding: int = -1

    @property
    def size_px(self) -> int:
        return self.size or self.stride

    @property
    def padding_px(self) -> int:
        return self.size_px - 1 if self.padding < 0 else self.padding


class Route(NamedTuple):
    """[route]: the outputs of layers, one behind the other; negative numbers count back from this layer."""

    line: int = 0
    layers: tuple[int, ...] = ()


class Reorg(NamedTuple):
    """[reorg]: darknet's own, which is not space to depth."""

    line: int = 0
    stride: int = 1


class Reorg3d(NamedTuple):
    """[reorg3d]: space to depth, as AlexeyAB's darknet has it."""

    line: int = 0
    stride: int = 1


class Region(NamedTuple):
    """[region]: the detector's head and its loss. anchors: width and height in cells of the output, num pairs.

    absolute has no effect. max is not obeyed: darknet cuts the boxes of an image there, here all are learned.
    """

    line: int = 0
    anchors: tuple[float, ...] = ()
    num: int = 1
    classes: int = 20
    coords: int = 4
    softmax: bool = False
    bias_match: bool = False
    rescore: bool = False
    thresh: float = 0.5
    jitter: float = 0.2
    random: bool = False
    object_scale: float = 1.0
    noobject_scale: float = 1.0
    class_scale: float = 1.0
    coord_scale: float = 1.0
    max: int = 30
    absolute: bool = False


Layer = Convolutional | MaxPool | Route | Reorg | Reorg3d | Region
KINDS: dict[str, type] = {
    "net": Net,
    "convolutional": Convolutional,
    "maxpool": MaxPool,
    "route": Route,
    "reorg": Reorg,
    "reorg3d": Reorg3d,
    "region": Region,
}
ALIASES = {"network": "net", "conv": "convolutional", "max": "maxpool"}
NAMES = {kind: name for name, kind in KINDS.items()}


class Network(NamedTuple):
    """A cfg that `cfg.parse` has passed.

    shapes: the (channels, height, width) of each layer's output at the cfg's own input size.
    """

    name: str
    net: Net
    layers: tuple[Layer, ...]
    shapes: tuple[tuple[int, int, int], ...]

    @property
    def region(self) -> Region:
        """The last layer."""
        region = self.layers[-1]
        assert isinstance(region, Region)
        return region

    @property
    def downsampling(self) -> int:
        """Pixels of the input for a cell of the output."""
        return self.net.width // self.shapes[-1][2]
