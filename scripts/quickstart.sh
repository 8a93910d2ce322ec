#!/usr/bin/env bash
# Install, and train the embedded testbed: a language model descends a free energy on a CPU in two minutes.
#
#   scripts/quickstart.sh                      recipes/quickstart.yaml, into a fresh folder under runs/
#   scripts/quickstart.sh --beta 0.1           any key of the recipe can be overridden
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
export OMP_WAIT_POLICY=passive # read when torch is imported; ten times faster when cores are shared
export WANDB_MODE="${WANDB_MODE:-offline}" # nothing leaves this machine unless you say so
exec "$VENV/bin/accelerate" launch \
    --cpu --num_processes 1 --num_machines 1 --num_cpu_threads_per_process 1 --mixed_precision no --dynamo_backend no \
    scripts/train.py --config recipes/quickstart.yaml "$@"
