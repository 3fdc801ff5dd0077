"""Losses that shape a set of representations, whatever else pulls at them: their spread, their similarities."""

from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Key

Negatives = Literal["kept", "cut", "cut_from_teacher"]


def koleo(
    x: Float[Array, "b d"], num_neighbors: int = 1, group_size: int | None = None, epsilon: float = 1e-8
) -> Float[Array, " b"]:
    """How near each vector's nearest neighbours are, on the unit sphere: low where the batch is spread out.

    ℓ_i = -mean_{j in NN_k(i)} log(‖z_i - z_j + ε‖ + ε),   z = x / ‖x‖

    As in the authors' code ε stands under the norm too, added to every component, and the gradient reaches both
    points of a pair (Eq. of the paper: the smallest distance, without ε).

    Args:
        x: representations, not yet normalised.
        num_neighbors: k, of those nearest by inner product; DINOv2 has one.
        group_size: neighbours are looked for among this many examples that stand side by side, the first with the
            first; None: among all. (The authors' are those of one GPU, or of a few.)
        epsilon: ε.

    Raises:
        ValueError: groups do not divide the batch, or have no k other members.

    Reference: Sablayrolles et al., Spreading Vectors for Similarity Search, 2018 (arXiv:1806.03198), Sec. 3.2;
    Oquab et al., DINOv2, 2023 (arXiv:2304.07193), Sec. 4.
    """
    b = x.shape[0]
    size = b if group_size is None else group_size
    if b % size or size <= num_neighbors:
        raise ValueError(
            f"KoLeo with groups of {size} and {num_neighbors} neighbours does not fit a batch of {b}: groups must "
            "divide the batch and be larger than the number of neighbours."
        )
    groups = rearrange(_unit(x, epsilon), "(g i) d -> g i d", i=size)

    def distances(z: Float[Array, "i d"]) -> Float[Array, "i k"]:
        similarity = jax.lax.stop_gradient(z @ z.T)
        _, nearest = jax.lax.top_k(jnp.where(jnp.eye(size, dtype=bool), -jnp.inf, similarity), num_neighbors)
        return jnp.linalg.norm(z[:, None] - z[nearest] + epsilon, axis=2)

    return jnp.mean(-jnp.log(jax.vmap(distances)(groups).reshape(b, num_neighbors) + epsilon), axis=1)


def gram_anchor(
    student: Float[Array, "b n d"],
    teacher: Float[Array, "b n d"],
    normalize: bool = True,
    negatives: Negatives = "kept",
) -> Float[Array, " b"]:
    """Mean squared error between all similarities of one image's tokens in the student and in the teacher.

    ℓ_b = mean_ij (S_ij - T_ij)²,   S = X_b X_bᵀ,   T = Y_b Y_bᵀ,   x, y of length 1

    The paper has the squared Frobenius norm, a sum over the n² entries; the code's mean is followed here. Tokens of
    a whole batch are compared with each other as "1 (b n) d".

    Args:
        student: tokens.
        teacher: the Gram teacher's tokens of the same patches; gets no gradient from callers.
        normalize: similarities are cosines; otherwise inner products.
        negatives: similarities below zero are "kept", "cut" to zero on both sides, or "cut_from_teacher" alone.

    Reference: Siméoni et al., DINOv3, 2025 (arXiv:2508.10104), Sec. 4.2.
    """
    return jnp.mean(
        jnp.square(
            _similarities(student, normalize, negatives == "cut")
            - _similarities(teacher, normalize, negatives != "kept")
        ),
        axis=(1, 2),
    )


def _similarities(tokens: Float[Array, "b n d"], normalize: bool, cut: bool) -> Float[Array, "b n n"]:
    if normalize:
        tokens = _unit(tokens, 1e-12)
    similarity = jnp.einsum("bid,bjd->bij", tokens, tokens)
    return jnp.where(similarity < 0, 0.0, similarity) if cut else similarity


def _unit(x: Float[Array, "*b d"], epsilon: float) -> Float[Array, "*b d"]:
    """x / max(‖x‖, ε); zero stays zero, with a finite gradient."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.maximum(jnp.sqrt(jnp.where(square > 0, square, 1.0)), epsilon)


def random_directions(key: Key[Array, ""], width: int, num_slices: int) -> Float[Array, "d s"]:
    """Unit vectors, one per column, uniform over the sphere."""
    drawn = jax.random.normal(key, (width, num_slices), jnp.float32)
    return drawn / jnp.linalg.norm(drawn, axis=0, keepdims=True)


def sigreg(
    x: Float[Array, "b d"], directions: Float[Array, "d s"], num_knots: int = 17, t_max: float = 3.0
) -> Float[Array, " s"]:
    """How far the batch is from a standard normal distribution, seen along each direction.

    The Epps-Pulley statistic of the slice z = x · a, between its empirical characteristic function and that of
    N(0, 1), which is the weight as well:

        b ∫ |mean_b exp(i t z_b) - φ(t)|² φ(t) dt,   φ(t) = exp(-t² / 2),   t from -t_max to t_max

    by the trapezoid rule. The integrand is even, so the knots stand in [0, t_max] and count twice. As in the paper
    and the code it is multiplied by the size of the batch, and so does not vanish for a finite normal sample.

    Args:
        x: embeddings, not normalised: their scale is what is tested.
        directions: unit vectors a.
        num_knots: values of t in [0, t_max], both ends included.
        t_max: end of the integral.

    Reference: Balestriero and LeCun, LeJEPA, 2025 (arXiv:2511.08544), SIGReg; Epps and Pulley, A test for normality
    based on the empirical characteristic function, 1983.
    """
    z = x @ directions
    t = jnp.linspace(0.0, t_max, num_knots, dtype=jnp.float32)
    phi = jnp.exp(-0.5 * jnp.square(t))

    # One knot at a time, computed again in the backward pass: all at once would hold b · s · knots cosines and sines.
    @jax.checkpoint
    def gap(knot: tuple[Float[Array, ""], Float[Array, ""]]) -> Float[Array, " s"]:
        t, phi = knot
        real, imaginary = jnp.mean(jnp.cos(t * z), axis=0), jnp.mean(jnp.sin(t * z), axis=0)
        return jnp.square(real - phi) + jnp.square(imaginary)

    ends = jnp.zeros(num_knots, jnp.float32).at[jnp.array([0, -1])].set(1.0)
    weights = (2.0 - ends) * phi * (t_max / (num_knots - 1))
    return x.shape[0] * (weights @ jax.lax.map(gap, (t, phi)))
