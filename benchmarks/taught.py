"""What a teacher brings a student in AP, over seeds, beside the plain run of the same schedule and data.

    python benchmarks/taught.py --data BCCD --output runs/taught --json benchmarks/results/taught-bccd.json
        --teacher "runs/frontier/seed-{seed}/dense/checkpoints/last.pt"
        --student="--backbone resnet18 --backbone-weights none --batch-size 16 --learning-rate 0.02 --epochs 15
        --multistep 10 13 --warmup 100 --evaluation 15"
        --ways "pkd" "mgd --distill-settings mgd.weight=0.001"

For each seed it judges the teacher, trains the student with the flags of --student, and trains it once more for each of
--ways, which are what follows --distill. {seed} stands for the seed in --teacher and in --student: each seed can have a
teacher and a start of its own. Every AP is of a last checkpoint: none is chosen by the split that it is judged on. A
gain is the difference of two runs of one seed. What has ended is not done again, so a run that was stopped goes on.
"""

import argparse
import shlex
from pathlib import Path

from stages import figures_of, gains_over_seeds, judged, name_of, table_of, train, write_result

COLUMNS = ("AP", "gain", "sd of it", "AP50", "minutes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data-pipeline", default="no_dali", choices=("dali", "no_dali"))
    parser.add_argument("--teacher", required=True, help="a checkpoint; {seed} stands for the seed")
    parser.add_argument("--student", required=True, help="flags of all students; {seed} stands for the seed")
    parser.add_argument("--ways", nargs="*", default=["pkd"], help="each: what follows --distill")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data: list[object] = ["--data", options.data, "--data_pipeline", options.data_pipeline, "--num-workers", 2]
    by_seed = []
    for seed in options.seeds:
        folder = options.output / f"seed-{seed}"
        teacher = Path(options.teacher.format(seed=seed))
        student = [*data, *shlex.split(options.student.format(seed=seed)), "--seed", seed]
        metrics = judged(teacher, data)
        runs = {"teacher": {key: metrics[key] for key in ("AP", "AP50")}}
        runs["plain"] = figures_of(train(folder / "plain", *student))
        for way in options.ways:
            taught = ["--teacher", teacher, "--no-judge-teacher", "--distill", *shlex.split(way)]
            runs[way] = figures_of(train(folder / name_of(way.replace("--distill-settings", "")), *student, *taught))
        by_seed.append(runs)
        print(f"seed {seed}: " + ", ".join(f"{name} {run['AP']:.4f}" for name, run in runs.items()), flush=True)
    rows = gains_over_seeds(by_seed, "plain")
    print(table_of(COLUMNS, rows))
    if options.json:
        content = {
            "over_seeds": rows,
            "by_seed": dict(zip(options.seeds, by_seed, strict=True)),
            **{key: getattr(options, key) for key in ("teacher", "student", "ways", "data_pipeline")},
        }
        write_result(options.json, content)


if __name__ == "__main__":
    main()
