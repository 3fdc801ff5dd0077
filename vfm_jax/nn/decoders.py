"""Decoders from the tokens of some patches to pixels of all."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vfm_jax.nn.layers import Dense, LayerNorm
from vfm_jax.nn.masking import scatter_tokens
from vfm_jax.nn.positions import sincos_2d
from vfm_jax.nn.transformer import Transformer


class MaskedDecoder(nn.Module):
    """MAE's decoder: visible tokens and mask tokens, each with its position, through a small transformer to pixels.

    Reference: He et al., 2021 (arXiv:2111.06377), Sec. 3, Fig. 1; defaults are the paper's (Table 1).
    """

    width: int = 512
    depth: int = 8
    heads: int = 16
    mlp_ratio: float = 4.0
    norm_epsilon: float = 1e-6
    scan: bool = False
    remat: str = "none"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b m d"], keep: Int[Array, "b k"], grid: tuple[int, int], num_pixels: int
    ) -> Float[Array, "b n p"]:
        """Pixels of every patch, visible ones included.

        Args:
            tokens: prefix tokens (class), then the kept patches' tokens in the order of `keep`.
            keep: indices of the kept patches.
            grid: rows and columns of all patches.
            num_pixels: values to predict per patch.
        """
        x = Dense(self.width, dtype=self.dtype, name="embed")(tokens)
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (self.width,), jnp.float32)
        num_prefix = x.shape[1] - keep.shape[1]
        prefix, visible = x[:, :num_prefix], x[:, num_prefix:]
        patches = scatter_tokens(visible, keep, mask_token.astype(x.dtype), grid[0] * grid[1])
        patches = patches + jnp.asarray(sincos_2d(grid, self.width), x.dtype)[None]  # prefix tokens have none
        x = jnp.concatenate([prefix, patches], axis=1)
        x, _ = Transformer(
            self.width,
            self.depth,
            self.heads,
            int(self.width * self.mlp_ratio),
            norm_epsilon=self.norm_epsilon,
            scan=self.scan,
            remat=self.remat,
            dtype=self.dtype,
            name="transformer",
        )(x)
        x = LayerNorm(self.norm_epsilon, self.dtype, name="norm")(x)
        # float32: the loss compares these with pixels
        return Dense(num_pixels, dtype=self.dtype, name="pixels")(x)[:, num_prefix:].astype(jnp.float32)
