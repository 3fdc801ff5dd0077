"""Runs of several processes, through the flags of the command line: they learn, stop, break and go on as one would.

A server that has imported everything forks them, as in test_kills: a run of two processes then takes seconds.
"""

import contextlib
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).parents[2]
STEPS, BATCH, IMAGES = 24, 8, 37
PATIENCE = 300  # seconds, for what takes five: no test hangs for ever

# Reads jobs, a line of JSON each: a list of processes. Forks them, prints their numbers and then how they ended.
SERVER = """
import json, os, signal, sys, time, traceback

def run(job):
    output = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1), os.dup2(output, 2)
    os.chdir(job["cwd"])
    os.environ.update(job["env"])
    jax.config.update("jax_num_cpu_devices", job["devices"])
    stepped = Watch.stepped

    def step_and_note(self, measured, batch, waited):
        shards = sorted(batch["index"].addressable_shards, key=lambda shard: shard.index[0].start or 0)
        with open(job["rows"], "a") as file:
            print(json.dumps([int(i) for shard in shards for i in shard.data]), file=file)
        under_way = self.steps_done + 1 + (self._pending is not None)  # one is read while the next is under way
        if under_way == job["fails_at"]:
            raise TrainingError("this disk is worn out")
        while under_way == job["waits_at"] and not os.path.exists(job["rows"] + ".on"):
            time.sleep(0.01)
        stepped(self, measured, batch, waited)

    Watch.stepped = step_and_note
    if not job["report"]:
        page.render = lambda workdir: None  # the longest part of such a short run
    return cli.main(job["words"])

if __name__ == "__main__":
    import jax, grain, orbax.checkpoint
    from vfm_jax import cli
    from vfm_jax.core.errors import TrainingError
    from vfm_jax.report import page
    from vfm_jax.train.record import Watch

    for line in sys.stdin:
        children = []
        for job in json.loads(line):
            children.append(os.fork())
            if children[-1] == 0:
                signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
                code = 70
                try:
                    code = run(job)
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush(), sys.stderr.flush()
                    os._exit(code)
        print("begun", *children, flush=True)
        print("ended", *(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children), flush=True)
"""


class Server:
    """Forks the processes of one run at a time."""

    def __init__(self, folder):
        self.folder = folder
        script = folder / "server.py"
        script.write_text(SERVER, encoding="utf-8")
        env = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
        env.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "cache"))
        env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        self.process = subprocess.Popen(
            [sys.executable, script],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
        )

    def start(self, jobs):
        """Process numbers of the jobs."""
        self.process.stdin.write(json.dumps(jobs) + "\n")
        self.process.stdin.flush()
        return self._told("begun")

    def wait(self):
        """Exit codes of the jobs; minus the signal where one ended it."""
        return self._told("ended")

    def _told(self, what):
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            self.end()
            pytest.fail(f"not {what} within {PATIENCE} s")
        line = self.process.stdout.readline().split()
        assert line[:1] == [what], line
        return [int(word) for word in line[1:]]

    def end(self):
        """Ends the server, and whatever it has forked."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("processes"))
    yield server
    server.end()


@pytest.fixture(scope="module")
def recipe(server, tiny_supervised):
    chance = np.random.default_rng(0)
    for name, count in (("train", IMAGES), ("test", 21)):
        labels = chance.integers(0, 2, count)
        images = chance.integers(0, 200, (count, 16, 16, 3)).astype(np.uint8)
        images[labels == 1, :8] += 40
        np.savez(server.folder / f"{name}.npz", images=images, labels=labels)
    normalize = dict(name="normalize", mean=0.5, std=0.25)
    return tiny_supervised | dict(
        total_steps=STEPS,
        log_every_steps=1,
        data=dict(name="arrays", path=str(server.folder / "train.npz"), batch_size=BATCH),
        views=dict(image=dict(ops=(dict(name="flip"), normalize))),
        eval_data=dict(test=dict(path=str(server.folder / "test.npz"))),
        eval_views=dict(image=dict(ops=(normalize,))),
        evals=dict(knn=dict(num_neighbors=5, every_steps=12)),
        checkpoints=dict(every_steps=8),
    )


@pytest.fixture(scope="module")
def split(recipe):
    """The same with its matrices and their moments split over all devices."""
    rules = ((r".*(mlp|attention).*kernel", ("fsdp",)), (r".*", ()))
    return recipe | dict(mesh=dict(data=1, fsdp=-1), sharding=rules, evals={})


@contextlib.contextmanager
def _free_port():
    """One that nobody else gets meanwhile: it is taken, and only who asks for this very one may listen there too."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture
