"""ResNet (He et al., 2015, arXiv:1512.03385) in its version 1.5: the 3x3 convolution of a bottleneck strides."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import lookup
from vfm_jax.core.types import Features
from vfm_jax.models.maps import Level, features_of_map, refuse_keep
from vfm_jax.nn.convolutions import Conv, max_pool
from vfm_jax.nn.layers import ACTIVATIONS
from vfm_jax.nn.normalization import BatchNorm

# block, blocks of each stage: He et al., 2015, Table 1; 200: He et al., 2016 (arXiv:1603.05027), Table 5
SIZES = {
    "18": ("basic", (2, 2, 2, 2)),
    "34": ("basic", (3, 4, 6, 3)),
    "50": ("bottleneck", (3, 4, 6, 3)),
    "101": ("bottleneck", (3, 4, 23, 3)),
    "152": ("bottleneck", (3, 8, 36, 3)),
    "200": ("bottleneck", (3, 24, 36, 3)),
}
EXPANSION = {"basic": 1, "bottleneck": 4}
STEMS = ("imagenet", "cifar")


class ResNet(nn.Module):
    """Stem, stages of residual blocks with batch norm, mean.

    Attributes:
        variant: a row of `SIZES`.
        width: channels of the stem; the stages' 3x3 convolutions have 1, 2, 4, 8 times as many. 64 is the paper's,
            128 and 256 are the wider ones of SimCLR (Chen et al., 2020, arXiv:2002.05709).
        block: "basic" or "bottleneck"; this and the next three replace what variant and width say.
        depths: blocks of each stage.
        widths: channels of each stage's output.
        stem_width: channels of the stem.
        bottleneck_width: channels of a bottleneck's 3x3 convolution, in units of a quarter of the block's output
            (2.0 in Wide ResNet-50-2: Zagoruyko and Komodakis, 2016, arXiv:1605.07146).
        stem: "imagenet" (7x7 with stride 2, max pool) or "cifar" (3x3 with stride 1, no pool; SimCLR, App. B.9).
        downsample_first: the first stage halves the map too.
        stride_first: the first 1x1 convolution of a bottleneck strides (version 1), in place of the 3x3.
        activation: of the stem and of every block's sum.
        inner_activation: within a block; None for `activation`.
        zero_init: the last norm of a block starts at zero, so that every block starts as its shortcut (Goyal et al.,
            2017, arXiv:1706.02677, Sec. 5.1).
        norm_momentum: see `nn.normalization.BatchNorm`.
        unbiased_variance: the same; True is PyTorch's rule.
        levels: outputs returned too: "stem", or indices of stages.
        dtype: of products; parameters and statistics are float32.
    """

    variant: str = "50"
    width: int = 64
    block: str | None = None
    depths: Sequence[int] | None = None
    widths: Sequence[int] | None = None
    stem_width: int | None = None
    bottleneck_width: float = 1.0
    stem: str = "imagenet"
    downsample_first: bool = False
    stride_first: bool = False
    activation: str = "relu"
    inner_activation: str | None = None
    zero_init: bool = True
    norm_momentum: float = 0.9
    norm_epsilon: float = 1e-5
    unbiased_variance: bool = True
    levels: Sequence[Level] = ()
    dtype: DTypeLike = jnp.float32

    @property
    def sizes(self) -> tuple[str, tuple[int, ...], tuple[int, ...], int]:
        """Block, blocks of each stage, channels of each stage, channels of the stem."""
        block, depths = lookup(SIZES, self.variant, "variant")
        block, depths = self.block or block, tuple(self.depths or depths)
        expansion = lookup(EXPANSION, block, "block")
        widths = tuple(self.widths or (self.width * 2**i * expansion for i in range(len(depths))))
        if len(depths) != len(widths):
            raise UserError(f"Each stage has a depth and a width; found depths {depths} and widths {widths}.")
        return block, depths, widths, self.stem_width or self.width

    @property
    def patch_size(self) -> int:
        """Pixels along one side of a cell of the last stage."""
        stem = 4 if self.stem == "imagenet" else 1
        return stem * 2 ** (len(self.sizes[1]) - 1 + self.downsample_first)

    @property
    def num_levels(self) -> int:
        """How many stages there are to ask for by `levels`."""
        return len(self.sizes[1])

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b h w c"],
        *,
        keep: Int[Array, "b k"] | None = None,
        keys: jax.Array | None = None,
        train: bool = False,
    ) -> Features:
        """See `models.interface.Encoder`. Nothing is drawn: `keys` is ignored.

        Raises:
            UserError: `keep` is given, or an unknown stem.
        """
        del keys
        refuse_keep(keep, "ResNet")
        if self.stem not in STEMS:
            raise UserError(f'The stem of a ResNet is "imagenet" or "cifar"; found {self.stem!r}.')
        block, depths, widths, stem_width = self.sizes
        activate = lookup(ACTIVATIONS, self.activation, "activation")

        side, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        style = _Style(
            block, self.bottleneck_width, self.stride_first, self.activation,
            self.inner_activation or self.activation, self.zero_init, self.norm_momentum, self.norm_epsilon,
            self.unbiased_variance, self.dtype,
        )  # fmt: skip
        x = Conv(stem_width, side, stride, use_bias=False, dtype=self.dtype, name="stem")(image)
        x = activate(style.norm("stem_norm")(x, train=train))
        if self.stem == "imagenet":
            x = max_pool(x, 3, 2, 1)
        maps: dict[Level, jax.Array] = {"stem": x}
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            stride = 2 if i > 0 or self.downsample_first else 1
            x = maps[i] = _Stage(style, width, depth, stride, name=f"stage_{i}")(x, train)
        return features_of_map(x, jnp.mean(x.astype(jnp.float32), axis=(1, 2)), maps, self.levels)


class _Style(NamedTuple):
    """What all blocks of a network have in common."""

    block: str
    bottleneck_width: float
    stride_first: bool
    activation: str
    inner_activation: str
    zero_init: bool
    norm_momentum: float
    norm_epsilon: float
    unbiased_variance: bool
    dtype: DTypeLike

    def norm(self, name: str, *, last: bool = False) -> BatchNorm:
        scale = 0.0 if last and self.zero_init else 1.0
        return BatchNorm(
            self.norm_momentum, self.norm_epsilon, unbiased=self.unbiased_variance, scale_init=scale, name=name
        )

    def layers(self, width: int, stride: int) -> list[tuple[int, int, int]]:
        """Channels, kernel side and stride of a block's convolutions."""
        if self.block == "basic":
            return [(width, 3, stride), (width, 3, 1)]
        inner = int(width // EXPANSION["bottleneck"] * self.bottleneck_width)
        first, second = (stride, 1) if self.stride_first else (1, stride)
        return [(inner, 1, first), (inner, 3, second), (width, 1, 1)]


class _Stage(nn.Module):
    style: _Style
    width: int
    depth: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for j in range(self.depth):
            x = _Block(self.style, self.width, self.stride if j == 0 else 1, name=f"block_{j}")(x, train)
        return x


class _Block(nn.Module):
    style: _Style
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        style, shortcut = self.style, x
        if x.shape[-1] != self.width or self.stride != 1:
            shortcut = Conv(self.width, 1, self.stride, use_bias=False, dtype=style.dtype, name="shortcut")(x)
            shortcut = style.norm("shortcut_norm")(shortcut, train=train)
        layers = style.layers(self.width, self.stride)
        for i, (width, side, stride) in enumerate(layers, start=1):
            last = i == len(layers)
            x = Conv(width, side, stride, use_bias=False, dtype=style.dtype, name=f"conv{i}")(x)
            x = style.norm(f"norm{i}", last=last)(x, train=train)
            x = x if last else ACTIVATIONS[style.inner_activation](x)
        return ACTIVATIONS[style.activation](x + shortcut)
