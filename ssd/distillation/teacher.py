"""The teacher: a detector out of a file that nothing changes any more."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssd.batch import EvalLoader, GroundTruth
from ssd.checkpoints import checkpoint, conversion
from ssd.config import Config
from ssd.detectors.distillation import DistillationParts, Seen
from ssd.detectors.table import detector_of
from ssd.distributed import Ranks, broadcast_object
from ssd.errors import InputError
from ssd.evaluation.detect import detect_split
from ssd.evaluation.metrics import metrics_of
from ssd.run.files import Run


class Teacher(NamedTuple):
    """digest: of the file, SHA-256. settings: the detector's own. categories: (id, name) of its labels 1, 2, ..."""

    file: Path
    digest: str
    settings: Any
    categories: list[tuple[int, str]]
    model: nn.Module
    parts: DistillationParts

    @property
    def title(self) -> str:
        return detector_of(self.settings).title(self.settings)

    def forward(self, images: Tensor, *, with_heads: bool) -> Seen:
        """What its modules say of a training batch's images, as in evaluation and without gradients. Not in torch's
        inference mode, whose tensors no backward pass can take."""
        self.model.eval()  # whatever was done to it since
        with torch.no_grad():
            return self.parts.forward(self.model, images, with_heads)


def load_teacher(config: Config, ranks: Ranks) -> Teacher | None:
    """The detector of --teacher on this rank's device; None where nothing is learned from it.

    Raises InputError for a file that holds none, and one that shows nothing to learn from.
    """
    if not config.distill or config.teacher is None or config.distill_weight == 0:
        return None
    file = Path(config.teacher)
    content = conversion.load(file)
    settings = checkpoint.settings_of(content)
    detector = detector_of(settings)
    parts = detector.distillation_parts(settings)
    if parts is None:
        raise InputError(f"--teacher {file}: {detector.title(settings)} shows nothing to learn from; use another")
    model = checkpoint.build_model(content, file).requires_grad_(False).eval()
    model = model.to(ranks.device).to(memory_format=torch.channels_last)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if (first := broadcast_object(digest, ranks)) != digest:
        raise InputError(
            f"--teacher {file}: rank {ranks.rank} reads SHA-256 {digest[:16]} where rank 0 reads {first[:16]}; give "
            "all hosts the same file"
        )
    categories = [(int(number), str(name)) for number, name in content["categories"]]
    return Teacher(file, digest, settings, categories, model, parts)


def knows(teacher: Teacher, categories: Sequence[tuple[int, str]]) -> bool:
    """Whether its classes are these, in this order: else what it says of classes means nothing here."""
    return teacher.categories == [(int(number), str(name)) for number, name in categories]


def judge_teacher(
    teacher: Teacher, loader: EvalLoader, ground_truth: GroundTruth, run: Run, config: Config, ranks: Ranks
) -> None:
    """Has the log tell how good it is, before the first step: a teacher that was not what it was taken for has cost
    many a run."""
    own = config.with_detector(teacher.settings)
    found = detect_split(teacher.model, loader, ground_truth, own, ranks)
    if found is None:
        return
    metrics = metrics_of(ground_truth, found, names=config.metrics, engine=config.eval_engine)
    run.log("teacher", detector=teacher.title, checkpoint=str(teacher.file), sha256=teacher.digest, **metrics)
    run.say(f"teacher {teacher.title}: AP {metrics['AP']:.3f}  AP50 {metrics['AP50']:.3f}")