def port():
    with _free_port() as port:
        yield port


def _flags(port, count, number):
    flags = [f"--coordinator=127.0.0.1:{port}", f"--num-processes={count}", f"--process-id={number}"]
    return flags if count > 1 else []


def _jobs(server, workdir, recipe, flags, *, command="train", devices=1, **more):
    """One job for each list of flags."""
    config = server.folder / f"{workdir.name}.py"
    text = f"from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict({recipe})\n"
    config.write_text(text)
    return [
        dict(
            words=[command, f"--config={config}", f"--workdir={workdir}", *own],
            devices=devices,
            log=f"{workdir}.{number}.log",
            rows=f"{workdir}.{number}.rows",
            env={"VFM_WAIT_SECONDS": str(PATIENCE)},
            cwd=str(server.folder),
            waits_at=0,
            report=False,
            fails_at=0,
        )
        | more
        for number, own in enumerate(flags)
    ]


def _run(server, workdir, recipe, count, port, **more):
    flags = [_flags(port, count, number) for number in range(count)]
    server.start(_jobs(server, workdir, recipe, flags, **more))
    assert server.wait() == [0] * count, _logs(workdir)
    return workdir


def _logs(workdir):
    return {path.name: path.read_text() for path in sorted(workdir.parent.glob(f"{workdir.name}.*.log"))}


def _log(workdir, number):
    return pathlib.Path(f"{workdir}.{number}.log").read_text()


def _rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _losses(workdir):
    return [row["loss"] for row in _rows(workdir) if row["kind"] == "train"]


def _figures(workdir):
    return [row["knn/accuracy"] for row in _rows(workdir) if row["kind"] == "eval"]


def _leaves(workdir, stage="train"):
    """Checksum of every leaf of the last state."""
    path = workdir / "checkpoints" / stage / str(STEPS) / "manifest.json"
    return json.loads(path.read_text())["content"]["leaves"]


def _drawn(workdir, count):
    """The records of each batch, those of one process after those of another."""
    files = [pathlib.Path(f"{workdir}.{number}.rows").read_text().splitlines() for number in range(count)]
    return [[i for part in step for i in json.loads(part)] for step in zip(*files, strict=True)]


def _wait_until(condition):
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def _count(file):
    """Lines of a file."""
    return pathlib.Path(file).read_text().count("\n") if os.path.exists(file) else 0


def _is_saved(workdir, step):
    return (workdir / "checkpoints" / "train" / str(step) / "manifest.json").exists()


def _signalled(server, workdir, recipe, port, hit, number, *, waits_at, before=0, devices=1):
    """Exit codes of two processes, one of which has got a signal in a step, `before` it those of another stage."""
    jobs = _jobs(server, workdir, recipe, [_flags(port, 2, n) for n in range(2)], devices=devices, waits_at=waits_at)
    children = server.start(jobs)
    assert _wait_until(lambda: all(_count(job["rows"]) == before + waits_at for job in jobs)), _logs(workdir)
    os.kill(children[hit], number)
    assert _wait_until(lambda: "saving as soon as all processes know" in _log(workdir, hit)), _logs(workdir)
    for job in jobs:
        pathlib.Path(job["rows"] + ".on").touch()
    return server.wait()


@pytest.fixture(scope="module")
def alone(server, recipe):
    return _run(server, server.folder / "alone", recipe, 1, 0, devices=2)


