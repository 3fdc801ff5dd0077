"""Losses that keep the dimensions of an embedding apart, where contrastive ones keep the examples apart."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def cross_correlation(
    first: Float[Array, "b d"], second: Float[Array, "b d"], epsilon: float = 1e-5
) -> Float[Array, "d d"]:
    """The correlation over the batch of each dimension of one view with each of the other: C = x̂ᵀ ŷ / b.

    x̂ and ŷ are standardised over the batch, each view by itself, as batch norm without learned factors does: with
    the biased variance, and ε added to it. So no entry is larger than 1.

    Args:
        first: embeddings of one view.
        second: embeddings of the other view, row by row the same examples.
        epsilon: ε.

    Reference: Zbontar et al., Barlow Twins, 2021 (arXiv:2103.03230), Eq. 2, which has no ε.
    """
    x, y = (_centred(view) for view in (first, second))
    x, y = (view / jnp.sqrt(jnp.mean(jnp.square(view), axis=0, keepdims=True) + epsilon) for view in (x, y))
    return x.T @ y / first.shape[0]


def barlow_twins(correlation: Float[Array, "d d"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """How far a cross-correlation is from the identity: Σ_i (1 - C_ii)², and Σ_{i≠j} C_ij², to be weighted.

    Sums and not means, as in the paper and the code: the loss grows with the width of the embedding.

    Reference: Zbontar et al., 2021 (arXiv:2103.03230), Eq. 1.
    """
    return jnp.sum(jnp.square(1.0 - jnp.diagonal(correlation))), _sum_of_squares_off_diagonal(correlation)


def variance_hinge(x: Float[Array, "b d"], target: float = 1.0, epsilon: float = 1e-4) -> Float[Array, ""]:
    """How far dimensions fall short of a standard deviation over the batch: mean_d max(0, γ - √(s_d² + ε)).

    s² is the unbiased variance.

    Args:
        x: embeddings of one view.
        target: γ.
        epsilon: ε.

    Reference: Bardes et al., VICReg, 2021 (arXiv:2105.04906), Eq. 1 and 2.
    """
    deviation = jnp.sqrt(jnp.var(x, axis=0, ddof=1) + epsilon)
    return jnp.mean(jnp.maximum(target - deviation, 0.0))


def covariance_penalty(x: Float[Array, "b d"]) -> Float[Array, ""]:
    """Σ_{i≠j} Cov(x)_ij² / d, with the unbiased covariance over the batch.

    Reference: Bardes et al., 2021 (arXiv:2105.04906), Eq. 3 and 4.
    """
    centred = _centred(x)
    return _sum_of_squares_off_diagonal(centred.T @ centred / (x.shape[0] - 1)) / x.shape[1]


def _centred(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
    return x - jnp.mean(x, axis=0, keepdims=True)


def _sum_of_squares_off_diagonal(matrix: Float[Array, "d d"]) -> Float[Array, ""]:
    # Not the sum of all less that of the diagonal: near the identity hardly a digit would be left of it.
    return jnp.sum(jnp.where(jnp.eye(matrix.shape[0], dtype=bool), 0.0, jnp.square(matrix)))
