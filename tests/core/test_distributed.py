"""Processes meet, are compared and counted; they are threads here, and real in tests/train/test_processes.py."""

import contextlib
import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vfm_jax.core.cluster import Cluster
from vfm_jax.core.distributed import check_devices, from_first, hear_of_others, in_company, is_first, leave
from vfm_jax.core.errors import UserError
from vfm_jax.core.rendezvous import MAX_BYTES, meet

SAME = {"jax": "0.10.2", "config.seed": "0"}
HOSTS = {0: "node-a", 1: "node-b", 2: "node-c"}


@pytest.fixture
def address():
    with socket.socket() as holder:  # taken, so that nobody else gets it; who asks for this very one may listen there
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{holder.getsockname()[1]}"


@contextlib.contextmanager
def _meeting(address, *processes, seconds=60.0, count=None, said=None):
    """What each of (number, facts) gets, as a function that waits for it: a line, or the error's message."""
    lines = []

    def come(number, facts):
        run = Cluster("a test", address, count or len(processes), number, HOSTS)
        try:
            lines.append(
                meet(run, facts, seconds=seconds, every_seconds=0.05, say=([] if said is None else said).append)
            )
        except UserError as error:
            return str(error)
        return lines[-1]

    with ThreadPoolExecutor(max(1, len(processes))) as threads:
        coming = [threads.submit(come, *process) for process in processes]
        yield lambda: [future.result() for future in coming]
    for line in lines:
        for peer in line._peers.values():
            peer.close()


def test_all_come_in_any_order(address):
    with _meeting(address, (2, SAME), (1, SAME), (0, SAME)) as outcome:
        lines = outcome()
    assert [sorted(line._peers) for line in lines] == [[0], [0], [1, 2]]
    assert all(line._hosts.keys() == {0, 1, 2} for line in lines)


def test_the_missing_are_named_again_and_again_and_then_all_give_up(address):
    said = []
    with _meeting(address, (0, SAME), (2, SAME), count=4, seconds=1, said=said) as outcome:
        first, other = outcome()
    assert first == other
    assert "Of 4 processes 2 did not come within 1 s: 1 (node-b), 3." in first
    assert "VFM_WAIT_SECONDS" in first and address in first
    waiting = [line for line in said if line.startswith("Waiting for 2 of 4")]
    assert len(waiting) > 1
    assert re.fullmatch(r"Waiting for 2 of 4 processes, for \d+ s: 1 \(node-b\), 3\.", waiting[0])


def test_a_first_process_that_never_comes_is_named(address, monkeypatch):
    monkeypatch.setattr("vfm_jax.core.rendezvous._GRACE_SECONDS", 0.2)
    said = []
    with _meeting(address, (1, SAME), count=2, seconds=1, said=said) as outcome:
        (message,) = outcome()
    assert f"The first of 2 processes does not answer at {address}" in message
    assert said[0].startswith(f"Waiting for the first process at {address}")


def test_what_differs_is_named_in_every_process(address):
    others = {"jax": "0.10.2", "config.seed": "1", "config.new": "x" * 100}
    with _meeting(address, (0, SAME), (1, others), (2, SAME)) as outcome:
        first, second, third = outcome()
    assert first == second == third
    host = re.escape(socket.gethostname())
    assert re.search(rf"config.seed: 0 in process 0 \({host}\), 2 \({host}\); 1 in process 1 \({host}\)", first)
    assert "config.new: nothing in process 0" in first and "x" * 61 not in first
    assert "jax" not in first.replace("vfm_jax", "")


def test_two_of_one_number_are_refused(address):
    with _meeting(address, (0, SAME), (1, SAME), (1, SAME), count=3) as outcome:
        messages = outcome()
    assert all("Two processes are number 1, on " in message for message in messages)


def test_different_numbers_of_processes_are_refused(address):
    run = Cluster("a test", address, 5, 1)
    with _meeting(address, (0, SAME), count=2) as outcome:
        with pytest.raises(UserError, match=r"was told of 5 processes, and the first one \(.*\) of 2"):
            meet(run, SAME, seconds=60)
        assert "was told of 5 processes" in outcome()[0]


@pytest.mark.parametrize(
    "words",
    [b"GET / HTTP/1.1\r\n\r\n", b"[1, 2]\n", b"\xff\xfe\n", b'{"id": 1, "of": 2}\n', b"x" * (MAX_BYTES + 2**17)],
    ids=["http", "list", "binary", "no_version", "endless"],
)
def test_strangers_are_shown_the_door(address, words):
    with _meeting(address, (0, SAME), count=2) as outcome:
        with _connected(address) as stranger, contextlib.suppress(ConnectionError):
            stranger.sendall(words)
            assert stranger.recv(1) == b""
        with _meeting(address, (1, SAME), count=2) as other:
            other()
        assert sorted(outcome()[0]._peers) == [1]


def test_another_version_of_this_package_is_told_from_a_stranger(address):
    with _meeting(address, (0, SAME), count=2) as outcome, _connected(address) as other:
        other.sendall(b'{"vfm_jax": 99, "id": 1, "of": 2, "host": "node-b", "facts": {}}\n')
        assert "node-b has another version of vfm_jax" in outcome()[0]


def test_who_is_gone_before_the_others_came_may_come_again(address):
    greeting = {"vfm_jax": 1, "id": 1, "of": 3, "host": "node-b", "facts": SAME}
    with _meeting(address, (0, SAME), count=3) as outcome:
        with _connected(address) as early:
            early.sendall(json.dumps(greeting).encode() + b"\n")
        with _meeting(address, (1, SAME), (2, SAME), count=3) as others:
            others()
        assert sorted(outcome()[0]._peers) == [1, 2]


def test_a_port_that_is_taken_is_said(address):
    host, port = address.split(":")
    said = f"cannot listen at {address}: Address already in use. Give --coordinator"
    with socket.create_server((host, int(port))), pytest.raises(UserError, match=said):
        meet(Cluster("a test", address, 2, 0), SAME, seconds=60)


def _connected(address):
    host, port = address.split(":")
    for _ in range(600):
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection((host, int(port)))
        time.sleep(0.1)
    raise AssertionError("nobody listens")


RUN = Cluster("SLURM", "a:1", 2, 1, HOSTS)


def test_every_process_has_its_devices():
    check_devices(RUN, {0: 4, 1: 4})
    for counts, told in (
        ({0: 4, 1: 3}, "4 in process 0 (node-a), 3 in process 1 (node-b)"),
        ({0: 4}, "4 in process 0 (node-a), 0 in process 1 (node-b)"),
    ):
        with pytest.raises(UserError, match=re.escape(told)):
            check_devices(RUN, counts)


def test_half_of_a_node_is_refused(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    check_devices(RUN._replace(num_gpus=8), {0: 8, 1: 8})
    with pytest.raises(
        UserError, match=r"Process 1 \(node-b\) has 1 of kind gpu, and should have 8 GPUs \(SLURM\): 2"
    ):
        check_devices(RUN._replace(num_gpus=8), {0: 1, 1: 1})


def test_a_gpu_that_is_not_used_is_refused():
    with pytest.raises(UserError, match="has 1 of kind cpu, and should have 1 GPUs"):
        check_devices(RUN._replace(num_gpus=1), {0: 1, 1: 1})


def test_a_process_alone_passes_through():
    assert not in_company() and is_first()
    assert from_first({"a": [1, None]}) == {"a": [1, None]}
    hear_of_others()
    leave(1, "nobody hears")
