"""Trains what the README's table of results shows, and collects the figures.

    python benchmarks/accuracy.py --runs demo bccd-dali bccd-no_dali --bccd ../shared/data/bccd

Each run is one command of main.py with a fixed seed, printed before it starts; its results.json and config.json go into
benchmarks/results/accuracy-<run>.json.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BCCD = (
    "--train-split train --val-split val --backbone resnet18 --backbone-weights none --bf16 --batch-size 16 "
    "--learning-rate 0.02 --epochs 50 --multistep 35 45 --warmup 100 --num-workers 2"
)
YOLO = (
    "--detector yolov2-tiny --anchors auto --input-size 416 416 --train-size 352 416 --bf16 --batch-size 8 "
    "--accumulate 1 --learning-rate 0.005 --epochs 180 --schedule cosine --warmup 100 --warmup-power 1 "
    "--clip-norm 100 --evaluation 30 60 90 120 150 170"
)
RUNS = {
    "demo": "--recipe demo",
    "demo-no_dali": "--recipe demo --data_pipeline no_dali",
    "demo-retinanet": "--detector retinanet_resnet18_fpn --recipe demo --data_pipeline dali",
    "demo-retinanet-no_dali": "--detector retinanet_resnet18_fpn --recipe demo --data_pipeline no_dali",
    "demo-fasterrcnn": "--detector fasterrcnn_resnet18_fpn --recipe demo --data_pipeline dali",
    "demo-fasterrcnn-no_dali": "--detector fasterrcnn_resnet18_fpn --recipe demo --data_pipeline no_dali",
    "demo-maskrcnn": "--detector maskrcnn_resnet18_fpn --recipe demo --data_pipeline dali",
    "demo-maskrcnn-no_dali": "--detector maskrcnn_resnet18_fpn --recipe demo --data_pipeline no_dali",
    "demo-keypointrcnn": "--detector keypointrcnn_resnet18_fpn --recipe demo --data_pipeline dali",
    "demo-keypointrcnn-no_dali": "--detector keypointrcnn_resnet18_fpn --recipe demo --data_pipeline no_dali",
    "bccd-dali": f"--data {{bccd}} {BCCD} --seed 1 --data_pipeline dali",
    "bccd-dali-seed2": f"--data {{bccd}} {BCCD} --seed 2 --data_pipeline dali",
    "bccd-dali-seed3": f"--data {{bccd}} {BCCD} --seed 3 --data_pipeline dali",
    "bccd-no_dali": f"--data {{bccd}} {BCCD} --seed 1 --data_pipeline no_dali",
    "bccd-no_dali-seed2": f"--data {{bccd}} {BCCD} --seed 2 --data_pipeline no_dali",
    "bccd-no_dali-seed3": f"--data {{bccd}} {BCCD} --seed 3 --data_pipeline no_dali",
    "bccd-dali-clip": f"--data {{bccd}} {BCCD} --seed 1 --data_pipeline dali --clip-norm 10",
    "bccd-no_dali-clip": f"--data {{bccd}} {BCCD} --seed 1 --data_pipeline no_dali --clip-norm 10",
    "bccd-yolov2-tiny-dali": f"--data {{bccd}} {YOLO} --seed 1 --data_pipeline dali",
    "bccd-yolov2-tiny-no_dali": f"--data {{bccd}} {YOLO} --seed 1 --data_pipeline no_dali",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--bccd", type=Path, help="folder of the BCCD data set in COCO layout")
    options = parser.parse_args()
    for name in options.runs:
        arguments = RUNS[name].format(bccd=options.bccd)
        print(f"python main.py {arguments}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / name
            subprocess.run(
                [sys.executable, str(ROOT / "main.py"), *shlex.split(arguments), "--output", str(output)],
                cwd=ROOT,
                check=True,
            )
            results = json.loads((output / "results.json").read_text())
            config = json.loads((output / "config.json").read_text())
        # Where the run was started from and kept says nothing about it.
        about = {key: config[key] for key in ("world_size", "hardware", "versions", "git_revision")}
        content = {"command": f"python main.py {arguments.replace(str(options.bccd), 'BCCD')}", **results, **about}
        file = ROOT / "benchmarks" / "results" / f"accuracy-{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n")
        print(
            f"{name}: AP {results['AP']:.3f}, AP50 {results['AP50']:.3f}, {results['train_seconds'] / 60:.1f} minutes"
        )


if __name__ == "__main__":
    main()
