"""Decoders from a map of tokens, one for every cell, to pixels or to other features of the cells."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vfm_jax.core.errors import UserError
from vfm_jax.nn.convolutions import Conv, as_tokens
from vfm_jax.nn.layers import Dense, gelu
from vfm_jax.nn.patches import unpatchify

torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


class PixelHead(nn.Module):
    """The pixels of each cell by one linear layer: a 1x1 convolution and a pixel shuffle.

    Reference: Xie et al., SimMIM, 2021 (arXiv:2111.09886), Sec. 3.3. The outputs stand in the order (row, column,
    channel), where PyTorch's shuffle has (channel, row, column).
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b n d"], grid: tuple[int, int], patch_size: int, channels: int
    ) -> Float[Array, "b h w c"]:
        """The image that the cells make.

        Args:
            tokens: of the cells of `grid`, in raster order.
            grid: rows and columns of cells.
            patch_size: pixels along one side of a cell.
            channels: of the image.
        """
        layer = Dense(patch_size**2 * channels, kernel_init=torch_uniform, dtype=self.dtype, name="pixels")
        return unpatchify(layer(tokens).astype(jnp.float32), grid, patch_size)  # float32: compared with pixels


class UpsamplingDecoder(nn.Module):
    """Pixels from a map by convolutions: each step halves the channels and doubles the sides, up to the image's.

    The decoder of Pathak et al., Context Encoders, 2016 (arXiv:1604.07379), Sec. 3.1, with repetition and a 3x3
    convolution for each of its up-convolutions (Odena et al., 2016, doi:10.23915/distill.00003: no checkerboards).

    Attributes:
        width: channels of the first step.
    """

    width: int = 512
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b n d"], grid: tuple[int, int], patch_size: int, channels: int
    ) -> Float[Array, "b h w c"]:
        """See `PixelHead`.

        Raises:
            UserError: the patch is no power of two.
        """
        steps = patch_size.bit_length() - 1
        if patch_size != 2**steps:
            raise UserError(
                f"The upsampling decoder doubles sides, and makes no cells of {patch_size} pixels from one. Choose "
                'an encoder whose patches are a power of two, or the decoder "pixel_head".'
            )
        x = rearrange(tokens, "b (h w) d -> b h w d", h=grid[0])
        for step in range(steps):
            x = Conv(max(self.width >> step, 8), 3, dtype=self.dtype, name=f"conv_{step}")(x)
            x = repeat(jax.nn.relu(x), "b h w d -> b (h down) (w right) d", down=2, right=2)
        return Conv(channels, 3, dtype=self.dtype, name="pixels")(x).astype(jnp.float32)


class ConvDecoder(nn.Module):
    """Features of all cells from a map in which hidden cells hold noise: grouped convolutions, then a linear layer.

    Each convolution is followed by a layer norm without factors and GELU, and added to its input where that is as
    wide. The decoder of Baevski et al., data2vec 2.0, 2022 (arXiv:2212.07525), Sec. 3.2, in the authors' code
    (`Decoder2d`); defaults are those of their ViT-B.

    Attributes:
        width: channels of the convolutions.
        depth: how many there are.
        kernel_size: their side.
        groups: into which their channels are split.
    """

    width: int = 768
    depth: int = 6
    kernel_size: int = 3
    groups: int = 16
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n d"], grid: tuple[int, int]) -> Float[Array, "b n d"]:
        """Features of the cells of `grid`, of the width that the tokens have.

        Raises:
            UserError: the groups do not divide the channels.
        """
        if tokens.shape[-1] % self.groups or self.width % self.groups:
            raise UserError(
                f"The convolutional decoder has {self.groups} groups, which must divide the tokens' width of "
                f"{tokens.shape[-1]} and its own of {self.width}. Set config.networks.decoder.groups."
            )
        x = rearrange(tokens.astype(self.dtype), "b (h w) d -> b h w d", h=grid[0])
        for layer in range(self.depth):
            conv = Conv(
                self.width,
                self.kernel_size,
                groups=self.groups,
                kernel_init=torch_uniform,
                dtype=self.dtype,
                name=f"conv_{layer}",
            )
            y = gelu(_standardized(conv(x)))
            x = x + y if x.shape[-1] == self.width else y
        out = Dense(tokens.shape[-1], kernel_init=torch_uniform, dtype=self.dtype, name="out")
        return out(as_tokens(x)).astype(jnp.float32)  # float32: compared with the teacher's


def _standardized(x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
    y = x.astype(jnp.float32)
    centred = y - jnp.mean(y, axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-5)).astype(x.dtype)
