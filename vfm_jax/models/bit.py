"""BiT: ResNet-v2 with group norm and weight standardisation (Kolesnikov et al., 2020, arXiv:1912.11370)."""

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
from vfm_jax.models.maps import Level, drop_rates, features_of_map, keys_of_layer, refuse_keep, refuse_without_cells
from vfm_jax.nn.convolutions import Conv, Padding, drop_path_of_map, max_pool
from vfm_jax.nn.layers import ACTIVATIONS
from vfm_jax.nn.normalization import GroupNorm

# blocks of each stage: Kolesnikov et al., 2020, Sec. 3.1 and Table 1 (R50, R101, R152; times 1, 2, 3, 4)
DEPTHS = {"R26": (2, 2, 2, 2), "R50": (3, 4, 6, 3), "R101": (3, 4, 23, 3), "R152": (3, 8, 36, 3)}
_INIT = nn.initializers.lecun_normal()

# Zeros around the stem's map, and the padding of its 3x3 max pool with their value
STEM_POOLS: dict[str, tuple[int, Padding, float]] = {
    "zeros": (1, 0, 0.0),  # the authors' released models, timm's "fixed", HF without SAME
    "symmetric": (0, 1, -float("inf")),  # big_vision, PyTorch's usual
    "none": (0, 0, 0.0),  # HF with SAME
    "same": (0, "same", 0.0),  # HF with SAME and dynamic padding
    "zeros_same": (1, "same", 0.0),  # HF with dynamic padding alone
}


