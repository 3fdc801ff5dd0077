"""How much of its space a representation uses."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def feature_std(x: Float[Array, "b d"]) -> Float[Array, ""]:
    """Standard deviation over the examples of each component of x / ‖x‖, averaged, times √d.

    1 for directions that fill the space evenly, 0 where all representations are one (collapse).

    Reference: Chen and He, SimSiam, 2020 (arXiv:2011.10566), Sec. 4.1, Fig. 2, which shows it against 1/√d.
    """
    return jnp.mean(jnp.std(_unit(x), axis=0)) * x.shape[1] ** 0.5


def effective_rank(x: Float[Array, "b d"], epsilon: float = 1e-5) -> Float[Array, ""]:
    """RankMe: exp of the entropy of the singular values' shares, p_k = σ_k / Σσ + ε; from 1 to min(b, d).

    Neither centred nor normalised before. The shares are not divided by their new sum, as in the paper; its ε is
    1e-7, that of stable-pretraining's code 1e-5.

    Reference: Garrido et al., RankMe, 2022 (arXiv:2210.02885), Eq. 1 and 2.
    """
    # The smaller Gram matrix has the squares of the singular values; a root of what is below rounding is rounding.
    gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    values = jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(gram), 0.0))
    share = values / jnp.maximum(jnp.sum(values), 1e-12) + epsilon
    return jnp.exp(-jnp.sum(share * jnp.log(share)))


def alignment(x: Float[Array, "b v d"]) -> Float[Array, ""]:
    """Mean squared distance between unit representations of views of one image, over pairs of different views.

    0 for views that agree, 2 for views that know nothing of each other.

    Reference: Wang and Isola, 2020 (arXiv:2005.10242), Sec. 4.1.1, with α = 2.
    """
    v = x.shape[1]
    z = _unit(x)
    cosine = jnp.einsum("bvd,bwd->bvw", z, z)
    others = jnp.sum(cosine, axis=(1, 2)) - jnp.einsum("bvv->b", cosine)
    return jnp.mean(2.0 - 2.0 * others / (v * (v - 1)))


def uniformity(x: Float[Array, "b d"]) -> Float[Array, ""]:
    """log of the mean of exp(-2 ‖z_i - z_j‖²) over pairs of different examples, z = x / ‖x‖; lower is more uniform.

    0 for a collapsed representation, towards -4 for one spread over the sphere.

    Reference: Wang and Isola, 2020 (arXiv:2005.10242), Sec. 4.1.2, with t = 2.
    """
    b = x.shape[0]
    z = _unit(x)
    distance = 2.0 - 2.0 * z @ z.T
    pairs = jnp.where(jnp.eye(b, dtype=bool), 0.0, jnp.exp(-2.0 * distance))
    return jnp.log(jnp.sum(pairs) / (b * (b - 1)))


def _unit(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
