"""The launchers and vfm agree on what a summary says: a real run, shrunk, under attend.sh."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.machine import REPOSITORY

SMALL = (
    *("total_epochs=None", "schedule.warmup_epochs=0.01", "data.batch_size=32", "log_every_steps=1"),
    *("evals=None", "baselines=None", "networks.encoder.depth=1", "networks.decoder.depth=1"),
)


@pytest.mark.slow
def test_a_run_told_to_stop_has_more_to_do_and_a_finished_one_has_not(machine):
    machine.program("vfm", f'exec {sys.executable} -m vfm_jax.cli "$@"', record=False)
    env = os.environ | {"PATH": f"{machine.bin}:{os.environ['PATH']}", "JAX_NUM_CPU_DEVICES": "1"}
    env["PYTHONPATH"] = str(REPOSITORY)

    def begin(steps, name):
        words = ["vfm", "train", "--config=configs/quickstart.py", f"--workdir={machine.folder / name}"]
        words += [f"--config.{field}" for field in (*SMALL, f"total_steps={steps}")]
        command = ["bash", "scripts/launch/attend.sh", "--forward-term", *words]
        return subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, text=True)

    finished = begin(2, "short")
    out, _ = finished.communicate(timeout=300)
    assert finished.returncode == 0, out

    stopped = begin(1_000_000, "long")
    metrics = machine.folder / "long" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    stopped.send_signal(signal.SIGTERM)
    out, _ = stopped.communicate(timeout=120)
    assert stopped.returncode == 75, out
    assert out.count("SIGTERM: saving after this step.") == 1
    pattern = '"stopped_by": "SIGTERM"'
    assert pattern in (machine.folder / "long" / "summary.json").read_text(encoding="utf-8")
    assert pattern in (REPOSITORY / "scripts" / "launch" / "slurm.sbatch").read_text(encoding="utf-8")
