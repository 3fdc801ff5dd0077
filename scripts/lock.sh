#!/usr/bin/env bash
# Writes requirements.lock anew from pyproject.toml: every package, for every Python from 3.11, Linux and macOS, with the
# hashes of all its files. Arguments go to uv: `--upgrade` takes the newest of everything, `--upgrade-package jax` of one.
# Needs uv (https://docs.astral.sh/uv) and the network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv pip compile pyproject.toml --extra dev --group build --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --no-emit-find-links \
    --custom-compile-command scripts/lock.sh --quiet --output-file requirements.lock "$@"
