"""Durations in the units people think in: epochs, examples, steps, percent of the run.

A field that is a duration ends in its unit: `warmup_epochs`, `every_steps`, `total_examples`, `warmup_percent`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, overload

from vfm_jax.core.errors import UserError

UNITS = ("steps", "epochs", "examples", "percent")


@dataclasses.dataclass(frozen=True)
class Clock:
    """What turns a duration into steps.

    Attributes:
        batch_size: examples of one step, over all devices.
        num_examples: examples of one epoch.
        total_steps: length of the run; None while it is being found.
    """

    batch_size: int
    num_examples: int
    total_steps: int | None = None

    @property
    def steps_per_epoch(self) -> float:
        """Steps of one epoch; not a whole number where the batch size does not divide the data."""
        return self.num_examples / self.batch_size

    def steps(self, value: float, unit: str, where: str) -> int:
        """`value` of `unit` in whole steps, rounded to the nearest; any positive duration is at least one step.

        Raises:
            UserError: negative or not finite; or a percentage where the total is not known.
        """
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise UserError(f"{where} is {value!r}; expected a number of {unit}, zero or more.")
        if unit == "percent":
            if self.total_steps is None:
                raise UserError(f"{where}: the length of the run itself cannot be given in percent.")
            steps = value / 100 * self.total_steps
        else:
            steps = value * {"steps": 1, "epochs": self.steps_per_epoch, "examples": 1 / self.batch_size}[unit]
        return max(1, round(steps)) if value > 0 else 0


def other_units(field: str) -> list[str]:
    """The names of the same duration in other units; none for a field that is no duration."""
    stem, _, unit = field.rpartition("_")
    return [f"{stem}_{other}" for other in UNITS if other != unit] if unit in UNITS and stem else []


@overload
def read_duration(fields: Mapping[str, Any], stem: str, clock: Clock, where: str, default: int) -> int: ...
@overload
def read_duration(
    fields: Mapping[str, Any], stem: str, clock: Clock, where: str, default: None = None
) -> int | None: ...
def read_duration(
    fields: Mapping[str, Any], stem: str, clock: Clock, where: str, default: int | None = None
) -> int | None:
    """Steps of the one field among `stem_steps`, `stem_epochs`, `stem_examples`, `stem_percent` that is set.

    Raises:
        UserError: two of them are set, or the value is no duration.
    """
    found = _given(fields, stem, where)
    return default if found is None else clock.steps(fields[found[0]], found[1], f"{where}.{found[0]}")


def read_durations(fields: Mapping[str, Any], stem: str, clock: Clock, where: str) -> int | tuple[int, ...] | None:
    """As `read_duration`, for a field that may also hold several: `drop_epochs=(30, 60, 90)`."""
    found = _given(fields, stem, where)
    if found is None:
        return None
    field, unit = found
    if isinstance(fields[field], tuple | list):
        return tuple(clock.steps(value, unit, f"{where}.{field}[{i}]") for i, value in enumerate(fields[field]))
    return clock.steps(fields[field], unit, f"{where}.{field}")


def _given(fields: Mapping[str, Any], stem: str, where: str) -> tuple[str, str] | None:
    """The one field of that stem that is set, and its unit."""
    found = [(f"{stem}_{unit}", unit) for unit in UNITS if fields.get(f"{stem}_{unit}") is not None]
    if len(found) > 1:
        raise UserError(f"{where} sets both {found[0][0]} and {found[1][0]}; keep one.")
    return found[0] if found else None
