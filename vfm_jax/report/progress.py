"""The terminal line of a run: how far, how well, how fast, how long still, and whether the data keep up."""

import contextlib
import sys
import time
from typing import Any, TextIO

from vfm_jax.report.numbers import format_duration, format_value

_REDRAW_SECONDS = 0.1  # of the live line: smooth to the eye, and next to nothing per step
_BAR_WIDTH = 20


class Progress:
    """Shows one stage: a live line on a terminal, elsewhere a plain line now and then. A context manager.

    Whatever the output is (narrow, dumb, ASCII only, closed by its reader), training goes on. While the live line is
    shown, `print` writes above it.

    Args:
        stage: name shown first.
        total_steps: length of the stage.
        every_seconds: between two plain lines.
        file: where to write; standard output by default.
    """

    def __init__(self, stage: str, total_steps: int, *, every_seconds: float = 10.0, file: TextIO | None = None):
        from rich.console import Console

        self._stage = stage
        self._total = total_steps
        self._file = file or sys.stdout
        self._console = Console(file=self._file)
        # In a notebook, rich's live display needs widgets that may not be there; lines always work.
        is_live = self._console.is_terminal and not self._console.is_dumb_terminal and not self._console.is_jupyter
        self._is_live = is_live
        self._is_unicode = "utf" in (getattr(self._file, "encoding", None) or "utf-8").lower()
        self._interval = _REDRAW_SECONDS if is_live else every_seconds
        self._live: Any = None
        self._first: tuple[int, float] | None = None  # step and time of the first update, after compilation
        self._latest: tuple[int, float, float | None, float | None] | None = None
        self._drawn_step: int | None = None
        self._drawn_at = -float("inf")

    def __enter__(self) -> "Progress":
        if self._is_live:
            from rich.live import Live

            self._live = Live(console=self._console, auto_refresh=False)
            with _output_may_be_gone():
                self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._latest is not None and self._latest[0] != self._drawn_step:
            self._draw(time.monotonic())
        if self._live is not None:
            with _output_may_be_gone():
                self._live.stop()

    def update(
        self, step: int, loss: float, images_per_second: float | None = None, waiting_ratio: float | None = None
    ) -> None:
        """Reports that `step` steps of the stage are done.

        Args:
            step: steps done since the stage began, those before a resume included.
            loss: of the latest step that was read.
            images_per_second: over all devices.
            waiting_ratio: share of the wall time spent waiting for data, in [0, 1].
        """
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        self._latest = (step, loss, images_per_second, waiting_ratio)
        if now - self._drawn_at >= self._interval or step >= self._total:
            self._draw(now)

    def _draw(self, now: float) -> None:
        assert self._latest is not None
        self._drawn_at, self._drawn_step = now, self._latest[0]
        with _output_may_be_gone():
            if self._live is not None:
                self._live.update(self._live_line(self._parts(now)), refresh=True)
            else:
                print("  ".join(self._parts(now)), file=self._file, flush=True)

    def _seconds_left(self, step: int, now: float) -> float | None:
        """From the pace since the first update of this process; pauses for evaluation count, compilation does not."""
        first_step, first_time = self._first or (step, now)
        if step <= first_step:
            return None
        return (now - first_time) / (step - first_step) * max(self._total - step, 0)

    def _parts(self, now: float) -> list[str]:
        """The pieces of the line, the most wanted first."""
        assert self._latest is not None
        step, loss, speed, waiting = self._latest
        percent = 100 * step // max(self._total, 1)
        parts = [self._stage, f"step {step:,}/{self._total:,} ({percent} %)", f"loss {format_value(float(loss))}"]
        if speed is not None:
            parts.append(f"{format_value(float(speed))} images/s")
        left = self._seconds_left(step, now)
        if left is not None and step < self._total:
            parts.append(f"{format_duration(left)} left")
        if waiting is not None:
            parts.append(f"{100 * waiting:.0f} % waiting for data")
        return parts if self._is_unicode else [part.encode("ascii", "replace").decode() for part in parts]

    def _live_line(self, parts: list[str]) -> Any:
        """One line that fits the terminal: a bar if there is room, else pieces are dropped from the end."""
        from rich.text import Text

        assert self._latest is not None
        width = self._console.width
        while len(parts) > 1 and len("  ".join(parts)) > width:
            parts = parts[:-1]
        line = Text(no_wrap=True, overflow="ellipsis" if self._is_unicode else "crop")
        line.append(parts[0], style="bold")
        if len("  ".join(parts)) + _BAR_WIDTH + 2 <= width:
            done = min(_BAR_WIDTH, _BAR_WIDTH * self._latest[0] // max(self._total, 1))
            full, empty = ("━", "━") if self._is_unicode else ("#", ".")
            line.append("  ").append(full * done, style="green").append(empty * (_BAR_WIDTH - done), style="dim")
        for part in parts[1:]:
            line.append("  " + part)
        return line


def _output_may_be_gone() -> contextlib.AbstractContextManager[None]:
    """Whoever read the output may have left (`| head`, a closed session): no reason to end a run of days."""
    return contextlib.suppress(OSError, ValueError)
