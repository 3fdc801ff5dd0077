"""Losses that tell which text of the batch belongs to which image: by a softmax (CLIP), and by sigmoids (SigLIP).

Temperatures are learned as the logarithm of the factor that stands before the cosines, as in the papers.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from vfm_jax.losses.contrastive import l2_normalize


def pair_logits(
    image: Float[Array, "b d"], text: Float[Array, "t d"], log_scale: Float[Array, ""]
) -> Float[Array, "b t"]:
    """exp(log_scale) · cos(image, text); embeddings are not yet normalised."""
    return jnp.exp(log_scale) * (l2_normalize(image) @ l2_normalize(text).T)


def clip_loss(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    log_scale: Float[Array, ""],
    mask: Bool[Array, " b"] | None = None,
) -> Float[Array, " b"]:
    """Cross entropy of each image among the texts and of each text among the images, averaged, in nats.

    ℓ_i = -(log softmax_j(s_ij) + log softmax_j(s_ji)) / 2 at j = i,   s = exp(t) · cos

    Args:
        image: embeddings, not yet normalised.
        text: row by row those of the same examples.
        log_scale: t, the logarithm of the inverse temperature. It is not clipped here: the authors clip the
            parameter, after each update.
        mask: pairs that count; the others are no negatives either, and have loss 0. Their mean is Σℓ / Σmask.

    Reference: Radford et al., CLIP, 2021 (arXiv:2103.00020), Fig. 3; the masked form is big_vision's.
    """
    logits = pair_logits(image, text, log_scale)
    if mask is not None:
        logits = jnp.where(mask[:, None] & mask[None, :] | jnp.eye(len(mask), dtype=bool), logits, -jnp.inf)
    # not the diagonal of the logits: where the batch is sharded, that would gather them
    own = jnp.exp(log_scale) * jnp.sum(l2_normalize(image) * l2_normalize(text), axis=1)
    loss = (jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0)) / 2 - own
    return loss if mask is None else jnp.where(mask, loss, 0.0)


def sigmoid_loss(
    image: Float[Array, "b d"], text: Float[Array, "b d"], log_scale: Float[Array, ""], bias: Float[Array, ""]
) -> Float[Array, " b"]:
    """Whether each text belongs to each image, as b² binary decisions: summed over the texts, one value an image.

    ℓ_i = -Σ_j log σ(z_ij (exp(t) · cos(x_i, y_j) + bias)),   z_ij = 1 at j = i, else -1

    The paper divides the sum over all pairs by b, not by b²: the loss is the mean of these values.

    Args:
        image: embeddings, not yet normalised.
        text: row by row those of the same examples.
        log_scale: t, the logarithm of the inverse temperature (the paper's t').
        bias: starts far below zero, since nearly all pairs are negative.

    Reference: Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023 (arXiv:2303.15343), Eq. 1 and Alg. 1.
    """
    return pairwise_sigmoid(pair_logits(image, text, log_scale) + bias)


def pairwise_sigmoid(logits: Float[Array, "b b"]) -> Float[Array, " b"]:
    """-Σ_j log σ(±l_ij), positive on the diagonal alone: `sigmoid_loss` of given logits."""
    sign = 2 * jnp.eye(logits.shape[0], dtype=logits.dtype) - 1
    return -jnp.sum(jax.nn.log_sigmoid(sign * logits), axis=1)


def sigmoid_loss_in_blocks(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    log_scale: Float[Array, ""],
    bias: Float[Array, ""],
    num_blocks: int,
) -> Float[Array, ""]:
    """The mean of `sigmoid_loss` without the b² logits: the batch in blocks, whose texts go round in a ring.

    In each of `num_blocks` turns every block of images meets one block of texts, and the texts move on by one place.
    Where the batch is sharded and the devices divide the blocks, each device keeps its images, meets (b / blocks)²
    logits for each of its blocks, and passes on the last of its texts alone: nothing is gathered, and for a given
    share of the batch memory does not grow with the number of devices. Gradients are taken turn by turn in the same
    round, so that none of it is kept for a backward pass.

    Args:
        image: embeddings, not yet normalised.
        text: row by row those of the same examples.
        log_scale: t, as in `sigmoid_loss`.
        bias: the same.
        num_blocks: divides b.

    Reference: Zhai et al., 2023 (arXiv:2303.15343), Sec. 3.3 and Fig. 1.
    """
    image, text = (
        rearrange(l2_normalize(x).astype(jnp.float32), "(p i) d -> p i d", p=num_blocks) for x in (image, text)
    )
    return _ring(image, text, jnp.exp(log_scale), bias)


def _turn(
    image: Float[Array, "p i d"],
    text: Float[Array, "p i d"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    turn: jax.Array | int,
) -> Float[Array, ""]:
    """Every block of images against the block of texts that stands at its place, over the number of examples."""
    p, i, _ = image.shape
    logits = scale * jnp.einsum("pid,pjd->pij", image, text) + bias
    sign = jnp.where(turn == 0, 2 * jnp.eye(i, dtype=logits.dtype) - 1, -1.0)  # texts are at home in turn 0 alone
    return -jnp.sum(jax.nn.log_sigmoid(sign[None] * logits)) / (p * i)


def _moved_on(blocks: Float[Array, "p i d"]) -> Float[Array, "p i d"]:
    # of a sharded axis this is a permutation between neighbouring devices
    return jnp.roll(blocks, 1, axis=0)


@jax.custom_vjp
def _ring(
    image: Float[Array, "p i d"], text: Float[Array, "p i d"], scale: Float[Array, ""], bias: Float[Array, ""]
) -> Float[Array, ""]:
    def body(carry: tuple[jax.Array, jax.Array], turn: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        total, text = carry
        return (total + _turn(image, text, scale, bias, turn), _moved_on(text)), None

    (total, _), _ = jax.lax.scan(body, (jnp.float32(0), text), jnp.arange(image.shape[0]))
    return total


def _ring_with_gradients(image, text, scale, bias):
    def body(carry, turn):
        (total, to_image, to_scale, to_bias), (text, to_text) = carry
        value, pull = jax.vjp(functools.partial(_turn, turn=turn), image, text, scale, bias)
        grads = pull(jnp.ones_like(value))
        total, to_image, to_scale, to_bias = (
            a + b for a, b in zip((total, to_image, to_scale, to_bias), (value, grads[0], *grads[2:]), strict=True)
        )
        # a text takes its gradient along; after all turns both are home again
        return ((total, to_image, to_scale, to_bias), (_moved_on(text), _moved_on(to_text + grads[1]))), None

    zero = jnp.float32(0)
    start = ((zero, jnp.zeros_like(image), zero, zero), (text, jnp.zeros_like(text)))
    ((total, to_image, to_scale, to_bias), (_, to_text)), _ = jax.lax.scan(body, start, jnp.arange(image.shape[0]))
    return total, (to_image, to_text, to_scale, to_bias)


def _scaled(gradients, cotangent):
    return tuple(cotangent * gradient for gradient in gradients)


_ring.defvjp(_ring_with_gradients, _scaled)


def pair_accuracy(image: Float[Array, "b d"], text: Float[Array, "b d"]) -> Float[Array, " b"]:
    """1 where the text nearest to an image is its own, by cosine; else 0."""
    similarity = l2_normalize(image) @ l2_normalize(text).T
    return (jnp.argmax(similarity, axis=1) == jnp.arange(image.shape[0])).astype(jnp.float32)
