"""Every setting of a run, frozen. Derived values are computed where they are needed, never written back."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
DATA_PIPELINES = ("dali", "no_dali")


@dataclass(frozen=True)
class Config:
    """A training run. The defaults are those of NVIDIA's DALI example where it has the flag."""

    data: str = ""
    """Folder of a COCO-style data set, or "demo"."""
    train_split: str = "train2017"
    val_split: str = "val2017"
    data_pipeline: str = "dali"
    """One of DATA_PIPELINES."""
    num_workers: int = 4
    """DALI threads, or torch worker processes (0 loads in the training process), a rank."""

    backbone: str = "resnet50"
    """One of BACKBONES."""
    backbone_weights: str = "imagenet"
    """"imagenet", "none", or a file with a torchvision ResNet state dict."""
    checkpoint: str | None = None
    """File whose model weights training starts from; class heads of another size start anew."""

    epochs: int = 65
    batch_size: int = 32
    """Images a step on each rank."""
    learning_rate: float = 2.6e-3
    """The rate at a global batch of 32; the run's rate is this x global batch / 32."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    """None of it on biases and batch norm."""
    warmup: int = 0
    """Steps over which the rate rises linearly."""
    multistep: tuple[int, ...] = (43, 54)
    """The rate falls to a tenth after each of these epochs."""
    seed: int | None = None
    """None draws one, which config.json then records."""

    fp16: bool = False
    bf16: bool = False
    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu" or "cuda"."""

    evaluation: tuple[int, ...] = (21, 31, 37, 42, 48, 53, 59, 64)
    """Evaluate after these epochs; after the last epoch always."""
    eval_batch_size: int = 32
    target: float | None = None
    """AP in [0, 1] that ends the run."""
    score_threshold: float = 0.05
    """Class probability in [0, 1] that a detection must exceed."""
    nms_iou: float = 0.5
    """IoU above which the lower of two detections of a class is dropped."""
    max_per_class: int = 200
    """Candidates a class and image that enter non-maximum suppression."""
    max_per_image: int = 200
    """Detections kept an image."""

    output: str | None = None
    """The run's folder; None is runs/<data>-<time>."""
    resume: str | None = None
    """"auto" (the run's own last checkpoint if there is one) or a file."""
    log_interval: int = 20
    """Steps between two lines of log.jsonl; the loss is read from the device only then."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def demo() -> Config:
    """SSD300-R18 from scratch on the demo data: a detector in minutes on two CPU cores."""
    return Config(
        data="demo",
        backbone="resnet18",
        backbone_weights="none",
        bf16=True,
        batch_size=8,
        learning_rate=0.04,
        warmup=50,
        epochs=8,
        multistep=(6, 7),
        evaluation=(),
        num_workers=2,
        seed=1,
    )


RECIPES: dict[str, Callable[[], Config]] = {"demo": demo}
