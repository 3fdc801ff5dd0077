"""Batches on their way to the devices."""

import gc
import threading
import time

import pytest

from vfm_jax.data import device
from vfm_jax.data.device import prefetch


class Numbers:
    """0, 1, 2, ... that remembers how far it was read, and whether it was closed."""

    def __init__(self, stop=None, fail_at=None):
        self.stop, self.fail_at = stop, fail_at
        self.taken, self.closed = 0, False

    def __iter__(self):
        return self

    def __next__(self):
        if self.taken == self.fail_at:
            raise OSError("the disk is gone")
        if self.taken == self.stop:
            raise StopIteration
        self.taken += 1
        return self.taken - 1

    def close(self):
        self.closed = True


def _threads():
    return [thread for thread in threading.enumerate() if thread.name == "vfm-prefetch"]


def _wait_until(condition):
    for _ in range(500):
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_batches_come_in_order_and_once_through_put():
    assert list(prefetch(Numbers(7), lambda n: n * n)) == [0, 1, 4, 9, 16, 25, 36]
    assert not _threads()


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_no_more_than_depth_batches_are_held_ready(depth):
    numbers = Numbers()
    with prefetch(numbers, lambda n: n, depth=depth) as batches:
        assert _wait_until(lambda: numbers.taken == depth)
        time.sleep(0.05)
        assert numbers.taken == depth
        next(batches)
        assert _wait_until(lambda: numbers.taken == depth + 1)


def test_an_error_is_raised_in_its_place():
    batches = prefetch(Numbers(fail_at=2), lambda n: n)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)
    assert not _threads()


def test_an_error_of_put_is_raised_too():
    with pytest.raises(ZeroDivisionError):
        next(prefetch(Numbers(), lambda n: 1 // n))


def test_closing_ends_the_thread_and_the_host_batches():
    numbers = Numbers()
    batches = prefetch(numbers, lambda n: n)
    next(batches)
    batches.close()
    batches.close()
    assert numbers.closed
    assert not _threads()
    assert list(batches) == []


def test_a_forgotten_prefetch_ends_by_itself():
    numbers = Numbers()
    batches = prefetch(numbers, lambda n: n)
    next(batches)
    del batches
    gc.collect()
    assert numbers.closed
    assert not _threads()


def test_time_spent_waiting_is_counted(monkeypatch):
    clock = iter([10.0, 13.0, 20.0, 20.5])  # before and after each wait, in seconds
    with prefetch(Numbers(), lambda n: n) as batches:
        monkeypatch.setattr(device.time, "perf_counter", lambda: next(clock))
        next(batches)
        assert batches.wait_seconds == 3.0
        next(batches)
        assert batches.wait_seconds == 3.5
