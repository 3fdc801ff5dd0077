"""Schedules: linear warm-up, then a shape. A schedule maps a step (traced or not) to a float32 scalar.

One vocabulary for everything that changes over training: the learning rate, weight decay, a teacher's momentum and
temperature, the weight of a loss. `base` is the value after warm-up, `start` that before it, `end` the last.

Durations are whole steps here. Step s is the s-th update counted from 0, so step `total_steps` is never trained on.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import nearest

Step = jax.typing.ArrayLike
Schedule = Callable[[Step], jax.Array]


def cosine(
    *,
    base: float,
    warmup_steps: int = 0,
    total_steps: int,
    end: float = 0.0,
    start: float = 0.0,
    warmup_reaches_base: bool = False,
) -> Schedule:
    """Warm-up, then half a cosine from `base` towards `end`, reached at `total_steps` and kept after it.

    lr(s) = end + (base - end) · (1 + cos(π (s - w) / (T - w))) / 2

    It is MAE's rule at per-iteration fractional epochs (He et al., 2021, arXiv:2111.06377, `adjust_learning_rate`),
    and with `warmup_reaches_base` DINO's (Caron et al., 2021, arXiv:2104.14294, `cosine_scheduler`). `end` may
    lie above `base`: the same curve then rises, as a teacher's momentum does.

    Args:
        base: the value after warm-up; of a learning rate, the highest.
        warmup_steps: length of the warm-up, w.
        total_steps: length of the run, T.
        end: value at the end.
        start: value at step 0.
        warmup_reaches_base: the last step of the warm-up has `base`, which the next step then repeats.
    """

    def shape(remaining: jax.Array) -> jax.Array:
        # (1 + cos(π (1 - r))) / 2 = sin²(π r / 2): float32 keeps its digits near the end, where 1 + cos cancels.
        return end + (base - end) * jnp.square(jnp.sin(0.5 * math.pi * remaining))

    _check(base, warmup_steps, total_steps)
    last = warmup_steps - 1 if warmup_reaches_base else warmup_steps
    return _after_warmup(lambda s: shape(_remaining(s, warmup_steps, total_steps)), base, warmup_steps, start, last)


def constant(*, base: float, warmup_steps: int = 0, total_steps: int, start: float = 0.0) -> Schedule:
    """Warm-up, then `base` for ever."""
    _check(base, warmup_steps, total_steps)
    return _after_warmup(lambda s: jnp.full_like(s, base, jnp.float32), base, warmup_steps, start)


def linear(*, base: float, warmup_steps: int = 0, total_steps: int, end: float = 0.0, start: float = 0.0) -> Schedule:
    """Warm-up, then a straight line from `base` to `end`, reached at `total_steps` and kept after it."""

    def shape(step: jax.Array) -> jax.Array:
        return end + (base - end) * _remaining(step, warmup_steps, total_steps)

    _check(base, warmup_steps, total_steps)
    return _after_warmup(shape, base, warmup_steps, start)


def rsqrt(
    *,
    base: float,
    warmup_steps: int = 0,
    total_steps: int,
    timescale_steps: int = 10_000,
    start: float = 0.0,
) -> Schedule:
    """Warm-up, then base / √(1 + (s - w) / timescale): no end of the run in it, so a run can be prolonged.

    Reference: Zhai et al., Scaling Vision Transformers, 2021, Sec. 3.5 (arXiv:2106.04560), in big_vision's form.
    """

    def shape(step: jax.Array) -> jax.Array:
        return base * jax.lax.rsqrt(1.0 + (step - warmup_steps).astype(jnp.float32) / timescale_steps)

    _check(base, warmup_steps, total_steps)
    if timescale_steps < 1:
        raise UserError(f"timescale_steps is {timescale_steps}; expected at least 1.")
    return _after_warmup(shape, base, warmup_steps, start)


def wsd(
    *,
    base: float,
    warmup_steps: int = 0,
    total_steps: int,
    decay_steps: int,
    decay_shape: str = "linear",
    end: float = 0.0,
    start: float = 0.0,
) -> Schedule:
    """Warm-up, stable, decay: `base` until the last `decay_steps`, which lead to `end` at `total_steps`.

    Reference: Hägele et al., Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations, 2024,
    Sec. 3 (arXiv:2405.18392).

    Args:
        base: the value between warm-up and decay.
        warmup_steps: length of the warm-up.
        total_steps: length of the run.
        decay_steps: length of the decay.
        decay_shape: "linear", or "sqrt": 1 - √u over the decay's progress u, which falls fast and ends gently.
        end: value at the end.
        start: value at step 0.
    """

    def shape(step: jax.Array) -> jax.Array:
        remaining = _remaining(step, total_steps - decay_steps, total_steps)  # 1 - u; is 1 before the decay
        if decay_shape == "sqrt":
            remaining = remaining / (1.0 + jnp.sqrt(1.0 - remaining))  # = 1 - √u, without its cancellation at the end
        return end + (base - end) * remaining

    _check(base, warmup_steps, total_steps)
    if decay_shape not in ("linear", "sqrt"):
        hint = nearest(decay_shape, ("linear", "sqrt"))
        raise UserError(f"decay_shape is {decay_shape!r}.{hint} Known: linear, sqrt.")
    if decay_steps < 1 or warmup_steps + decay_steps > total_steps:
        raise UserError(
            f"warm-up ({warmup_steps} steps) and decay ({decay_steps} steps) do not fit a run of"
            f" {total_steps} steps; the decay has at least one step."
        )
    return _after_warmup(shape, base, warmup_steps, start)


def as_schedule(value: float | Schedule) -> Schedule:
    """A number as the schedule that never changes; a schedule as it is."""
    return (lambda step: jnp.float32(value)) if isinstance(value, int | float) else value


SCHEDULES = {"constant": constant, "cosine": cosine, "linear": linear, "rsqrt": rsqrt, "wsd": wsd}


def _check(base: float, warmup_steps: int, total_steps: int) -> None:
    if base < 0:
        raise UserError(f"base is {base}; expected zero or more.")
    if warmup_steps > total_steps:
        raise UserError(
            f"the warm-up takes {warmup_steps} steps, more than the whole run of {total_steps}."
            " Shorten the warm-up or lengthen the run."
        )


def _remaining(step: jax.Array, start: int, end: int) -> jax.Array:
    """The share of the steps from `start` to `end` still ahead: 1 before, 0 after, exact at both ends."""
    return jnp.clip((end - step).astype(jnp.float32) / max(1, end - start), 0.0, 1.0)


def _after_warmup(
    shape: Callable[[jax.Array], jax.Array], base: float, warmup_steps: int, start: float, last: int | None = None
) -> Schedule:
    """`shape(step)` from `warmup_steps` on; before, the line from `start` at step 0 to `base` at step `last`."""
    span = max(1, warmup_steps if last is None else last)

    def schedule(step: Step) -> jax.Array:
        step = jnp.asarray(step, jnp.int32)
        rising = start + (base - start) * (step.astype(jnp.float32) / span)
        # Steps of the warm-up are kept out of `shape`, which need not be defined there.
        return jnp.where(step < warmup_steps, rising, shape(jnp.maximum(step, warmup_steps)))

    return schedule
