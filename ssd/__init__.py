"""Object detection: the detectors, and everything that trains and judges them."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssd.inference.predictor import Predictor

__version__ = "0.1.0"


def load(
    file: str | os.PathLike[str],
    *,
    device: str = "auto",
    score: float = 0.4,
    fp16: bool = False,
    bf16: bool = False,
    tta: bool | None = None,
) -> "Predictor":
    """The detector of a checkpoint::

        detector = ssd.load("runs/coco/checkpoints/best.pt")
        for detections in detector(["street.jpg", "harbour.png"]):
            print(detections.names, detections.scores, detections.boxes_ltrb_px)

    Takes files, PIL images, arrays and tensors; `ssd.inference.predictor` documents what goes in and what comes out.

    file: a run's checkpoint, NVIDIA's DLE SSD, or of `main.py convert`. device: "auto" (a GPU if there is one), "cpu"
    or "cuda". score: probability in [0, 1] that a detection must exceed. fp16, bf16: compute in mixed precision.
    tta: look at each image in several passes, as --tta; None is as a configuration of Detectron says. Images
    then go through the model one by one, else eight at once, unless the call's batch_size says otherwise.
    Raises `ssd.errors.InputError`, a ValueError, for a file that is no checkpoint, and a detector that has no tta.
    """
    from ssd.config import Config
    from ssd.inference.predictor import load_predictor

    return load_predictor(file, Config(device=device, score_threshold=score, fp16=fp16, bf16=bf16), tta=tta)
