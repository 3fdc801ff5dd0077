"""Losses between predicted and true pixels."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def standardize_patches(patches: Float[Array, "b n p"], epsilon: float = 1e-6) -> Float[Array, "b n p"]:
    """Each patch minus its mean, over its standard deviation: (x - x̄) / √(s² + ε).

    s² is the unbiased variance (divided by p - 1), as in the authors' code.

    Reference: He et al., 2021 (arXiv:2111.06377), Sec. 3.4, "normalized pixel values".
    """
    mean = jnp.mean(patches, axis=-1, keepdims=True)
    variance = jnp.var(patches, axis=-1, keepdims=True, ddof=1)
    return (patches - mean) / jnp.sqrt(variance + epsilon)


def masked_patch_mse(
    prediction: Float[Array, "b n p"], target: Float[Array, "b n p"], masked: Bool[Array, "b n"]
) -> Float[Array, " b"]:
    """Mean squared error over the masked patches of each image.

    ℓ_b = Σ_n m_bn · mean_p (x̂_bnp - x_bnp)² / Σ_n m_bn

    Visible patches carry no loss. At least one patch per image must be masked. The authors average over all masked
    patches of the batch, which is the same where every image has as many, as random masking gives.

    Reference: He et al., 2021 (arXiv:2111.06377), Sec. 3.
    """
    error = jnp.mean(jnp.square(prediction - target), axis=-1)  # b n
    weight = masked.astype(jnp.float32)
    return jnp.sum(error * weight, axis=-1) / jnp.sum(weight, axis=-1)
