#!/usr/bin/env bash
# Lint, types and the test suite, on packages installed as requirements.lock pins them. Arguments go to pytest:
# scripts/test.sh tests/core -k keys        the fast tests chosen
# scripts/test.sh -m "slow or not slow"     all of them, the slow ones too
# scripts/test.sh --plan ...                plans too: first installs the TPU's compiler (684 MB; Linux alone has it)
set -euo pipefail
# shellcheck source=scripts/setup_venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"

if [ "${1:-}" = --plan ]; then
    shift
    if [ "$(uname -s)" = Linux ] && ! "$VENV/bin/python" -c "import libtpu" 2>/dev/null; then
        say "installing the TPU's compiler"
        pip_install --no-deps --no-compile --require-hashes -r requirements-plan.lock
    fi
fi

# Compiled programs are kept between runs, apart for each kind of machine: they are made for one processor.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-$VENV}/.cache}/vfm_jax/tests-$(uname -sm | tr ' ' '-')}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0}
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=${JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES:--1}

status=0
check() {
    say "$*"
    "$VENV/bin/$1" "${@:2}" || { status=1 && say "FAILED: $* (the tests run all the same; the exit code will be 1)"; }
}
check ruff check --quiet .
check ruff format --quiet --check --output-format concise .
check ty check --output-format concise --no-progress
say "pytest $*"
# A file stays on one core: its tests share networks and compiled programs.
"$VENV/bin/python" -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile "$@" || status=$?
exit "$status"
