"""What is watched while training, of any method: how the representation fills its space, and which loss pulls.

It costs a criterion and the singular values of a few hundred rows, and so is done only in the steps that are logged.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vfm_jax.core.trees import split_flowing
from vfm_jax.core.types import Measurements
from vfm_jax.metrics.representation import alignment, effective_rank, feature_std, uniformity
from vfm_jax.objectives.interface import Objective

ROWS = 256  # of the batch, the first; more would make the singular values dear and say the same
TERM = "loss/"


def observe_embedding(embedding: Float[Array, "b v d"], due: jax.Array | bool) -> Measurements:
    """How the representations of the batch fill their space; NaN unless `due`."""
    x = jax.lax.stop_gradient(embedding)[:ROWS].astype(jnp.float32)

    def measure() -> Measurements:
        found = {
            "representation/std": feature_std(x[:, 0]),
            "representation/effective_rank": effective_rank(x[:, 0]),
            "representation/uniformity": uniformity(x[:, 0]),
        }
        return found | ({"representation/alignment": alignment(x)} if x.shape[1] > 1 else {})

    return _only_when(due, measure)


def observe_shares(
    objective: Objective, params: Any, extra: Any, outputs: Any, step: jax.Array, due: jax.Array | bool
) -> Measurements:
    """The share of each "loss/TERM" in the gradient to what the networks gave out; NaN unless `due`."""
    fixed = jax.lax.stop_gradient((params, extra, outputs))
    return _only_when(due, lambda: _gradient_shares(objective, *fixed, step))


def _only_when(due: jax.Array | bool, measure: Callable[[], Measurements]) -> Measurements:
    shapes = jax.eval_shape(measure)
    if not shapes:
        return {}
    return jax.lax.cond(
        jnp.asarray(due), measure, lambda: jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), shapes)
    )


def _gradient_shares(objective: Objective, params: Any, extra: Any, outputs: Any, step: jax.Array) -> Measurements:
    """The norm of each term's gradient to what the networks gave out, over the sum of these norms."""
    flowing, rest, rebuild = split_flowing(outputs)

    def terms(flowing: list[jax.Array]) -> Measurements:
        measured = objective.criterion(params, extra, rebuild(flowing, rest), step)[1][1]
        return {name: value for name, value in measured.items() if name.startswith(TERM)}

    if len(jax.eval_shape(terms, flowing)) < 2:
        return {}
    values, pull = jax.vjp(terms, flowing)
    norms = {}
    for name in values:
        one = {other: jnp.full_like(value, float(other == name)) for other, value in values.items()}
        squares = [jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(pull(one))]
        norms[name] = jnp.sqrt(sum(squares[1:], squares[0]))
    total = sum(norms.values(), jnp.float32(1e-12))
    return {name.replace(TERM, "gradient_share/", 1): norm / total for name, norm in norms.items()}
