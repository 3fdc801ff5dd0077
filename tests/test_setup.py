"""What a stranger gets: a lock that fits the metadata, scripts that start, files without a trace of one machine."""

import os
import pathlib
import re
import subprocess
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import vfm_jax

REPOSITORY = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
SCRIPTS = sorted([*(REPOSITORY / "scripts").rglob("*.sh"), REPOSITORY / ".ci" / "run"])
COMMANDS = [script for script in SCRIPTS if script.name not in ("setup_venv.sh", "common.sh")]  # those are sourced


def locked() -> list[tuple[Requirement, int]]:
    """The pinned requirements, each with its number of hashes."""
    entries = re.findall(r"^([A-Za-z0-9].*?) \\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", LOCK, re.MULTILINE)
    return [(Requirement(pin), hashes.count("--hash=")) for pin, hashes in entries]


def wanted() -> list[Requirement]:
    """What the scripts need: the package's dependencies, the developer's and the builders."""
    extras = PROJECT["project"]["optional-dependencies"]
    lines = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["build"], *extras["dev"]]
    requirements = [Requirement(line) for line in lines]
    ours = [r for r in requirements if r.name == PROJECT["project"]["name"]]
    included = [Requirement(line) for r in ours for extra in r.extras for line in extras[extra]]
    return [r for r in requirements if r not in ours] + included


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.14"])
@pytest.mark.parametrize(("system", "machine"), [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")])
def test_the_lock_pins_every_dependency_within_its_bounds(python, system, machine):
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": system,
        "platform_machine": machine,
        "implementation_name": "cpython",
    }
    pins = {
        canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("=="))
        for pin, _ in locked()
        if pin.marker is None or pin.marker.evaluate(environment)
    }
    missing = [
        str(r) for r in wanted() if not r.specifier.contains(pins.get(canonicalize_name(r.name), Version("0")))
    ]
    assert not missing, "pyproject.toml asks for what requirements.lock lacks; run scripts/lock.sh"


def test_every_locked_package_has_hashes_and_no_address():
    pins = locked()
    assert len(pins) == len(re.findall(r"^[A-Za-z0-9].*==", LOCK, re.MULTILINE))
    assert all(count >= 1 for _, count in pins)
    assert not re.search(r"://|^-|@ ", LOCK, re.MULTILINE)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.name)
def test_a_script_is_valid_bash(script):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", COMMANDS, ids=lambda s: s.name)
def test_a_command_is_executable(script):
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n")


def test_too_old_a_python_is_refused_in_words(tmp_path):
    """A stand-in interpreter fails the version check; nothing may be installed then."""
    for name in ("scripts", "vfm_jax"):
        (tmp_path / name).mkdir()
    for name in ("scripts/setup_venv.sh", "requirements.lock", "pyproject.toml", "vfm_jax/__init__.py"):
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    old = tmp_path / "old python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1\nexit 1\n', encoding="utf-8")
    old.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", "set -euo pipefail; source scripts/setup_venv.sh"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": str(old)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Python 3.9.1 is too old" in done.stderr
    assert not (tmp_path / ".venv").exists()
    assert not (tmp_path / ".venv.installing").exists()


def tracked_text_files() -> list[pathlib.Path]:
    """Files under version control that are text; empty outside a clone."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True)
    paths = [REPOSITORY / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:8192]]


def test_no_tracked_file_names_a_place_on_one_machine():
    files = tracked_text_files()
    if not files:
        pytest.skip("not a git clone, so what is tracked is unknown")
    places = re.compile(r"(?<![\w.*}\])-])/(?:root|work|home/\w+|Users/\w+|opt/\w+|mnt/\w+|tmp/w)/")
    found = {}
    for file in files:
        text = file.read_text(encoding="utf-8")
        hits = {match.group() for match in places.finditer(text)} | {p for p in (str(REPOSITORY),) if p in text}
        if hits:
            found[file.relative_to(REPOSITORY).as_posix()] = sorted(hits)
    assert not found


def test_the_changelog_knows_the_version():
    assert f"\n## {vfm_jax.__version__} " in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
