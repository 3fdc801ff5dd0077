"""SIGTERM and Ctrl-C: the run saves and ends, in all of its processes at the same step."""

import contextlib
import signal
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vfm_jax.core.types import Batch, Measurements
from vfm_jax.train.state import TrainState

VOTES = "votes"
"""Field of a batch: one number for each device, 0 or that of the signal which its process has got."""

Step = Callable[[TrainState, Batch], tuple[TrainState, Measurements]]


class Stop:
    """Set by SIGTERM and Ctrl-C: the loop then saves and ends. A second signal ends the process at once.

    Where there are several processes, all vote in every step, and what a step has counted is read when the step after
    it is under way, as its loss is. So all read the same at the same step, whoever got the signal, and nothing is
    sent or waited for that the step would not send or wait for anyway.

    Attributes:
        requested: whether the run is to end; with several processes, whether all know it.
        reason: "SIGTERM" or "Ctrl-C"; "" before.
    """

    def __init__(self) -> None:
        self.requested = False
        self.reason = ""
        self._signal = 0  # that this process has got
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        with contextlib.suppress(ValueError):  # not the main thread (a notebook's worker): leave signals alone
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        del frame
        self._signal = int(number)
        signal.signal(number, self._previous[number] or signal.SIG_DFL)
        alone = jax.process_count() == 1
        if alone:
            self._request(number)
        when = "after this step" if alone else "as soon as all processes know"
        print(f"\n{_name(number)}: saving {when}. (Once more to stop at once.)", flush=True)

    def _request(self, number: int) -> None:
        self.requested, self.reason = True, _name(number)

    def listening(self, step: Step, mesh: Mesh) -> Step:
        """The step, which now also sees to it that `requested` is the same in all processes.

        Args:
            step: jitted; counts `VOTES` of its batch (`counting`).
            mesh: of the devices.
        """
        if jax.process_count() == 1:
            return step
        everywhere = NamedSharding(mesh, P(mesh.axis_names))
        ballots = {
            vote: jax.make_array_from_callback(
                (mesh.size,), everywhere, lambda index, vote=vote: np.full(mesh.size, vote, np.int32)[index]
            )
            for vote in (0, int(signal.SIGTERM), int(signal.SIGINT))
        }
        counted = None

        def vote(state: TrainState, batch: Batch) -> tuple[TrainState, Measurements]:
            nonlocal counted
            state, measured = step(state, {**batch, VOTES: ballots[self._signal]})
            before, counted = counted, measured[VOTES]
            if before is not None and (number := int(before)):
                if not self.requested and not self._signal and jax.process_index() == 0:
                    print(f"{_name(number)} in another process: saving after this step.", flush=True)
                self._request(number)
            return state, {name: value for name, value in measured.items() if name != VOTES}

        return vote


def counting(step: Step) -> Step:
    """A step, to be jitted, that measures the largest of its batch's `VOTES` where there are any."""

    def step_and_count(state: TrainState, batch: Batch) -> tuple[TrainState, Measurements]:
        rows = {name: values for name, values in batch.items() if name != VOTES}
        state, measured = step(state, rows)
        return state, measured | ({VOTES: jnp.max(batch[VOTES])} if VOTES in batch else {})

    return step_and_count


def _name(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
