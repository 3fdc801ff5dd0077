"""Ten steps are five, a kill -9, and five: bit for bit, data order included."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from vfm_jax.train.checkpoint import restore_params

REPOSITORY = pathlib.Path(__file__).parents[2]

# Runs `vfm train`; with a number as first word, the process kills itself at that step, once the last save is whole.
CHILD = """
import os, signal, sys
from vfm_jax import cli
from vfm_jax.train.checkpoint import Checkpoints
from vfm_jax.train.record import Watch

fatal, stepped, save = int(sys.argv[1]), Watch.stepped, Checkpoints.save

def count(self, measured, batch, waited):
    if self.steps_done + 2 == fatal:  # one step is read while the next is under way
        os.kill(os.getpid(), signal.SIGKILL)
    stepped(self, measured, batch, waited)

def save_and_wait(self, *args):
    save(self, *args, wait=True)

if __name__ == "__main__":
    Watch.stepped, Checkpoints.save = count, save_and_wait
    sys.exit(cli.main(sys.argv[2:]))
"""


def _train(tmp_path, workdir, *, fatal=0, workers=0):
    script = tmp_path / "child.py"
    script.write_text(CHILD, encoding="utf-8")
    words = [
        "train",
        "--config=configs/quickstart.py",
        f"--workdir={workdir}",
        "--config.total_steps=10",
        "--config.schedule.warmup_steps=2",
        "--config.checkpoints.every_steps=5",
        "--config.log_every_steps=1",
        "--config.data.batch_size=16",
        f"--config.data.workers={workers}",
        "--config.networks.encoder.depth=1",
        "--config.networks.decoder.depth=1",
        "--config.evals=None",
        "--config.baselines=()",
    ]
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, str(script), str(fatal), *words],
        cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def _state(workdir):
    """Parameters, and the checksum of every leaf of the state: step, parameters, moments."""
    last = workdir / "checkpoints" / "train" / "10"
    manifest = json.loads((last / "manifest.json").read_text())["content"]
    return restore_params(last).params, manifest["leaves"]


def _losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["gradient_norm"]) for row in rows if row["kind"] == "train"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    done = _train(workdir, workdir / "run")
    assert done.returncode == 0, done.stderr
    return workdir / "run"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_ends_as_one_never_stopped(unbroken, tmp_path, workers):
    workdir = tmp_path / "run"
    killed = _train(tmp_path, workdir, fatal=8, workers=workers)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = _train(tmp_path, workdir, workers=workers)
    assert resumed.returncode == 0, resumed.stderr
    assert "Resuming stage train at step 5." in resumed.stdout
    assert _losses(workdir) == _losses(unbroken)
    assert [step for step, *_ in _losses(workdir)] == list(range(1, 11))
    (expected, sums), (found, found_sums) = _state(unbroken), _state(workdir)
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(one, other)
    assert any(name.startswith("opt_state/") for name in sums)
    assert found_sums == sums


def test_a_finished_run_is_not_run_again(unbroken):
    before = (unbroken / "metrics.jsonl").read_bytes()
    again = _train(unbroken.parent, unbroken)
    assert again.returncode == 0, again.stderr
    assert "finished" in again.stdout
    assert (unbroken / "metrics.jsonl").read_bytes() == before
