#!/usr/bin/env bash
# Usage: scripts/launch/tpu_vm.sh VERB NAME --zone=ZONE [--project=PROJECT] [options] [--dry-run]
#
#   create   asks for a Cloud TPU VM or slice: --accelerator-type=v5e-16 [--spot | --reserved]; other --flags go to gcloud
#   run      waits for it, copies the code, and starts the command on all its workers: -- vfm train ... --workdir=gs://...
#   logs     follows the run's output on worker 0, or --worker=N
#   status   how the request stands, and the run on each worker
#   stop     asks the run to save and end, on all workers
#   delete   gives the machines back, with what is on their disks (gcloud asks first; --quiet: it does not)
#   babysit  create and run, again whenever the slice is preempted or restarted, until the run is finished;
#            takes the options of create, and the command of run
#
# --dry-run prints the commands and does nothing. What is copied: the files that git tracks, as they are now.
# The same command in the same --workdir goes on where the run stopped. docs/launching.md has more.
set -euo pipefail
# shellcheck source=scripts/launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

VERB=
NAME=
ZONE=
WORKER=0
QUIET=
ACCELERATOR=
GCLOUD_FLAGS=() # for `create`
WHERE=()        # --zone, and --project if given

# The image has to fit the chips: with another one the machine starts, and its TPU does not.
# https://cloud.google.com/tpu/docs/runtimes, https://cloud.google.com/tpu/docs/v5e, .../v5p, .../v6e, .../v4, .../v3
runtime_version() { # of ACCELERATOR, which is checked and, if it has another name at gcloud, renamed
    local generation=${ACCELERATOR%-*} size=${ACCELERATOR##*-} sizes
    case $generation in
    v5e) generation=v5litepod ;;
    tpu7x) fail "The Cloud TPU API has no tpu7x: it is to be had on GKE." ;;
    esac
    case $generation in
    v6e | v5litepod) sizes="1 4 8 16 32 64 128 256" ;;
    v5p | v4) sizes="8 16 32 64 128 256 and further multiples of 8" ;;
    v3) sizes="8 32 64 128 256 512 1024 2048" ;;
    v2) sizes="8 32 128 256 512" ;;
    *)
        fail "--accelerator-type=$ACCELERATOR is not known." \
            "Expected: v6e-N, v5p-N, v5e-N (v5litepod-N), v4-N, v3-N or v2-N."
        ;;
    esac
    if ! [[ $size =~ ^[1-9][0-9]{0,4}$ ]] ||
        ! { [[ " $sizes " == *" $size "* ]] || [[ $sizes == *multiples* && $((size % 8)) = 0 ]]; }; then
        fail "--accelerator-type=$ACCELERATOR: there is no slice of that size." "$generation has $sizes." \
            "(v6e and v5e count chips; v5p and older count cores, two a chip.)"
    fi
    ACCELERATOR=$generation-$size
    case $generation in
    v6e) RUNTIME=v2-alpha-tpuv6e ;;
    v5p) RUNTIME=v2-alpha-tpuv5 ;;
    v5litepod) RUNTIME=v2-alpha-tpuv5-lite ;;
    *) RUNTIME=tpu-ubuntu2204-base ;;
    esac
}

