"""The doctor's verdicts on a run: what is wrong, the figure behind it, and the next move. Pure functions."""

from collections.abc import Mapping

INPUT_BOUND = 0.1  # share of the time spent waiting for data, above which it is worth a word

_MOVES = {
    "read": "raise config.data.threads, or bring the data nearer: a local disk, or a cache",
    "decode": "raise config.data.threads, cache, or take a smaller canvas_size",
    "resize": "raise config.data.threads, cache, or take a smaller canvas_size",
    "other": "raise config.data.workers, since what is left is the source's own Python, one thread at a time",
}


def input_bound(waiting_ratio: float, seconds: Mapping[str, float]) -> str | None:
    """Says that the devices wait for data, and for which part of reading it; None where they hardly do.

    "input-bound 63 %: decode 41 %, resize 22 %; raise config.data.threads, ...": the parts divide the 63 % as they
    divide the time of the threads that read.

    Args:
        waiting_ratio: share of the wall time that the loop has waited, in [0, 1].
        seconds: of all reading threads, by part (`data.timing.PARTS` and "other").
    """
    if waiting_ratio <= INPUT_BOUND:
        return None
    bound, total = f"input-bound {100 * waiting_ratio:.0f} %", sum(seconds.values())
    if total <= 0:
        return f"{bound}; raise config.data.threads or config.data.workers."
    percent = {part: 100 * waiting_ratio * spent / total for part, spent in seconds.items()}
    largest = sorted(percent, key=lambda part: -percent[part])
    parts = ", ".join(f"{part} {percent[part]:.0f} %" for part in largest if percent[part] >= 1)
    return f"{bound}: {parts}; {_MOVES[largest[0]]}."
