"""Runs killed with -9 again and again, at random moments, or stopped by Ctrl-C: each ends as the one never stopped.

A server that has imported everything forks a run in no time, so that a start, some steps and a kill take a second or
two of a processor. Workers start as they always do, from nothing.
"""

import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="follows processes in /proc")

REPOSITORY = pathlib.Path(__file__).parents[2]
STEPS, BATCH, IMAGES, DAMAGED = 60, 16, 40, (3, 17, 28)

# Reads jobs, a line of JSON each; forks a run for it, prints its process and then how it ended.
SERVER = """
import json, os, signal, sys, time

if __name__ == "__main__":
    import grain, orbax.checkpoint
    from vfm_jax import cli
    from vfm_jax.train.record import Watch

    stepped = Watch.stepped

    def step_slowly(*args):  # there is time to be killed in, at no cost
        time.sleep(0.03)
        stepped(*args)

    Watch.stepped = step_slowly
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)  # a terminal's Ctrl-C goes to a whole group
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
            output = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1), os.dup2(output, 2)
            code = 70
            try:
                code = cli.main(["train", "--config=" + job["config"], "--workdir=" + job["workdir"]])
            finally:
                os._exit(code)
        print("begun", child, flush=True)
        print("ended", os.waitpid(child, 0)[1], flush=True)
"""


class Server:
    """Forks runs, one at a time."""

    def __init__(self, folder, learning):
        self.folder, self.learning = folder, learning
        script = folder / "server.py"
        script.write_text(SERVER, encoding="utf-8")
        env = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
        env.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "cache"))
        env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        self.process = subprocess.Popen(
            [sys.executable, script],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def start(self, workdir, workers):
        data = dict(
            name="folder", path=str(self.folder / "images"), canvas_size=16, batch_size=BATCH, workers=workers
        )
        recipe = self.learning | dict(
            total_steps=STEPS,
            log_every_steps=1,
            data=data | dict(threads=2, max_bad_ratio=0.2),
            views=dict(image=dict(ops=(dict(name="flip"), dict(name="normalize", mean=0.5, std=0.25)))),
            ema=dict(momentum=0.9),
            checkpoints=dict(every_steps=4),
        )
        config = self.folder / f"with_{workers}_workers.py"
        config.write_text(
            f"from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict({recipe})\n"
        )
        job = dict(config=str(config), workdir=str(workdir), log=str(workdir) + ".log")
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self._told("begun")

    def wait(self):
        return self._told("ended")

    def _told(self, what):
        # Never another number in the place of a process: kill(0) would end the tests themselves.
        line = self.process.stdout.readline().split()
        assert line[:1] == [what], line
        return int(line[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_supervised):
    folder = tmp_path_factory.mktemp("kills")
    noise = np.random.default_rng(0)
    for i in range(IMAGES):
        file = folder / "images" / "ab"[i % 2] / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (16, 16, 3), np.uint8)).save(file)
        if i in DAMAGED:
            file.write_bytes(file.read_bytes()[: 60 if i % 2 else 300])
    server = Server(folder, tiny_supervised)
    with server.process:
        yield server
        server.process.stdin.close()


@pytest.fixture(scope="module")
def unbroken(server):
    """Its folder, and the seconds until its first step and after it."""
    workdir, began = server.folder / "unbroken", time.monotonic()
    server.start(workdir, 0)
    while _steps(workdir) == 0 and not _has_failed(workdir):
        time.sleep(0.01)
    first = time.monotonic()
    assert server.wait() == 0, (server.folder / "unbroken.log").read_text()
    return workdir, first - began, time.monotonic() - first


def _has_failed(workdir):
    log = pathlib.Path(f"{workdir}.log")  # the run makes it, when it gets so far
    return log.exists() and "Traceback" in log.read_text()


def _steps(workdir):
    metrics = workdir / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def _children(parent):
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and _parent_of(entry) == parent:
            found.append(entry)
    return found