read_arguments() {
    case ${1:-} in
    -h | --help | help) usage && exit 0 ;;
    create | run | logs | status | stop | delete | babysit) VERB=$1 && shift ;;
    *) fail "${1:-Nothing} is no verb." "Expected: create, run, logs, status, stop, delete or babysit. See --help." ;;
    esac
    local command=()
    while [ $# -gt 0 ]; do
        case $1 in
        -h | --help) usage && exit 0 ;;
        --dry-run) DRY_RUN=yes ;;
        --zone=*) ZONE=${1#*=} ;;
        --project=*) WHERE+=("$1") ;;
        --quiet) QUIET=yes ;;
        --worker=*) WORKER=${1#*=} ;;
        --accelerator-type=*) ACCELERATOR=${1#*=} ;;
        --runtime-version=* | --node-id=*) fail "$1 is chosen by this script." ;;
        --) shift && command=("$@") && break ;;
        --*)
            case $VERB in
            create | babysit) GCLOUD_FLAGS+=("$1") ;;
            *) fail "$VERB does not take $1. See --help." ;;
            esac
            ;;
        *)
            [ -z "$NAME" ] || fail "Two names, $NAME and $1; or a value apart from its flag: write --flag=VALUE."
            NAME=$1
            ;;
        esac
        shift
    done
    [[ $NAME =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
        fail "The slice's name is ${NAME:-missing}." "Expected: small letters, digits and dashes, the first a letter."
    [ "$ZONE" ] || fail "There is no --zone=ZONE." \
        "Which zones have which chips: https://cloud.google.com/tpu/docs/regions-zones"
    WHERE=(--zone="$ZONE" ${WHERE[@]+"${WHERE[@]}"})
    [[ $WORKER =~ ^[0-9]+$ ]] || fail "--worker=$WORKER is no worker's number."
    case $VERB in
    create | babysit)
        [ "$ACCELERATOR" ] || fail "There is no --accelerator-type." "For example --accelerator-type=v5e-16."
        runtime_version
        ;;
    *) [ -z "$ACCELERATOR" ] || fail "$VERB does not take --accelerator-type: the slice has one." ;;
    esac
    case $VERB in
    run | babysit)
        read_command ${command[@]+"${command[@]}"}
        needs_lasting_workdir
        ;;
    *) [ ${#command[@]} = 0 ] || fail "$VERB starts no command." ;;
    esac
    needs gcloud "Install it, and then \`gcloud auth login\`: https://cloud.google.com/sdk/docs/install"
}

queue() { run gcloud compute tpus queued-resources "$1" "$NAME" "${WHERE[@]}" "${@:2}"; }
on_worker() { # WHICH COMMAND...
    run gcloud compute tpus tpu-vm ssh "$NAME" "${WHERE[@]}" --worker="$1" --command="$(quoted "${@:2}")"
}

describe() { queue describe --format='value(state.state)'; }
state() { # of the request for the slice; ABSENT if there is none
    local found errors
    errors=$(mktemp)
    if found=$(describe 2>"$errors"); then
        rm "$errors"
        echo "$found"
    elif grep -q NOT_FOUND "$errors"; then
        rm "$errors"
        echo ABSENT
    else
        cat "$errors" >&2
        rm "$errors"
        return 1
    fi
}

create() {
    queue create --node-id="$NAME" --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" \
        ${GCLOUD_FLAGS[@]+"${GCLOUD_FLAGS[@]}"}
}
delete() { queue delete --force "$@"; }

wait_until_active() {
    local now last=
    if [ "$DRY_RUN" ]; then
        echo "# until that says ACTIVE:"
        describe
        return
    fi
    while true; do
        now=$(state) || fail "gcloud does not tell how the request for $NAME stands; its message is above."
        case $now in
        ACTIVE) return ;;
        ABSENT)
            fail "There is no $NAME in $ZONE." \
                "First: scripts/launch/tpu_vm.sh create $NAME --zone=$ZONE --accelerator-type=..."
            ;;
        SUSPENDING | SUSPENDED | FAILED | DELETING)
            fail "The request for $NAME is $now, and will not come back." \
                "Delete it and create it anew; the run goes on from its workdir."
            ;;
        esac
        [ "$now" = "$last" ] || say "$NAME: $now. Waiting for the machines; Ctrl-C leaves the request in the queue."
        last=$now
        sleep 30
    done
}

# What git tracks, as it is in the working tree; never .venv, runs, or a file of keys that git was not told to keep. Done
# once: what is edited while `babysit` waits does not slip into the run.
ARCHIVE=vfm_code.tar.gz
pack() {
    local tree left
    if [ "$DRY_RUN" ]; then
        echo "git archive --format=tar.gz --output=$ARCHIVE \"\$(git stash create | grep . || echo HEAD)\""
        return
    fi
    tree=$(git stash create) || fail "git does not tell what it tracks in $REPOSITORY; its message is above."
    ARCHIVE=$(mktemp -d)/$ARCHIVE
    trap 'rm -r "$(dirname "$ARCHIVE")"' EXIT
    git archive --format=tar.gz --output="$ARCHIVE" "${tree:-HEAD}"
    left=$(git ls-files --others --exclude-standard | head -n 5 | tr '\n' ' ')
    [ -z "$left" ] || say "Not copied, since git does not track them: ${left}(git add what the run needs)"
}

