#!/usr/bin/env bash
# Starts `vfm train ...` where something else decides whether to start it again, and gives the exit code for that:
# 0 the run is finished; 75 it has saved and has more to do (vfm itself gives 0 for both); else what vfm gave.
#   attend.sh --forward-term vfm train ...   a SIGTERM that comes here goes to vfm. Only for a container, whose first
#       process alone is told; elsewhere vfm hears it too, and a second one would end it before it has saved.
#   attend.sh --pid-file=FILE vfm train ...  FILE holds the numbers of vfm's process and of this one
set -euo pipefail
# shellcheck source=scripts/launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

forward=
pid_file=
case ${1:-} in
--forward-term) forward=yes && shift ;;
--pid-file=*) pid_file=${1#--pid-file=} && shift ;;
esac
read_command "$@"

told=
child=
tell() {
    told=yes
    if [ "$forward" ] && [ "$child" ]; then kill -TERM "$child" 2>/dev/null || true; fi
}
trap tell TERM # and not an ignored signal, which vfm would inherit
"${COMMAND[@]}" &
child=$!
[ -z "$told" ] || tell
[ -z "$pid_file" ] || echo "$child $$" >"$pid_file"
code=0
wait "$child" || code=$?
while kill -0 "$child" 2>/dev/null; do # the signal ended the waiting, not vfm
    code=0
    wait "$child" || code=$?
done
[ "$code" = 0 ] || exit "$code"

# The first process writes this when the last step is saved; the others may be a moment ahead of it.
finished() { grep -qs '"finished": true' "$WORKDIR/summary.json"; }
for ((i = 0; i < 20; i++)); do
    if finished; then exit 0; fi
    [ -z "$told" ] || break
    sleep 1
done
say "$WORKDIR: saved, and not at its end. The same command goes on."
exit 75
