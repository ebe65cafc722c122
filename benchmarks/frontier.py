"""What zeros, fewer channels and 8 bits cost an SSD300 in AP, and how many times as fast they are, over seeds.

    python benchmarks/frontier.py --data BCCD --output runs/frontier --json benchmarks/results/frontier-bccd.json
        --train="--backbone resnet18 --backbone-weights none --batch-size 16 --learning-rate 0.02 --epochs 50
        --multistep 35 45 --warmup 100 --evaluation 50"
        --fine-tune="--batch-size 16 --learning-rate 0.01 --epochs 20 --schedule cosine --evaluation 20"

For each seed it trains the dense detector, and from its last checkpoint, with the flags of --fine-tune:

    sparse        80 % of the convolutions' weights become 0, gradually (AGP) in --gradual-epochs
    sparse whole  trained from scratch with the flags of --train, and so many zeros made between --whole-epochs
    half          thinned to half of the FLOPs
    quarter       half, once trained, thinned to a quarter of the dense one's FLOPs, and trained once more
    half int8     half, exported in 8 bits
    ... taught    the same, with the dense model as teacher (--distill); half of a quarter had none
    dense on      the dense one, trained on for as long: what time alone changes, of sparse and half
    dense on on   and once more, as quarter is

Then `main.py compare` holds them against each other in one run. Every figure is of a last checkpoint: none is chosen by
the split that it is judged on. What has ended is not done again, so a run that was stopped goes on.
"""

import argparse
import json
import shlex
import statistics
from pathlib import Path
from typing import Any

from stages import build_upon, last_of, run, table_of, train

from ssd.checkpoints import checkpoint

ROWS = (
    "sparse",
    "sparse whole",
    "half",
    "quarter",
    "half int8",
    "half taught",
    "quarter taught",
    "dense on",
    "dense on on",
)
COLUMNS = ("AP", "AP50", "AP less", "parameters", "not 0", "GFLOP", "MB", "MB zipped", "ms torch", "ms onnx")
FASTER = "times as fast"
SCORES = ("--score-threshold", 0.005)
"""Of all detections: a file has the one that it was exported with."""


def write_gradual(file: Path, tensors: dict[str, Any], first: int, end: int) -> None:
    """A schedule by which all convolutions' weights go to 80 % zeros between these epochs. tensors: of a model."""
    weights = [name for name, tensor in tensors.items() if tensor.dim() == 4]
    file.write_text(
        "pruners:\n  gradual:\n    class: AutomatedGradualPruner\n"
        "    initial_sparsity: 0.05\n    final_sparsity: 0.80\n"
        f"    weights: [{', '.join(weights)}]\n"
        "policies:\n  - pruner: {instance_name: gradual}\n"
        f"    starting_epoch: {first}\n    ending_epoch: {end}\n    frequency: 1\n"
    )


def files_of(folder: Path, data: list[object], rows: list[str], options: argparse.Namespace) -> dict[str, Path]:
    """The dense checkpoint of a seed and the files of these rows."""
    tuning = shlex.split(options.fine_tune)
    seed = ["--seed", folder.name.removeprefix("seed-")]
    dense = last_of(train(folder / "dense", *data, *shlex.split(options.train), *seed))
    build_upon(folder, dense)

    def tuned(name: str, *flags: object) -> Path:
        return last_of(train(folder / name, *data, *flags, *tuning, *seed))

    def thinned(name: str, source: Path, share: float, *flags: object) -> Path:
        thin = folder / f"{name}.pt"
        if not thin.exists():
            run("thin", "--checkpoint", source, "--output", thin, "--flops", share, "--round-to", 8)
        return tuned(name, "--checkpoint", thin, *flags)

    taught = ["--teacher", dense, "--distill", *options.distill, "--no-judge-teacher"]
    files = {"dense": dense}
    if "sparse" in rows:
        schedule = folder / "gradual.yaml"
        if not schedule.exists():
            write_gradual(schedule, checkpoint.load(dense)["model"], 0, options.gradual_epochs)
        files["sparse"] = tuned("sparse", "--checkpoint", dense, "--compress", schedule)
    if "sparse whole" in rows:
        schedule = folder / "whole.yaml"
        if not schedule.exists():
            write_gradual(schedule, checkpoint.load(dense)["model"], *options.whole_epochs)
        own = [*data, *shlex.split(options.train), *seed]
        files["sparse whole"] = last_of(train(folder / "sparse-whole", *own, "--compress", schedule))
    if {"half", "quarter", "half int8", "quarter taught"} & set(rows):
        files["half"] = thinned("half", dense, 0.5)
    if "quarter" in rows:
        files["quarter"] = thinned("quarter", files["half"], 0.5)
    if "half int8" in rows:
        files["half int8"] = folder / "half-int8.onnx"
        if not files["half int8"].exists():
            run(
                "export", "--checkpoint", files["half"], "--output", files["half int8"], "--int8", *data, *SCORES
            )  # fmt: skip
    if "half taught" in rows:
        files["half taught"] = thinned("half-taught", dense, 0.5, *taught)
    if "quarter taught" in rows:
        files["quarter taught"] = thinned("quarter-taught", files["half"], 0.5, *taught)
    if {"dense on", "dense on on"} & set(rows):
        files["dense on"] = tuned("dense-on", "--checkpoint", dense)
    if "dense on on" in rows:
        files["dense on on"] = tuned("dense-on-on", "--checkpoint", files["dense on"])
    return files


