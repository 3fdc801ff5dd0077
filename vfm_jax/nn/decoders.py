"""Decoders from the tokens of some patches to pixels, or representations, of others."""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange, repeat
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vfm_jax.core.tables import lookup
from vfm_jax.nn.layers import Dense, LayerNorm, xavier_uniform
from vfm_jax.nn.masking import scatter_tokens
from vfm_jax.nn.positions import SINCOS
from vfm_jax.nn.resample import resample_positions
from vfm_jax.nn.transformer import Mlp, Transformer


def _position_table(module: "MaskedDecoder | JepaPredictor", grid: tuple[int, int]) -> Float[Array, "n d"]:
    """One row per patch of `grid`: fixed, without a leaf, or learned, and then resampled for another grid."""
    width = module.width
    if module.positions != "learned":
        return jnp.asarray(lookup({**SINCOS, "learned": None}, module.positions, "positions")(grid, width))
    if module.is_initializing() and not module.has_variable("params", "positions"):
        init = nn.initializers.normal(0.02)(module.make_rng("params"), (*grid, width), jnp.float32)
        module.put_variable("params", "positions", init)
    table = module.get_variable("params", "positions")
    return resample_positions(table, grid, module.position_resampling).reshape(-1, width)


class MaskedDecoder(nn.Module):
    """MAE's decoder: visible tokens and mask tokens, each with its position, through a small transformer to pixels.

    Reference: He et al., 2021 (arXiv:2111.06377), Sec. 3, Fig. 1; defaults are the paper's (Table 1).

    Attributes:
        mlp_ratio: hidden width of the MLPs over the decoder's; `mlp_dim`, where given, is that width itself.
        positions: "sincos2d", "sincos2d_bigvision" or "learned" (also a fixed table that a file of weights stores).
        prefix_positions: the first so many prefix tokens have learned positions too.
        position_resampling: rule by which a learned table serves another grid (`nn.resample`).
    """

    width: int = 512
    depth: int = 8
    heads: int = 16
    mlp_ratio: float = 4.0
    mlp_dim: int | None = None
    activation: str = "gelu"
    qkv_bias: bool = True
    positions: str = "sincos2d"
    prefix_positions: int = 0
    position_resampling: str = "bicubic"
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
        patches = patches + _position_table(self, grid).astype(x.dtype)[None]
        if self.prefix_positions:
            shape = (self.prefix_positions, self.width)
            own = self.param("prefix_positions", nn.initializers.normal(0.02), shape, jnp.float32)
            own = jnp.pad(own, ((0, num_prefix - self.prefix_positions), (0, 0)))
            prefix = prefix + own.astype(x.dtype)[None]
        x = jnp.concatenate([prefix, patches], axis=1)
        x, _ = Transformer(
            self.width,
            self.depth,
            self.heads,
            self.mlp_dim or int(self.width * self.mlp_ratio),
            self.activation,
            norm_epsilon=self.norm_epsilon,
            scan=self.scan,
            remat=self.remat,
            dtype=self.dtype,
            qkv_bias=self.qkv_bias,
            name="transformer",
        )(x)
        x = LayerNorm(self.norm_epsilon, self.dtype, name="norm")(x)
        # float32: the loss compares these with pixels
        return Dense(num_pixels, dtype=self.dtype, name="pixels")(x)[:, num_prefix:].astype(jnp.float32)


