"""Losses of texts that are predicted token by token."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def caption_cross_entropy(
    logits: Float[Array, "b l m"], labels: Int[Array, "b l"], padding: int = 0
) -> Float[Array, ""]:
    """-log softmax(logits) at the labels, in nats: the mean over all tokens of the batch that are no padding.

    A mean over tokens and not over captions: a long caption counts for more. Logits and labels stand at the same
    places; who calls it shifts them. Captioners weigh it: CoCa by 2, beside the contrastive loss.

    Reference: Yu et al., CoCa, 2022 (arXiv:2205.01917), Eq. 3, as in open_clip's CoCaLoss.
    """
    own = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), labels[..., None], axis=-1)[..., 0]
    counts = labels != padding
    return -jnp.sum(jnp.where(counts, own, 0.0)) / jnp.maximum(jnp.sum(counts, dtype=jnp.float32), 1.0)
