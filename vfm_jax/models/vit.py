"""Vision transformer (Dosovitskiy et al., 2020, arXiv:2010.11929)."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import lookup
from vfm_jax.core.types import Features
from vfm_jax.nn.layers import LayerNorm
from vfm_jax.nn.masking import gather_tokens
from vfm_jax.nn.patches import PatchEmbedding, grid_of, patchify
from vfm_jax.nn.pooling import AttentionPooling
from vfm_jax.nn.positions import sincos_2d
from vfm_jax.nn.transformer import Transformer

# width, depth, mlp_dim, heads
SIZES = {
    "mu": (32, 1, 128, 2),  # for tests; big_vision
    "Ti": (192, 12, 768, 3),  # Touvron et al., 2020 (arXiv:2012.12877), Table 1
    "S": (384, 12, 1536, 6),  # the same
    "M": (512, 12, 2048, 8),  # big_vision
    "B": (768, 12, 3072, 12),  # Dosovitskiy et al., 2020 (arXiv:2010.11929), Table 1
    "L": (1024, 24, 4096, 16),  # the same
    "So400m": (1152, 27, 4304, 16),  # Alabdulmohsin et al., 2023 (arXiv:2305.13035), Sec. 4.2
    "H": (1280, 32, 5120, 16),  # Dosovitskiy et al., 2020, Table 1
    "g": (1408, 40, 6144, 16),  # Zhai et al., 2021 (arXiv:2106.04560), Table 2
    "G": (1664, 48, 8192, 16),  # the same
}
POSITIONS = ("learned", "sincos2d")
POOLINGS = ("class", "mean", "attention")


class ViT(nn.Module):
    """Patches, positions, transformer, norm, pooling.

    Attributes:
        variant: "SIZE/PATCH": a row of `SIZES`, and the pixels along one side of a patch.
        width: of every token; this and the next three replace the variant's where they are given.
        depth: number of blocks.
        mlp_dim: hidden width of the blocks' MLP.
        heads: attention heads.
        positions: "learned" (a table for the grid of the images first seen) or fixed "sincos2d" (any grid).
        class_token: prepend a learned token, without a position of its own.
        pooling: "class" token, "mean" of the patch tokens, or "attention" by a learned query.
        norm_pooled: take the mean first and normalise it, in place of the tokens (MAE's fine-tuning).
        layer_scale: initial value of LayerScale; None for none.
        drop_path: rate of the last block, rising linearly from zero.
        levels: blocks whose outputs are returned too.
        scan: run the blocks by a scan (see `nn.transformer`).
        remat: what to recompute in the backward pass: "none", "dots" or "full".
        dtype: of matrix products; parameters, norms and softmax are float32.
    """

    variant: str = "S/16"
    width: int | None = None
    depth: int | None = None
    mlp_dim: int | None = None
    heads: int | None = None
    positions: str = "learned"
    class_token: bool = True
    pooling: str = "class"
    norm_pooled: bool = False
    activation: str = "gelu"
    layer_scale: float | None = None
    drop_path: float = 0.0
    norm_epsilon: float = 1e-6
    levels: Sequence[int] = ()
    scan: bool = False
    remat: str = "none"
    dtype: DTypeLike = jnp.float32

    @property
    def patch_size(self) -> int:
        """Pixels along one side of a patch."""
        patch = self.variant.partition("/")[2]
        if not patch.isdigit() or int(patch) == 0:
            raise UserError(f"variant {self.variant!r} has no patch size; write SIZE/PATCH, for example S/16.")
        return int(patch)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Width, depth, MLP width and heads."""
        row = lookup(SIZES, self.variant.partition("/")[0], "variant")
        given = (self.width, self.depth, self.mlp_dim, self.heads)
        width, depth, mlp_dim, heads = (own or default for own, default in zip(given, row, strict=True))
        return width, depth, mlp_dim, heads

    def setup(self) -> None:
        if self.positions not in POSITIONS or self.pooling not in POOLINGS:
            raise UserError(
                f"A ViT has positions {' or '.join(POSITIONS)} and pooling {' or '.join(POOLINGS)}; "
                f"found {self.positions!r} and {self.pooling!r}."
            )
        if self.pooling == "class" and not self.class_token:
            raise UserError('pooling "class" needs class_token=True; without one choose "mean" or "attention".')
        if self.norm_pooled and self.pooling != "mean":
            raise UserError(
                f'norm_pooled normalises the mean of the patches: it needs pooling="mean", not {self.pooling!r}.'
            )
        width, depth, mlp_dim, heads = self.sizes
        self.patch_embedding = PatchEmbedding(width, self.patch_size, dtype=self.dtype)
        self.transformer = Transformer(
            width,
            depth,
            heads,
            mlp_dim,
            self.activation,
            self.layer_scale,
            self.drop_path,
            self.norm_epsilon,
            self.scan,
            self.remat,
            dtype=self.dtype,
        )
        self.norm = LayerNorm(self.norm_epsilon, self.dtype)
        if self.class_token:
            init = nn.initializers.normal(0.02)
            self.class_embedding = self.param("class_token", init, (width,), jnp.float32)
        if self.pooling == "attention":
            self.pool = AttentionPooling(width, heads, mlp_dim, self.activation, self.norm_epsilon, dtype=self.dtype)

    def _position_table(self, grid: tuple[int, int]) -> Float[Array, "n d"]:
        if self.positions == "sincos2d":
            return jnp.asarray(sincos_2d(grid, self.sizes[0]))
        if self.is_initializing() and not self.has_variable("params", "positions"):
            table = nn.initializers.normal(0.02)(self.make_rng("params"), (*grid, self.sizes[0]), jnp.float32)
            self.put_variable("params", "positions", table)
        table = self.get_variable("params", "positions")
        if table.shape[:2] != grid:
            raise UserError(
                f"The learned positions are for a grid of {table.shape[0]} x {table.shape[1]} patches; these images "
                f'have {grid[0]} x {grid[1]}. Resize the images, or train with positions="sincos2d".'
            )
        return table.reshape(-1, self.sizes[0])

    def _embed(self, image: Float[Array, "b h w c"], keep: Int[Array, "b k"] | None) -> Float[Array, "b n d"]:
        grid = grid_of((image.shape[1], image.shape[2]), self.patch_size)
        patches = patchify(image, self.patch_size)  # b n p
        table = self._position_table(grid)
        positions = jnp.broadcast_to(table[None], (image.shape[0], *table.shape))  # b n d
        if keep is not None:  # hidden patches are not even embedded
            patches, positions = gather_tokens(patches, keep), gather_tokens(positions, keep)
        x = self.patch_embedding(patches) + positions.astype(self.dtype)
        if self.class_token:
            token = self.class_embedding.astype(self.dtype)
            x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, token.shape[0])), x], axis=1)
        return x

    def __call__(
        self,
        image: Float[Array, "b h w c"],
        *,
        keep: Int[Array, "b k"] | None = None,
        keys: jax.Array | None = None,
        train: bool = False,
    ) -> Features:
        """See `models.interface.Encoder`. Tokens and pooled are float32.

        Raises:
            ValueError: the patch size does not divide the image.
            UserError: learned positions for another grid.
        """
        grid = grid_of((image.shape[1], image.shape[2]), self.patch_size)
        x, levels = self.transformer(self._embed(image, keep), keys=keys if train else None, levels=self.levels)
        num_prefix = int(self.class_token)
        if self.norm_pooled:
            pooled = self.norm(jnp.mean(x[:, num_prefix:].astype(jnp.float32), axis=1))
        else:
            x = self.norm(x)
            if self.pooling == "class":
                pooled = x[:, 0]
            elif self.pooling == "mean":
                pooled = jnp.mean(x[:, num_prefix:].astype(jnp.float32), axis=1)
            else:
                pooled = self.pool(x)
        # float32: losses, statistics and evaluators sum over these
        return Features(x.astype(jnp.float32), pooled.astype(jnp.float32), levels, grid, num_prefix)

    def attention(self, image: Float[Array, "b h w c"]) -> Float[Array, "b heads gh gw"]:
        """Attention of the pooled representation to the patches, by head.

        Of the class token in the last block, of the pooling query, or (mean pooling) of the average patch in the
        last block.
        """
        grid = grid_of((image.shape[1], image.shape[2]), self.patch_size)
        num_prefix = int(self.class_token)
        x = self._embed(image, None)
        if self.pooling == "attention":
            tokens = self.norm(self.transformer(x)[0])
            weights = self.pool.weights(tokens)
        else:
            rows = self.transformer.last_attention(x)  # b heads n n
            weights = rows[:, :, 0] if self.pooling == "class" else jnp.mean(rows[:, :, num_prefix:], axis=2)
        weights = weights[:, :, num_prefix:].astype(jnp.float32)
        return weights.reshape(*weights.shape[:2], *grid)
