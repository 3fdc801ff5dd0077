"""Batches on their way to the devices: a background thread keeps a few ahead of their use."""

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

_END = object()


class _Failed:
    def __init__(self, error: BaseException):
        self.error = error


class Prefetch(Iterator[Any]):
    """What `put` makes of each host batch, in order.

    Attributes:
        wait_seconds: time that `next` has spent waiting for data, in all.
    """

    def __init__(self, host_batches: Iterable[Any], put: Callable[[Any], Any], depth: int):
        self.wait_seconds = 0.0
        self._ready: queue.SimpleQueue = queue.SimpleQueue()
        self._room = threading.Semaphore(depth)
        self._stop = threading.Event()
        self._ended = False
        self._host_batches = host_batches
        # The thread holds no reference to self: a loop that forgets to close still frees everything.
        work = (host_batches, put, self._ready, self._room, self._stop)
        self._thread = threading.Thread(target=_fill, args=work, name="vfm-prefetch", daemon=True)
        self._finalizer = weakref.finalize(self, _finish, self._stop, self._room, self._thread, host_batches)
        self._thread.start()

    def __next__(self) -> Any:
        if self._ended:
            raise StopIteration
        start = time.perf_counter()
        item = self._ready.get()
        self.wait_seconds += time.perf_counter() - start
        self._room.release()
        if item is _END or isinstance(item, _Failed):
            self._ended = True
            self.close()
            if isinstance(item, _Failed):
                raise item.error
            raise StopIteration
        return item

    @property
    def seconds(self) -> dict[str, float]:
        """Spent on reading the host's batches so far, by part; empty where they do not count."""
        return dict(getattr(self._host_batches, "seconds", {}))

    def close(self) -> None:
        """Ends the thread and closes the host's batches; a second call does nothing."""
        self._ended = True
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def prefetch(host_batches: Iterable[Any], put: Callable[[Any], Any], depth: int = 2) -> Prefetch:
    """Applies `put` (such as `core.sharding.global_batch`) in a thread, at most `depth` batches ahead of their use.

    It owns `host_batches` and closes it when it ends or is closed. What fails in the thread is raised by `next`, in
    its place.

    Args:
        host_batches: batches of this process.
        put: host batch -> batch on the devices.
        depth: batches held ready, at least 1; each takes memory on the devices.
    """
    return Prefetch(host_batches, put, depth)


def _fill(
    host_batches: Iterable[Any],
    put: Callable[[Any], Any],
    ready: queue.SimpleQueue,
    room: threading.Semaphore,
    stop: threading.Event,
) -> None:
    try:
        batches = iter(host_batches)
        while True:
            room.acquire()
            if stop.is_set():
                return
            ready.put(put(next(batches)))
    except StopIteration:
        ready.put(_END)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the consumer must hear of it
        ready.put(_Failed(error))


def _finish(stop: threading.Event, room: threading.Semaphore, thread: threading.Thread, host_batches: Any) -> None:
    stop.set()
    room.release()
    if thread is not threading.current_thread():
        thread.join()
    if hasattr(host_batches, "close"):
        host_batches.close()
