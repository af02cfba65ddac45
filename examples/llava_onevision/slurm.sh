#!/usr/bin/env bash
#SBATCH --job-name=onevision
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
# A sketch for several machines: its arguments are checked by a test, it was not run on a cluster.
# sbatch examples/llava_onevision/slurm.sh, on a file system that all machines see.
set -euo pipefail

main=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node 8 \
    --rdzv_backend c10d --rdzv_endpoint "$main:29500" --rdzv_id "$SLURM_JOB_ID" \
    --no-python tpo train examples/llava_onevision/eight_gpus_zero3.yaml
