"""NVIDIA's published SSD trained as the README's BCCD runs are, from scratch, for the AP beside ours.

    python benchmarks/accuracy_peers.py --bccd ../shared/data/bccd --seeds 1 2 3 \
        --dle DeepLearningExamples/PyTorch/Detection/SSD

Theirs: the model with its 81 classes, the loss, the torch data path (COCODetection and SSDTransformer of ssd/utils.py
in a DataLoader), the order of the step and the rates of ssd/train.py, decoding and suppression. Written here, because
theirs needs apex, dllogger and a GPU: the loop around them, in channels_last under bfloat16 autocast. The metrics are
pycocotools', by the same function as our runs'. Each seed's figures go into
benchmarks/results/accuracy-bccd-dle-seed<seed>.json.
"""

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py has both, before torch is imported
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))

import dle  # noqa: E402

from pipelines.readers.coco import read_annotations  # noqa: E402
from ssd.environment import git_revision, hardware, versions  # noqa: E402
from ssd.evaluation.coco import coco_metrics  # noqa: E402

# Of accuracy.py's BCCD runs; NVIDIA's own are the momentum, the weight decay and the evaluation's IoU and maximum.
BACKBONE, BATCH_SIZE, WORKERS, EPOCHS, MILESTONES, WARMUP_STEPS = "resnet18", 16, 2, 50, (35, 45), 100
LEARNING_RATE = 0.02 * BATCH_SIZE / 32
MOMENTUM, WEIGHT_DECAY, NMS_IOU, MAX_PER_IMAGE = 0.9, 5e-4, 0.5, 200
RESULTS = Path(__file__).parent / "results"


def bfloat16() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def dataset(utils: ModuleType, data: Path, split: str, val: bool) -> Any:
    transform = utils.SSDTransformer(utils.dboxes300_coco(), (300, 300), val=val)
    return utils.COCODetection(
        str(data / "images" / split), str(data / "annotations" / f"instances_{split}.json"), transform
    )


def train(published: ModuleType, utils: ModuleType, data: Path) -> tuple[torch.nn.Module, float]:
    """The trained model and the seconds that it took."""
    loader = DataLoader(
        dataset(utils, data, "train", val=False),
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
    )
    model = published.SSD300(backbone=published.ResNet(BACKBONE)).to(memory_format=torch.channels_last)
    loss_func = published.Loss(utils.dboxes300_coco())
    optim = dle.optimizer(model, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optim, milestones=list(MILESTONES), gamma=0.1)
    began, step = time.perf_counter(), 0
    for epoch in range(1, EPOCHS + 1):
        epoch_began, losses = time.perf_counter(), []
        for images, _, _, boxes_cxcywh, labels in loader:
            with bfloat16():
                offsets, logits = model(images.to(memory_format=torch.channels_last))
                loss = loss_func(offsets.float(), logits.float(), boxes_cxcywh.transpose(1, 2).contiguous(), labels)
            if step < WARMUP_STEPS:
                for group in optim.param_groups:
                    group["lr"] = LEARNING_RATE * step / WARMUP_STEPS
            loss.backward()
            optim.step()
            optim.zero_grad()
            losses.append(loss.item())
            step += 1
        scheduler.step()
        speed = len(loader.dataset) / (time.perf_counter() - epoch_began)
        print(f"epoch {epoch}: loss {np.median(losses):.3f} (median), {speed:.1f} img/s", file=sys.stderr)
    return model, time.perf_counter() - began


def evaluate(model: torch.nn.Module, utils: ModuleType, data: Path) -> dict[str, Any]:
    """pycocotools' metrics, and the AP of each category."""
    val = dataset(utils, data, "val", val=True)
    category_ids = {label: category_id for category_id, label in val.label_map.items()}
    encoder = utils.Encoder(utils.dboxes300_coco())
    rows: list[list[float]] = []  # as ssd.evaluation.coco has them: image id, x, y, w, h in pixels, score, category id
    model.eval()
    for images, image_ids, (heights_px, widths_px), _, _ in DataLoader(val, batch_size=32, num_workers=WORKERS):
        with torch.no_grad(), bfloat16():
            offsets, logits = model(images)
        decoded = encoder.decode_batch(offsets.float(), logits.float(), NMS_IOU, MAX_PER_IMAGE)
        of_images = zip(image_ids.tolist(), widths_px.tolist(), heights_px.tolist(), decoded, strict=True)
        for image_id, width_px, height_px, found in of_images:
            for (left, top, right, bottom), label, score in zip(*(part.tolist() for part in found), strict=True):
                if label in category_ids:  # of its 81 classes
                    box_xywh_px = (
                        left * width_px,
                        top * height_px,
                        (right - left) * width_px,
                        (bottom - top) * height_px,
                    )
                    rows.append([image_id, *box_xywh_px, score, category_ids[label]])
    return coco_metrics(read_annotations(data, "val").ground_truth(), np.array(rows), "pycocotools")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bccd", type=Path, required=True, help="folder of the BCCD data set in COCO layout")
    parser.add_argument("--dle", type=Path, required=True, help=dle.HELP)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    published, utils = dle.module(options.dle, "model"), dle.module(options.dle, "utils")
    for seed in options.seeds:
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        model, elapsed_s = train(published, utils, options.bccd)
        results = evaluate(model, utils, options.bccd)
        about = {
            "command": f"python benchmarks/accuracy_peers.py --bccd BCCD --dle DLE --seeds {seed}",
            "train_seconds": elapsed_s,
            "epochs": EPOCHS,
            "seed": seed,
            "backbone": BACKBONE,
            "hardware": hardware(torch.device("cpu")),
            "versions": versions(),
            "git_revision": git_revision(),
        }
        file = RESULTS / f"accuracy-bccd-dle-seed{seed}.json"
        file.write_text(json.dumps({**results, **about}, indent=2) + "\n")
        print(f"seed {seed}: AP {results['AP']:.3f}, AP50 {results['AP50']:.3f}, {elapsed_s / 60:.1f} minutes")


if __name__ == "__main__":
    main()
