"""A trace of some steps of a run: what the devices and the host did, and when."""

import itertools
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax

from vfm_jax.core.errors import UserError


def read_steps(text: str) -> tuple[int, int]:
    """First and last step of "10:15"; they count from 1, over all stages, and the last one is traced too.

    Raises:
        UserError: it is something else.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(
            f"--profile={text}: expected FIRST:LAST, the steps to trace, such as 10:15; they count from 1."
        )
    return int(match[1]), int(match[2])


class Profile:
    """Traces the steps from `first` to `last`, into a new folder of `folder/plugins/profile`.

    Attributes:
        first: its number.
        last: likewise; the trace ends when the devices have finished it.
    """

    def __init__(self, first: int, last: int, folder: pathlib.Path, say: Callable[[str], None]):
        self.first, self.last = first, last
        self._folder, self._say, self._traced = folder, say, 0

    def __str__(self) -> str:
        return f"{self.first}:{self.last}"

    def over(self, step: Callable[[Any, Any], tuple[Any, Any]], done: int) -> Callable[[Any, Any], tuple[Any, Any]]:
        """`step`, the function of state and batch, traced where it is due; `done` steps lie before its first call."""
        numbers = itertools.count(done + 1)

        def traced(state: Any, batch: Any) -> tuple[Any, Any]:
            number = next(numbers)
            if not self.first <= number <= self.last:
                return step(state, batch)
            if not self._traced:
                jax.block_until_ready(state)  # the step before is not a part of it
                jax.profiler.start_trace(self._folder)
            with jax.profiler.StepTraceAnnotation("train", step_num=number):
                state, measured = step(state, batch)
            self._traced += 1
            if number == self.last:
                jax.block_until_ready((state, measured))
                self.close()
            return state, measured

        return traced

    def close(self) -> None:
        """Ends the trace, if one is being made, and says how to open it."""
        if self._traced:
            jax.profiler.stop_trace()
            self._say(
                f"A trace of {self._traced} steps is in {self._folder}. To open it: pip install xprof, and xprof "
                f"{self._folder}; or give its trace.json.gz to https://ui.perfetto.dev."
            )
            self._traced = 0
