"""ConvNeXt (Liu et al., 2022, arXiv:2201.03545) and ConvNeXt V2 (Woo et al., 2023, arXiv:2301.00808)."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import lookup
from vfm_jax.core.types import Features
from vfm_jax.models.maps import Level, drop_rates, features_of_map, keys_of_layer, refuse_keep, refuse_without_cells
from vfm_jax.nn.convolutions import Conv, as_tokens, drop_path_of_map
from vfm_jax.nn.layers import ACTIVATIONS, Dense, LayerNorm, LayerScale
from vfm_jax.nn.normalization import GlobalResponseNorm
from vfm_jax.nn.patches import grid_of
from vfm_jax.nn.pooling import mean_pool

# blocks and width of each stage
SIZES = {
    "A": ((2, 2, 6, 2), (40, 80, 160, 320)),  # Woo et al., 2023, App. A.1: "Atto"; the next three are also V2's
    "F": ((2, 2, 6, 2), (48, 96, 192, 384)),
    "P": ((2, 2, 6, 2), (64, 128, 256, 512)),
    "N": ((2, 2, 8, 2), (80, 160, 320, 640)),
    "T": ((3, 3, 9, 3), (96, 192, 384, 768)),  # Liu et al., 2022, Sec. 3: the next five
    "S": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "B": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "L": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "XL": ((3, 3, 27, 3), (256, 512, 1024, 2048)),
    "H": ((3, 3, 27, 3), (352, 704, 1408, 2816)),  # Woo et al., 2023, App. A.1
}
# The authors truncate at ±2, which is a hundred deviations away.
_INIT = nn.initializers.normal(0.02)


class ConvNeXt(nn.Module):
    """Stem of patches, stages of depthwise convolutions, norm of the mean.

    V2 is `layer_scale=None, grn=True`; DINOv3's is V1 with `mean_token=True`.

    Attributes:
        variant: a row of `SIZES`.
        depths: blocks of each stage; this and the next replace the variant's where they are given.
        widths: of each stage.
        stem_size: pixels along one side of the stem's patches.
        layer_scale: initial value of LayerScale; None for none.
        grn: global response norm inside the MLP.
        mean_token: the mean of the cells is the first token, and all tokens are normalised.
        drop_path: rate of the last block, rising linearly from zero.
        final_norm_epsilon: of the norm of the mean; None for `norm_epsilon`.
        levels: outputs returned too: "stem", or indices of stages.
        dtype: of products; parameters and norms are float32.
    """

    variant: str = "T"
    depths: Sequence[int] | None = None
    widths: Sequence[int] | None = None
    stem_size: int = 4
    layer_scale: float | None = 1e-6
    grn: bool = False
    mean_token: bool = False
    activation: str = "gelu"
    drop_path: float = 0.0
    norm_epsilon: float = 1e-6
    final_norm_epsilon: float | None = None
    levels: Sequence[Level] = ()
    dtype: DTypeLike = jnp.float32

    @property
    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Blocks and width of each stage."""
        row = lookup(SIZES, self.variant, "variant")
        depths, widths = (tuple(own or default) for own, default in zip((self.depths, self.widths), row, strict=True))
        if len(depths) != len(widths):
            raise UserError(f"Each stage has a depth and a width; found depths {depths} and widths {widths}.")
        return depths, widths

    @property
    def patch_size(self) -> int:
        """Pixels along one side of a cell of the last stage."""
        return self.stem_size * 2 ** (len(self.sizes[0]) - 1)

    @property
    def masked_size(self) -> int:
        """Pixels along one side of what an entry of `masked` stands for."""
        return self.patch_size

    @property
    def num_levels(self) -> int:
        """How many stages there are to ask for by `levels`."""
        return len(self.sizes[0])

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b h w c"],
        *,
        keep: Int[Array, "b k"] | None = None,
        masked: Bool[Array, "b n"] | None = None,
        keys: jax.Array | None = None,
        train: bool = False,
    ) -> Features:
        """See `models.interface.Encoder`. Rows and columns of pixels that fill no cell are left out.

        With `masked`, this is a sparse network of the other cells, computed densely (Woo et al., 2023, Sec. 3.1, and
        the authors' code for TPUs): hidden positions are zero before every convolution, norms see the visible ones
        alone, hidden tokens come out as zeros and `pooled` is of the visible ones. The authors' code for GPUs takes
        the global response norm over all images of a device instead of each.

        Args:
            image: normalised images.
            keep: not possible; see `masked`.
            masked: cells of the last stage (n, in raster order) that are not looked at.
            keys: as of the interface.
            train: as of the interface.

        Raises:
            UserError: `keep` is given, or an image without a cell.
            ValueError: cells are masked in an image that does not divide into them.
        """
        refuse_keep(keep, "ConvNeXt")
        depths, widths = self.sizes
        keys = keys if train and self.drop_path > 0 else None
        rates = drop_rates(self.drop_path, depths)
        side = self.stem_size
        x = Conv(widths[0], side, side, 0, kernel_init=_INIT, dtype=self.dtype, name="stem")(image)
        x = LayerNorm(self.norm_epsilon, self.dtype, name="stem_norm")(x)
        visible = _visible(masked, image, self.patch_size, len(widths))
        x = _hidden_as_zero(x, visible[0])
        maps: dict[Level, jax.Array] = {"stem": x}
        for i, width in enumerate(widths):
            stage = _Stage(
                width, i > 0, rates[i], sum(depths[:i]), self.activation, self.layer_scale, self.grn,
                self.norm_epsilon, self.dtype, name=f"stage_{i}",
            )  # fmt: skip
            x = maps[i] = stage(x, keys, visible[i])
        refuse_without_cells(x, image)
        norm = LayerNorm(
            self.norm_epsilon if self.final_norm_epsilon is None else self.final_norm_epsilon, name="norm"
        )
        mean = mean_pool(as_tokens(x), None if masked is None else ~masked)
        if not self.mean_token:
            return features_of_map(x, norm(mean), maps, self.levels)
        features = features_of_map(x, mean, maps, self.levels)
        tokens = norm(jnp.concatenate([mean[:, None], features.tokens], axis=1))
        return features.replace(tokens=tokens, pooled=tokens[:, 0], num_prefix_tokens=1)


