"""Losses between what a student and a frozen teacher make of one image: their logits, or their features."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vfm_jax.losses.contrastive import l2_normalize


def soft_targets(
    student: Float[Array, "b m"], teacher: Float[Array, "b m"], temperature: float | Float[Array, ""] = 1.0
) -> Float[Array, " b"]:
    """τ² KL(softmax(t / τ) ‖ softmax(s / τ)), in nats.

    The factor keeps the size of the gradient as τ changes. big_vision's "kl" is the same.

    Reference: Hinton et al., Distilling the Knowledge in a Neural Network, 2015 (arXiv:1503.02531), Sec. 2; Touvron
    et al., DeiT, 2020 (arXiv:2012.12877), Eq. 2.

    Args:
        student: logits.
        teacher: logits.
        temperature: τ > 0.
    """
    log_p = jax.nn.log_softmax(teacher.astype(jnp.float32) / temperature, axis=-1)
    log_q = jax.nn.log_softmax(student.astype(jnp.float32) / temperature, axis=-1)
    return temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def hard_targets(student: Float[Array, "b m"], teacher: Float[Array, "b m"]) -> Float[Array, " b"]:
    """-log softmax(s)_y with y the teacher's likeliest class.

    Reference: Touvron et al., DeiT, 2020 (arXiv:2012.12877), Eq. 3.
    """
    log_q = jax.nn.log_softmax(student.astype(jnp.float32), axis=-1)
    return -jnp.take_along_axis(log_q, jnp.argmax(teacher, axis=-1)[:, None], axis=1)[:, 0]


def cosine_distance(x: Float[Array, "*b d"], y: Float[Array, "*b d"], epsilon: float = 1e-8) -> Float[Array, "*b"]:
    """1 - x·y / (‖x‖ ‖y‖), with lengths of at least ε."""
    return 1 - jnp.sum(l2_normalize(x, epsilon**2) * l2_normalize(y, epsilon**2), axis=-1)


def smooth_l1(x: Float[Array, "*b d"], y: Float[Array, "*b d"], beta: float = 1.0) -> Float[Array, "*b"]:
    """mean_d of (x - y)² / 2β where |x - y| < β, and |x - y| - β/2 elsewhere.

    Reference: Girshick, Fast R-CNN, 2015 (arXiv:1504.08083), Eq. 3, of β = 1.
    """
    gap = jnp.abs(x - y)
    return jnp.mean(jnp.where(gap < beta, 0.5 * jnp.square(gap) / beta, gap - 0.5 * beta), axis=-1)


def squared_distance(x: Float[Array, "*b d"], y: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """mean_d (x - y)²."""
    return jnp.mean(jnp.square(x - y), axis=-1)
