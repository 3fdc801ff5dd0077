"""Where the host's time goes."""

import threading

import pytest

from vfm_jax.data import timing
from vfm_jax.data.timing import Stopwatch, timed


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved: clock(seconds)."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move


def test_each_second_belongs_to_one_part(clock):
    with Stopwatch() as watch:
        clock(1)
        with timed("read"):
            clock(2)
        with timed("decode"):
            clock(4)
            with timed("resize"):
                clock(8)
            clock(16)
        clock(32)
    clock(64)
    assert watch.seconds == {"read": 2, "decode": 20, "resize": 8, "other": 33}


def _fail_after(seconds, clock):
    with timed("read"):
        clock(seconds)
        raise OSError("gone")


def test_what_fails_counts_and_the_part_around_it_goes_on(clock):
    with Stopwatch() as watch:
        with pytest.raises(OSError, match="gone"):
            _fail_after(3, clock)
        clock(1)
    assert watch.seconds == {"read": 3, "decode": 0, "resize": 0, "other": 1}


def test_threads_do_not_count_each_other(clock):
    def elsewhere():
        with Stopwatch() as other, timed("decode"):
            clock(5)
        seen.append(other.seconds["decode"])

    seen = []
    with Stopwatch() as watch, timed("read"):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert seen == [5]
    assert watch.seconds["decode"] == 0


def test_without_a_stopwatch_nothing_is_counted():
    with timed("decode"):
        pass
    with Stopwatch() as watch:
        pass
    assert watch.seconds["decode"] == 0
