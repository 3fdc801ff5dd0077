"""What --dry-run prints is the text kept in tests/golden/launch, whose first line is the command.

After a wanted change, write one anew from that line: `bash -c "$(sed -n 's/^\\$ //p' FILE)"`, and read what differs.
"""

import pytest

from tests.launch.machine import REPOSITORY

GOLDEN = sorted((REPOSITORY / "tests" / "golden" / "launch").glob("*.txt"))


@pytest.mark.parametrize("file", GOLDEN, ids=lambda path: path.stem)
def test_a_dry_run_prints_exactly_this_and_calls_nothing(machine, file):
    for name in ("gcloud", "sbatch", "kubectl", "git"):
        machine.program(name)
    command, expected = file.read_text(encoding="utf-8").removeprefix("$ ").split("\n", 1)
    before = sorted(machine.folder.rglob("*"))
    done = machine.run(["bash", "-c", command])
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected
    assert machine.calls() == []
    assert sorted(machine.folder.rglob("*")) == before


@pytest.mark.parametrize("script", ["tpu_vm.sh", "slurm.sh", "jobset.sh"])
def test_help_is_the_comment_at_the_head(machine, script):
    done = machine.run(f"scripts/launch/{script} --help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: scripts/launch/{script} ")
    assert "--dry-run" in done.stdout
    assert "shellcheck" not in done.stdout
