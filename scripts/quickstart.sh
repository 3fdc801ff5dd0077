#!/usr/bin/env bash
# Pretrains a small vision transformer on real images, probes it, and writes a page about it.
# Needs git and python3 >= 3.11; the first run installs the locked packages into .venv.
# Arguments go to `vfm train`, for example: scripts/quickstart.sh --config=configs/quickstart.py:simclr
# The same command again continues where the last one stopped. To start over: rm -r runs/quickstart
set -euo pipefail
# shellcheck source=scripts/setup_venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"

say "training: configs/quickstart.py, to runs/quickstart"
status=0
"$VENV/bin/vfm" train --config=configs/quickstart.py --workdir="$REPOSITORY/runs/quickstart" "$@" || status=$?
say "finished, exit code $status"
exit "$status"