class BiT(nn.Module):
    """Stem, stages of pre-activation bottlenecks, norm, mean.

    Attributes:
        variant: "R50x1": a row of `DEPTHS`, and the factor on all widths.
        depths: blocks of each stage; this and the next two replace the variant's where they are given.
        widths: channels of each stage's output.
        stem_width: channels of the stem.
        groups: of the group norms.
        stem: "imagenet" (7x7 with stride 2, max pool) or "cifar" (3x3 with stride 1, no pool).
        stem_pool: how the map is padded for the max pool, a row of `STEM_POOLS`.
        padding: of the convolutions: None for half the kernel on each side, "same" for TensorFlow's rule.
        preactivation: norm and activation stand before the convolutions (version 2); False for HF's "bottleneck"
            blocks, which have them behind.
        output_stride: pixels along one side of a cell of the last stage; from there on stages do not stride.
        dilate: such stages have dilated 3x3 convolutions in place of the stride.
        standardize_epsilon: added to the variance of the kernels (1e-10 in the authors' code; timm and HF 1e-8).
        drop_path: rate of the last block, rising linearly from zero.
        levels: outputs returned too: "stem", or indices of stages.
        dtype: of products; parameters and norms are float32.
    """

    variant: str = "R50x1"
    depths: Sequence[int] | None = None
    widths: Sequence[int] | None = None
    stem_width: int | None = None
    groups: int = 32
    stem: str = "imagenet"
    stem_pool: str = "zeros"
    padding: str | None = None
    preactivation: bool = True
    activation: str = "relu"
    output_stride: int = 32
    dilate: bool = True
    standardize_epsilon: float = 1e-10
    norm_epsilon: float = 1e-5
    drop_path: float = 0.0
    levels: Sequence[Level] = ()
    dtype: DTypeLike = jnp.float32

    @property
    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Blocks of each stage, channels of each stage, channels of the stem."""
        name, _, factor = self.variant.partition("x")
        row = lookup(DEPTHS, name, "variant")
        if not factor.isdigit():
            raise UserError(f"variant {self.variant!r} has no width factor; write DEPTHxFACTOR, for example R50x1.")
        depths = tuple(self.depths or row)
        widths = tuple(self.widths or (256 * int(factor) * 2**i for i in range(len(depths))))
        if len(depths) != len(widths):
            raise UserError(f"Each stage has a depth and a width; found depths {depths} and widths {widths}.")
        return depths, widths, self.stem_width or 64 * int(factor)

    @property
    def strides(self) -> tuple[tuple[int, int], ...]:
        """Stride and dilation of each stage."""
        done, dilation, stages = 4 if self.stem == "imagenet" else 1, 1, []
        for i in range(len(self.sizes[0])):
            stride = 1 if i == 0 else 2
            if done >= self.output_stride:
                stride, dilation = 1, dilation * stride
            done *= stride
            stages.append((stride, dilation))
        return tuple(stages)

    @property
    def patch_size(self) -> int:
        """Pixels along one side of a cell of the last stage."""
        done = 4 if self.stem == "imagenet" else 1
        for stride, _ in self.strides:
            done *= stride
        return done

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
        keys: jax.Array | None = None,
        train: bool = False,
    ) -> Features:
        """See `models.interface.Encoder`.

        Raises:
            UserError: `keep` is given, an unknown stem or padding, widths that do not divide into the groups, or an
                image without a cell.
        """
        refuse_keep(keep, "BiT")
        self._check()
        depths, widths, stem_width = self.sizes
        keys = keys if train and self.drop_path > 0 else None
        style = _Style(
            self.groups, self.padding, self.activation, self.dilate, self.standardize_epsilon, self.norm_epsilon,
            self.dtype,
        )  # fmt: skip
        side, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        x = style.conv(stem_width, side, stride, name="stem")(image)
        margin, padding, fill = STEM_POOLS[self.stem_pool]
        pool = self.stem == "imagenet"
        if pool and margin:
            x = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        if not self.preactivation:  # as in HF, where the statistics of this norm count the margin
            x = style.norm_and_activate(x, "stem_norm")
        x = max_pool(x, 3, 2, padding, fill) if pool else x
        maps: dict[Level, jax.Array] = {"stem": x}
        rates, first = drop_rates(self.drop_path, depths), 0
        block = _PreactivationBlock if self.preactivation else _PostactivationBlock
        for i, (stride, dilation) in enumerate(self.strides):
            stage = _Stage(style, block, widths[i], stride, dilation, rates[i], first, name=f"stage_{i}")
            x = maps[i] = stage(x, keys)
            first += depths[i]
        refuse_without_cells(x, image)
        if self.preactivation:
            x = style.norm_and_activate(x, "norm")
        return features_of_map(x, jnp.mean(x.astype(jnp.float32), axis=(1, 2)), maps, self.levels)

    def _check(self) -> None:
        lookup(STEM_POOLS, self.stem_pool, "stem_pool")
        lookup(ACTIVATIONS, self.activation, "activation")
        if self.stem not in ("imagenet", "cifar") or self.padding not in (None, "same"):
            raise UserError(
                'A BiT has the stem "imagenet" or "cifar" and the padding None or "same"; '
                f"found {self.stem!r} and {self.padding!r}."
            )
        depths, widths, stem_width = self.sizes
        del depths
        for width in (stem_width, *widths, *(_quarter(width) for width in widths)):
            if width % self.groups:
                raise UserError(f"A map of {width} channels does not divide into {self.groups} groups; set groups.")


class _Style(NamedTuple):
    """What all blocks of a network have in common."""

    groups: int
    padding: str | None
    activation: str
    dilate: bool
    standardize_epsilon: float
    norm_epsilon: float
    dtype: DTypeLike

    def conv(self, width: int, side: int, stride: int = 1, dilation: int = 1, *, name: str) -> Conv:
        return Conv(
            width, side, stride, self.padding, dilation, use_bias=False, standardize=self.standardize_epsilon,
            kernel_init=_INIT, dtype=self.dtype, name=name,
        )  # fmt: skip

    def norm(self, name: str) -> GroupNorm:
        return GroupNorm(self.groups, self.norm_epsilon, self.dtype, name=name)

    def norm_and_activate(self, x: jax.Array, name: str) -> jax.Array:
        return ACTIVATIONS[self.activation](self.norm(name)(x))


def _quarter(width: int) -> int:
    """A quarter of the channels, rounded to a multiple of eight that is no more than a tenth smaller."""
    rounded = max(8, int(width * 0.25 + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width * 0.25 else rounded


class _Stage(nn.Module):
    style: _Style
    block: type[nn.Module]
    width: int
    stride: int
    dilation: int
    rates: tuple[float, ...]
    first: int

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        for j, rate in enumerate(self.rates):
            # The first block of a stage still looks at the undilated map of the stage before.
            dilation = self.dilation if j > 0 else (1 if self.dilation <= 2 else 2)
            block = self.block(
                self.style, self.width, self.stride if j == 0 else 1, dilation if self.style.dilate else 1, j == 0,
                name=f"block_{j}",
            )  # fmt: skip
            x = block(x, keys_of_layer(keys, self.first + j), rate)
        return x


class _PreactivationBlock(nn.Module):
    style: _Style
    width: int
    stride: int
    dilation: int
    project: bool

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None, rate: float) -> jax.Array:
        style, inner = self.style, _quarter(self.width)
        y = style.norm_and_activate(x, "norm1")
        shortcut = style.conv(self.width, 1, self.stride, name="shortcut")(y) if self.project else x
        y = style.conv(inner, 1, name="conv1")(y)
        y = style.norm_and_activate(y, "norm2")
        y = style.conv(inner, 3, self.stride, self.dilation, name="conv2")(y)
        y = style.norm_and_activate(y, "norm3")
        y = style.conv(self.width, 1, name="conv3")(y)
        return drop_path_of_map(keys, y, rate) + shortcut


class _PostactivationBlock(nn.Module):
    style: _Style
    width: int
    stride: int
    dilation: int
    project: bool

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None, rate: float) -> jax.Array:
        style, inner, shortcut = self.style, _quarter(self.width), x
        if self.project:
            shortcut = style.norm("shortcut_norm")(style.conv(self.width, 1, self.stride, name="shortcut")(x))
        y = style.norm_and_activate(style.conv(inner, 1, name="conv1")(x), "norm1")
        y = style.conv(inner, 3, self.stride, self.dilation, name="conv2")(y)
        y = style.norm_and_activate(y, "norm2")
        y = style.norm("norm3")(style.conv(self.width, 1, name="conv3")(y))
        return ACTIVATIONS[style.activation](drop_path_of_map(keys, y, rate) + shortcut)
