#!/usr/bin/env bash
# Usage: scripts/launch/jobset.sh NAME --on=v5e:4x4 --image=IMAGE [--slices=N] [--spot] [--max-restarts=50]
#            [--chips-per-host=N] [--service-account=NAME] [--namespace=NAME] [--context=NAME] [--dry-run]
#            -- vfm train ... --workdir=gs://BUCKET/PATH
#
# Starts a run on TPU slices of a GKE cluster that has JobSet (https://jobset.sigs.k8s.io/docs/installation): one pod on
# each host, which start together, find each other, and after the loss of any host start again and go on in the workdir.
# The image is made with scripts/launch/Dockerfile. The service account is the Kubernetes one that may use the bucket.
# --chips-per-host=8: for 2x4 on the machines that have all eight. --dry-run prints the manifest (jobset.yaml, filled in)
# and does nothing. docs/launching.md has more.
# shellcheck disable=SC2034 # `manifest` reads variables by their names
set -euo pipefail
# shellcheck source=scripts/launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
TEMPLATE=$(dirname "${BASH_SOURCE[0]}")/jobset.yaml
shopt -u patsub_replacement 2>/dev/null || true # bash 5.2 would take an & in a value for the name it replaces

NAME=
IMAGE=
SLICES=1
SPOT=
MAX_RESTARTS=50
SERVICE_ACCOUNT=default
ON=
CHIPS=
kubectl=(kubectl)
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --dry-run) DRY_RUN=yes ;;
    --on=*) ON=${1#*=} ;;
    --image=*) IMAGE=${1#*=} ;;
    --slices=*) SLICES=${1#*=} ;;
    --spot) SPOT=yes ;;
    --max-restarts=*) MAX_RESTARTS=${1#*=} ;;
    --chips-per-host=*) CHIPS=${1#*=} ;;
    --service-account=*) SERVICE_ACCOUNT=${1#*=} ;;
    --namespace=* | --context=*) kubectl+=("$1") ;;
    --) shift && break ;;
    --*) fail "There is no option $1. See --help." ;;
    *)
        [ -z "$NAME" ] || fail "Two names, $NAME and $1; or a value apart from its flag: write --flag=VALUE."
        NAME=$1
        ;;
    esac
    shift
done
read_command "$@"
[ "$BUCKET" ] || fail "--workdir=$WORKDIR is inside the container, and goes with it." "Expected: gs://BUCKET/PATH"

# The longest name made of it, NAME-slice-JOB-POD, is a host's, of 63 characters at most.
[[ $NAME =~ ^[a-z]([-a-z0-9]{0,43}[a-z0-9])?$ ]] ||
    fail "The JobSet's name is ${NAME:-missing}." \
        "Expected: small letters, digits and dashes, the first a letter, 45 at most."
[[ $IMAGE =~ ^[A-Za-z0-9][A-Za-z0-9._:/@-]*$ ]] ||
    fail "The image is ${IMAGE:-missing}." "Expected: --image=REGION-docker.pkg.dev/PROJECT/REPOSITORY/vfm:TAG"
[[ $SERVICE_ACCOUNT =~ ^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$ ]] ||
    fail "--service-account=$SERVICE_ACCOUNT is no name of Kubernetes'."
whole_number --slices "$SLICES" 1
whole_number --max-restarts "$MAX_RESTARTS" 0

# Labels, topologies and chips per host: https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
TOPOLOGY=${ON#*:}
case $ON in
v5e:*) ACCELERATOR=tpu-v5-lite-podslice ;;
v6e:*) ACCELERATOR=tpu-v6e-slice ;;
v5p:*) ACCELERATOR=tpu-v5p-slice ;;
v4:*) ACCELERATOR=tpu-v4-podslice ;;
*)
    fail "--on=${ON:-is missing, so where to run is unknown}." \
        "Expected: v5e, v6e, v5p or v4, a colon, and the topology, as in --on=v5e:4x4"
    ;;
