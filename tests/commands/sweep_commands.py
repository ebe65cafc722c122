"""Every command with a detector of every family, through the program that users start. Not a test: it takes minutes.

    python tests/commands/sweep_commands.py --folder /tmp/sweep
    python tests/commands/sweep_commands.py --folder /tmp/sweep --detectors yolov2-tiny --program bin/ssd-dali

Each detector is trained for a few steps by both data paths, interrupted runs go on, and its checkpoint goes through all
that can be done with one. A command ends with 0, or, where REFUSED says so, with 2 and one line of why it means
nothing for this detector. Everything else is a finding, and the sweep ends with 1. What a command said is in
FOLDER/DETECTOR/*.log.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

# Small images: what is looked for is a command that breaks, and those do so at any size.
SMALL = ("--min-size", "96", "--max-size", "128")
DETECTRON = ("--set", "TRAIN.SCALES", "(96,)", "TRAIN.MAX_SIZE", "128", "TEST.SCALE", "96", "TEST.MAX_SIZE", "128")
SMALL_INPUT = ("--input-size", "160", "160", "--train-size", "160")
DETECTORS: dict[str, tuple[str, ...]] = {
    "ssd300": ("--backbone", "resnet18"),
    "ssd300_vgg16": (),
    "ssdlite320_mobilenet_v3_large": (),
    "retinanet_resnet18_fpn": SMALL,
    "fcos_resnet50_fpn": SMALL,
    "fasterrcnn_mobilenet_v3_large_320_fpn": SMALL,
    "maskrcnn_resnet18_fpn": SMALL,
    "keypointrcnn_resnet18_fpn": SMALL,
    "retinanet_r50_fpn_1x": SMALL,
    "e2e_faster_rcnn_R-50-C4_1x": DETECTRON,
    "e2e_mask_rcnn_R-50-FPN_1x": DETECTRON,
    "e2e_keypoint_rcnn_R-50-FPN_1x": DETECTRON,
    "rpn_R-50-FPN_1x": DETECTRON,
    "yolov2-tiny": SMALL_INPUT,
    "yolov2-voc": SMALL_INPUT,
}
# What means nothing for a detector, by command.
REFUSED = {
    "evaluate --tta": (
        "ssd300", "ssd300_vgg16", "ssdlite320_mobilenet_v3_large", "rpn_R-50-FPN_1x", "yolov2-tiny", "yolov2-voc",
    ),
}  # fmt: skip
FROZEN = ("e2e_faster_rcnn_R-50-C4_1x", "e2e_mask_rcnn_R-50-FPN_1x", "e2e_keypoint_rcnn_R-50-FPN_1x", "rpn_R-50-FPN_1x")
"""Their bodies' norms do not learn, so that they want a file of weights; one of random ones breaks as well."""
RUN = "--bs 2 --accumulate 1 --lr 0.0001 --seed 1 --num-workers 1 --log-interval 1"


def commands_of(detector: str, data: Path, folder: Path) -> dict[str, str]:
    """Name -> command line, in the order in which they build upon each other."""
    own = f"--detector {detector} {shlex.join(DETECTORS[detector])}"
    run, image = folder / "run", next((data / "val2017").iterdir())
    last = f"--checkpoint {run / 'checkpoints' / 'last.pt'}"
    weights = folder.parent / "resnet50_caffe.pth" if detector in FROZEN else "none"
    training = f"--data {data} {own} {RUN} --backbone-weights {weights}"
    judging = f"{last} --data {data} --num-workers 1 --score-threshold 0.001"
    measuring = "--warmup-steps 1 --steps 2 --batch-sizes 2"
    schedule = folder / "schedule.yaml"
    return {
        "summary of a name": f"summary --detector {detector} --output {folder / 'summary.json'}",
        "train": f"{training} --steps 3 --data_pipeline dali --output {run}",
        "train on": f"{training} --steps 5 --data_pipeline dali --output {run} --resume auto",
        "train, PyTorch path": f"{training} --steps 4 --data_pipeline no_dali --output {folder / 'no_dali'} --bf16",
        "evaluate": f"evaluate {judging} --data_pipeline dali --json {folder / 'evaluate.json'}",
        "evaluate, VOC": f"evaluate {judging} --data_pipeline no_dali --metrics voc07 coco --comp4 {folder / 'comp4'}",
        "evaluate --tta": f"evaluate {judging} --tta",
        "predict": f"predict {last} {image} --output {folder / 'predictions'} --score 0.01",
        "export": f"export {last} --output {folder / 'export.onnx'}",
        "export, torch": f"export {last} --output {folder / 'export.pt2'} --format torch",
        "export --int8": f"export {last} --output {folder / 'int8.onnx'} --int8 --data {data} --calibration-images 2",
        "benchmark data": f"benchmark data --data {data} --detector {detector} --batch-size 2 --workers 1 --rounds 1 "
        f"--batches 2 --data_pipeline both --json {folder / 'data.json'}",
        "benchmark train": f"benchmark train --data {data} {last} {measuring} --json {folder / 'train.json'}",
        "benchmark train --synthetic": f"benchmark train --synthetic {last} {measuring} --precisions bf16",
        "benchmark inference": f"benchmark inference --data {data} {last} {measuring} 1",
        "benchmark inference --synthetic": f"benchmark inference --synthetic {last} {measuring}",
        "plot": f"plot {run} {folder / 'no_dali'} --output {folder / 'plots'}",
        "convert": f"convert {run / 'checkpoints' / 'last.pt'} {folder / 'converted.pt'}",
        "convert, evaluate": f"evaluate {judging.replace(last, f'--checkpoint {folder}/converted.pt')}",
        "summary": f"summary {last} --output {folder / 'summary.csv'}",
        "sensitivity": f"sensitivity {judging} --output {folder / 'sensitivity'} --images 2 --levels 0.5 "
        "--tensors @TENSOR@",
        "thin": f"thin {last} --output {folder / 'thin.pt'} --flops 0.6 --round-to 8",
        "thin, train on": f"--data {data} --checkpoint {folder / 'thin.pt'} {RUN} --steps 2 --output {folder / 'thin'}",
        "compress": f"--data {data} {last} {RUN} --steps 4 --compress {schedule} --output {folder / 'compress'}",
        "distill": f"{training} --steps 2 --teacher {run / 'checkpoints' / 'last.pt'} --distill pkd "
        f"--output {folder / 'distill'}",
        "compare": f"compare {run / 'checkpoints' / 'last.pt'} {folder / 'thin.pt'} --data {data} --num-workers 1 "
        f"--output {folder / 'compare'} --batch-sizes 1 --rounds 1",
    }  # fmt: skip


