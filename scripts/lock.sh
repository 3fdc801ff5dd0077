#!/usr/bin/env bash
# Writes requirements.lock anew from pyproject.toml: every package, for every Python from 3.11, Linux and macOS, with the
# hashes of all its files. Arguments go to uv: `--upgrade` takes the newest of everything, `--upgrade-package jax` of one.
# Needs uv (https://docs.astral.sh/uv) and the network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
compile() {
    uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
        --no-emit-find-links --custom-compile-command scripts/lock.sh --quiet "$@"
}
compile --extra dev --group build --output-file requirements.lock "$@"
# What the extra `plan` adds to that is one package, as large as all others together: scripts/test.sh --plan.
compile --extra dev --extra plan --group build --constraints requirements.lock --output-file /dev/stdout |
    sed -n '/^libtpu==/,/[^\\]$/p' >requirements-plan.lock
