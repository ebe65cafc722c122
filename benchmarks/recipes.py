"""Settings for training, held against each other over seeds: AP, and the gain over the first of them.

    python benchmarks/recipes.py --data BCCD --output runs/recipes --json benchmarks/results/recipes-bccd.json
        --flags="--backbone resnet18 --backbone-weights none --bf16 --epochs 50 --evaluation 50"
        --recipes "published: --batch-size 16 --learning-rate 0.02 --multistep 35 45 --warmup 100" "own: --recipe own"

Every AP is of a last checkpoint: none is chosen by the split that it is judged on. A gain is the difference of two runs
of one seed. What has ended is not done again, so a run that was stopped goes on.

How long an image takes, --rounds tell: in each, every one of --recipes trains for --timed-steps steps, one after the
other. Quiet cores are needed for that alone: the recipes' lengths are told in epochs, by --flags or by their own.
"""

import argparse
import json
import shlex
import statistics
import tempfile
from pathlib import Path

from stages import figures_of, gains_over_seeds, name_of, run, table_of, train, write_result

COLUMNS = ("AP", "gain", "sd of it", "AP50", "time")


def images_per_second(flags: list[object], steps: int) -> float:
    """The median of a run's lines of the log, the first of which is left out: there memory is still being laid out."""
    with tempfile.TemporaryDirectory() as folder:
        of_trial = ["--steps", steps, "--log-interval", max(1, steps // 10), "--no-plots", "--seed", 1]
        run(*flags, *of_trial, "--output", Path(folder) / "trial")
        lines = [json.loads(line) for line in (Path(folder) / "trial" / "log.jsonl").read_text().splitlines()]
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    return statistics.median(rates[1:])


def without_length(flags: list[str]) -> list[str]:
    """Flags less those that tell epochs, in the place of which a trial has steps."""
    kept, is_left_out = [], False
    for flag in flags:
        is_left_out = flag in ("--epochs", "--evaluation", "--multistep") or (is_left_out and flag[:2] != "--")
        kept += [] if is_left_out else [flag]
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data-pipeline", default="no_dali", choices=("dali", "no_dali"))
    parser.add_argument("--flags", default="", help="of every run")
    parser.add_argument("--recipes", nargs="+", required=True, help='each: "name: its own flags"')
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timed-steps", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data: list[object] = ["--data", options.data, "--data_pipeline", options.data_pipeline, "--num-workers", 2]
    recipes = {
        name: shlex.split(f"{options.flags} {flags}")
        for name, flags in (words.split(":", 1) for words in options.recipes)
    }
    base = next(iter(recipes))
    by_seed = []
    for seed in options.seeds:
        folder = options.output / f"seed-{seed}"
        runs = {
            name: figures_of(train(folder / name_of(name), *data, *flags, "--seed", seed))
            for name, flags in recipes.items()
        }
        by_seed.append(runs)
        print(f"seed {seed}: " + ", ".join(f"{name} {run['AP']:.4f}" for name, run in runs.items()), flush=True)
    rates: dict[str, list[float]] = {name: [] for name in recipes}
    for _ in range(options.rounds):
        for name, flags in recipes.items():
            rates[name].append(images_per_second([*data, *without_length(flags)], options.timed_steps))
    rows = gains_over_seeds(by_seed, base)
    for row in rows:  # of an image, as a share of the first recipe's
        ratios = [of_base / own for of_base, own in zip(rates[base], rates[row["name"]], strict=True)]
        row["time"] = statistics.median(ratios) if ratios else None
    print(table_of(COLUMNS, rows))
    if options.json:
        content = {
            "over_seeds": rows,
            "by_seed": dict(zip(options.seeds, by_seed, strict=True)),
            "images_per_second": rates,
            **{key: getattr(options, key) for key in ("flags", "recipes", "data_pipeline")},
        }
        write_result(options.json, content)


if __name__ == "__main__":
    main()