@pytest.fixture(scope="module")
def two(server, recipe):
    with _free_port() as port:
        return _run(server, server.folder / "two", recipe, 2, port, report=True)


@pytest.fixture(scope="module")
def unbroken(server, split):
    """Of two processes, which hold half of the matrices each."""
    with _free_port() as port:
        return _run(server, server.folder / "unbroken", split, 2, port)


def test_two_processes_learn_what_one_learns(alone, two):
    assert _drawn(two, 2) == _drawn(alone, 1)
    np.testing.assert_allclose(_losses(two), _losses(alone), rtol=1e-6)
    assert len(_losses(two)) == STEPS
    assert _figures(two) == _figures(alone)
    assert "Held-out accuracy" in _log(two, 0) and (two / "report.html").exists()
    assert [line for line in _log(two, 1).splitlines() if "Gloo" not in line] == []  # it has nothing to add
    assert json.loads((two / "summary.json").read_text())["hardware"]["num_processes"] == 2


def test_what_two_processes_have_saved_one_evaluates(server, recipe, two):
    _run(server, two, recipe, 1, 0, command="eval", devices=2)
    assert f"{_figures(two)[-1]:.4g}" in _log(two, 0).rpartition("knn/accuracy")[2]


def test_matrices_split_over_processes_learn_the_same(alone, unbroken):
    np.testing.assert_allclose(_losses(unbroken), _losses(alone), rtol=1e-5)


@pytest.mark.parametrize(
    ("number", "hit"),
    [(signal.SIGTERM, 1), pytest.param(signal.SIGINT, 0, marks=pytest.mark.slow)],
    ids=["sigterm", "ctrl_c"],
)
def test_a_signal_to_one_stops_all_at_the_same_step(server, unbroken, split, port, number, hit):
    workdir = server.folder / f"stopped_{hit}"
    assert _signalled(server, workdir, split, port, hit, number, waits_at=6) == [0, 0], _logs(workdir)
    stopped = json.loads((workdir / "summary.json").read_text())
    assert (stopped["finished"], stopped["stopped_by"]) == (False, "SIGTERM" if hit else "Ctrl-C")
    assert 6 <= stopped["steps"] <= 8
    assert _is_saved(workdir, stopped["steps"])
    _run(server, workdir, split, 2, port)
    assert f"Resuming stage train at step {stopped['steps']}." in _log(workdir, 0)
    assert _losses(workdir) == _losses(unbroken)
    assert _leaves(workdir) == _leaves(unbroken)


def test_when_one_is_killed_the_other_says_so_and_ends_and_both_go_on_later(server, unbroken, split, port):
    workdir = server.folder / "killed"
    for hit, saved in ((1, 8), (0, 16)):
        flags = [_flags(port, 2, number) for number in range(2)]
        children = server.start(_jobs(server, workdir, split, flags, waits_at=saved + 4))
        assert _wait_until(lambda saved=saved: _is_saved(workdir, saved)), _logs(workdir)
        os.kill(children[hit], signal.SIGKILL)
        codes = server.wait()
        assert codes == [-signal.SIGKILL if number == hit else 1 for number in range(2)], _logs(workdir)
        told = _log(workdir, 1 - hit)
        assert f"vfm: process {hit} (" in told and "gone without a word" in told
        assert "Traceback" not in told
    _run(server, workdir, split, 2, port)
    assert [f"Resuming stage train at step {step}." in _log(workdir, 0) for step in (8, 16)] == [True, True]
    assert _losses(workdir) == _losses(unbroken)
    assert _leaves(workdir) == _leaves(unbroken)


def test_tasks_of_slurm_find_each_other_and_hear_why_one_fails(server, recipe, port):
    workdir = server.folder / "slurm"
    jobs = _jobs(server, workdir, recipe | dict(evals={}), [[], []])
    for number, job in enumerate(jobs):
        job["env"] |= {
            "SLURM_JOB_ID": "7",
            "SLURM_STEP_ID": "0",
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_STEP_TASKS_PER_NODE": "2",
            "SLURM_PROCID": str(number),
            "SLURM_LOCALID": str(number),
            "JAX_COORDINATOR_PORT": str(port),
        }
    jobs[1]["fails_at"] = 4
    server.start(jobs)
    assert server.wait() == [1, 1], _logs(workdir)
    assert "vfm train: this disk is worn out" in _log(workdir, 1)
    told = _log(workdir, 0)
    assert "vfm: process 1 (" in told and "ended: this disk is worn out" in told
    assert "Traceback" not in told
    assert _count(workdir / "metrics.jsonl") >= 2


