"""Losses that draw a prediction to the direction of its target, and need no other examples."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from vfm_jax.losses.contrastive import l2_normalize


def normalized_distance(prediction: Float[Array, "*b d"], target: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """Squared distance of unit vectors, ‖p/‖p‖ - z/‖z‖‖² = 2 - 2 cos(p, z); from 0 to 4.

    Reference: Grill et al., Bootstrap Your Own Latent, 2020 (arXiv:2006.07733), Eq. 2, and `regression_loss` of the
    authors' code, whose loss adds the two directions.
    """
    return jnp.sum(jnp.square(l2_normalize(prediction) - l2_normalize(target)), axis=-1)


def negative_cosine(prediction: Float[Array, "*b d"], target: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """-cos(p, z), from -1 to 1; no norm is taken below 1e-8, as in PyTorch's `CosineSimilarity`.

    Reference: Chen and He, SimSiam, 2020 (arXiv:2011.10566), Eq. 1; the loss averages the two directions (Eq. 2).
    """
    return -jnp.sum(l2_normalize(prediction, 1e-16) * l2_normalize(target, 1e-16), axis=-1)
