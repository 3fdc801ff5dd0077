"""tpu_worker.sh, which runs on each worker: really run here, with stand-ins for uv and vfm."""

import shutil
import subprocess
import time

import pytest

from tests.launch.test_attend import VFM

pytestmark = pytest.mark.skipif(
    not (shutil.which("flock") and shutil.which("setsid")), reason="a TPU VM is a Linux with flock and setsid"
)

UV = """
case "$1" in
venv) mkdir -p .venv/bin && touch .venv/bin/python && chmod +x .venv/bin/python ;;
pip) cp "$VFM" .venv/bin/vfm ;;
esac
"""


@pytest.fixture
def worker(machine):
    """A home folder with the code and this script in it, as scp leaves them; the function runs a verb there."""
    machine.program("uv", UV)
    machine.program("hostname", "echo w0", record=False)
    machine.program("vfm-stand-in", VFM, record=False)
    machine.program("sleep", "exec /bin/sleep 0.02", record=False)
    machine.commit()
    copied = machine.home / "tpu_worker.sh"
    shutil.copy(machine.code / "scripts" / "launch" / "tpu_worker.sh", copied)

    def pack():
        archive = machine.home / "vfm_code.tar.gz"
        subprocess.run(["git", "archive", "--output", archive, "HEAD"], cwd=machine.code, check=True)

    def run(*words, steps=0, code=0):
        env = {"STEPS": str(steps), "CODE": str(code), "VFM": str(machine.bin / "vfm-stand-in")}
        return machine.run(["bash", str(copied), *words], **env)

    def start(**given):
        return run("start", "vfm", "train", "--config.title=a  b", f"--workdir={machine.folder}/run", **given)

    def wait_for(state):
        deadline = time.monotonic() + 60
        while (found := run("status").stdout) != f"w0: {state}\n" and time.monotonic() < deadline:
            time.sleep(0.05)
        return found.removeprefix("w0: ").strip()

    pack()
    run.pack, run.start, run.wait_for = pack, start, wait_for
    run.log = machine.home / "vfm_jax" / ".launch" / "run.log"
    yield run
    run("stop", "1")


def test_a_run_is_set_up_started_and_finished(worker, machine):
    assert worker("status").stdout == "w0: idle\n"
    done = worker("setup")
    assert (done.returncode, done.stdout) == (0, "w0: ready\n"), done.stderr
    wanted = "uv pip install --quiet --python .venv/bin/python --constraint requirements.lock --editable .[tpu]"
    assert machine.calls("uv")[1] == wanted.split()
    assert worker("status").stdout == "w0: idle\n"
    assert worker.start().returncode == 0
    assert worker.wait_for("finished") == "finished"
    assert "begun" in worker.log.read_text()


def test_a_run_outlives_the_shell_that_started_it_and_saves_when_stopped(worker):
    worker("setup")
    began = worker.start(steps=4000)
    assert (began.returncode, began.stdout) == (0, "w0: starting\n"), began.stderr
    assert worker("status").stdout == "w0: running\n"
    for refused in (worker.start(), worker("setup")):
        assert refused.returncode == 2
        assert "a run is going here" in refused.stderr
    while "begun" not in worker.log.read_text():
        time.sleep(0.02)
    stopped = worker("stop")
    assert stopped.stdout == "w0: asked to save and end\nw0: stopped\n", stopped.stderr
    assert worker.log.read_text().count("told to stop") == 1
    assert worker("stop").stdout == "w0: nothing is running\n"
    worker.start()
    assert worker.wait_for("finished") == "finished"


def test_a_run_that_cannot_save_is_killed_and_said_so(worker, machine):
    machine.program("vfm-stand-in", "trap '' TERM; for ((i = 0; i < 4000; i++)); do /bin/sleep 0.05; done")
    worker("setup")
    worker.start()
    assert "was killed; the run goes on from its last checkpoint" in worker("stop", "2").stdout
    assert worker.wait_for("stopped") == "stopped"


def test_a_failure_and_a_machine_that_went_down_are_told_apart(worker):
    worker("setup")
    worker.start(code=1)
    assert worker.wait_for("failed 1") == "failed 1"
    (worker.log.parent / "ended").unlink()  # what a power cut leaves
    assert worker("status").stdout == "w0: interrupted\n"
    (worker.log.parent / "ended").write_text("75\n")  # what vfm, told by the machine's shutdown, leaves
    assert worker("status").stdout == "w0: interrupted\n"


def test_a_second_copy_takes_away_what_git_no_longer_has(worker, machine):
    (machine.code / "odd name.py").write_text("x = 1\n", encoding="utf-8")
    machine.commit()
    worker.pack()
    worker("setup")
    there = machine.home / "vfm_jax"
    assert (there / "odd name.py").exists()
    (there / "mine.txt").write_text("made on the worker", encoding="utf-8")
    (machine.code / "odd name.py").unlink()
    machine.commit()
    worker.pack()
    assert worker("setup").returncode == 0
    assert not (there / "odd name.py").exists()
    assert (there / "mine.txt").exists()
    assert (there / "scripts" / "launch" / "attend.sh").exists()


def test_a_bucket_is_mounted_once_uncached(worker, machine):
    for name in ("sudo", "gcsfuse"):
        machine.program(name)
    machine.program("mountpoint", 'grep -q gcsfuse "$CALLS"')
    for _ in range(2):
        assert worker("setup", "bucket").returncode == 0
    flags = ["--implicit-dirs", "--metadata-cache-ttl-secs=0", "--metadata-cache-negative-ttl-secs=0"]
    assert machine.calls("gcsfuse") == [["gcsfuse", *flags, "bucket", "/gcs/bucket"]]
    assert ["sudo", "mkdir", "-p", "/gcs/bucket"] in machine.calls("sudo")


def test_a_bucket_that_cannot_be_mounted_ends_the_setup(worker, machine):
    for name, body in (("sudo", ""), ("gcsfuse", "exit 1"), ("mountpoint", "exit 1")):
        machine.program(name, body)
    done = worker("setup", "bucket")
    assert done.returncode == 2
    assert "gs://bucket cannot be mounted" in done.stderr
