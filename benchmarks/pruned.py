"""What pruning costs a YOLOv2 and what it gains: single weights, and filters that are taken out, beside the dense one.

    python benchmarks/pruned.py --data DATA --output runs/pruned --json benchmarks/results/pruned.json \
        --train="--input-size 416 416 --train-size 320 416 --epochs 110 --bs 8 --lr 0.005 --clip-norm 100 --bf16" \
        --fine-tune="--epochs 12 --bs 8 --lr 0.001 --clip-norm 100 --bf16"

Trains the dense detector from scratch, with anchors by k-means. From its last checkpoint it prunes shares of the
weights by magnitude over all layers, and shares of the filters, which are taken out: by score over all layers, or with
--filters-of layer by mean L1 norm, as many of each layer. The filters before [region] stay in both, and of the others
multiples of --round-to are left. Each is judged, fine-tuned, and judged again; so is the dense one, trained on for as
long, since that too changes its AP. Every figure is of a last checkpoint: none is chosen by the split that it is judged
on. Then `main.py compare` holds them against each other in one run. Writes table.txt, pruned.png and the JSON; what has
been trained or judged is not done again, so a run that was stopped goes on.
"""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py has it, before torch is imported
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from stages import build_upon, judged, last_of, run, table_of, train

from ssd.checkpoints import checkpoint
from ssd.compression.schedules.distiller_yaml import load_schedule
from ssd.compression.schedules.masks import Compression
from ssd.distributed import Ranks
from ssd.schedule import Warmup

# darknet's burn-in and falls of the rate are those of runs that are ten times as long.
SHORT = shlex.split("--accumulate 1 --warmup 100 --warmup-power 1 --schedule cosine --clip-norm 10 --seed 1")
WEIGHTS = "class: GlobalMagnitudePruner"
FILTERS = {
    "network": "class: GlobalFilterPruner",
    "layer": "class: L1RankedStructureParameterPruner\n    group_type: Filters",
}
"""By what the share is of, the class of a schedule."""
COLUMNS = (
    "AP50 before", "AP50 after", "AP after", "parameters", "not 0", "GFLOP", "MB", "MB zipped", "ms torch", "ms onnx",
    "times as fast",
)  # fmt: skip


def schedule_of(pruner: str, share: float, weights: list[str]) -> str:
    args = "" if pruner == WEIGHTS else ", args: {mask_batchnorm: true}"
    return (
        f"pruners:\n  own:\n    {pruner}\n    desired_sparsity: {share}\n"
        f"    weights: [{', '.join(weights)}]\npolicies:\n  - {{pruner: {{instance_name: own{args}}}, epochs: [0]}}\n"
    )


def prune(source: Path, schedule: Path, target: Path, pruner: str, share: float, round_to: int) -> None:
    """The checkpoint after one step of a schedule, which is written too; without the filters that are all 0."""
    content = checkpoint.load(source)
    model: Any = checkpoint.build_model(content, source)
    weights = [f"layers.{index}.conv.weight" for index, _ in model.convolutions()[:-1]]
    schedule.write_text(schedule_of(pruner, share, weights))
    companion = Compression(
        load_schedule(schedule), model, None, Ranks(0, 0, 1, torch.device("cpu")),
        steps_per_epoch=1, num_epochs=1, base_lr=0.0, warmup=Warmup(0, 0, 1), seed=0,
    )  # fmt: skip
    companion.before_step(0, 0.0)
    kept = {key: content[key] for key in ("format", "detector", "categories", "channels") if key in content}
    sparse = target if pruner == WEIGHTS else target.with_name(f"{target.stem}-sparse.pt")
    checkpoint.save(sparse, {**kept, "model": model.state_dict()})
    if sparse != target:
        run("thin", "--checkpoint", sparse, "--output", target, "--round-to", round_to)


