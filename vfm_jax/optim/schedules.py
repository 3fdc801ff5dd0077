"""Schedules: linear warm-up, then a shape. A schedule maps a step (traced or not) to a float32 scalar.

One vocabulary for everything that changes over training: the learning rate, weight decay, a teacher's momentum and
temperature, the weight of a loss. `base` is the value after warm-up, `start` that before it, `end` the last. A cosine
of a few steps from 0 is a rise of half a cosine: `cosine(base=0.0, end=5e-5, decay_steps=...)`.

Durations are whole steps here. Step s is the s-th update counted from 0, so step `total_steps` is never trained on.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import nearest

Step = jax.typing.ArrayLike
Schedule = Callable[[Step], jax.Array]
DECAY_SHAPES = ("cosine", "linear", "sqrt")


def cosine(
    *,
    base: float,
    warmup_steps: int = 0,
    total_steps: int,
    decay_steps: int | None = None,
    end: float = 0.0,
    start: float = 0.0,
    warmup_reaches_base: bool = False,
    rescale: bool = False,
    delay_steps: int = 0,
    hold_steps: int = 1,
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
        decay_steps: from `base` to `end`, where it is not the rest of the run, T - w. Shorter: `end` is kept for what
            is left (DINOv3). Longer: the run ends before the curve does (I-JEPA: `ipe_scale` s makes it s T - w).
        end: value at the end.
        start: value at step 0.
        warmup_reaches_base: the last step of the warm-up has `base`, which the next step then repeats.
        rescale: a curve that is longer than the run is stretched in value, to reach `end` at `total_steps` all the
            same, at a slope that is not zero (DINOv3's `trunc_extra`).
        delay_steps: before the warm-up, all at `start` (DINOv2's `freeze_iters`).
        hold_steps: see `constant`.
    """
    _check(base, warmup_steps + delay_steps, total_steps)
    delay, warmup, total = (_in_holds(n, hold_steps) for n in (delay_steps, warmup_steps, total_steps))
    stop = total - delay if decay_steps is None else warmup + _in_holds(decay_steps, hold_steps)
    length = max(1, stop - warmup)
    zero = min(stop, total - delay) if rescale else stop  # where the curve is at `end`
    missing = (stop - zero) / length

    def shape(step: jax.Array) -> jax.Array:
        # (1 + cos(π (1 - r))) / 2 = sin²(π r / 2), and sin²a - sin²b = sin(a - b) · sin(a + b): float32 keeps its
        # digits near the end, where 1 + cos cancels.
        ahead = jnp.clip((zero - step).astype(jnp.float32) / length, 0.0, 1.0)
        share = jnp.sin(0.5 * math.pi * ahead) * jnp.sin(0.5 * math.pi * (ahead + 2 * missing))
        return end + (base - end) * share / math.cos(0.5 * math.pi * missing) ** 2

    last = warmup - 1 if warmup_reaches_base else warmup
    return _after_warmup(shape, base, warmup, start, last, delay, hold_steps)


def constant(
    *,
    base: float,
    warmup_steps: int = 0,
    total_steps: int,
    start: float = 0.0,
    warmup_reaches_base: bool = False,
    delay_steps: int = 0,
    hold_steps: int = 1,
) -> Schedule:
    """Warm-up, then `base` for ever.

    Args:
        base: the value after warm-up.
        warmup_steps: length of the warm-up.
        total_steps: length of the run.
        start: value at step 0.
        warmup_reaches_base: as in `cosine`; so goes DINO's temperature of the teacher, with `hold_epochs=1`.
        delay_steps: before the warm-up, all at `start` (iBOT's temperature of patches).
        hold_steps: the value changes only every so many steps. All durations are rounded to whole numbers of these,
            which thus count as the steps of the curve: with an epoch that is no whole number of steps, a value may
            change some steps beside the epoch's edge.
    """
    _check(base, warmup_steps + delay_steps, total_steps)
    delay, warmup = _in_holds(delay_steps, hold_steps), _in_holds(warmup_steps, hold_steps)
    last = warmup - 1 if warmup_reaches_base else warmup
    return _after_warmup(lambda s: jnp.full_like(s, base, jnp.float32), base, warmup, start, last, delay, hold_steps)


def linear(
    *,
    base: float,
    warmup_steps: int = 0,
    total_steps: int,
    decay_steps: int | None = None,
    end: float = 0.0,
    start: float = 0.0,
) -> Schedule:
    """Warm-up, then a straight line from `base` to `end`, reached at `total_steps` and kept after it.

    `decay_steps` is the line's length where it is not the rest of the run (see `cosine`).
    """

    def shape(step: jax.Array) -> jax.Array:
        return end + (base - end) * _remaining(step, warmup_steps, stop)

    _check(base, warmup_steps, total_steps)
    stop = total_steps if decay_steps is None else warmup_steps + decay_steps
    return _after_warmup(shape, base, warmup_steps, start)


