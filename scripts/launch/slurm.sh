#!/usr/bin/env bash
# Usage: scripts/launch/slurm.sh [--nodes=N] --gpus-per-node=G [--processes-per-node=G or 1] [sbatch's options]
#                                [--dry-run] -- vfm train ... --workdir=DIR
#
# Submits a run to SLURM: one process for each GPU (as many as GPUs, the default), or one for each node (1); every
# process sees all GPUs of its node. sbatch's other options go to it: --partition=gpu --account=ID --time=24:00:00 ...
# Two minutes before the time is up, and when the job is preempted, the run saves; the job is put into the queue again
# and goes on in the same --workdir, which all nodes have to see. To stop it so that it saves and does not come back:
# scancel --signal=TERM JOB. --dry-run prints the command and does nothing. docs/launching.md has more.
set -euo pipefail
# shellcheck source=scripts/launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

nodes=1
gpus=
processes=
options=()
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --dry-run) DRY_RUN=yes ;;
    --nodes=*) nodes=${1#*=} ;;
    --gpus-per-node=*) gpus=${1#*=} ;;
    --processes-per-node=*) processes=${1#*=} ;;
    # https://slurm.schedmd.com/sbatch.html: --gpus-per-task implies --tres-bind, which shows each task its own GPUs only.
    --gpus-per-task=* | --gpus-per-socket=* | --gpu-bind=* | --tres-bind=* | --tres-per-task=*)
        fail "$1 hides GPUs of a node from its processes, and JAX wants each of them to see all." \
            "Use --gpus-per-node=G, with --processes-per-node=G (one for each GPU) or 1 (one for the node)."
        ;;
    --gpus=* | --gres=*) fail "$1 does not say how many GPUs each node gives." "Use --gpus-per-node=G." ;;
    --ntasks=* | --ntasks-per-node=* | --ntasks-per-gpu=*) fail "$1: use --processes-per-node=G or 1." ;;
    --signal=* | --requeue* | --no-requeue | --open-mode=*) fail "$1 is set by slurm.sbatch." ;;
    --) shift && break ;;
    --*) options+=("$1") ;;
    *) fail "$1 is no option; if it is a value, write --flag=VALUE." "The command comes after --." ;;
    esac
    shift
done
read_command "$@"
[ -z "$BUCKET" ] || fail "--workdir=gs://... is not mounted on a SLURM cluster." "Expected: a folder that all nodes see."
whole_number --nodes "$nodes" 1
[ "$gpus" ] || fail "There is no --gpus-per-node: how many GPUs of each node are to be used?"
whole_number --gpus-per-node "${gpus##*:}" 1 # may begin with a type, as in a100:4
count=${gpus##*:}
processes=${processes:-$count}
if [ "$processes" != 1 ] && [ "$processes" != "$count" ]; then
    fail "--processes-per-node=$processes would share $count GPUs unevenly, or leave some idle." \
        "Expected: $count (one for each GPU) or 1 (one for the node)."
fi
[[ " ${options[*]-} " == *" --cpus-per-task="* ]] ||
    say "Without --cpus-per-task=N, most clusters give each process one core, too few to read images with."
cd "$REPOSITORY"
needs sbatch "Submit from a login node of the SLURM cluster (often after \`module load slurm\`)."
if [ -z "$DRY_RUN" ] && ! PATH=$REPOSITORY/.venv/bin:$PATH command -v vfm >/dev/null; then
    fail "There is no vfm, neither in .venv nor on PATH." \
        "Make it: bash -c 'source scripts/setup_venv.sh' && .venv/bin/pip install -e '.[cuda]'"
fi
run sbatch --nodes="$nodes" --gpus-per-node="$gpus" --ntasks-per-node="$processes" ${options[@]+"${options[@]}"} \
    scripts/launch/slurm.sbatch "${COMMAND[@]}"
