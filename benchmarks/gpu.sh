#!/usr/bin/env bash
# All that can be measured on one GPU, into one folder; about an hour, in parts of less than nine minutes each.
#
#     benchmarks/gpu.sh COCO DLE OUT [PART...]
#
# COCO: a COCO-style folder, best of real images. DLE: PyTorch/Detection/SSD of a DeepLearningExamples checkout.
# OUT: where the tables, JSON files, plots and a trace go. PART: some of the names below, all by default. A part that
# fails, or takes longer than nine minutes, is noted in OUT/failed.txt, and the others go on.
#
# In the environment: PYTHON, the interpreter (python3). CHECKPOINT, a trained one, whose detections in COCO the part
# "inference" measures; without it the weights are random, and non-maximum suppression has the most to do that it can.
# TRY=1: each part with the smallest settings and without a limit, to see that it runs to its end; this needs no GPU.
set -u
parts=(tests peers-plain peers-compile peers-graphs peers-compile-graphs train-fp32 train-bf16 train-fp16
    train-graphs-bf16 train-graphs-fp16 train-fed-dali train-fed-no_dali inference data
    ragged-steps ragged-data)
usage="usage: benchmarks/gpu.sh COCO DLE OUT [PART...], PART of: ${parts[*]}"
[ $# -ge 3 ] || { echo "$usage" >&2; exit 2; }
data=$(realpath -e "$1") && dle=$(realpath -e "$2") && mkdir -p "$3" && out=$(realpath "$3") || exit 2
shift 3
for part in "$@"; do
    [[ " ${parts[*]} " == *" $part "* ]] || { echo "no part is named $part; $usage" >&2; exit 2; }
done
[ $# -eq 0 ] || parts=("$@")
python=$(command -v "${PYTHON:-python3}") || { echo "${PYTHON:-python3} is not there; set PYTHON" >&2; exit 2; }
python=$(realpath -s "$python") # not what a virtual environment's links lead to
checkpoint=${CHECKPOINT:+$(realpath -e "$CHECKPOINT")} || exit 2
cd "$(dirname "$0")/.." || exit 2
# nvImageCodec warns of each image that one of its decoders leaves to the next.
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 DALI_NVIMGCODEC_LOG_LEVEL=1
failed=0

graphs=(--cuda-graphs) device=cuda backbone=resnet50 batches=(64 128 256) detected=64 fed=256 read=128 workers=(4 8 16)
peers=(--warmup-steps 20 --rounds 9 --steps 10) steps=(--warmup-steps 20 --steps 50) rounds=(--rounds 3)
ragged=(--batch-size 16 --workers 8 --rounds 5 --batches 24) side=800
limit_s=540
if [ "${TRY:-0}" != 0 ]; then
    limit_s=0 # none
    backbone=resnet18 batches=(2) detected=2 fed=2 read=4 workers=(1)
    peers=(--warmup-steps 1 --rounds 1 --steps 1) steps=(--warmup-steps 1 --steps 1) rounds=(--rounds 1 --batches 1)
    ragged=(--batch-size 2 --workers 1 --rounds 1 --batches 1) side=64
fi
if ! "$python" -c "import torch; raise SystemExit(not torch.cuda.is_available())"; then
    [ "${TRY:-0}" != 0 ] || { echo "torch sees no GPU; TRY=1 tries the parts without one" >&2; exit 2; }
    echo "no GPU: without --cuda-graphs"
    graphs=() device=cpu
fi

measure() { # name command...
    local name=$1
    shift
    echo "== $name: $*"
    timeout "$limit_s" "$@" 2>&1 | tee "$out/$name.txt"
    local code=${PIPESTATUS[0]}
    [ "$code" -eq 0 ] || { echo "failed: $name ($code)" | tee -a "$out/failed.txt" >&2; failed=1; }
}

peers() { # flags...
    measure "$part" "$python" benchmarks/train_peers.py --dle "$dle" --backbone $backbone --precision fp16 \
        --batch-sizes "${batches[@]}" "${peers[@]}" --json "$out/$part.json" "$@"
}

train() { # flags...
    measure "$part" "$python" main.py benchmark train --backbone $backbone "${steps[@]}" --json "$out/$part.json" "$@"
}

if command -v nvidia-smi > /dev/null; then
    nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv > "$out/gpu.csv"
fi
for part in "${parts[@]}"; do
    case $part in
        tests) measure tests "$python" -m pytest tests/training/test_gpu.py \
            tests/torchvision_detectors/test_torchvision_gpu.py -m gpu -q ;;
        peers-plain) peers ;;
        peers-compile) peers --compile ;;
        peers-graphs) peers "${graphs[@]}" ;;
        peers-compile-graphs) peers --compile "${graphs[@]}" ;;
        train-graphs-*)
            train --synthetic --precisions "${part#train-graphs-}" --compile both --batch-sizes "${batches[@]}" \
                "${graphs[@]}"
            ;;
        train-fed-*)
            train --data "$data" --data_pipeline "${part#train-fed-}" --num-workers 12 --precisions fp16 --compile on \
                --batch-sizes $fed "${graphs[@]}"
            ;;
        train-*)
            train --synthetic --precisions "${part#train-}" --compile both --batch-sizes "${batches[@]}" \
                --plot "$out/$part.png" --profile "$out/$part-trace.json"
            ;;
        inference)
            source=(--synthetic --backbone "$backbone")
            [ -z "$checkpoint" ] || source=(--data "$data" --checkpoint "$checkpoint" --num-workers 12)
            measure inference "$python" main.py benchmark inference "${source[@]}" --precisions bf16 fp16 \
                --compile both --batch-sizes $detected "${steps[@]}" --json "$out/inference.json" \
                --plot "$out/inference.png"
            ;;
        data)
            measure data "$python" main.py benchmark data --data "$data" --batch-size $read --workers "${workers[@]}" \
                "${rounds[@]}" --json "$out/data.json" --plot "$out/data.png"
            ;;
        ragged-steps)
            measure ragged-steps "$python" benchmarks/torchvision_steps.py --device $device --bf16 --side $side \
                "${rounds[@]:0:2}" --json "$out/ragged-steps.json"
            ;;
        ragged-data)
            measure ragged-data "$python" benchmarks/ragged_peers.py --data "$data" --masks --device $device \
                --short-side $side "${ragged[@]}" --json "$out/ragged-data.json"
            ;;
    esac
done
echo "everything is in $out"
exit $failed
