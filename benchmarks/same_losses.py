"""Shows that this tree trains what another one trains: a refactoring's proof.

    git worktree add ../old REVISION
    python benchmarks/same_losses.py ../old

Both trees train the same 12 demo images for two epochs: either data path, float32 and bfloat16, one and two ranks, and
with a moving average. Their losses, weights and loader states must be equal bit for bit, and this tree must go on from
the other's checkpoint as from its own. Prints a line a case; the exit code is 1 if any differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
SETTINGS = (
    "--backbone resnet18 --backbone-weights none --bs 2 --lr 0.01 --seed 3 --device cpu --num-workers 1 --no-plots "
    "--log-interval 1 --epochs 2 --evaluation 1 2"
).split()
# One thread, because sums over several come in no fixed order.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
CASES = [
    *([*path, *precision, *ranks] for path, precision, ranks in product(
        (["dali"], ["no_dali"]), ([], ["--bf16"]), ([], ["2"]))),
]  # fmt: skip
TIMES = ("elapsed_s", "seconds")


def train(tree: Path, ranks: int, flags: list[str]) -> None:
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    done = subprocess.run(
        [*start, "main.py", *SETTINGS, *flags],
        cwd=tree,
        env={**ENVIRONMENT, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{tree}: {' '.join(flags)}\n{done.stdout}{done.stderr}")


def losses_of(run: Path) -> list[tuple[float, ...]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["learning_rate"]) for line in lines if line["event"] == "train"]


def checkpoint_of(run: Path, name: str = "last.pt") -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "checkpoints" / name, weights_only=True)
    return content


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """The places in which two values differ. Entries that only one of two dictionaries has do not count: a later
    version may say more."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        both = [key for key in a if key in b and key not in TIMES]
        return [found for key in both for found in differences(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [found for i, pair in enumerate(zip(a, b, strict=True)) for found in differences(*pair, f"{where}[{i}]")]
    return [] if a == b else [where]


COMPARED = ("model", "statistics", "optimizer", "data", "data_states", "rng_states", "step", "best_ap", "seed")


def compare(old: Path, data: Path, folder: Path, case: list[str]) -> list[str]:
    """What differs between the trees' runs of a case: [data path, flags..., "2" for two ranks]."""
    ranks = 2 if case[-1] == "2" else 1
    flags = ["--data", str(data), "--data_pipeline", case[0], *(flag for flag in case[1:] if flag != "2")]
    runs = {"old": (old, folder / "old"), "new": (ROOT, folder / "new")}
    for tree, run in runs.values():
        train(tree, ranks, [*flags, "--output", str(run), "--checkpoint-every", "1 epoch"])
    found = [] if losses_of(folder / "old") == losses_of(folder / "new") else ["losses"]
    contents = [checkpoint_of(run) for _, run in runs.values()]
    found += [place for key in COMPARED for place in differences(contents[0][key], contents[1][key], key)]
    # The other tree's checkpoint of its first epoch, taken up by this one.
    first = sorted((folder / "old" / "checkpoints").glob("step-*.pt"))[0]
    train(ROOT, ranks, [*flags, "--output", str(folder / "resumed"), "--resume", str(first)])
    resumed = checkpoint_of(folder / "resumed")
    return found + [
        place for key in COMPARED for place in differences(contents[0][key], resumed[key], f"resumed {key}")
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="another checkout of this project")
    parser.add_argument("--quick", action="store_true", help="two of the cases only")
    options = parser.parse_args()
    cases = [["dali", "--ema", "0.9"], ["no_dali", "--bf16", "2"]]
    if not options.quick:
        cases += CASES
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "data"
        write = "import sys, pathlib; from pipelines.demo.data_set import write_demo_data as w; "
        write += "w(pathlib.Path(sys.argv[1]), 12, 5)"
        subprocess.run([sys.executable, "-c", write, str(data)], cwd=ROOT, check=True)
        for number, case in enumerate(cases):
            found = compare(options.old.resolve(), data, Path(temporary) / str(number), case)
            print(f"{' '.join(case)}: {'equal' if not found else 'DIFFERS in ' + ', '.join(found[:8])}", flush=True)
            failed = failed or bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
