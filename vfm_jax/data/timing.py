"""Where the host's time goes: the seconds that a record spends in each part of being read.

What reads says what it does, `with timed("decode"): ...`; the pipeline adds it up for each batch, whichever thread or
worker process made it, and the run tells its user where the time went.
"""

import threading
import time
from types import TracebackType

PARTS = ("read", "decode", "resize")
"""`read` is waiting for storage; `resize` is all work on pixels after decoding. What no part claims is "other"."""

_thread = threading.local()


class timed:
    """Counts the seconds inside as one of `PARTS`, and not as the part around it; an error inside counts too."""

    __slots__ = ("_outer", "_part", "_watch")

    def __init__(self, part: str):
        assert part in PARTS, part
        self._part = part

    def __enter__(self) -> None:
        self._watch: Stopwatch | None = getattr(_thread, "watch", None)  # None: nobody collects
        if self._watch is not None:
            self._outer = self._watch.switch(self._part)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._watch is not None:
            self._watch.switch(self._outer)


class Stopwatch:
    """Collects what is `timed` in this thread while it runs; everything else that happens in it is "other".

    Attributes:
        seconds: of each of `PARTS`, and of "other".
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys((*PARTS, "other"), 0.0)

    def __enter__(self) -> "Stopwatch":
        self._part, self._since = "other", time.perf_counter()
        _thread.watch = self
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.switch("other")
        _thread.watch = None

    def switch(self, part: str) -> str:
        """Ends the part that this thread is in, begins another, and names the ended one."""
        now, before = time.perf_counter(), self._part
        self.seconds[before] += now - self._since
        self._part, self._since = part, now
        return before