def row_of(name: str, before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    size, speeds = found["size"], found["speeds"]
    return {
        "name": name,
        "AP50 before": before["AP50"],
        "AP50 after": found["metrics"]["AP50"],
        "AP after": found["metrics"]["AP"],
        "parameters": size["parameters"],
        "not 0": size["nonzeros"],
        "GFLOP": size["flops"] / 1e9,
        "MB": size["bytes_raw"] / 1e6,
        "MB zipped": size["bytes_zipped"] / 1e6,
        "ms torch": speeds["eager"]["batch_1"]["milliseconds_per_image"],
        "ms onnx": speeds["onnxruntime"]["batch_1"]["milliseconds_per_image"],
        "times as fast": speeds["onnxruntime"]["batch_1"]["times_as_fast"],
    }


def plot(file: Path, rows: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for kind, colour in (("weights", "#0072B2"), ("filters", "#D55E00")):
        own = [row for row in rows if row["name"].startswith(kind)]
        for axis, column, units in ((axes[0], "not 0", 1e6), (axes[1], "ms onnx", 1)):
            axis.plot(
                [row[column] / units for row in own], [row["AP50 before"] for row in own], "x", color=colour,
                label=f"{kind}, before fine-tuning",
            )  # fmt: skip
            across = [row[column] / units for row in own]
            axis.plot(across, [row["AP50 after"] for row in own], "o-", color=colour, label=kind)
            texts = [f"{row['name'].split()[1]} %" for row in own]
            offset_pt, side = ((0, 6) if kind == "weights" else (0, -12)), "center"
            if kind == "weights" and column == "ms onnx":  # they take as long as the dense one: one text for all
                texts = [f"weights {texts[0].removesuffix(' %')} to {texts[-1]}"] if own else []
                offset_pt, side = (6, 8), "right"
            for row, text in zip(own, texts, strict=False):
                place = (row[column] / units, row["AP50 after"])
                axis.annotate(text, place, xytext=offset_pt, textcoords="offset points", fontsize=7, ha=side)
    dense = rows[0]
    for axis, column, units, text in (
        (axes[0], "not 0", 1e6, "million parameters that are not 0"),
        (axes[1], "ms onnx", 1, "ms an image, onnxruntime, batch 1"),
    ):
        across = [dense[column] / units]
        axis.plot(across, [dense["AP50 before"]], "s", color="black", fillstyle="none", label="dense")
        axis.plot(across, [dense["AP50 after"]], "s", color="black", label="dense, trained on")
        axis.margins(x=0.1, y=0.08)
        axis.set_xlabel(text)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("AP50")
    axes[0].legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def bench() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--detector", default="yolov2-tiny")
    parser.add_argument("--data-pipeline", default="no_dali", choices=("dali", "no_dali"))
    parser.add_argument("--train", default="", help="more flags of the dense run")
    parser.add_argument("--fine-tune", default="", help="more flags of the runs after pruning")
    parser.add_argument("--weights", type=int, nargs="*", default=[50, 70, 90], help="percent")
    parser.add_argument("--filters", type=int, nargs="*", default=[20, 40, 60], help="percent")
    parser.add_argument("--filters-of", choices=list(FILTERS), default="network", help="what has these shares of them")
    parser.add_argument("--round-to", type=int, default=8, help="numbers of channels stay multiples of it")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    data: list[object] = ["--data", options.data, "--data_pipeline", options.data_pipeline, "--num-workers", 2]
    tuning = [*SHORT, *shlex.split(options.fine_tune)]

    own = ["--detector", options.detector, "--anchors", "auto", *SHORT, *shlex.split(options.train)]
    dense = last_of(train(folder / "dense", *data, *own))
    build_upon(folder, dense, round_to=options.round_to, filters_of=options.filters_of)
    before = {"dense": judged(dense, data)}
    files = {"dense": last_of(train(folder / "dense-on", *data, "--checkpoint", dense, *tuning))}
    for kind, shares in (("weights", options.weights), ("filters", options.filters)):
        for percent in shares:
            name, stem = f"{kind} {percent}", f"{kind}-{percent}"
            pruned, schedule = folder / f"{stem}.pt", folder / f"{stem}.yaml"
            if not pruned.exists():
                pruner = WEIGHTS if kind == "weights" else FILTERS[options.filters_of]
                prune(dense, schedule, pruned, pruner, percent / 100, options.round_to)
            before[name] = judged(pruned, data)
            held = ["--compress", schedule] if kind == "weights" else []
            files[name] = last_of(train(folder / stem, *data, "--checkpoint", pruned, *held, *tuning))
    comparison = folder / "comparison"
    run(
        "compare", *files.values(), *data, "--output", comparison, "--score-threshold", 0.005, "--batch-sizes", 1,
        "--rounds", options.rounds, "--no-memory",
    )  # fmt: skip
    compared = json.loads((comparison / "comparison.json").read_text())
    named = zip(files, compared.pop("files"), strict=True)
    rows = [row_of(name, before[name], found) for name, found in named]
    (folder / "table.txt").write_text(table_of(COLUMNS, rows) + "\n")
    print(table_of(COLUMNS, rows))
    plot(folder / "pruned.png", rows)
    if options.json:
        commands = {key: getattr(options, key) for key in ("train", "fine_tune", "detector", "filters_of")}
        options.json.write_text(json.dumps({"rows": rows, **commands, **compared}, indent=2) + "\n")


if __name__ == "__main__":
    bench()
