"""Adafactor as big_vision has it: the second moment of a matrix kept as its rows' and its columns' means."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class FactoredState(NamedTuple):
    """Means of squared gradients; of each leaf either both factors or the whole is there.

    Attributes:
        count: updates so far.
        rows: means over the longest axis. It is kept, with length 1, so that a leaf's sharding rule serves them too.
        columns: means over the second longest axis, likewise.
        whole: of leaves that are not factored.
    """

    count: jax.Array
    rows: Any
    columns: Any
    whole: Any


def scale_by_factored_rms(
    *, decay_exponent: float = 0.8, decay_cap: float = 0.999, min_size: int = 32, eps: float = 1e-30
) -> optax.GradientTransformation:
    """g / √v, where v is the product of two vectors for each slice of the two longest axes.

    The memory of v at update t, counted from 1, is min(cap, 1 - t^(-exponent)): the first gradient stands alone. Bias
    needs no correction, and updates are not clipped.

    Reference: Shazeer and Stern, Adafactor, 2018 (arXiv:1804.04235), Algorithm 4; Zhai et al., Scaling Vision
    Transformers, 2021 (arXiv:2106.04560), Sec. 3.4, in the form of big_vision's `scale_by_adafactor`.

    Args:
        decay_exponent: of the memory's growth.
        decay_cap: the longest memory.
        min_size: leaves whose second longest axis is shorter are not factored.
        eps: added to squared gradients.
    """

    def axes(leaf: jax.Array) -> tuple[int, int] | None:
        """The longest axis and the one after it, where the leaf is factored."""
        order = np.argsort(leaf.shape)
        return (int(order[-1]), int(order[-2])) if leaf.ndim > 1 and leaf.shape[order[-2]] >= min_size else None

    def zeros(leaf: jax.Array, axis: int) -> jax.Array:
        return jnp.zeros((*leaf.shape[:axis], 1, *leaf.shape[axis + 1 :]), jnp.float32)

    def init(params: Any) -> FactoredState:
        absent = optax.MaskedNode()
        rows, columns = (
            jax.tree.map(lambda p, i=i: zeros(p, found[i]) if (found := axes(p)) else absent, params) for i in (0, 1)
        )
        whole = jax.tree.map(lambda p: absent if axes(p) else jnp.zeros(p.shape, jnp.float32), params)
        return FactoredState(jnp.zeros((), jnp.int32), rows, columns, whole)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, FactoredState]:
        del params
        count = state.count + 1
        memory = jnp.minimum(decay_cap, 1.0 - count.astype(jnp.float32) ** -decay_exponent)

        def follow(g: jax.Array, moment: Any, axis: int | None) -> Any:
            if isinstance(moment, optax.MaskedNode):
                return moment
            square = jnp.square(g) + eps
            return memory * moment + (1.0 - memory) * (
                square if axis is None else jnp.mean(square, axis=axis, keepdims=True)
            )

        def scale(g: jax.Array, rows: Any, columns: Any, whole: Any) -> jax.Array:
            found = axes(g)
            if found is None:
                return g * jax.lax.rsqrt(whole)
            # v = rows · columns / mean(rows); its root is taken factor by factor, or it would leave float32's range.
            row_factor = jax.lax.rsqrt(rows / jnp.mean(rows, axis=found[1], keepdims=True))
            return g * row_factor * jax.lax.rsqrt(columns)

        rows = jax.tree.map(lambda g, m: follow(g, m, (axes(g) or (None, None))[0]), updates, state.rows)
        columns = jax.tree.map(lambda g, m: follow(g, m, (axes(g) or (None, None))[1]), updates, state.columns)
        whole = jax.tree.map(lambda g, m: follow(g, m, None), updates, state.whole)
        return jax.tree.map(scale, updates, rows, columns, whole), FactoredState(count, rows, columns, whole)

    return optax.GradientTransformation(init, update)


def average_updates(*, momentum: float, dtype: str) -> optax.GradientTransformation:
    """m ← momentum · m + (1 - momentum) · u, its bias not corrected; kept in `dtype`, computed in float32."""

    def init(params: Any) -> optax.TraceState:
        return optax.TraceState(optax.tree.zeros_like(params, dtype=dtype))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.TraceState]:
        del params
        mean = jax.tree.map(lambda m, u: momentum * m.astype(jnp.float32) + (1 - momentum) * u, state.trace, updates)
        return mean, optax.TraceState(optax.tree.cast(mean, dtype))

    return optax.GradientTransformation(init, update)
