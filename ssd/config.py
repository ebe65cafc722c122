"""Every setting of a run, frozen. Derived values are computed where they are needed, never written back."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple, Protocol

from ssd.detectors.ssd300.settings import SSD300Settings

DATA_PIPELINES = ("dali", "no_dali")
MLPERF_DIVISIONS = ("closed", "open")
MLPERF_STATUSES = ("cloud", "onprem", "preview", "research")
TRACKERS = ("tensorboard", "wandb", "mlflow")
EVAL_ENGINES = ("faster", "pycocotools")
METRICS = ("coco", "voc07", "voc12", "recall")
ON_BAD_IMAGE = ("error", "skip")
EXIF = ("upright", "stored")
OPTIMIZERS = ("sgd", "apex")
SCHEDULES = ("multistep", "cosine")
GRADIENT_COMPRESSIONS = ("none", "bf16")


class Thresholds(NamedTuple):
    """Which of a model's detections stand; each as in `Config`."""

    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_per_class: int = 200
    max_per_image: int = 200


@dataclass(frozen=True)
class Config:
    """A training run. The defaults are those of NVIDIA's DALI example where it has the flag."""

    data: str = ""
    """Folder of a data set as annotation tools write it, or "demo"."""
    train_split: str = ""
    """"" takes train2017 where it is, or what the names in the folder tell."""
    val_split: str = ""
    """"" takes val2017 where it is, or what the names in the folder tell; of a single split, a fifth is held out."""
    train_annotations: str = ""
    """A file, for a folder whose layout does not tell it."""
    train_images: str = ""
    """A folder, the same."""
    val_annotations: str = ""
    val_images: str = ""
    data_pipeline: str = "dali"
    """One of DATA_PIPELINES."""
    num_workers: int = 4
    """DALI threads, or torch worker processes (0 loads in the training process), a rank."""
    exif: str = ""
    """One of EXIF, or "" for what the stated sizes of the images say."""
    on_bad_image: str = "error"
    """One of ON_BAD_IMAGE: "skip" reads every image once and leaves out those that cannot be used."""

    detector: Any = SSD300Settings()
    """The settings of the detector itself, whose class says which one it is: `ssd.detectors.names` has them all."""
    backbone_weights: str = "imagenet"
    """"imagenet", "none", or a file with the state dict of a classifier of torchvision."""
    checkpoint: str | None = None
    """File whose model weights training starts from; class heads of another size start anew."""
    compress: str | None = None
    """File with a schedule in Distiller's YAML language, which training prunes and regularizes by."""
    teacher: str | None = None
    """File of a detector that the trained one learns from, by the methods of `distill`."""
    distill: tuple[str, ...] = ()
    """Of `ssd.distillation.settings.METHODS`: how it learns from the teacher."""
    distill_weight: float = 1.0
    """What all losses of these methods are multiplied by; 0 is a run without a teacher."""
    distill_settings: tuple[str, ...] = ()
    """The methods' own settings, each a word such as "pkd.weight=5"."""
    judge_teacher: bool = True
    """Evaluate the teacher before the first step."""
    freeze_backbone: bool = False
    """Leave the backbone's weights and its batch norm's statistics as they are; all else trains."""

    epochs: int = 65
    steps: int | None = None
    """The length of the run in the place of epochs; multistep and evaluation then count steps too."""
    minutes: float | None = None
    """About how long the run may take, in the place of epochs. As it begins this becomes steps, which config.json
    has too."""
    batch_size: int = 32
    """Images a step on each rank."""
    accumulate: int = 1
    """Parts of equal size in which a rank computes its batch, one after the other, to need less memory."""
    optimizer: str = "sgd"
    """One of OPTIMIZERS, both SGD: torch's fused one, or apex's."""
    learning_rate: float = 2.6e-3
    """The rate at a global batch of 32; the run's rate is this x global batch / 32."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    """Of all but biases and norms' scales, whose decays are `bias_decay` and `norm_decay`."""
    bias_rate: float = 1.0
    """The rate of biases is this times that of the other weights."""
    bias_decay: float = 0.0
    """The weight decay of biases."""
    norm_decay: float = 0.0
    """That of norms' scales."""
    clip_norm: float | None = None
    """The L2 norm that a step's gradients are shortened to where they are longer."""
    ema: float | None = None
    """Decay in [0, 1) of the weights' moving average, which is then evaluated and saved."""
    warmup: int = 0
    """Steps over which the rate rises: linearly, or by warmup_power."""
    warmup_factor: float | None = None
    """The share of the rate that the warm-up starts from, such as Detectron's 1/3; None is one step's share."""
    warmup_power: float = 1.0
    """The rate rises by this power of the steps; darknet's is 4."""
    schedule: str = "multistep"
    """One of SCHEDULES: how the rate falls, at multistep or by half a cosine to 0 at the end of the run."""
    multistep: tuple[int, ...] = (43, 54)
    """The rate falls to a tenth after each of these epochs, or steps."""
    multistep_factors: tuple[float, ...] = ()
    """What the rate is multiplied by at each of multistep; () is a tenth each."""
    seed: int | None = None
    """None draws one, which config.json then records."""

    fp16: bool = False
    bf16: bool = False
    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu" or "cuda"."""
    compile: bool = False
    """Train through torch.compile."""
    cuda_graphs: bool = False
    """Take a training step as one CUDA graph."""
    gradient_compression: str = "none"
    """One of GRADIENT_COMPRESSIONS: what ranks send each other, float32 as computed or bfloat16."""

    evaluation: tuple[int, ...] = (21, 31, 37, 42, 48, 53, 59, 64)
    """Evaluate after these epochs, or steps; at the end always."""
    eval_batch_size: int = 32
    target: float | None = None
    """AP in [0, 1] that ends the run; of VOC, where `metrics` begins with it."""
    target_masks: float | None = None
    """COCO's AP of masks that the same evaluation has to reach."""
    score_threshold: float = 0.05
    """Class probability in [0, 1] that a detection must exceed."""
    nms_iou: float = 0.5
    """IoU above which the lower of two detections of a class is dropped."""
    max_per_class: int = 200
    """Candidates a class and image that enter non-maximum suppression."""
    max_per_image: int = 200
    """Detections kept an image."""

    metrics: tuple[str, ...] = ("coco",)
    """Of METRICS: what a model is judged by. The first decides which checkpoint is best and what target means; COCO's
    are always there."""
    eval_engine: str = "faster"
    """One of EVAL_ENGINES: what computes the COCO metrics, faster-coco-eval or pycocotools, with equal results."""

    output: str | None = None
    """The run's folder; None is runs/<data>-<time>."""
    resume: str | None = None
    """"auto" (the run's own last checkpoint if there is one) or a file."""
    resume_anyway: bool = False
    """Go on though the data or settings are not those of the checkpoint."""
    checkpoint_every: tuple[int, str] = (1, "epochs")
    """A number of "steps", "minutes" or "epochs"."""
    keep_checkpoints: int = 2
    """The newest that stay, beside the best."""
    timeout: float = 30.0
    """Minutes that ranks wait for each other, and that a step, an evaluation or a checkpoint may take."""
    log_interval: int = 20
    """Steps between two lines of log.jsonl; the loss is read from the device only then."""
    track: tuple[str, ...] = ()
    """Of TRACKERS: what the run is shown in beside its own folder."""
    plots: bool = True
    """Draw plots/ and report.html when the run ends."""

    mlperf: bool = False
    """Write mlperf.log, the compliance log of the detector's MLPerf benchmark, and check it when the run ends."""
    mlperf_org: str = "unaffiliated"
    mlperf_platform: str | None = None
    """None is the name of the device."""
    mlperf_division: str = "open"
    """One of MLPERF_DIVISIONS."""
    mlperf_status: str = "research"
    """One of MLPERF_STATUSES: how the platform can be had."""

    @property
    def thresholds(self) -> Thresholds:
        return Thresholds(self.score_threshold, self.nms_iou, self.max_per_class, self.max_per_image)

    def to_dict(self) -> dict[str, Any]:
        """Flat: the detector's name, its own settings and those of the run."""
        common = {name: value for name, value in asdict(self).items() if name != "detector"}
        return {**self.of_detector(), **common}

    def of_detector(self) -> dict[str, Any]:
        """The detector's name and its own settings."""
        # What its name says, and the text of a file, which checkpoints have.
        left_out = ("builder", "network", "name", "cfg")
        own = {name: value for name, value in asdict(self.detector).items() if name not in left_out}
        return {"detector": self.detector.name, **own}

    def with_detector(self, settings: Any) -> "Config":
        return replace(self, detector=settings)

    def overlaid(self, settings: dict[str, Any]) -> "Config":
        """With these settings, by their flat names: the detector's own go into `detector`.

        Where steps take the place of epochs, what is told in epochs and not given anew keeps its share of the run; but
        a trial of a few steps is judged at its end alone.
        """
        if (steps := settings.get("steps")) and self.steps is None:
            shares = {name: tuple(max(1, round(steps * epoch / self.epochs)) for epoch in getattr(self, name))
                      for name in ("multistep", "evaluation")}  # fmt: skip
            shares["evaluation"] = tuple(dict.fromkeys(shares["evaluation"])) if steps >= _WORTH_JUDGING else ()
            settings = {**shares, **settings}
        own = {field.name for field in fields(self.detector)} & settings.keys()
        detector = replace(self.detector, **{name: settings[name] for name in own})
        common = {name: value for name, value in settings.items() if name not in own}
        return replace(self, **{"detector": detector, **common})


_WORTH_JUDGING = 20
"""Steps: a shorter run is a trial, most of whose time would go to evaluations."""


class Recipe(Protocol):
    """Settings for a purpose, whose first docstring line is its line in --help.

    batch_size: images a step on each rank, or None for the recipe's own. world_size: ranks. detector: the settings that
    --detector stands for, or None for the family's defaults; a recipe may change them.
    """

    def __call__(self, batch_size: int | None = None, world_size: int = 1, detector: Any = None) -> Config: ...
