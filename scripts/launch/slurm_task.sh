#!/usr/bin/env bash
# Starts one process of a run under SLURM, after a look at the GPUs it sees. JAX takes one process for each GPU or one for
# the node, and in both cases wants to see all GPUs of the node; otherwise it fails late, or trains on a part of them.
set -euo pipefail
# shellcheck source=scripts/launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

host=${SLURMD_NODENAME:-$(hostname)}
refuse() { # said once for each node
    [ "${SLURM_LOCALID:-0}" = 0 ] || exit 2
    fail "on $host: $1" "${@:2}"
}

# "4(x2),1" are the tasks of each node, in order; this node's is at SLURM_NODEID.
tasks_here() {
    local part counts=()
    for part in ${SLURM_STEP_TASKS_PER_NODE//,/ }; do
        if [[ $part =~ ^([0-9]+)\(x([0-9]+)\)$ ]]; then
            for ((i = 0; i < BASH_REMATCH[2]; i++)); do counts+=("${BASH_REMATCH[1]}"); done
        else
            counts+=("$part")
        fi
    done
    echo "${counts[SLURM_NODEID]}"
}

command -v nvidia-smi >/dev/null || refuse "there is no nvidia-smi, so no NVIDIA driver." "Was the job given a GPU node?"
listed=$(nvidia-smi -L | grep -c '^GPU ') || true
visible=$listed
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    visible=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .) || true
fi
tasks=$(tasks_here)
given=${SLURM_GPUS_ON_NODE:-$listed} # what the job asked for; where SLURM does not count GPUs, what the node has
use="Submit with --gpus-per-node=$given and --ntasks-per-node=$given or 1, and nothing that binds GPUs to tasks."

[ "$given" -ge 1 ] || refuse "no GPU was given to the job." "Submit with --gpus-per-node=G."
if [ "$tasks" -gt 1 ] && [[ -n ${SLURM_GPUS_PER_TASK:-} || ${SLURM_TRES_PER_TASK:-} == *gres/gpu* ]]; then
    refuse "--gpus-per-task with $tasks tasks: each would see its own GPUs only." "$use"
fi
if [ "$visible" -lt "$given" ] || [ "$listed" -lt "$given" ]; then
    seen=$((visible < listed ? visible : listed))
    refuse "this process sees $seen of the $given GPUs (CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-not set})." "$use"
fi
if [ "$tasks" != 1 ] && [ "$tasks" != "$given" ]; then
    refuse "$tasks processes for $given GPUs: some would be shared, or idle." "$use"
fi
[ "${SLURM_PROCID:-0}" != 0 ] || say "$tasks process(es) for $given GPU(s) on each node"
command -v vfm >/dev/null || refuse "there is no vfm, neither in .venv nor on PATH." "Do all nodes see $PWD?"
exec "$@"