esac
three_multiples_of_4() {
    [[ $TOPOLOGY =~ ^([1-9][0-9]{0,2})x([1-9][0-9]{0,2})x([1-9][0-9]{0,2})$ ]] &&
        (((BASH_REMATCH[1] | BASH_REMATCH[2] | BASH_REMATCH[3]) % 4 == 0))
}
case $ON in
v5e:1x1 | v5e:2x2 | v5e:2x4 | v5e:4x4 | v5e:4x8 | v5e:8x8 | v5e:8x16 | v5e:16x16) ;;
v6e:1x1 | v6e:2x2 | v6e:2x4 | v6e:4x4 | v6e:4x8 | v6e:8x8 | v6e:8x16 | v6e:16x16) ;;
v5p:2x2x1 | v4:2x2x1 | v5p:2x2x2 | v4:2x2x2 | v5p:2x2x4 | v4:2x2x4 | v5p:2x4x4 | v4:2x4x4) ;;
v5e:* | v6e:*) fail "--on=$ON: there is no such slice." "Expected: 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 or 16x16." ;;
*)
    three_multiples_of_4 ||
        fail "--on=$ON: there is no such slice." "Expected: 2x2x1, 2x2x2, 2x2x4, 2x4x4, or AxBxC of multiples of 4."
    ;;
esac
total=$((${TOPOLOGY//x/*}))
if [ -z "$CHIPS" ]; then CHIPS=$((total < 4 ? total : 4)); fi
case $TOPOLOGY:$CHIPS in
1x1:1 | 2x4:8) ;;
*:4) ((total % 4 == 0)) || fail "--chips-per-host=4: $ON has $total." ;;
*) fail "--chips-per-host=$CHIPS: hosts of $ON have $((total < 4 ? total : 4)) chips." ;;
esac
HOSTS=$((total / CHIPS))
PROCESSES=$((SLICES * HOSTS))
if [ "$SLICES" -gt 1 ] && [ "$HOSTS" = 1 ]; then
    fail "--slices=$SLICES of $ON: slices of a single host cannot be joined." \
        "Take one larger slice, or slices of several hosts."
fi

json() { # the words as a list; Kubernetes would replace \$(NAME) by a variable, and takes \$\$ for a dollar
    local word joined=
    for word; do
        [[ $word != *[[:cntrl:]]* ]] || fail "A line break or the like in an argument: $word"
        word=$(printf '%s' "$word" | sed -e 's/[\\"]/\\&/g' -e 's/\$/$$/g')
        joined+="${joined:+, }\"$word\""
    done
    printf '[%s]' "$joined"
}
COMMAND_WORDS=$(json bash scripts/launch/attend.sh --forward-term "${COMMAND[@]}")

NAMES="NAME IMAGE ACCELERATOR TOPOLOGY CHIPS SLICES HOSTS PROCESSES MAX_RESTARTS SERVICE_ACCOUNT BUCKET COMMAND_WORDS"
manifest() {
    local line name
    while IFS= read -r line; do
        case $line in
        '#'*) continue ;;
        *' #? '*)
            name=${line##* #? }
            [ "${!name}" ] || continue
            line=${line% #? *}
            ;;
        esac
        for name in $NAMES; do
            line=${line//"\${$name}"/${!name}}
        done
        printf '%s\n' "$line"
    done <"$TEMPLATE"
}

needs kubectl \
    "Install it, and then \`gcloud container clusters get-credentials CLUSTER\`: https://kubernetes.io/docs/tasks/tools/"
if [ "$DRY_RUN" ]; then
    manifest
    exit 0
fi
say "$NAME: $SLICES slice(s) of $ON, $HOSTS host(s) of $CHIPS chip(s) each"
# `create` and not `apply`, which would leave a finished run of this name as it is, and say that all is well.
manifest | "${kubectl[@]}" create -f - ||
    fail "kubectl did not create it; its message is above." \
        "If one of that name is there: kubectl delete jobset $NAME lets it save and end; then this command again goes on." \
        "If JobSet is not known: https://jobset.sigs.k8s.io/docs/installation"
first="jobset.sigs.k8s.io/jobset-name=$NAME,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
say "Its output: ${kubectl[*]} logs --follow --selector=$first"
say "To save and end: ${kubectl[*]} delete jobset $NAME"
