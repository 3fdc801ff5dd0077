"""Muon: a matrix moves along the nearest semi-orthogonal matrix to its momentum."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import map_named

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a steep quintic: singular values end near 1, not at it


class Axes(NamedTuple):
    """Which axes of a kernel count its inputs and which its outputs; the others are matrices of their own."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


# By name, for a kernel's shape alone does not tell (d 3 heads hd) of attention from (h w inputs outputs).
MATRICES = (
    (r"(^|/)(qkv|key_value)/kernel$", 4, Axes((0,), (2, 3))),  # d, q k v, heads, head_dim: one matrix each
    (r"(^|/)query/kernel$", 3, Axes((0,), (1, 2))),
    (r"(^|/)out/kernel$", 3, Axes((0, 1), (2,))),  # heads, head_dim, d
    (r"(^|/)kernel(_\d+)?$", 2, Axes((0,), (1,))),
    (r"(^|/)kernel$", 4, Axes((0, 1, 2), (3,))),  # a convolution's rows, columns, inputs, outputs
)


def matrix_axes(name: str, shape: tuple[int, ...]) -> Axes | None:
    """The axes of a kernel as a matrix; None for leaves that are none (biases, scales, tables, tokens).

    Raises:
        UserError: a kernel of a shape that none of ours has.
    """
    for pattern, ndim, axes in MATRICES:
        if len(shape) == ndim and re.search(pattern, name):
            return axes
    if re.search(r"(^|/)kernel(_\d+)?$", name) and len(shape) > 1:
        raise UserError(
            f"Muon does not know which axes of {name} {shape} are inputs. Leave it to AdamW with a pattern that"
            f" matches it in config.optimizer.adamw, such as {name!r}."
        )
    return None


def orthogonalize(matrix: jax.Array, *, iterations: int = 5, dtype: str = "bfloat16", eps: float = 1e-7) -> jax.Array:
    """Near to U Vᵀ of the matrices U S Vᵀ in the last two axes: their singular values lie in about 0.7 to 1.2.

    X ← a X + (b X Xᵀ + c (X Xᵀ)²) X from X = M / (‖M‖ + eps), in `dtype`; the result is float32.

    Reference: Jordan et al., Muon, 2024 (https://kellerjordan.github.io/posts/muon/).
    """
    a, b, c = NEWTON_SCHULZ
    bits = jnp.finfo(dtype)

    def rounded(x: jax.Array) -> jax.Array:
        # A cast alone XLA may leave out between two operations, and the numbers would hang on what it fuses.
        return jax.lax.reduce_precision(x, bits.nexp, bits.nmant).astype(dtype)

    def times(factor: float, x: jax.Array) -> jax.Array:
        return rounded(factor * x.astype(jnp.float32))

    def plus(x: jax.Array, y: jax.Array) -> jax.Array:
        return rounded(x.astype(jnp.float32) + y.astype(jnp.float32))

    def matmul(x: jax.Array, y: jax.Array) -> jax.Array:
        return rounded((x @ y).astype(jnp.float32))

    tall = matrix.shape[-2] > matrix.shape[-1]
    x = rounded(matrix)
    x = x.mT if tall else x
    norm = jnp.linalg.norm(x.astype(jnp.float32), axis=(-2, -1), keepdims=True)
    x = rounded(x.astype(jnp.float32) / rounded(norm + eps).astype(jnp.float32))
    for _ in range(iterations):
        gram = matmul(x, x.mT)
        x = plus(times(a, x), matmul(plus(times(b, gram), matmul(times(c, gram), gram)), x))
    return (x.mT if tall else x).astype(jnp.float32)


def scale_by_muon(*, momentum: float, nesterov: bool, iterations: int, dtype: str) -> optax.GradientTransformation:
    """The orthogonalized momentum of kernels, times the root of outputs / inputs where outputs are more.

    The momentum is an average, m ← momentum · m + (1 - momentum) · g. A convolution is one matrix of outputs by
    inputs · rows · columns; the authors' code takes its factor from the last two axes of PyTorch's (outputs, inputs,
    rows, columns), the root of rows / columns, which is 1 for every square kernel. So does this.
    """

    def init(params: Any) -> optax.TraceState:
        return optax.TraceState(optax.tree.zeros_like(params, dtype=jnp.float32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.TraceState]:
        del params
        mean = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, state.trace, updates)
        ahead = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, mean, updates) if nesterov else mean

        def one(name: str, u: jax.Array) -> jax.Array:
            axes = matrix_axes(name, u.shape)
            assert axes is not None, f"{name} is no kernel"
            to_matrices, back = _views(u.shape, axes)
            matrices = to_matrices(u)
            outputs, inputs = u.shape[:2] if len(axes.inputs) == 3 else matrices.shape[1:]
            return max(1.0, outputs / inputs) ** 0.5 * back(
                orthogonalize(matrices, iterations=iterations, dtype=dtype)
            )

        return map_named(one, ahead), optax.TraceState(mean)

    return optax.GradientTransformation(init, update)


def _views(
    shape: tuple[int, ...], axes: Axes
) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """To matrices (batch, outputs, inputs) and back."""
    batch = tuple(axis for axis in range(len(shape)) if axis not in (*axes.inputs, *axes.outputs))
    order = (*batch, *axes.outputs, *axes.inputs)
    sizes = [math.prod(shape[axis] for axis in part) for part in (batch, axes.outputs, axes.inputs)]
    ordered = tuple(shape[axis] for axis in order)
    inverse = tuple(order.index(axis) for axis in range(len(shape)))
    return lambda x: x.transpose(order).reshape(sizes), lambda x: x.reshape(ordered).transpose(inverse)
