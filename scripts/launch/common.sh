# shellcheck shell=bash
# What the launchers share: messages, printing or running a command, and a look at the `vfm train` command they start.
# Sourced by them. They run on laptops too, so in macOS's bash 3.2, to which "${list[@]}" of an empty list is an error.

say() { printf '%s\n' "$*" >&2; }
fail() {
    printf 'error: %s\n' "$1" >&2
    [ $# -eq 1 ] || printf '       %s\n' "${@:2}" >&2
    exit 2
}

DRY_RUN= # `yes`: `run` prints what it would do
quoted() { # the words as a shell would take them back: plain ones bare, the others (of --flag=value the value) quoted
    local word flag joined=
    for word; do
        flag=
        if [[ $word =~ ^(--[a-zA-Z0-9._-]+=)(.*)$ ]]; then
            flag=${BASH_REMATCH[1]}
            word=${BASH_REMATCH[2]}
        fi
        case $word in
        *[!A-Za-z0-9_@%+=:,./-]*) word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'" ;;
        '') [ "$flag" ] || word="''" ;;
        esac
        joined+="${joined:+ }$flag$word"
    done
    printf '%s' "$joined"
}
run() { # does it, or with --dry-run says what it would do, ready to be pasted into a shell
    if [ "$DRY_RUN" ]; then
        quoted "$@"
        echo
    else
        "$@"
    fi
}

usage() { # the comment at the script's head
    sed -n -e '2,/^set /!d' -e '/^set /d' -e '/^# shellcheck/d' -e 's/^# \{0,1\}//p' "$0"
}
needs() { # PROGRAM HINT: a dry run needs nothing
    [ "$DRY_RUN" ] || command -v "$1" >/dev/null || fail "There is no $1 on PATH." "$2"
}
whole_number() { # OPTION VALUE LEAST
    if ! [[ $2 =~ ^[0-9]{1,6}$ ]] || ((10#$2 < $3)); then fail "$1=$2 is not a whole number of at least $3."; fi
}

# The command to start, once checked; its workdir; and the bucket that the workdir lies in, or nothing.
COMMAND=()
WORKDIR=
BUCKET=

# Takes `vfm train ... --workdir=DIR`. A gs:// workdir becomes the path at which each host mounts the bucket: Orbax and
# vfm write to paths, and every process of a run has to see the same ones.
read_command() {
    local i word
    COMMAND=("$@")
    if [ "${1:-}" != vfm ] || [ "${2:-}" != train ]; then
        fail "After the options comes -- and the command to start, but found: ${*:-nothing}" \
            "Expected: -- vfm train --config=CONFIG --workdir=DIR"
    fi
    for ((i = 2; i < $#; i++)); do
        word=${COMMAND[i]}
        case $word in
        --workdir=*) WORKDIR=${word#--workdir=} ;;
        --workdir)
            WORKDIR=${COMMAND[i + 1]:-}
            unset "COMMAND[i + 1]"
            ;;
        *) continue ;;
        esac
        if [[ $WORKDIR == gs://* ]]; then
            [[ $WORKDIR =~ ^gs://([a-z0-9][a-z0-9._-]*)/(.*[^/])/*$ ]] ||
                fail "--workdir=$WORKDIR names no place in a bucket." "Expected: gs://BUCKET/PATH"
            BUCKET=${BASH_REMATCH[1]}
            WORKDIR=/gcs/$BUCKET/${BASH_REMATCH[2]}
        fi
        COMMAND[i]=--workdir=$WORKDIR
        COMMAND=("${COMMAND[@]}")
        break
    done
    [ "$WORKDIR" ] || fail "The command has no --workdir: a stopped run goes on from what it left there." \
        "Add --workdir=DIR, the same each time."
    case $WORKDIR in
    *://*) fail "--workdir=$WORKDIR is no path, and vfm writes to paths." \
        "Expected: gs://BUCKET/PATH (the bucket is mounted) or a folder that every host sees." ;;
    esac
}
# For machines that are made for the run: a folder below the checkout would go with them, and no two would share it.
needs_lasting_workdir() {
    case $WORKDIR in
    /*) ;;
    *) fail "--workdir=$WORKDIR would lie in each host's own copy of the code, and go with it." \
        "Expected: gs://BUCKET/PATH, or the absolute path of a disk that every host mounts." ;;
    esac
}
