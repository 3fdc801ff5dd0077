# shellcheck shell=bash
# Makes .venv in the repository with what requirements.lock pins, and the package in editable form.
# Sourced by the other scripts: afterwards the shell stands in the repository and $VENV is the environment's path.
# Does nothing, and needs no network, while .venv fits the lock. PYTHON names another interpreter than python3.

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$REPOSITORY/.venv
INSTALLING=$REPOSITORY/.venv.installing # holds the id of the installing process
cd "$REPOSITORY" || exit

say() { printf '[%3ds] %s\n' "$SECONDS" "$*"; }
fail() {
    printf 'error: %s\n' "$@" >&2
    exit 1
}

# The lock fixes the packages. The metadata and the place (an editable install is a path) fix our own entry.
packages_stamp() { cat requirements.lock scripts/setup_venv.sh | cksum; }
own_stamp() { cat pyproject.toml vfm_jax/__init__.py | cksum && printf '%s\n' "$REPOSITORY"; }
holds() { [ "$(cat "$VENV/$1.stamp" 2>/dev/null)" = "$("$1_stamp")" ]; }
chosen_python() { [ -z "${PYTHON:-}" ] || [ "$("$PYTHON" --version 2>&1)" = "$("$VENV/bin/python" --version 2>&1)" ]; }
fits() { [ -x "$VENV/bin/python" ] && holds packages && holds own && chosen_python; }

pip_install() {
    "$VENV/bin/python" -m pip --disable-pip-version-check install -qq --no-build-isolation "$@" ||
        fail "pip could not install the packages; its message is above." \
            "The first run needs the network. The same command again starts the installation anew."
}

install_packages() {
    local python=${PYTHON:-python3}
    command -v "$python" >/dev/null ||
        fail "There is no $python. Install Python 3.11 or later, or name one: PYTHON=/path/to/python."
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$("$python" --version 2>&1) is too old: 3.11 or later is needed. Name another: PYTHON=/path/to/python."
    [ ! -e "$VENV" ] || [ -e "$VENV/packages.stamp" ] ||
        fail "$VENV was not made by this script, and would be replaced. Move it away first."
    say "making .venv with $("$python" --version 2>&1)"
    rm -rf "$VENV"
    mkdir "$VENV"
    printf 'unfinished\n' >"$VENV/packages.stamp"
    "$python" -m venv "$VENV" >/dev/null 2>&1 && [ -x "$VENV/bin/pip" ] ||
        fail "$python cannot make a virtual environment with pip in it." \
            "On Debian and Ubuntu: apt install python3-venv. Or name another: PYTHON=/path/to/python."
    say "installing the locked packages: one to two minutes"
    # Builders first: one package of the lock comes as source, and nothing is built with unlocked tools.
    sed -n -e '/^flit-core==/,/[^\\]$/p' -e '/^setuptools==/,/[^\\]$/p' requirements.lock >"$VENV/builders.lock"
    pip_install --require-hashes -r "$VENV/builders.lock"
    pip_install --require-hashes --no-compile -r requirements.lock
    # On all cores, and without the packages' own tests: half the time of pip's way.
    "$VENV/bin/python" -m compileall -q -j 0 -x '/tests/' "$VENV/lib" >/dev/null || true
    packages_stamp >"$VENV/packages.stamp"
}

install() {
    { [ -x "$VENV/bin/python" ] && holds packages && chosen_python; } || install_packages
    pip_install --no-deps -e .
    own_stamp >"$VENV/own.stamp"
    say "installed"
}

# Of two scripts started together one installs, and the other waits for it (making a folder is atomic).
waiting=
until fits; do
    if mkdir "$INSTALLING" 2>/dev/null; then
        trap 'rm -rf "$INSTALLING"' EXIT
        printf '%s\n' $$ >"$INSTALLING/pid"
        fits || install
        rm -rf "$INSTALLING"
        trap - EXIT
    else
        [ -n "$waiting" ] || say "waiting for another installation in this folder (if there is none: rm -r .venv.installing)"
        waiting=yes
        sleep 1
        if installer=$(cat "$INSTALLING/pid" 2>/dev/null) && ! kill -0 "$installer" 2>/dev/null; then
            rm -rf "$INSTALLING" # that one was killed
        fi
    fi
done