class JepaPredictor(nn.Module):
    """I-JEPA's predictor: representations of hidden blocks from those of the context, one block at a time.

    Context tokens and mask tokens, each with its position, pass through a narrow transformer; a block's mask tokens
    see the context and each other, and not the other blocks'.

    Reference: Assran et al., 2023 (arXiv:2301.08243), Sec. 3 and App. A.1; width and depth are those of ViT-B and L.

    Attributes:
        positions, position_resampling: as of `MaskedDecoder`.
    """

    width: int = 384
    depth: int = 6
    heads: int = 12
    mlp_ratio: float = 4.0
    mlp_dim: int | None = None
    activation: str = "gelu"
    qkv_bias: bool = True
    positions: str = "sincos2d"
    position_resampling: str = "bicubic"
    norm_epsilon: float = 1e-6
    scan: bool = False
    remat: str = "none"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "rows k d"],
        context: Int[Array, "contexts b k"],
        targets: Int[Array, "blocks b q"],
        grid: tuple[int, int],
        context_valid: Bool[Array, "contexts b k"] | None = None,
        targets_valid: Bool[Array, "blocks b q"] | None = None,
    ) -> Float[Array, "out_rows q d"]:
        """Representations of the patches `targets`; rows by block, then context, then example.

        Args:
            tokens: of the patches `context`; rows by context, then example.
            context: indices of the patches that the encoder saw, in one or more ways.
            targets: indices of the patches to predict, one block of them or more.
            grid: rows and columns of all patches.
            context_valid: with the next, which of the context are no padding: that is not attended to. None: all.
            targets_valid: the same of the targets; what is predicted of padding means nothing.
        """
        init = nn.initializers.normal(0.02)
        table = _position_table(self, grid).astype(self.dtype)
        num_blocks, num_targets = targets.shape[0], targets.shape[2]
        seen = Dense(self.width, kernel_init=init, dtype=self.dtype, name="embed")(tokens)
        seen = seen + table[rearrange(context, "e b k -> (e b) k")]
        mask_token = self.param("mask_token", init, (self.width,), jnp.float32).astype(self.dtype)
        hidden = mask_token[None, None] + table[repeat(targets, "t b q -> (t e b) q", e=context.shape[0])]
        x = jnp.concatenate([repeat(seen, "row k d -> (t row) k d", t=num_blocks), hidden], axis=1)
        mask = None
        if context_valid is not None and targets_valid is not None:
            seen_valid = repeat(context_valid, "e b k -> (t e b) k", t=num_blocks)
            hidden_valid = repeat(targets_valid, "t b q -> (t e b) q", e=context.shape[0])
            mask = jnp.concatenate([seen_valid, hidden_valid], axis=1)[:, None, None, :]
        x, _ = Transformer(
            self.width,
            self.depth,
            self.heads,
            self.mlp_dim or int(self.width * self.mlp_ratio),
            self.activation,
            norm_epsilon=self.norm_epsilon,
            scan=self.scan,
            remat=self.remat,
            kernel_init=init,
            dtype=self.dtype,
            qkv_bias=self.qkv_bias,
            name="transformer",
        )(x, mask=mask)
        x = LayerNorm(self.norm_epsilon, self.dtype, name="norm")(x[:, -num_targets:])
        # float32: the loss compares these with the teacher's
        return Dense(tokens.shape[-1], kernel_init=init, dtype=self.dtype, name="out")(x).astype(jnp.float32)


class TokenDecoder(nn.Module):
    """Pixels, or logits of classes, from each token alone: residual MLPs, then a dense layer.

    AIM's head (El-Nouby et al., 2024, arXiv:2401.08541, Sec. 3.1), with the defaults; with depth=0 and
    positions="none" a dense layer, as iGPT's (Chen et al., 2020, ICML), which starts from zero (init_std=0).

    Attributes:
        width: of the MLPs' residual stream; None for the tokens'.
        depth: MLPs.
        positions: added before the first: a name in `nn.positions.SINCOS`, or "none".
        use_bias: the layers have offsets.
        init_std: of the last layer's kernel, whose distribution is normal; None for Glorot's uniform one.
    """

    width: int | None = None
    depth: int = 12
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    positions: str = "sincos2d"
    norm_epsilon: float = 1e-6
    use_bias: bool = False
    init_std: float | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b n d"], grid: tuple[int, int], num_outputs: int
    ) -> Float[Array, "b n p"]:
        """`num_outputs` values for each token.

        Args:
            tokens: of the first n patches of an image, in raster order.
            grid: rows and columns of all patches.
            num_outputs: pixels of a patch, or classes.
        """
        x, width = tokens.astype(self.dtype), self.width or tokens.shape[-1]
        if width != tokens.shape[-1]:
            x = Dense(width, dtype=self.dtype, use_bias=self.use_bias, name="embed")(x)
        table = lookup({**SINCOS, "none": None}, self.positions, "positions")
        if table is not None:
            x = x + jnp.asarray(table(grid, width), self.dtype)[None, : x.shape[1]]
        for i in range(self.depth):
            y = LayerNorm(self.norm_epsilon, self.dtype, name=f"norm_{i}")(x)
            hidden = int(width * self.mlp_ratio)
            x = x + Mlp(width, hidden, self.activation, dtype=self.dtype, use_bias=self.use_bias, name=f"mlp_{i}")(y)
        if self.depth:
            x = LayerNorm(self.norm_epsilon, self.dtype, name="norm")(x)
        init = xavier_uniform if self.init_std is None else nn.initializers.normal(self.init_std)
        out = Dense(num_outputs, kernel_init=init, dtype=self.dtype, use_bias=self.use_bias, name="out")
        return out(x).astype(jnp.float32)  # float32: the loss compares these
