"""Measures of classification."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def top_k_correct(
    logits: Float[Array, "b m"], labels: Int[Array, " b"], valid: Bool[Array, " b"], k: int = 1
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """How many valid examples have their label among the k largest logits, and how many are valid.

    Add both over the batches and divide once. Among equal logits the lower class comes first, so constant logits
    score the share of the first k classes and not one. With k above the number of classes every label is found.
    """
    best = jax.lax.top_k(logits, min(k, logits.shape[-1]))[1]  # b k
    hit = jnp.any(best == labels[:, None].astype(best.dtype), axis=-1)
    return jnp.sum(hit & valid, dtype=jnp.float32), jnp.sum(valid, dtype=jnp.float32)