class _Stage(nn.Module):
    width: int
    downsample: bool
    rates: tuple[float, ...]
    first: int
    activation: str
    layer_scale: float | None
    grn: bool
    norm_epsilon: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None, visible: jax.Array | None) -> jax.Array:
        if self.downsample:
            x = LayerNorm(self.norm_epsilon, self.dtype, name="downsample_norm")(x)
            x = Conv(self.width, 2, 2, 0, kernel_init=_INIT, dtype=self.dtype, name="downsample")(x)
            x = _hidden_as_zero(x, visible)  # the norm's and the convolution's offsets are everywhere
        for j, rate in enumerate(self.rates):
            block = _Block(
                self.activation, self.layer_scale, self.grn, self.norm_epsilon, self.dtype, name=f"block_{j}"
            )
            branch = drop_path_of_map(keys_of_layer(keys, self.first + j), block(x, visible), rate)
            x = _hidden_as_zero(x + branch, visible)
        return x


def _visible(masked: jax.Array | None, image: jax.Array, patch_size: int, stages: int) -> list[jax.Array | None]:
    """Which positions of each stage's map are visible (b h w); None for all."""
    if masked is None:
        return [None] * stages
    grid = grid_of((image.shape[1], image.shape[2]), patch_size)
    cells = rearrange(~masked, "b (h w) -> b h w", h=grid[0])
    times = [2 ** (stages - 1 - i) for i in range(stages)]
    return [repeat(cells, "b h w -> b (h down) (w right)", down=side, right=side) for side in times]


def _hidden_as_zero(x: jax.Array, visible: jax.Array | None) -> jax.Array:
    return x if visible is None else jnp.where(visible[..., None], x, 0.0)


class _Block(nn.Module):
    """The residual branch: look around, norm, mix channels."""

    activation: str
    layer_scale: float | None
    grn: bool
    norm_epsilon: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, visible: jax.Array | None = None) -> jax.Array:
        width = x.shape[-1]
        y = Conv(width, 7, groups=width, kernel_init=_INIT, dtype=self.dtype, name="depthwise")(x)
        y = LayerNorm(self.norm_epsilon, self.dtype, name="norm")(y)
        y = Dense(4 * width, kernel_init=_INIT, dtype=self.dtype, name="up")(y)
        y = lookup(ACTIVATIONS, self.activation, "activation")(y)
        if self.grn:
            y = GlobalResponseNorm(name="grn")(y, visible)
        y = Dense(width, kernel_init=_INIT, dtype=self.dtype, name="down")(y)
        return y if self.layer_scale is None else LayerScale(self.layer_scale, name="scale")(y)


class ConvNeXtDecoder(nn.Module):
    """FCMAE's decoder: visible tokens and mask tokens through blocks of ConvNeXt V2 to the pixels of every cell.

    Reference: Woo et al., 2023 (arXiv:2301.00808), Sec. 3.1; defaults are the paper's.

    Attributes:
        width: of the blocks.
        depth: number of blocks.
    """

    width: int = 512
    depth: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b n d"], masked: Bool[Array, "b n"], grid: tuple[int, int], num_pixels: int
    ) -> Float[Array, "b n p"]:
        """Pixels of every cell, visible ones included.

        Args:
            tokens: of all cells, in raster order; those of hidden ones do not matter.
            masked: the hidden ones.
            grid: rows and columns of cells.
            num_pixels: values to predict per cell.
        """
        x = Dense(self.width, kernel_init=_INIT, dtype=self.dtype, name="embed")(tokens)
        mask_token = self.param("mask_token", _INIT, (self.width,), jnp.float32)
        x = jnp.where(masked[:, :, None], mask_token[None, None].astype(x.dtype), x)
        x = rearrange(x, "b (h w) d -> b h w d", h=grid[0])
        for i in range(self.depth):
            x = x + _Block("gelu", None, True, 1e-6, self.dtype, name=f"block_{i}")(x)
        pixels = Dense(num_pixels, kernel_init=_INIT, dtype=self.dtype, name="pixels")
        return pixels(as_tokens(x)).astype(jnp.float32)  # float32: compared with pixels
