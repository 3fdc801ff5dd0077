#!/usr/bin/env bash
# The part of tpu_vm.sh that runs on each worker of a slice. It and vfm_code.tar.gz are copied to the home folder there.
#
#   setup [BUCKET]         unpacks the code to ~/vfm_jax, makes .venv there, mounts gs://BUCKET at /gcs/BUCKET
#   start vfm train ...    starts the command so that it outlives this shell; refused while one runs
#   status                 one word: idle, running, finished, stopped, interrupted, failed CODE
#   stop [SECONDS]         asks the run to save and end, and kills it if it has not after SECONDS (300)
#   log                    follows the run's output
set -euo pipefail
HERE=$HOME/vfm_jax
STATE=$HERE/.launch
mkdir -p "$STATE"
cd "$HERE"
export PATH=$HERE/.venv/bin:$HOME/.local/bin:$PATH

say() { printf '%s: %s\n' "$(hostname)" "$*"; }
fail() {
    say "error: $*" >&2
    exit 2
}
running() { ! (flock -n 8) 8>>"$STATE/lock"; } # a run holds the lock until the last of its processes ends

unpack() {
    if running; then fail "a run is going here, on the code that would be replaced. Stop it first."; fi
    # Files that an earlier copy brought and this one lacks would still be imported.
    if [ -e "$STATE/files" ]; then xargs -0 rm -f -- <"$STATE/files"; fi
    tar -xzf ~/vfm_code.tar.gz
    tar -tzf ~/vfm_code.tar.gz --quoting-style=literal | grep -v '/$' | tr '\n' '\0' >"$STATE/files"
}

make_venv() {
    # The images' own Python is older than the package takes: uv brings one. The lock makes all workers alike.
    command -v uv >/dev/null || python3 -m pip install --quiet --user uv
    [ -x .venv/bin/python ] || uv venv --quiet --python 3.11 .venv
    uv pip install --quiet --python .venv/bin/python --constraint requirements.lock --editable '.[tpu]'
}

# https://cloud.google.com/storage/docs/cloud-storage-fuse/install
install_gcsfuse() {
    local key=/usr/share/keyrings/cloud.google.asc
    curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get -o DPkg::Lock::Timeout=300 -qq update
    sudo apt-get -o DPkg::Lock::Timeout=300 -qq install -y gcsfuse >/dev/null
}

# Nothing is cached about files: what one worker has written, another looks for at once. Renaming a folder, by which a
# checkpoint is completed, is left to the bucket's hierarchical namespace; a bucket without one refuses it, and says so.
mount_bucket() {
    local place=/gcs/$1
    if mountpoint -q "$place"; then return; fi
    command -v gcsfuse >/dev/null || install_gcsfuse
    sudo mkdir -p "$place"
    sudo chown "$(id -u)" "$place"
    gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$1" "$place" >/dev/null ||
        fail "gs://$1 cannot be mounted. May this VM's service account write to it?"
}

start() {
    command -v vfm >/dev/null || fail "there is no vfm here: setup has not been done, or has failed."
    exec 9>"$STATE/lock"
    flock -n 9 || fail "a run is going here. Stop it first."
    rm -f "$STATE/ended" "$STATE/asked_to_stop" "$STATE/pid"
    touch "$STATE/started"
    say "starting" | tee -a "$STATE/run.log"
    # A session of its own, and no terminal: it lives on when the connection that started it goes. It has the lock from
    # descriptor 9, until the last process of it ends.
    setsid nohup bash scripts/launch/tpu_worker.sh attend "$@" >>"$STATE/run.log" 2>&1 </dev/null &
    exec 9>&-
    until [ -e "$STATE/pid" ] || ! running; do sleep 0.1; done
    [ -e "$STATE/pid" ] || fail "the run did not start: $(tail -n 3 "$STATE/run.log")"
}

attend() { # in the background, until the run ends
    local code=0
    bash scripts/launch/attend.sh --pid-file="$STATE/pid" "$@" || code=$?
    printf '%s\n' "$code" >"$STATE/ended.partial"
    mv "$STATE/ended.partial" "$STATE/ended" # no `ended`: the machine went down
}

status() {
    if running; then
        echo running
    elif [ -e "$STATE/ended" ]; then
        # 75 without our asking: the machine was going down, and told vfm.
        case $(cat "$STATE/ended") in
        0) echo finished ;;
        75) if [ -e "$STATE/asked_to_stop" ]; then echo stopped; else echo interrupted; fi ;;
        *) if [ -e "$STATE/asked_to_stop" ]; then echo stopped; else echo "failed $(cat "$STATE/ended")"; fi ;;
        esac
    elif [ -e "$STATE/started" ]; then
        echo interrupted
    else
        echo idle
    fi
}

stop() {
    local seconds=${1:-300} vfm attendant
    running || { say "nothing is running" && return; }
    touch "$STATE/asked_to_stop"
    read -r vfm attendant <"$STATE/pid"
    kill -TERM "$vfm" "$attendant" || true # they may be ending by themselves
    say "asked to save and end"
    for ((i = 0; i < seconds; i++)); do
        running || { say "$(status)" && return; }
        sleep 1
    done
    kill -KILL "$vfm" || true
    say "had not ended after $seconds s, and was killed; the run goes on from its last checkpoint"
}

case ${1:-} in
setup)
    unpack
    make_venv
    [ -z "${2:-}" ] || mount_bucket "$2"
    say "ready"
    ;;
start | attend | stop) "$@" ;;
status) say "$(status)" ;;
log) tail -n 200 -F "$STATE/run.log" ;;
*) fail "setup, start, status, stop or log?" ;;
esac
