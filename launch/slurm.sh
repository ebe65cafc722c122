#!/usr/bin/env bash
# Slurm, from the project's folder:
#
#   sbatch launch/slurm.sh --data /coco --fp16
#
# All flags are main.py's. The job saves within the two minutes before its time limit, queues itself anew, and goes on;
# likewise after a node has failed or it was preempted. A run that is over, or wrong, is not queued again.
#
#SBATCH --job-name=ssd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.txt
set -euo pipefail

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
asked_to_end=
# A store for each round of restarts: agents count them each for itself, and in a shared one a rank can find the address
# that another had in an earlier round, and wait for it.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# The job keeps its number when it is queued anew, so it finds its folder again. A --output of your own comes later.
srun --kill-on-bad-exit=1 torchrun \
    --nnodes="$SLURM_NNODES" --nproc-per-node="${RANKS_PER_NODE:-gpu}" --max-restarts=3 \
    --rdzv-backend=c10d --rdzv-endpoint="$head_node:${RENDEZVOUS_PORT:-29400}" --rdzv-id="$SLURM_JOB_ID" \
    main.py --output "runs/slurm-$SLURM_JOB_ID" --resume auto --checkpoint-every "10 minutes" "$@" &
step=$!

# srun hands it to torchrun, and that to its ranks, which save and end.
trap 'asked_to_end=yes; kill -TERM "$step"' USR1

code=0
wait "$step" || code=$?
if [[ $asked_to_end ]]; then
    code=0
    wait "$step" || code=$? # the signal has cut the other one short
    if ((code)); then
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$code"