def test_different_recipes_are_named_before_any_work(server, recipe, port):
    workdir = server.folder / "different"
    jobs = _jobs(server, workdir, recipe, [[*_flags(port, 2, n), f"--config.seed={n}"] for n in range(2)])
    server.start(jobs)
    assert server.wait() == [2, 2], _logs(workdir)
    for number in range(2):
        told = _log(workdir, number)
        assert "config.seed: 0 in process 0" in told and "; 1 in process 1" in told
        assert "Traceback" not in told
    assert not workdir.exists()


def test_who_is_missing_is_named(server, recipe, port):
    workdir = server.folder / "missing"
    jobs = _jobs(server, workdir, recipe, [_flags(port, 3, n) for n in range(2)], env={"VFM_WAIT_SECONDS": "1"})
    server.start(jobs)
    assert server.wait() == [2, 2], _logs(workdir)
    for number in range(2):
        assert "Of 3 processes 1 did not come within 1 s: 2." in _log(workdir, number)


def test_different_numbers_of_devices_are_refused(server, recipe, port):
    workdir = server.folder / "uneven"
    jobs = _jobs(server, workdir, recipe, [_flags(port, 2, n) for n in range(2)])
    jobs[1]["devices"] = 2
    server.start(jobs)
    assert server.wait() == [2, 2], _logs(workdir)
    assert "The processes do not have the same number of devices: 1 in process 0, 2 in process 1." in _log(workdir, 0)


@pytest.mark.slow
def test_four_processes_go_on_from_two_and_two_stages_hand_over(server, split, port):
    """Of two stages, on one process, and on two that are stopped, then four."""
    stages = (dict(name="first", total_steps=12), dict(name="second", total_steps=STEPS))
    recipe = {name: value for name, value in split.items() if name != "total_steps"}
    recipe |= dict(stages=stages, evals=dict(knn=dict(num_neighbors=5, every_steps=6)))
    alone = _run(server, server.folder / "alone_in_stages", recipe, 1, 0, devices=4)
    workdir = server.folder / "two_then_four"
    codes = _signalled(server, workdir, recipe, port, 0, signal.SIGTERM, waits_at=18, before=12, devices=2)
    assert codes == [0, 0], _logs(workdir)
    _run(server, workdir, recipe, 4, port)
    np.testing.assert_allclose(_losses(workdir), _losses(alone), rtol=1e-5)
    assert _figures(workdir) == _figures(alone)


@pytest.mark.slow
def test_a_tensor_axis_over_processes_shares_rows(server, alone, recipe, port):
    workdir = _run(server, server.folder / "tensor", recipe | dict(mesh=dict(data=1, tensor=-1)), 2, port)
    np.testing.assert_allclose(_losses(workdir), _losses(alone), rtol=1e-5)
    assert _figures(workdir) == _figures(alone)


@pytest.mark.slow
def test_a_workdir_that_is_not_shared_is_refused(server, recipe, port):
    workdir = server.folder / "apart"
    jobs = _jobs(server, workdir, recipe, [_flags(port, 2, n) for n in range(2)])
    for number, job in enumerate(jobs):
        job["words"] = [word.replace(f"--workdir={workdir}", "--workdir=here") for word in job["words"]]
        job["cwd"] = str(server.folder / f"host_{number}")
        pathlib.Path(job["cwd"]).mkdir()
    server.start(jobs)
    assert server.wait() == [2, 2], _logs(workdir)
    for number in range(2):
        assert "is not the same folder for all processes: 1 of 2 do not see" in _log(workdir, number)
