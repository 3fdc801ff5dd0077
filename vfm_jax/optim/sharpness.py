"""Sharpness-aware minimization: the gradient is taken where the loss near the parameters is highest."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vfm_jax.core.trees import map_named


def sharpness_aware(
    optimizer: optax.GradientTransformation, radius: float, is_trained: Callable[[str], bool]
) -> optax.GradientTransformationExtraArgs:
    """The optimizer, given the gradient at p + radius · g / ‖g‖ instead of the gradient g at p.

    Each step takes the gradient twice, on the same batch with the same random numbers: `update` wants a keyword
    `gradient`, params -> gradients.

    Reference: Foret et al., Sharpness-Aware Minimization, 2020 (arXiv:2010.01412), Algorithm 1 and Eq. 2 for p = 2.

    Args:
        optimizer: what makes the step.
        radius: ρ, of the step away from the parameters.
        is_trained: leaf name -> whether the leaf takes part; frozen ones stay where they are.
    """
    inner = optax.with_extra_args_support(optimizer)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        squares = map_named(lambda name, g: jnp.sum(jnp.square(g)) if is_trained(name) else 0.0, updates)
        norm = jnp.sqrt(sum(jax.tree.leaves(squares)))
        scale = radius / jnp.where(norm > 0, norm, 1.0)
        climbed = map_named(lambda name, p, g: p + scale * g if is_trained(name) else p, params, updates)
        return inner.update(extra["gradient"](climbed), state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)
