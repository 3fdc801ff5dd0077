"""Losses that tell pairs from non-pairs within the effective batch."""

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int


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


def info_nce(
    query: Float[Array, "b d"],
    key: Float[Array, "b d"],
    temperature: float | Float[Array, ""],
    queue: Float[Array, "k d"] | None = None,
) -> Float[Array, " b"]:
    """Cross entropy of finding the key of each query, in nats; from 0 up.

    ℓ_i = -log exp(q_i·k_i / τ) / Σ_j exp(q_i·k_j / τ),   q, k over their lengths (none is taken below 1e-12)

    j runs over the keys of all b examples; with a queue over i's own key and those of the queue. MoCo v3's authors
    multiply by 2τ and add the two directions.

    Args:
        query: what looks for its key.
        key: row by row of the same examples.
        temperature: τ > 0.
        queue: keys of other examples, unit vectors.

    Reference: He et al., Momentum Contrast, 2019 (arXiv:1911.05722), Eq. 1 and Algorithm 1 (with a queue); Chen et
    al., MoCo v3, 2021 (arXiv:2104.02057), Eq. 1 and Algorithm 1.
    """
    q, k = l2_normalize(query, 1e-24), l2_normalize(key, 1e-24)
    if queue is None:
        logits = q @ k.T / temperature
        own = jnp.diagonal(logits)
    else:
        own = jnp.sum(q * k, axis=1) / temperature
        logits = jnp.concatenate([own[:, None], q @ queue.T / temperature], axis=1)
    return jax.nn.logsumexp(logits, axis=1) - own


def contrastive_accuracy(
    first: Float[Array, "b d"], second: Float[Array, "b d"], queue: Float[Array, "k d"] | None = None
) -> Float[Array, " b"]:
    """1 where the nearest to the first view, by cosine, is its own pair and no other second view; else 0.

    With a queue (unit vectors) the others are those of the queue, as for `info_nce`.
    """
    x, y = l2_normalize(first), l2_normalize(second)
    if queue is None:
        return (jnp.argmax(x @ y.T, axis=1) == jnp.arange(first.shape[0])).astype(jnp.float32)
    return (jnp.sum(x * y, axis=1) > jnp.max(x @ queue.T, axis=1)).astype(jnp.float32)


def supervised_contrastive(
    embeddings: Float[Array, "b v d"],
    label: Int[Array, " b"] | None,
    temperature: float,
    base_temperature: float = 0.07,
    anchors: int | None = None,
) -> Float[Array, " b"]:
    """Cross entropy of each view among all others, averaged over all positives outside the logarithm, in nats.

    ℓ_i = -(τ / τ₀) · mean_{p in P(i)} log exp(z_i·z_p / τ) / Σ_{a≠i} exp(z_i·z_a / τ),   over all b · v - 1 others

    P(i): all other views of examples with the same label. The value of an example is the mean over its anchors; one
    without positives (a single view) has 0. The factor τ / τ₀ is the code's; the paper multiplies by τ alone.

    Args:
        embeddings: of all views, already of length 1: the loss does not normalise.
        label: the class of each example; None: each example is its own, which is SimCLR's loss.
        temperature: τ > 0.
        base_temperature: τ₀.
        anchors: how many of the first views are anchors; None: all. All views are compared with.

    Reference: Khosla et al., Supervised Contrastive Learning, 2020 (arXiv:2004.11362), Eq. 2 (L_out).
    """
    b, v, _ = embeddings.shape
    z = rearrange(embeddings, "b v d -> (v b) d")
    num_anchors = b * (v if anchors is None else anchors)
    itself = jnp.eye(num_anchors, b * v, dtype=bool)
    positive = _same_example_or_label(b, v, label)[:num_anchors] & ~itself
    logits = z[:num_anchors] @ z.T / temperature
    log_share = logits - jax.nn.logsumexp(jnp.where(itself, -jnp.inf, logits), axis=1, keepdims=True)
    count = jnp.maximum(jnp.sum(positive, axis=1, dtype=jnp.float32), 1.0)
    loss = -jnp.sum(jnp.where(positive, log_share, 0.0), axis=1) / count
    return temperature / base_temperature * jnp.mean(rearrange(loss, "(v b) -> b v", b=b), axis=1)


def sigmoid_pairs(
    embeddings: Float[Array, "b v d"],
    label: Int[Array, " b"] | None = None,
    scale: float | Float[Array, ""] = 1.0,
    bias: float | Float[Array, ""] = 0.0,
) -> Float[Array, " b"]:
    """Whether two views belong together, as one binary decision per pair: the sum over the partners of each view.

    ℓ_i = Σ_{j in P(i)} log(1 + exp(-s_ij)) + Σ_{j not in P(i)} log(1 + exp(s_ij)),   s_ij = t · z_i·z_j + β,   j ≠ i

    with z = x / ‖x‖ and P(i) the other views of the same example, or of all examples with the same label. The value
    of an example is the mean over its views. There is no softmax: a pair's loss depends on that pair alone.

    It is SigLIP's loss (Zhai et al., 2023, arXiv:2303.15343, Eq. 1) with two views in place of image and text, each
    of them in turn as the image; and to it come the pairs of different examples in the same view, which SigLIP does
    not have. As there, the sum over all pairs is divided by the number of anchors, not of pairs.

    Args:
        embeddings: of all views, not yet normalised.
        label: the class of each example; None: positives are views of the same example alone.
        scale: t, the inverse temperature.
        bias: β. Nearly all pairs are negative: without one far below zero the loss starts by pushing all apart.

    Reference: Çağatan, SigCLR, 2024 (arXiv:2410.17427), which has a fixed temperature and a learned bias.
    """
    b, v, _ = embeddings.shape
    z = l2_normalize(rearrange(embeddings, "b v d -> (v b) d"))
    logits = scale * (z @ z.T) + bias
    sign = jnp.where(_same_example_or_label(b, v, label), 1.0, -1.0)
    loss = jnp.where(jnp.eye(b * v, dtype=bool), 0.0, jax.nn.softplus(-sign * logits))
    return jnp.mean(rearrange(jnp.sum(loss, axis=1), "(v b) -> b v", b=b), axis=1)


def _same_example_or_label(num_examples: int, num_views: int, label: Int[Array, " b"] | None) -> Bool[Array, "z z"]:
    """Which of all views (v b, view by view) belong together; every one with itself."""
    label = jnp.arange(num_examples) if label is None else label
    return jnp.tile(label[:, None] == label[None, :], (num_views, num_views))
