"""Processes meet before JAX does, to be named where they are missing and compared; then they keep a line open.

The first process listens where JAX's coordinator will. Each other one says who it is, on which host, and facts that
must be the same everywhere. When all are there, and alike, the port is given up to JAX; the connections stay. What
they carry from then on is the end of a process: its failure in its own words, or the system's word that it is gone,
which JAX itself finds out by a heartbeat that is missing for minutes.

A message is one line of JSON. Who listens and who knocks are equally trusted, as with JAX's own coordinator.
"""

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vfm_jax.core.cluster import Cluster
from vfm_jax.core.errors import UserError

VERSION = 1  # of the messages; the first word of each process
MAX_BYTES = 2**20  # of a message
_TOLD_SECONDS = 10.0  # between two lines about who is missing
_RETRY_SECONDS = 0.5
_GRACE_SECONDS = 5.0  # that another process waits longer than the first, which can name who is missing
_NAMED = 10  # processes, and differences, named in a message
_LONGEST_VALUE = 60  # characters shown of a fact

Facts = Mapping[str, str]
Message = dict[str, Any]


class Line:
    """Connections to the other processes: of the first one to all, of any other to the first.

    Args:
        cluster: the run.
        peers: process -> its connection.
        hosts: process -> its host, as it calls itself.
    """

    def __init__(self, cluster: Cluster, peers: Mapping[int, "_Peer"], hosts: Mapping[int, str]):
        self._cluster, self._peers, self._hosts = cluster, dict(peers), dict(hosts)
        self._is_closing = False
        self._thread: threading.Thread | None = None

    def watch(self) -> None:
        """Ends this process, with a line that says why, as soon as another one fails or is gone."""
        self._thread = threading.Thread(target=self._listen, name="vfm-line", daemon=True)
        self._thread.start()

    def fail(self, reason: str, code: int) -> None:
        """Tells the others that this process ends, and why; they end too, with the same exit code."""
        who = _called(self._cluster.process_id, self._hosts)
        self._send({"ended": f"process {who} ended: {reason}"[: MAX_BYTES // 8], "code": code})

    def close(self) -> None:
        """Takes leave: that this process is gone is no failure from now on."""
        self._is_closing = True
        self._send({"bye": True})

    def _send(self, message: Message) -> None:
        for peer in list(self._peers.values()):
            with contextlib.suppress(OSError):  # it is gone, which the thread hears
                peer.send(message)

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for number, peer in self._peers.items():
                peer.socket.setblocking(False)
                selector.register(peer.socket, selectors.EVENT_READ, number)
            while selector.get_map():
                for key, _ in selector.select():
                    if not self._hear(key.data):
                        selector.unregister(key.fileobj)

    def _hear(self, number: int) -> bool:
        """Whether there may be more from a process."""
        peer = self._peers[number]
        for message in peer.receive():
            if "bye" in message:
                peer.has_left = True
            elif "ended" in message:
                self._end(number, str(message["ended"]), int(message.get("code", 1)))
        if peer.is_open:
            return True
        if not peer.has_left and not self._is_closing:
            who = _called(number, self._hosts)
            self._end(number, f"process {who} is gone without a word: killed, out of memory, or its host is down", 1)
        return False

    def _end(self, source: int, said: str, code: int) -> None:
        if self._cluster.process_id == 0:  # only it knows all others
            for number, peer in self._peers.items():
                if number != source:
                    with contextlib.suppress(OSError):
                        peer.send({"ended": said, "code": code})
        number, count = self._cluster.process_id, self._cluster.num_processes
        way_on = (
            "" if code == 2 else " The same command on every host goes on from the last checkpoint."
        )  # 2: a mistake
        print(f"\nvfm: {said}\nProcess {number} of {count} ends too.{way_on}", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)  # the main thread may wait for the other process within a collective, for ever


def meet(
    cluster: Cluster,
    facts: Facts,
    *,
    seconds: float,
    every_seconds: float = _TOLD_SECONDS,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Line:
    """Waits until all processes of the run are there, compares their facts, and gives the line between them.

    Args:
        cluster: the run.
        facts: what must be the same in all of them, by name.
        seconds: how long to wait for the others.
        every_seconds: between two lines about who is missing.
        say: takes such a line.

    Raises:
        UserError: in every process: one is missing, two have the same number, or the facts differ; it says which.
    """
    if cluster.process_id:
        return _knock(cluster, facts, seconds, every_seconds, say)
    with _listening(cluster) as listener:
        return _Reception(cluster, facts, listener).gather(seconds, every_seconds, say)


class _Peer:
    """A connection, and what has come through it of the next message."""

    def __init__(self, connection: socket.socket):
        self.socket = connection
        self.is_open, self.has_left = True, False
        self._unread = b""
        _keep_alive(connection)

    def send(self, message: Message) -> None:
        self.socket.settimeout(_GRACE_SECONDS)
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[Message]:
        """The messages that are there; nothing sensible, or too much of it, closes the connection."""
        try:
            part = self.socket.recv(2**16)
        except (BlockingIOError, TimeoutError):
            return []
        except OSError:
            part = b""
        *lines, self._unread = (self._unread + part).split(b"\n")
        messages = []
        try:
            messages = [json.loads(line) for line in lines]
            sound = all(isinstance(message, dict) for message in messages) and len(self._unread) <= MAX_BYTES
        except ValueError:
            sound = False
        if not part or not sound:
            self.close()
        return messages if sound else []

    def close(self) -> None:
        self.is_open = False
        self.socket.close()


def _keep_alive(connection: socket.socket) -> None:
    """Firewalls forget what is silent for ten minutes; and a host without power is missed after three."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, name):  # macOS calls the first one otherwise
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class _Reception:
    """The first process, until all others have come."""

    def __init__(self, cluster: Cluster, facts: Facts, listener: socket.socket):
        self._cluster, self._listener = cluster, listener
        self._facts = {0: dict(facts)}
        self._hosts = dict(cluster.hosts) | {0: socket.gethostname()}
        self._present: dict[int, _Peer] = {}
        self._wrong = ""  # what makes waiting useless

    def gather(self, seconds: float, every_seconds: float, say: Callable[[str], None]) -> Line:
        begun = told = time.monotonic()
        answer: Message = {"stop": "The first process has ended; it says why."}
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            try:
                while (missing := self._missing()) and not self._wrong:
                    now = time.monotonic()
                    if now - begun > seconds:
                        self._wrong = self._named(missing, seconds)
                        break
                    if now - told >= every_seconds:
                        told = now
                        say(f"Waiting for {len(missing)} of {self._cluster.num_processes} processes, for "
                            f"{now - begun:.0f} s: {self._list(missing)}.")  # fmt: skip
                    for key, _ in selector.select(min(every_seconds, 1.0)):
                        self._attend(selector, key.data)
                self._wrong = self._wrong or _differences(self._facts, self._hosts)
                answer = {"stop": self._wrong} if self._wrong else {"go": self._hosts}
            finally:
                for peer in [key.data for key in selector.get_map().values() if key.data is not None]:
                    with contextlib.suppress(OSError):
                        peer.send(answer)
                    if "stop" in answer or peer not in self._present.values():
                        peer.close()
        if self._wrong:
            raise UserError(self._wrong)
        return Line(self._cluster, self._present, self._hosts)

    def _attend(self, selector: selectors.BaseSelector, peer: _Peer | None) -> None:
        if peer is None:
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ, _Peer(connection))
            return
        for message in peer.receive():
            self._greet(peer, message)
        if not peer.is_open:  # it may come again
            key = next(key for key in selector.get_map().values() if key.data is peer)
            selector.unregister(key.fileobj)
            for number in [n for n, other in self._present.items() if other is peer]:
                del self._present[number]

    def _greet(self, peer: _Peer, message: Message) -> None:
        number, host = message.get("id"), str(message.get("host"))[:255]
        facts = message.get("facts")
        if message.get("vfm_jax") != VERSION or not isinstance(number, int) or not isinstance(facts, dict):
            if "vfm_jax" in message:
                self._wrong = f"The process on {host} has another version of vfm_jax, which this one cannot talk to."
            peer.close()  # whoever it is, it is none of us
        elif message.get("of") != self._cluster.num_processes:
            self._wrong = (
                f"Process {number} ({host}) was told of {message.get('of')} processes, and the first one "
                f"({self._hosts[0]}) of {self._cluster.num_processes}. Give the same --num-processes everywhere."
            )
        elif number == 0 or number in self._present:
            self._wrong = (
                f"Two processes are number {number}, on {self._hosts[number]} and {host}. Give each its own "
                "--process-id, counted from 0."
            )
        elif not 0 < number < self._cluster.num_processes:
            peer.close()
        else:
            self._present[number], self._hosts[number] = peer, host
            self._facts[number] = {str(name): str(value) for name, value in facts.items()}

    def _missing(self) -> list[int]:
        return [n for n in range(1, self._cluster.num_processes) if n not in self._present]

    def _list(self, numbers: list[int]) -> str:
        return _several([_called(number, self._cluster.hosts) for number in numbers])

    def _named(self, missing: list[int], seconds: float) -> str:
        return (
            f"Of {self._cluster.num_processes} processes {len(missing)} did not come within {seconds:.0f} s: "
            f"{self._list(missing)}. The others are there. Start the same command on every host, look at what those "
            f"have printed, and whether they reach {self._cluster.coordinator} (a firewall, another network). "
            "VFM_WAIT_SECONDS=N waits longer."
        )


def _knock(cluster: Cluster, facts: Facts, seconds: float, every_seconds: float, say: Callable[[str], None]) -> Line:
    host, _, port = cluster.coordinator.rpartition(":")
    begun = told = time.monotonic()
    greeting: Message = {"vfm_jax": VERSION, "id": cluster.process_id, "of": cluster.num_processes}
    greeting |= {"host": socket.gethostname(), "facts": dict(facts)}
    while True:
        now = time.monotonic()
        try:
            peer = _Peer(socket.create_connection((host.strip("[]"), int(port)), timeout=_GRACE_SECONDS))
            peer.send(greeting)
            answer = _answer(peer, begun + seconds + _GRACE_SECONDS - now)
        except OSError as error:  # it is not there yet, or its name is not
            answer, reason = None, error.strerror or str(error)
        else:
            reason = "it ended the connection"
        if answer is not None:
            break
        if now - begun > seconds + _GRACE_SECONDS:
            raise UserError(
                f"The first of {cluster.num_processes} processes does not answer at {cluster.coordinator} for "
                f"{seconds:.0f} s ({reason}). Start the same command on its host, and see that this host "
                f"({socket.gethostname()}) reaches that address. VFM_WAIT_SECONDS=N waits longer."
            )
        if now - told >= every_seconds:
            told = now
            say(f"Waiting for the first process at {cluster.coordinator}, for {now - begun:.0f} s ({reason}).")
        time.sleep(_RETRY_SECONDS)
    if "stop" in answer:
        peer.close()
        raise UserError(str(answer["stop"]))
    return Line(cluster, {0: peer}, {int(number): str(name) for number, name in answer["go"].items()})


def _answer(peer: _Peer, seconds: float) -> Message | None:
    """What the first process says in the end; None where it is gone before."""
    end = time.monotonic() + seconds
    while peer.is_open and (left := end - time.monotonic()) > 0:
        peer.socket.settimeout(left)
        for message in peer.receive():
            if "stop" in message or isinstance(message.get("go"), dict):
                return message
    peer.close()
    return None


@contextlib.contextmanager
def _listening(cluster: Cluster) -> Iterator[socket.socket]:
    host, _, port = cluster.coordinator.rpartition(":")
    try:
        if is_loopback(host):
            listener = socket.create_server((host.strip("[]"), int(port)), backlog=1024, family=_family(host))
        elif socket.has_dualstack_ipv6():
            listener = socket.create_server(
                ("", int(port)), backlog=1024, family=socket.AF_INET6, dualstack_ipv6=True
            )
        else:
            listener = socket.create_server(("", int(port)), backlog=1024)
    except OSError as error:
        raise UserError(
            f"The first process cannot listen at {cluster.coordinator}: {os.strerror(error.errno or 0)}. Give "
            "--coordinator (or JAX_COORDINATOR_PORT) another port, the same everywhere."
        ) from error
    with listener:
        listener.setblocking(False)
        yield listener


def is_loopback(host: str) -> bool:
    """Whether a host's name means this very machine, so that no other needs to reach it."""
    return host in ("localhost", "127.0.0.1", "[::1]")


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _differences(facts: Mapping[int, Facts], hosts: Mapping[int, str]) -> str:
    """What is not the same in all processes, and who has what; "" where all is."""
    names = list(dict.fromkeys(name for of_one in facts.values() for name in of_one))
    lines = []
    for name in names:
        holders: dict[str | None, list[int]] = {}
        for number in sorted(facts):
            holders.setdefault(facts[number].get(name), []).append(number)
        if len(holders) > 1:
            told = [
                f"{_short(value)} in process {_several([_called(n, hosts) for n in numbers])}"
                for value, numbers in sorted(holders.items(), key=lambda item: -len(item[1]))
            ]
            lines.append(f"  {name}: {'; '.join(told)}")
    if not lines:
        return ""
    more = [f"  and {len(lines) - _NAMED} more"] if len(lines) > _NAMED else []
    return "\n".join(
        [
            "The processes do not run the same thing:",
            *lines[:_NAMED],
            *more,
            "Start the same command, with the same code and packages, on every host.",
        ]
    )


def _short(value: str | None) -> str:
    if value is None:
        return "nothing"
    return value if len(value) <= _LONGEST_VALUE else f"{value[:_LONGEST_VALUE]}..."


def _called(number: int, hosts: Mapping[int, str]) -> str:
    return f"{number} ({hosts[number]})" if hosts.get(number) else str(number)


def _several(words: list[str]) -> str:
    more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return ", ".join(words[:_NAMED]) + more
