"""Exponential moving average of the weights, for evaluation."""

from typing import Any

import jax
import jax.numpy as jnp

from vfm_jax.optim.schedules import Schedule


def update_ema(ema: Any, params: Any, momentum: float | jax.Array) -> Any:
    """momentum · ema + (1 - momentum) · params, leaf by leaf, in float32.

    Never in bfloat16, where 0.999 · 1 + 0.001 · 1.01 is 1 and the average stands still.
    """
    return jax.tree.map(lambda e, p: momentum * e + (1.0 - momentum) * p.astype(jnp.float32), ema, params)


def ema_momentum(
    step: int | jax.Array, *, momentum: float | Schedule = 0.9999, warmup: bool = False
) -> float | jax.Array:
    """The momentum of the average at update `step`, counted from 0.

    Without warm-up it is `momentum`, which may be a schedule. With it, 1 - step^(-2/3) up to `momentum`, and 0 in the
    first two updates: the average forgets the random start, and looks back further as the run grows older (timm's
    `ModelEmaV3`, with its default gamma 1 and power 2/3).
    """
    highest = momentum if isinstance(momentum, float | int) else momentum(step)
    if not warmup:
        return highest
    age = jnp.maximum(jnp.asarray(step, jnp.int32), 1).astype(jnp.float32)
    return jnp.minimum(1.0 - age ** (-2.0 / 3.0), highest)