launch() { # each step on all workers before the next: a slice of which one worker is missing only waits
    run gcloud compute tpus tpu-vm scp "$ARCHIVE" scripts/launch/tpu_worker.sh "$NAME:" "${WHERE[@]}" --worker=all &&
        on_worker all bash tpu_worker.sh setup ${BUCKET:+"$BUCKET"} &&
        on_worker all bash tpu_worker.sh start "${COMMAND[@]}"
}

run_on_all() {
    wait_until_active
    pack
    launch || fail "The run was not started on all workers; the message is above." \
        "See scripts/launch/tpu_vm.sh status $NAME --zone=$ZONE; the same command again is safe."
    [ -z "$DRY_RUN" ] || return 0
    say "Started on all workers. Its output: scripts/launch/tpu_vm.sh logs $NAME --zone=$ZONE"
    [ -z "$BUCKET" ] || say "gs://$BUCKET is at /gcs/$BUCKET there."
}

worker_states() { # lines of "HOST: STATE"
    # shellcheck disable=SC2016 # the worker's name, not this machine's
    on_worker all bash -c 'if [ -e tpu_worker.sh ]; then bash tpu_worker.sh status; else echo "$(hostname): idle"; fi'
}

status() {
    local now
    if [ "$DRY_RUN" ]; then
        describe
        echo "# if that says ACTIVE:"
        worker_states
        return
    fi
    now=$(state)
    echo "$NAME: $now"
    [ "$now" != ACTIVE ] || worker_states
}

# A run that fails by itself on a slice that stays is not begun again: it would fail again, and cost. But a slice that
# is being taken away may fail the run first, so a failure counts when it is seen twice.
STATES='idle|running|finished|stopped|interrupted|failed [0-9]+'
suspected=
look_at_workers() {
    local states
    states=$(worker_states | sed -nE "s/^[^:]*: ($STATES)\$/\1/p" | sort -u) && [ "$states" ] ||
        { say "Not all workers answer." && return; }
    has() { grep -qx "$1" <<<"$states"; }
    if has 'failed .*' || has stopped; then
        if [ "$states" = "$suspected" ]; then
            say "The run was not interrupted, but has: $(tr '\n' ' ' <<<"$states")" \
                "See scripts/launch/tpu_vm.sh logs $NAME --zone=$ZONE. The slice is still there, and costs."
            exit 1
        fi
        suspected=$states
        return
    fi
    suspected=
    if has interrupted || has idle; then
        if has running; then on_worker all bash tpu_worker.sh stop || return 0; fi # those wait for the others
        say "Starting the run."
        launch || say "It was not started on all workers; trying again."
    elif ! has running; then
        say "The run is finished. The slice is still there, and costs: scripts/launch/tpu_vm.sh delete $NAME --zone=$ZONE"
        exit 0
    fi
}

babysit() {
    local now last=
    pack
    if [ "$DRY_RUN" ]; then
        echo "# once a minute:"
        describe
        echo "# if there is no such request:"
        create
        echo "# if that says SUSPENDED:"
        delete --quiet
        echo "# if that says ACTIVE:"
        worker_states
        echo "# if a worker is idle or interrupted (where others run, stop them first):"
        launch
        return
    fi
    while true; do
        if now=$(state); then
            [ "$now" = "$last" ] || say "$NAME: $now"
            case $now in
            ABSENT) create || fail "gcloud did not take the request; its message is above." ;;
            SUSPENDED) delete --quiet || say "It was not deleted; trying again." ;;
            FAILED)
                fail "The request for $NAME has failed." \
                    "Why: gcloud compute tpus queued-resources describe $NAME ${WHERE[*]}"
                ;;
            ACTIVE) look_at_workers ;;
            esac
            last=$now
        fi
        sleep 60
    done
}

read_arguments "$@"
cd "$REPOSITORY"
case $VERB in
create)
    create
    [ "$DRY_RUN" ] || say "Asked for $ACCELERATOR with $RUNTIME." \
        "Next: scripts/launch/tpu_vm.sh run $NAME --zone=$ZONE -- vfm train ..."
    ;;
run) run_on_all ;;
logs) on_worker "$WORKER" bash tpu_worker.sh log ;;
status) status ;;
stop) on_worker all bash tpu_worker.sh stop ;;
delete) delete ${QUIET:+--quiet} ;;
babysit) babysit ;;
esac