SCHEDULE = """pruners:
  own:
    class: GlobalMagnitudePruner
    desired_sparsity: 0.5
    weights: [{weights}]
policies:
  - {{pruner: {{instance_name: own}}, epochs: [0]}}
"""


def tensor_of(folder: Path) -> str:
    """The weight of a convolution in the middle of those that `main.py summary` names."""
    rows = [line.split(",") for line in (folder / "summary.csv").read_text().splitlines()]
    of_kernels = [row[0] for row in rows[1:] if row[0].endswith("weight") and row[1].count("x") == 3]
    return of_kernels[len(of_kernels) // 2]


def sweep() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--detectors", nargs="+", default=list(DETECTORS), choices=list(DETECTORS))
    parser.add_argument("--commands", nargs="+", help="only those that begin so, upon what is in the folder")
    parser.add_argument("--program", default=f"{sys.executable} {ROOT / 'main.py'}")
    options = parser.parse_args()
    import torch
    from torchvision.models import resnet50

    from pipelines.demo.data_set import write_demo_data

    folder: Path = options.folder.absolute()
    data = folder / "data"
    if not data.exists():
        write_demo_data(data, train_images=8, val_images=4)
        torch.save(resnet50(zero_init_residual=True).state_dict(), folder / "resnet50_caffe.pth")
    findings = tried = 0
    for detector in options.detectors:
        own = folder / detector
        if not options.commands:
            shutil.rmtree(own, ignore_errors=True)
        own.mkdir(exist_ok=True)
        for name, command in commands_of(detector, data, own).items():
            if options.commands and not name.startswith(tuple(options.commands)):
                continue
            if (own / "summary.csv").exists():
                command = command.replace("@TENSOR@", tensor_of(own))
                (own / "schedule.yaml").write_text(SCHEDULE.format(weights=tensor_of(own)))
            words = [*shlex.split(options.program), *shlex.split(command)]
            began = time.monotonic()
            done = subprocess.run(words, capture_output=True, text=True, cwd=own, stdin=subprocess.DEVNULL)
            (own / f"{name}.log").write_text(f"{shlex.join(words)}\n{done.stdout}\n--- stderr\n{done.stderr}")
            errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            refused = detector in REFUSED.get(name, ())
            ended = done.returncode == 2 and len(errors) == 1 if refused else done.returncode == 0
            finding = not ended or "Traceback" in done.stdout + done.stderr
            findings += finding
            tried += 1
            last_line = (done.stderr.strip().splitlines() or [""])[-1]
            word = "FINDING" if finding else "refused" if refused else "done"
            said = (errors or [last_line])[0] if word != "done" else ""
            print(f"{detector:38} {name:32} {word:8} {time.monotonic() - began:5.1f} s  {said}", flush=True)
    print(f"{tried} commands, {findings} findings")
    return findings > 0 or tried == 0


if __name__ == "__main__":
    sys.exit(sweep())
