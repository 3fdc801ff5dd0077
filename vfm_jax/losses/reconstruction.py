"""Losses between what was predicted of hidden parts and what is there: pixels, or a teacher's features."""

import functools
import math
from collections.abc import Sequence

import jax
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


def restore_patches(
    standardized: Float[Array, "b n p"], patches: Float[Array, "b n p"], epsilon: float = 1e-6
) -> Float[Array, "b n p"]:
    """The inverse of `standardize_patches`, by the mean and deviation of each of `patches`."""
    mean = jnp.mean(patches, axis=-1, keepdims=True)
    return standardized * jnp.sqrt(jnp.var(patches, axis=-1, keepdims=True, ddof=1) + epsilon) + mean


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


def masked_pixel_l1(
    prediction: Float[Array, "b h w c"],
    image: Float[Array, "b h w c"],
    masked: Bool[Array, "b h w"],
    epsilon: float = 1e-5,
) -> Float[Array, " b"]:
    """Mean absolute error over the masked pixels and channels of each image.

    ℓ_b = Σ_hwc m_bhw |x̂_bhwc - x_bhwc| / (Σ_hw m_bhw + ε) / C

    The authors sum over the batch before they divide, which is the same but for ε where every image has as many
    masked pixels, as their masks give.

    Reference: Xie et al., SimMIM, 2021 (arXiv:2111.09886), Sec. 3.4, and `SimMIM.forward` of their code.
    """
    weight = masked.astype(jnp.float32)
    error = jnp.sum(jnp.abs(prediction - image), axis=-1)  # b h w
    return jnp.sum(error * weight, axis=(1, 2)) / (jnp.sum(weight, axis=(1, 2)) + epsilon) / image.shape[-1]


def region_mse(
    prediction: Float[Array, "b h w c"], image: Float[Array, "b h w c"], region: Bool[Array, "b h w"]
) -> Float[Array, " b"]:
    """Mean squared error over the pixels of a region of each image, and all channels.

    ℓ_b = Σ_hw r_bhw · mean_c (x̂_bhwc - x_bhwc)² / Σ_hw r_bhw

    The region has at least one pixel in every image. The paper sums where this takes the mean, so that the loss does
    not depend on the region's size.

    Reference: Pathak et al., Context Encoders, 2016 (arXiv:1604.07379), Eq. 1.
    """
    weight = region.astype(jnp.float32)
    error = jnp.mean(jnp.square(prediction - image), axis=-1)  # b h w
    return jnp.sum(error * weight, axis=(1, 2)) / jnp.sum(weight, axis=(1, 2))


def contextual_targets(layers: Sequence[Float[Array, "b n d"]], epsilon: float = 1e-5) -> Float[Array, "b n d"]:
    """What a teacher makes of an image: the mean of several layers' outputs, each channel of each standardised first.

    y = LN(mean_k IN(a_k)): the instance norm standardises each channel of a layer over the patches of the image, the
    layer norm each patch of their mean over the channels. Both divide by √(variance + ε), with the biased variance
    and without learned factors.

    Reference: Baevski et al., data2vec 2.0, 2022 (arXiv:2212.07525), Sec. 3.1, and `make_targets` of the authors'
    code for images, which has the last layer norm.
    """
    total = functools.reduce(jnp.add, (_standardize(layer, 1, epsilon) for layer in layers))
    return _standardize(total / len(layers), 2, epsilon)


def _standardize(x: Float[Array, "b n d"], axis: int, epsilon: float) -> Float[Array, "b n d"]:
    centred = x - jnp.mean(x, axis=axis, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=axis, keepdims=True) + epsilon)


def scaled_l2(prediction: Float[Array, "*#b d"], target: Float[Array, "*#b d"]) -> Float[Array, "*#b"]:
    """Squared distance over the square root of the width: Σ_d (x̂_d - x_d)² / √D.

    Reference: `d2v_loss` of the authors' code of data2vec 2.0 (arXiv:2212.07525), without smoothing; the paper's
    Eq. 1 is without the factor.
    """
    return jnp.sum(jnp.square(prediction - target), axis=-1) / math.sqrt(target.shape[-1])