def row_of(name: str, found: dict[str, Any], dense: dict[str, Any]) -> dict[str, Any]:
    size, speeds, metrics = found["size"], found["speeds"], found["metrics"]
    torch_speed, onnx_speed = (speeds.get(runtime, {}).get("batch_1") for runtime in ("eager", "onnxruntime"))
    return {
        "name": name,
        "AP": metrics["AP"],
        "AP50": metrics["AP50"],
        "AP less": dense["metrics"]["AP"] - metrics["AP"],
        "parameters": size["parameters"],
        "not 0": size["nonzeros"],
        "GFLOP": size["flops"] / 1e9,
        "MB": size["bytes_raw"] / 1e6,
        "MB zipped": size["bytes_zipped"] / 1e6,
        "ms torch": torch_speed and torch_speed["milliseconds_per_image"],
        "ms onnx": onnx_speed["milliseconds_per_image"],
        FASTER: onnx_speed["times_as_fast"],
    }


def over_seeds(rows_of_seeds: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Of each name the mean AP and what it is less than the dense one's, with their spread, and the median speed."""
    found = []
    for rows in zip(*rows_of_seeds, strict=True):
        values = {key: [row[key] for row in rows] for key in rows[0] if key != "name"}
        found.append(
            {
                "name": rows[0]["name"],
                "AP": statistics.mean(values["AP"]),
                "AP less": statistics.mean(values["AP less"]),
                "sd of it": statistics.stdev(values["AP less"]) if len(rows) > 1 else None,
                "GFLOP": statistics.median(values["GFLOP"]),
                "MB zipped": statistics.median(values["MB zipped"]),
                FASTER: statistics.median(values[FASTER]),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--data-pipeline", default="no_dali", choices=("dali", "no_dali"))
    parser.add_argument("--train", default="", help="more flags of the dense run")
    parser.add_argument("--fine-tune", default="", help="more flags of all other runs")
    parser.add_argument("--gradual-epochs", type=int, default=10, help="in which the zeros are made")
    parser.add_argument("--whole-epochs", type=int, nargs=2, default=[5, 33], help="the same, of those from scratch")
    parser.add_argument("--distill", nargs="+", default=["pkd"], help="how the dense model teaches")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data: list[object] = ["--data", options.data, "--data_pipeline", options.data_pipeline, "--num-workers", 2]
    by_seed, about = {}, {}
    for seed in options.seeds:
        folder = options.output / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        files = files_of(folder, data, options.rows, options)
        run(
            "compare", *files.values(), *data, "--output", folder / "comparison", *SCORES,
            "--batch-sizes", 1, 8, "--rounds", options.rounds, "--no-memory",
        )  # fmt: skip
        about = json.loads((folder / "comparison" / "comparison.json").read_text())
        compared = dict(zip(files, about.pop("files"), strict=True))
        by_seed[seed] = [row_of(name, found, compared["dense"]) for name, found in compared.items()]
        print(f"seed {seed}\n{table_of((*COLUMNS, FASTER), by_seed[seed])}", flush=True)
    rows = over_seeds(list(by_seed.values()))
    print(table_of([key for key in rows[0] if key != "name"], rows))
    if options.json:
        flags = {
            key: getattr(options, key) for key in ("train", "fine_tune", "gradual_epochs", "whole_epochs", "distill")
        }
        content = {"over_seeds": rows, "by_seed": by_seed, **flags, **about}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
