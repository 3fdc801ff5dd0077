"""Losses that make a student agree with the assignments of a teacher, or of another view, over prototypes.

Assignments are probabilities and carry no gradient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def centered_softmax(
    logits: Float[Array, "*b m"], center: Float[Array, " m"], temperature: float | Float[Array, ""]
) -> Float[Array, "*b m"]:
    """softmax((x - c) / τ): the teacher's assignments, kept from collapse by a centre and a low temperature.

    Reference: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021 (arXiv:2104.14294),
    Eq. 1 and Sec. 3.1.
    """
    logits = jax.lax.stop_gradient(logits).astype(jnp.float32)
    center = center.reshape((1,) * (logits.ndim - 1) + center.shape)
    return jax.nn.softmax((logits - center) / temperature, axis=-1)


def update_center(
    center: Float[Array, " m"], logits_mean: Float[Array, " m"], momentum: float | Float[Array, ""]
) -> Float[Array, " m"]:
    """μ · c + (1 - μ) · mean of the teacher's logits. A batch is centred by the centre from before it.

    Reference: Caron et al., 2021 (arXiv:2104.14294), Eq. 4.
    """
    return center * momentum + jax.lax.stop_gradient(logits_mean).astype(jnp.float32) * (1 - momentum)


def sinkhorn(
    logits: Float[Array, "b m"],
    temperature: float | Float[Array, ""],
    num_iterations: int = 3,
    valid: Bool[Array, " b"] | None = None,
) -> Float[Array, "b m"]:
    """Assignments exp(x / τ) scaled until all prototypes are used equally: rows sum to 1, columns nearly to b / m.

    Each iteration divides by the sum of each prototype over the samples, then by that of each sample over the
    prototypes, so the samples' sums are exact. It runs on logarithms, which neither overflow nor leave a sample
    without a prototype; the authors' exponentials give the same where they are finite.

    Args:
        logits: similarities of samples and prototypes.
        temperature: τ > 0; ε in SwAV.
        num_iterations: at least 1.
        valid: which rows are samples; the others count for nothing and get zeros.

    Reference: Cuturi, Sinkhorn Distances, 2013 (arXiv:1306.0895); Caron et al., Unsupervised Learning of Visual
    Features by Contrasting Cluster Assignments, 2020 (arXiv:2006.09882), Sec. 3.1, Eq. 3 to 5, and App. A.
    """
    log_q = jax.lax.stop_gradient(logits).astype(jnp.float32) / temperature
    is_sample = None if valid is None else valid[:, None]
    for _ in range(num_iterations):
        log_q -= jax.nn.logsumexp(log_q, axis=0, keepdims=True, where=is_sample)
        log_q -= jax.nn.logsumexp(log_q, axis=1, keepdims=True)
    return jnp.exp(log_q) if is_sample is None else jnp.where(is_sample, jnp.exp(log_q), 0.0)


def dino_loss(
    student: Float[Array, "b v m"],
    teacher: Float[Array, "b t m"],
    temperature: float | Float[Array, ""],
    *,
    same_view: bool = False,
    reduction: str = "mean",
) -> Float[Array, ""]:
    """Cross-entropy of the student's views under the teacher's, over pairs of views, in nats.

    H_tv = mean_b -Σ_m p_btm log softmax(x_bv / τ)_m

    View t of the teacher and view t of the student are the same crop. DINO takes the mean over pairs of different
    crops, which is also DINOv3's with its diagonal ignored; DINOv3 otherwise takes that over all pairs
    (`same_view=True`); DINOv2's class takes the sum over all pairs (`same_view=True, reduction="sum"`), and its
    training loop chooses and divides.

    Args:
        student: logits of all views, those that the teacher sees first.
        teacher: assignments.
        temperature: τ of the student, > 0.
        same_view: count the pairs of a crop with itself.
        reduction: over pairs, "mean" or "sum".

    Reference: Caron et al., 2021 (arXiv:2104.14294), Eq. 3; Oquab et al., DINOv2, 2023 (arXiv:2304.07193), Sec. 4;
    Siméoni et al., DINOv3, 2025 (arXiv:2508.10104), Sec. 3.2; and `DINOLoss` of each of their codes.
    """
    log_p = jax.nn.log_softmax(student.astype(jnp.float32) / temperature, axis=-1)
    each = -jnp.mean(jnp.einsum("btm,bvm->btv", teacher, log_p, precision="highest"), axis=0)
    counted = jnp.ones(each.shape, bool) if same_view else ~jnp.eye(*each.shape, dtype=bool)
    return {"mean": jnp.mean, "sum": jnp.sum}[reduction](each, where=counted)


def swapped_prediction(
    scores: Float[Array, "b v m"], assignments: Float[Array, "b t m"], temperature: float | Float[Array, ""]
) -> Float[Array, ""]:
    """SwAV's loss: the assignment of each of the first t views, predicted from every other view, in nats.

    mean over t of 1/(V - 1) Σ_{v≠t} mean_b -Σ_m q_btm log softmax(z_bv·c / τ)_m: a mean over pairs, as DINO's is.

    Reference: Caron et al., 2020 (arXiv:2006.09882), Eq. 1, 2 and 6.
    """
    return dino_loss(scores, assignments, temperature)


def mask_weights(masked: Bool[Array, "b n"]) -> Float[Array, "b n"]:
    """1 / number of masked patches of the image where a patch is masked, else 0: they sum to 1 per image, or 0."""
    weight = masked.astype(jnp.float32)
    return weight / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1)


def masked_patch_cross_entropy(
    student: Float[Array, "*k m"],
    teacher: Float[Array, "*k m"],
    weight: Float[Array, "*k"],
    temperature: float | Float[Array, ""],
    num_images: int,
) -> Float[Array, ""]:
    """Cross-entropy of the student's patches under the teacher's, over the masked ones, in nats.

    1/B Σ_k w_k · -Σ_m p_km log softmax(x_k / τ)_m

    With the weights of `mask_weights`, all patches (b n m) or only the masked ones, gathered in one list (k m), give
    the same: the mean over the masked patches of each image, averaged over images, those without a mask included.

    Args:
        student: logits.
        teacher: assignments.
        weight: of each patch; 0 for what is not masked, or fills up the list.
        temperature: τ of the student, > 0.
        num_images: B.

    Reference: Zhou et al., iBOT: Image BERT Pre-Training with Online Tokenizer, 2021 (arXiv:2111.07832), Eq. 2, and
    `iBOTLoss` of their code; `iBOTPatchLoss` of DINOv2's (Oquab et al., 2023, arXiv:2304.07193).
    """
    log_p = jax.nn.log_softmax(student.astype(jnp.float32) / temperature, axis=-1)
    return jnp.sum(weight * -jnp.sum(teacher * log_p, axis=-1)) / num_images
