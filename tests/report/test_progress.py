import io
import re
import sys

import pytest

from vfm_jax.report import progress
from vfm_jax.report.progress import Progress


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that only a test moves, in seconds."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def _run(file, clock, steps=10, seconds=1.0, **arguments):
    with Progress("pretrain", steps, file=file, **arguments) as line:
        for step in range(1, steps + 1):
            clock.now += seconds
            line.update(step, 1 / step, 1234.5, 0.03)


def test_plain_lines_come_at_the_interval_and_at_the_end(clock):
    file = io.StringIO()
    _run(file, clock, every_seconds=4)
    steps = [line.split("step ")[1].split("/")[0] for line in file.getvalue().splitlines()]
    assert steps == ["1", "5", "9", "10"]


def test_a_line_says_how_far_how_well_how_fast_and_how_long(clock):
    file = io.StringIO()
    _run(file, clock, every_seconds=4)
    assert file.getvalue().splitlines()[1] == (
        "pretrain  step 5/10 (50 %)  loss 0.2  1,234 images/s  5.0 s left  3 % waiting for data"
    )


def test_an_interrupted_run_shows_its_last_step(clock):
    file = io.StringIO()
    with Progress("probe", 100, file=file) as line:
        line.update(1, 1.0)
        clock.now += 0.5
        line.update(2, 0.5)
    assert file.getvalue().splitlines()[-1] == "probe  step 2/100 (2 %)  loss 0.5  49 s left"


def test_time_left_counts_from_where_a_resumed_run_began(clock):
    file = io.StringIO()
    with Progress("s", 100, file=file, every_seconds=0) as line:
        line.update(91, 1.0)
        clock.now += 20
        line.update(92, 1.0)
    assert "2 min 40 s left" in file.getvalue().splitlines()[-1]


@pytest.mark.parametrize("width", ["1", "12", "40", "200"])
def test_the_live_line_fits_a_terminal_of_any_width(clock, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    file = _Terminal()
    _run(file, clock)
    shown = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", file.getvalue())
    last = shown.split("\r")[-1].split("\n")[0]
    assert 0 < len(last) <= int(width)
    if width == "200":
        assert "loss 0.1" in last and "━" in last


def test_a_dumb_terminal_gets_plain_lines(clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    file = _Terminal()
    _run(file, clock)
    assert "\x1b" not in file.getvalue()
    assert "step 10/10" in file.getvalue()


def test_an_output_that_knows_only_ascii_is_no_error(clock):
    binary = io.BytesIO()
    with io.TextIOWrapper(binary, encoding="ascii") as file:
        with Progress("stufe-ä", 1, file=file) as line:
            line.update(1, float("nan"))
        assert binary.getvalue() == b"stufe-?  step 1/1 (100 %)  loss nan\n"


def test_training_goes_on_when_the_reader_of_its_output_has_left(clock):
    file = io.StringIO()
    with Progress("s", 2, file=file) as line:
        file.close()
        line.update(1, 1.0)
        line.update(2, 1.0)
    assert line is not None


def test_other_prints_stand_above_the_live_line(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    file = _Terminal()
    monkeypatch.setattr(sys, "stdout", file)
    with Progress("s", 2) as line:
        line.update(1, 1.0)
        print("evaluated")
        line.update(2, 1.0)
    assert "evaluated\n" in file.getvalue()