def staircase(
    *,
    base: float,
    drop_steps: Sequence[int],
    factor: float = 0.1,
    warmup_steps: int = 0,
    total_steps: int,
    start: float = 0.0,
) -> Schedule:
    """Warm-up, then `base`, times `factor` from each of `drop_steps` on (in a recipe `drop_epochs=(30, 60, 90)`)."""
    _check(base, warmup_steps, total_steps)
    if not drop_steps or list(drop_steps) != sorted(drop_steps) or min(drop_steps) < warmup_steps:
        raise UserError(
            f"the drops are at steps {tuple(drop_steps)}; expected one or more, ascending, none in the warm-up of"
            f" {warmup_steps} steps."
        )
    levels = np.array([base * factor**n for n in range(len(drop_steps) + 1)], np.float32)

    def shape(step: jax.Array) -> jax.Array:
        return jnp.asarray(levels)[sum((step >= drop).astype(jnp.int32) for drop in drop_steps)]

    return _after_warmup(shape, base, warmup_steps, start)


def rsqrt(
    *,
    base: float,
    warmup_steps: int = 0,
    total_steps: int,
    timescale_steps: int = 10_000,
    cooldown_steps: int = 0,
    start: float = 0.0,
) -> Schedule:
    """Warm-up, then base / √(1 + (s - w) / timescale), and over the last `cooldown_steps` times a line to zero.

    There is no end of the run in it but for the cool-down: before that, a run can be prolonged.

    Reference: Zhai et al., Scaling Vision Transformers, 2021, Sec. 3.5 (arXiv:2106.04560), in big_vision's form.
    """

    def shape(step: jax.Array) -> jax.Array:
        rate = base * jax.lax.rsqrt(1.0 + (step - warmup_steps).astype(jnp.float32) / timescale_steps)
        return rate * _remaining(step, total_steps - cooldown_steps, total_steps) if cooldown_steps else rate

    _check(base, warmup_steps, total_steps)
    if timescale_steps < 1:
        raise UserError(f"timescale_steps is {timescale_steps}; expected at least 1.")
    if cooldown_steps < 0 or warmup_steps + cooldown_steps > total_steps:
        raise UserError(
            f"warm-up ({warmup_steps} steps) and cool-down ({cooldown_steps} steps) do not fit a run of"
            f" {total_steps} steps."
        )
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
        decay_shape: "linear"; "sqrt": 1 - √u over the decay's progress u, which falls fast and ends gently; "cosine".
        end: value at the end.
        start: value at step 0.
    """

    def shape(step: jax.Array) -> jax.Array:
        remaining = _remaining(step, total_steps - decay_steps, total_steps)  # 1 - u; is 1 before the decay
        if decay_shape == "sqrt":
            remaining = remaining / (1.0 + jnp.sqrt(1.0 - remaining))  # = 1 - √u, without its cancellation at the end
        if decay_shape == "cosine":
            remaining = jnp.square(jnp.sin(0.5 * math.pi * remaining))
        return end + (base - end) * remaining

    _check(base, warmup_steps, total_steps)
    if decay_shape not in DECAY_SHAPES:
        hint = nearest(decay_shape, DECAY_SHAPES)
        raise UserError(f"decay_shape is {decay_shape!r}.{hint} Known: {', '.join(DECAY_SHAPES)}.")
    if decay_steps < 1 or warmup_steps + decay_steps > total_steps:
        raise UserError(
            f"warm-up ({warmup_steps} steps) and decay ({decay_steps} steps) do not fit a run of"
            f" {total_steps} steps; the decay has at least one step."
        )
    return _after_warmup(shape, base, warmup_steps, start)


def as_schedule(value: float | Schedule) -> Schedule:
    """A number as the schedule that never changes; a schedule as it is."""
    return (lambda step: jnp.float32(value)) if isinstance(value, int | float) else value


SCHEDULES = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "rsqrt": rsqrt,
    "staircase": staircase,
    "wsd": wsd,
}


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


def _in_holds(steps: int, hold_steps: int) -> int:
    if hold_steps < 1:
        raise UserError(f"hold_steps is {hold_steps}; expected at least 1.")
    return steps if hold_steps == 1 else round(steps / hold_steps)


def _after_warmup(
    shape: Callable[[jax.Array], jax.Array],
    base: float,
    warmup_steps: int,
    start: float,
    last: int | None = None,
    delay_steps: int = 0,
    hold_steps: int = 1,
) -> Schedule:
    """`shape(step)` from `warmup_steps` on; before, the line from `start` at step 0 to `base` at step `last`.

    Steps are counted from the end of the delay, in whole `hold_steps`.
    """
    span = max(1, warmup_steps if last is None else last)

    def schedule(step: Step) -> jax.Array:
        step = jnp.asarray(step, jnp.int32) // hold_steps - delay_steps
        rising = start + (base - start) * (jnp.maximum(step, 0).astype(jnp.float32) / span)
        # Steps of the warm-up are kept out of `shape`, which need not be defined there.
        return jnp.where(step < warmup_steps, rising, shape(jnp.maximum(step, warmup_steps)))

    return schedule
