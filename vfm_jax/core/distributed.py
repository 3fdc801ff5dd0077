"""Several processes as one run: how they begin, what they tell each other, how they end.

The same command is started for every host, or every GPU. A process that works alone passes through here without
touching the network.
"""

import collections
import contextlib
import json
import os
import pathlib
import secrets
import sys
import time
from collections.abc import Mapping
from typing import TypeVar

import jax
import numpy as np

from vfm_jax.core.cluster import Cluster
from vfm_jax.core.errors import TrainingError, UserError
from vfm_jax.core.rendezvous import Line, is_loopback, meet

WAIT_SECONDS = 300.0  # for the other processes; VFM_WAIT_SECONDS is another number
HEARTBEAT_SECONDS = 100  # JAX's own, for hosts that stand still: the line tells of those that are gone
_NEWS_SECONDS = 3.0  # for the word that another process is to blame
_VISIBLE_SECONDS = 20.0  # for a file to be seen on other hosts: network disks keep what they know for a while
_NAMED = 10  # processes named in a message

T = TypeVar("T")

_line: Line | None = None  # of this process, as JAX has its own connection


def initialize(cluster: Cluster, facts: Mapping[str, str]) -> None:
    """Makes this process one of a run: meets the others, compares facts, starts `jax.distributed`, counts devices.

    To be called before anything touches a device. What `find_cluster` has found is all there is: JAX's own guess is
    switched off, and so is its handler of SIGTERM (the loop has one, for Ctrl-C too).

    Args:
        cluster: the run.
        facts: what must be the same in all processes, by name.

    Raises:
        UserError: in every process: one is missing, or differs (it says in what); or JAX does not see all devices.
        TrainingError: JAX's own connections fail.
    """
    global _line
    line = meet(cluster, facts, seconds=_wait_seconds())
    line.watch()
    _line = line
    host, _, port = cluster.coordinator.rpartition(":")
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address=cluster.coordinator,
            num_processes=cluster.num_processes,
            process_id=cluster.process_id,
            local_device_ids=cluster.local_device_ids,
            cluster_detection_method="deactivate",
            initialization_timeout=max(1, int(_wait_seconds())),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            coordinator_bind_address=f"{host}:{port}" if is_loopback(host) else None,
        )
    except RuntimeError as error:  # JaxRuntimeError is one
        raise TrainingError(
            f"All processes have met, and then JAX could not connect them at {cluster.coordinator}: {error}\n"
            "Give --coordinator another port, and see that no proxy is set (http_proxy)."
        ) from error
    check_devices(cluster, collections.Counter(device.process_index for device in jax.devices()))


def _wait_seconds() -> float:
    text = os.environ.get("VFM_WAIT_SECONDS", "")
    try:
        return float(text) if text else WAIT_SECONDS
    except ValueError:
        raise UserError(f"VFM_WAIT_SECONDS={text}: expected a number of seconds.") from None


def check_devices(cluster: Cluster, counts: Mapping[int, int]) -> None:
    """Refuses a run that would use a part of its devices.

    Args:
        cluster: the run.
        counts: process -> number of its devices, as JAX tells.

    Raises:
        UserError: processes are missing or have different numbers of devices, or this one not the GPUs it should.
    """
    numbers = {counts.get(process, 0) for process in range(cluster.num_processes)}
    if len(numbers) > 1 or 0 in numbers:
        some = range(cluster.num_processes)[:_NAMED]
        told = ", ".join(f"{counts.get(p, 0)} in process {cluster.name(p)}" for p in some)
        raise UserError(f"The processes do not have the same number of devices: {told}. Give all of them the same.")
    found, kind = counts[cluster.process_id], jax.default_backend()
    if cluster.num_gpus and (kind, found) != ("gpu", cluster.num_gpus):
        raise UserError(
            f"Process {cluster.name(cluster.process_id)} has {found} of kind {kind}, and should have "
            f"{cluster.num_gpus} GPUs ({cluster.kind}): {sum(counts.values())} devices in all for "
            f"{cluster.num_processes} processes. Start one process for each GPU, or one for the host; see that "
            "jax[cuda13] is installed, and CUDA_VISIBLE_DEVICES says the right thing. JAX_PLATFORMS=cpu does without."
        )


def in_company() -> bool:
    """Whether this process is one of several."""
    return _line is not None


def is_first() -> bool:
    """Whether this process is the one that writes and prints for all."""
    return not in_company() or jax.process_index() == 0


def hear_of_others() -> None:
    """Gives the word a moment to arrive that another process has failed, which then ends this one, and says so.

    What an error looks like in a process that has waited for the other is anyone's guess.
    """
    if in_company():
        time.sleep(_NEWS_SECONDS)


def leave(code: int, reason: str) -> None:
    """Ends this process's part in a run; returns after a good end, and to a process alone.

    After a good end it waits for the others. After a bad one it tells them why, and is gone at once: nobody would
    come to a barrier.

    Args:
        code: exit code.
        reason: of a bad end; "" for a good one.
    """
    global _line
    if _line is None:
        return
    if reason:
        _line.fail(reason, code or 1)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    _line.close()
    jax.distributed.shutdown()
    _line = None


def from_first(value: T) -> T:
    """The value of the first process, in all of them; JSON can hold it.

    Whatever is read from a disk and decides what happens next comes from here: a network disk may show one host what
    another has yet to see, and processes that do different things wait for each other for ever.
    """
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    content = json.dumps(value).encode() if jax.process_index() == 0 else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.zeros(1 << max(10, (size - 1).bit_length()), np.uint8)  # few shapes: each is compiled
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded))[:size].tobytes())


def check_shared(folder: pathlib.Path) -> None:
    """Refuses a folder that is not the same one for every process; the first must be able to write there.

    Raises:
        UserError: in every process, naming those that do not see it.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    mark = folder / from_first(f".seen-by-all-{secrets.token_hex(8)}")
    if jax.process_index() == 0:
        mark.touch()
    multihost_utils.sync_global_devices(mark.name)
    end = time.monotonic() + _VISIBLE_SECONDS
    while not (seen := mark.exists()) and os.path.isdir(folder) and time.monotonic() < end:
        os.listdir(folder)  # has a network disk look again
        time.sleep(0.5)
    everyone = multihost_utils.process_allgather(np.array(seen)).ravel()
    if jax.process_index() == 0:
        mark.unlink(missing_ok=True)
    if not everyone.all():
        blind = ", ".join(map(str, np.flatnonzero(~everyone)[:_NAMED]))
        raise UserError(
            f"{folder} is not the same folder for all processes: {blind} of {len(everyone)} do not see what the "
            "first one writes there. All of them write checkpoints: give a --workdir on a disk that all hosts share."
        )
