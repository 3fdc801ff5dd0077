"""ShellCheck finds nothing in any of the shell scripts."""

import pathlib
import subprocess
import sys

import pytest

from tests.launch.machine import REPOSITORY

SCRIPTS = sorted(
    [*(REPOSITORY / "scripts").rglob("*.sh"), *(REPOSITORY / "scripts").rglob("*.sbatch"), REPOSITORY / ".ci" / "run"]
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_a_script_passes_shellcheck(script):
    program = pathlib.Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([program, "-x", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_shellcheck_is_awake(tmp_path):
    bad = tmp_path / "bad.sh"
    bad.write_text("#!/usr/bin/env bash\nrm $1\n", encoding="utf-8")
    done = subprocess.run([pathlib.Path(sys.executable).parent / "shellcheck", bad], capture_output=True, text=True)
    assert done.returncode == 1
    assert "SC2086" in done.stdout
