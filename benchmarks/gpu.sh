#!/usr/bin/env bash
# All that can be measured on one GPU, into one folder; about half an hour.
#
#     benchmarks/gpu.sh COCO DLE OUT
#
# COCO: a COCO-style folder, best of real images. DLE: PyTorch/Detection/SSD of a DeepLearningExamples checkout.
# OUT: where the tables, JSON files, plots and a trace go. A part that fails is noted there, and the others go on.
set -u
[ $# -eq 3 ] || { echo "usage: benchmarks/gpu.sh COCO DLE OUT" >&2; exit 2; }
data=$(realpath "$1") dle=$(realpath "$2")
mkdir -p "$3" && out=$(realpath "$3") || exit 2
cd "$(dirname "$0")/.." || exit 2
export PYTHONPATH=$PWD
failed=0

measure() { # name command...
    local name=$1
    shift
    echo "== $name: $*"
    "$@" > >(tee "$out/$name.txt") 2>&1 || { echo "failed: $name" | tee -a "$out/failed.txt" >&2; failed=1; }
}

nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv > "$out/gpu.csv"
python="python"
measure tests $python -m pytest -m gpu -q
for mode in plain compile graphs compile-graphs; do
    flags=()
    case $mode in *compile*) flags+=(--compile) ;; esac
    case $mode in *graphs*) flags+=(--cuda-graphs) ;; esac
    measure "peers-$mode" $python benchmarks/train_peers.py --dle "$dle" --backbone resnet50 --precision fp16 \
        --batch-sizes 64 128 256 --warmup-steps 20 --steps 20 --json "$out/peers-$mode.json" "${flags[@]}"
done
measure train $python main.py benchmark train --synthetic --precisions fp32 bf16 fp16 --compile both \
    --batch-sizes 64 128 256 --warmup-steps 20 --steps 50 --json "$out/train.json" --plot "$out/train.png" \
    --profile "$out/train-trace.json"
measure train-graphs $python main.py benchmark train --synthetic --precisions bf16 fp16 --compile both --cuda-graphs \
    --batch-sizes 64 128 256 --warmup-steps 20 --steps 50 --json "$out/train-graphs.json"
for path in dali no_dali; do
    measure "train-fed-$path" $python main.py benchmark train --data "$data" --data_pipeline $path --num-workers 12 \
        --precisions fp16 --compile on --cuda-graphs --batch-sizes 256 --warmup-steps 20 --steps 50 \
        --json "$out/train-fed-$path.json"
done
measure inference $python main.py benchmark inference --synthetic --precisions bf16 fp16 --compile both \
    --batch-sizes 64 --warmup-steps 20 --steps 50 --json "$out/inference.json" --plot "$out/inference.png"
measure data $python main.py benchmark data --data "$data" --batch-size 128 --workers 4 8 16 --rounds 3 \
    --json "$out/data.json" --plot "$out/data.png"
echo "everything is in $out"
exit $failed
