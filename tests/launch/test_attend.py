"""The exit code that a scheduler goes by: 0 finished, 75 saved and not at its end, else vfm's own."""

import json
import signal
import subprocess

import pytest

# A run of as many "steps" as $STEPS: it says it has begun, saves when told, and leaves a summary as vfm does.
VFM = """
workdir=${*: -1} && workdir=${workdir#--workdir=} && mkdir -p "$workdir"
write() { printf '{\\n "finished": %s,\\n "stopped_by": "%s"\\n}\\n' "$1" "$2" >"$workdir/summary.json"; }
trap 'echo "told to stop"; write false SIGTERM; exit 0' TERM
echo "begun"
for ((i = 0; i < STEPS; i++)); do /bin/sleep 0.05; done
[ "${CODE:-0}" = 0 ] || exit "$CODE"
write true ""
"""


def attend(machine, *options):
    return ["bash", "scripts/launch/attend.sh", *options, "vfm", "train", f"--workdir={machine.folder}/run"]


@pytest.mark.parametrize("code", ["1", "2", "139"])
def test_a_failure_is_handed_on(machine, code):
    machine.program("vfm", VFM)
    assert machine.run(attend(machine), STEPS="0", CODE=code).returncode == int(code)


def test_a_finished_run_ends_with_0(machine):
    machine.program("vfm", VFM)
    done = machine.run(attend(machine), STEPS="0")
    assert (done.returncode, done.stdout) == (0, "begun\n")


def test_a_run_that_ended_well_before_its_end_is_not_done(machine):
    machine.program("vfm", "exit 0")
    done = machine.run(attend(machine))
    assert done.returncode == 75
    assert "The same command goes on." in done.stderr


@pytest.mark.parametrize(("options", "told"), [(["--forward-term"], True), ([], False)])
def test_sigterm_is_handed_on_where_only_the_first_process_hears_it(machine, options, told):
    machine.program("vfm", VFM)
    process = subprocess.Popen(
        attend(machine, *options),
        cwd=machine.code,
        env=machine.environment | {"STEPS": "1000" if told else "20"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert ("told to stop" in out) == told
    assert process.returncode == (75 if told else 0), err
    assert json.loads((machine.folder / "run" / "summary.json").read_text())["finished"] is not told
