"""Losses between logits and classes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def softmax_cross_entropy(logits: Float[Array, "b m"], target: Float[Array, "b m"]) -> Float[Array, " b"]:
    """-Σ_m t_bm log softmax(logits)_bm, in nats; targets are probabilities."""
    return -jnp.sum(target * jax.nn.log_softmax(logits, axis=-1), axis=-1)


def sigmoid_cross_entropy(logits: Float[Array, "b m"], target: Float[Array, "b m"]) -> Float[Array, " b"]:
    """-Σ_m t_bm log σ(l_bm) + (1 - t_bm) log σ(-l_bm), in nats: every class a decision of its own, targets in [0, 1].

    A sum over the classes and not a mean, as in big_vision; of means, others have 1/m of it.

    Reference: Beyer et al., Are we done with ImageNet?, 2020 (arXiv:2006.07159), Sec. 4, for pretraining.
    """
    return -jnp.sum(target * jax.nn.log_sigmoid(logits) + (1 - target) * jax.nn.log_sigmoid(-logits), axis=-1)


def smooth_labels(label: Int[Array, " b"], num_classes: int, smoothing: float) -> Float[Array, "b m"]:
    """One-hot targets with `smoothing` of the mass spread evenly over all classes.

    Reference: Szegedy et al., Rethinking the Inception Architecture, 2015 (arXiv:1512.00567), Sec. 7.
    """
    one_hot = jax.nn.one_hot(label, num_classes, dtype=jnp.float32)
    return one_hot * (1 - smoothing) + smoothing / num_classes
