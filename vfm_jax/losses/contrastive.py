"""Losses that tell pairs from non-pairs within the effective batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def l2_normalize(x: Float[Array, "... d"], epsilon: float = 1e-12) -> Float[Array, "... d"]:
    """x / ‖x‖, with ε under the root so that a zero vector has a finite gradient (TensorFlow's l2_normalize)."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), epsilon))


def nt_xent(first: Float[Array, "b d"], second: Float[Array, "b d"], temperature: float) -> Float[Array, " b"]:
    """Normalised temperature-scaled cross entropy of each pair, averaged over its two directions, in nats.

    ℓ(i, j) = -log exp(z_i·z_j / τ) / Σ_{k≠i} exp(z_i·z_k / τ),   z = x / ‖x‖,   over all 2b - 1 others

    The authors' code adds the two directions where the paper's Eq. 1 and Algorithm 1 average them; this is the
    paper's, half of the code's.

    Args:
        first: embeddings of one view, not yet normalised.
        second: embeddings of the other view, row by row the same examples.
        temperature: τ > 0.

    Reference: Chen et al., A Simple Framework for Contrastive Learning, 2020 (arXiv:2002.05709), Eq. 1.
    """
    b = first.shape[0]
    z = l2_normalize(jnp.concatenate([first, second]))  # 2b d
    logits = z @ z.T / temperature
    logits = jnp.where(jnp.eye(2 * b, dtype=bool), -jnp.inf, logits)  # an embedding is no negative of itself
    partner = jnp.concatenate([jnp.diagonal(logits, b), jnp.diagonal(logits, -b)])
    loss = jax.nn.logsumexp(logits, axis=1) - partner
    return (loss[:b] + loss[b:]) / 2


def contrastive_accuracy(first: Float[Array, "b d"], second: Float[Array, "b d"]) -> Float[Array, " b"]:
    """1 where the nearest of all other embeddings of the first view is its own pair, by cosine; else 0."""
    similarity = l2_normalize(first) @ l2_normalize(second).T
    return (jnp.argmax(similarity, axis=1) == jnp.arange(first.shape[0])).astype(jnp.float32)