def _parent_of(entry):
    """None for a process that is gone, or only waits to be buried."""
    try:
        state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def _wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def _kill_some_time(server, process, workdir, before, chance, seconds):
    """At any moment of the start, or of the steps after it; how the run ended."""
    to_start, to_end = seconds
    if chance.random() < 0.7:
        _wait_until(lambda: _steps(workdir) != before or _parent_of(pathlib.Path(f"/proc/{process}")) is None, 120)
        time.sleep(chance.uniform(0, 0.3 * to_end))
    else:
        time.sleep(chance.uniform(0, to_start))
    workers = _children(process)
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.kill(process, signal.SIGKILL)
    status = server.wait()
    assert _wait_until(lambda: not [w for w in workers if _parent_of(w) is not None], 20), "a process was left behind"
    return status


def _outcome(workdir):
    """All that must be the same: checksums of parameters, moments, averages; losses; and the bad records."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    manifest = json.loads((workdir / "checkpoints" / "train" / str(STEPS) / "manifest.json").read_text())["content"]
    summary = json.loads((workdir / "summary.json").read_text())
    ledger = [json.loads(line) for line in (workdir / "bad_samples.jsonl").read_text().splitlines()]
    return (
        manifest["leaves"],
        [(row["loss"], row["gradient_norm"]) for row in rows],
        sorted(ledger, key=lambda row: row["index"]),
        summary["bad_samples"]["reasons"],
    )


def _kill(server, unbroken, workers, kills, seed):
    """Runs to the end, each as often as it takes, until so many kills have hit."""
    reference, *seconds = unbroken
    chance, run = random.Random(seed), 0
    while kills:
        workdir, resumed = server.folder / f"run_{workers}_{seed}_{run}", 0
        while True:
            before = _steps(workdir)
            process = server.start(workdir, workers)
            if kills:
                status = _kill_some_time(server, process, workdir, before, chance, seconds)
            else:
                status = server.wait()
            if status == 0:
                break
            assert status == signal.SIGKILL, pathlib.Path(f"{workdir}.log").read_text()
            kills -= 1
            resumed += 1
        assert _outcome(workdir) == _outcome(reference)
        run += 1


def _in_group(group):
    """Processes of a group, those that only wait to be buried left out."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if entry.name.isdigit() and os.getpgid(int(entry.name)) == group and _parent_of(entry) is not None:
                found.append((entry / "cmdline").read_text())
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_in_an_epoch_saves_and_leaves_no_process(server, unbroken, workers):
    workdir = server.folder / f"stopped_{workers}"
    log = pathlib.Path(f"{workdir}.log")
    process = server.start(workdir, workers)
    assert _wait_until(lambda: _steps(workdir) >= 5 or _has_failed(workdir), 300), log.read_text()
    assert len(_in_group(process)) > workers
    os.killpg(process, signal.SIGINT)
    # Not how long it takes on a busy machine: a step, a save, the end of the workers; only that it does not hang.
    assert _wait_until(lambda: _parent_of(pathlib.Path(f"/proc/{process}")) is None, 120), log.read_text()
    assert server.wait() == 0, log.read_text()
    assert _wait_until(lambda: not _in_group(process), 20), _in_group(process)
    told = log.read_text()
    assert "Ctrl-C: saving after this step" in told
    assert "Traceback" not in told and "KeyboardInterrupt" not in told
    stopped = json.loads((workdir / "summary.json").read_text())
    assert (stopped["finished"], stopped["stopped_by"]) == (False, "Ctrl-C")
    assert 5 <= stopped["steps"] < STEPS
    server.start(workdir, workers)
    assert server.wait() == 0, log.read_text()
    assert f"Resuming stage train at step {stopped['steps']}." in log.read_text()
    assert _outcome(workdir) == _outcome(unbroken[0])


def test_a_run_sees_its_bad_records(unbroken):
    leaves, _, ledger, reasons = _outcome(unbroken[0])
    assert sorted(row["index"] for row in ledger) == sorted(i // 2 + i % 2 * (IMAGES // 2) for i in DAMAGED)
    assert sum(reasons.values()) == len(DAMAGED)
    assert any(name.startswith("ema/") for name in leaves)


@pytest.mark.parametrize(("workers", "kills"), [(0, 6), (2, 2)])
def test_killed_at_random_moments(server, unbroken, workers, kills):
    _kill(server, unbroken, workers, kills, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kills"), [(0, 60), (2, 24), (4, 16)])
def test_killed_at_a_hundred_random_moments(server, unbroken, workers, kills):
    _kill(server, unbroken, workers, kills, seed=1)
