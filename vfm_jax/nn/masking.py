"""Which patches are hidden."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def masking_noise(keys: jax.Array, num_patches: int) -> Float[Array, "b n"]:
    """Uniform noise in [0, 1), drawn from one key per example."""
    return jax.vmap(lambda key: jax.random.uniform(key, (num_patches,), jnp.float32))(keys)


def mask_by_noise(noise: Float[Array, "b n"], mask_ratio: float) -> tuple[Int[Array, "b k"], Bool[Array, "b n"]]:
    """Keeps the patches of lowest noise: their indices in order of noise, and where patches are hidden.

    k = int(n (1 - mask_ratio)), truncated as in the authors' code (60 % of 9 patches keeps 3).

    Reference: He et al., 2021 (arXiv:2111.06377), Sec. 3, and `random_masking` of their code.

    Raises:
        ValueError: no patch would be kept, or none hidden.
    """
    num_patches = noise.shape[1]
    num_kept = int(num_patches * (1 - mask_ratio))
    if not 0 < num_kept < num_patches:
        raise ValueError(
            f"mask_ratio {mask_ratio} keeps {num_kept} of {num_patches} patches; at least one must be kept and one "
            "hidden. Choose a ratio strictly between 0 and 1, or a smaller patch."
        )
    order = jnp.argsort(noise, axis=1)
    rank = jnp.argsort(order, axis=1)
    return order[:, :num_kept], rank >= num_kept


def gather_tokens(tokens: Float[Array, "b n d"], index: Int[Array, "b k"]) -> Float[Array, "b k d"]:
    """The tokens at `index` of each example."""
    return jnp.take_along_axis(tokens, index[:, :, None], axis=1)


def scatter_tokens(
    tokens: Float[Array, "b k d"], index: Int[Array, "b k"], fill: Float[Array, " d"], num_tokens: int
) -> Float[Array, "b n d"]:
    """Puts tokens back at `index` of a sequence of `num_tokens`, with `fill` everywhere else."""
    b, _, d = tokens.shape
    canvas = jnp.broadcast_to(fill[None, None, :], (b, num_tokens, d))
    return jax.vmap(lambda row, i, t: row.at[i].set(t, unique_indices=True))(canvas, index, tokens)
