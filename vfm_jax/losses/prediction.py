"""Losses between representations: what a predictor makes of hidden ones, or of the next one."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vfm_jax.losses.contrastive import l2_normalize


def standardize_features(x: Float[Array, "*b d"], epsilon: float = 1e-5) -> Float[Array, "*b d"]:
    """Layer norm without learned factors: (x - x̄) / √(σ² + ε), with the biased variance, over the last axis.

    Reference: `forward_target` of I-JEPA's code (arXiv:2301.08243).
    """
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)


def smooth_l1(prediction: Float[Array, "*b"], target: Float[Array, "*b"], beta: float = 1.0) -> Float[Array, "*b"]:
    """δ² / 2β where |δ| < β, and |δ| - β/2 elsewhere, of each number's error δ (Huber's loss over β).

    Reference: Girshick, Fast R-CNN, 2015 (arXiv:1504.08083), Eq. 3, with PyTorch's β.
    """
    error = jnp.abs(prediction - target)
    return jnp.where(error < beta, 0.5 * jnp.square(error) / beta, error - 0.5 * beta)


def masked_smooth_l1(
    prediction: Float[Array, "b n d"], target: Float[Array, "b n d"], valid: Bool[Array, "b n"]
) -> Float[Array, " b"]:
    """Mean smooth L1 error over the valid predictions of each image; at least one of an image must be.

    The authors of I-JEPA average over all predictions of the batch, which is the same where every image has as many,
    as their blocks of one size give. The paper's Eq. 1 has squared distances; this is the code's loss.

    Reference: Assran et al., 2023 (arXiv:2301.08243), Sec. 3, and `loss_fn` of their code.
    """
    error = jnp.mean(smooth_l1(prediction, target), axis=-1)  # b n
    return jnp.mean(error, axis=-1, where=valid)


def negative_cosine(prediction: Float[Array, "*b d"], target: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """-cos(x̂, sg(x)), in [-1, 1]: no gradient goes to the target.

    Reference: Xu et al., NEPA, 2025 (arXiv:2512.16922), Algorithm 1.
    """
    target = jax.lax.stop_gradient(target)
    # PyTorch's bound on a length is 1e-12; here it is on its square
    return -jnp.sum(l2_normalize(prediction, 1e-24) * l2_normalize(target, 1e-24), axis=-1)
