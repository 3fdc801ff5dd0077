"""Images as sequences of patches, and back."""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from vfm_jax.core.errors import UserError
from vfm_jax.nn.layers import Initializer, dense, xavier_uniform
from vfm_jax.nn.resample import resample_patch_kernel


def patch_size_of(variant: str) -> int:
    """The patch of a variant "SIZE/PATCH", in pixels along one side.

    Raises:
        UserError: it names none.
    """
    patch = variant.partition("/")[2]
    if not patch.isdigit() or int(patch) == 0:
        raise UserError(f"variant {variant!r} has no patch size; write SIZE/PATCH, for example S/16.")
    return int(patch)


def grid_of(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches.

    Raises:
        ValueError: the patch size does not divide the image.
    """
    rows, columns = (length // patch_size for length in image_size)
    if image_size != (rows * patch_size, columns * patch_size):
        raise ValueError(
            f"An image of {image_size[0]} x {image_size[1]} pixels does not divide into patches of {patch_size}. "
            f"Resize to a multiple of {patch_size}, or choose another patch_size."
        )
    return rows, columns


def patchify(image: Shaped[Array, "b h w c"], patch_size: int) -> Shaped[Array, "b n p"]:
    """Flattened patches in raster order; pixels within one as (row, column, channel), as He et al. 2021's code."""
    grid_of((image.shape[1], image.shape[2]), patch_size)
    return rearrange(image, "b (gh ph) (gw pw) c -> b (gh gw) (ph pw c)", ph=patch_size, pw=patch_size)


def unpatchify(patches: Shaped[Array, "b n p"], grid: tuple[int, int], patch_size: int) -> Shaped[Array, "b h w c"]:
    """The inverse of `patchify`."""
    return rearrange(patches, "b (gh gw) (ph pw c) -> b (gh ph) (gw pw) c", gh=grid[0], ph=patch_size, pw=patch_size)


class PatchEmbedding(nn.Module):
    """A linear map of each patch: the strided convolution of Dosovitskiy et al., 2020 (arXiv:2010.11929), Eq. 1.

    The kernel is stored as that convolution's, (rows, columns, channels, d), so that it can be resampled to another
    patch size. Patches are embedded one by one, so hidden ones need not be given at all.

    Attributes:
        patch_size: pixels along one side of the patches that are given.
        kernel_size: of the kernel that is stored, where it is another: it is resampled to `patch_size` at every call
            (FlexiViT: Beyer et al., 2022, arXiv:2212.08013).
        use_bias: whether the map has an offset.
    """

    width: int
    patch_size: int
    kernel_init: Initializer = xavier_uniform
    dtype: DTypeLike = jnp.float32
    kernel_size: int | None = None
    use_bias: bool = True

    @nn.compact
    def __call__(self, patches: Float[Array, "b n p"]) -> Float[Array, "b n d"]:
        channels = patches.shape[-1] // self.patch_size**2
        side = self.kernel_size or self.patch_size
        shape = (side, side, channels, self.width)
        kernel = self.param(
            "kernel",
            lambda key: self.kernel_init(key, (side * side * channels, self.width), jnp.float32).reshape(shape),
        )
        kernel = resample_patch_kernel(kernel, (self.patch_size, self.patch_size)).astype(self.dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32).astype(self.dtype)
        patches = patches.astype(self.dtype)
        return dense(patches, kernel.reshape(-1, self.width), bias, patches.shape[:-1])


def color_classes(patches: Float[Array, "b n p"], num_pixels: int, levels: int) -> Int[Array, "b n"]:
    """The class of each patch's mean colour, of `levels` equal steps of each channel between -1 and 1.

    With 8 levels and three channels there are 512 classes: the 9-bit palette of iGPT on a regular grid of colours,
    where theirs are the centres of clusters of pixels.

    Reference: Chen et al., Generative Pretraining from Pixels, 2020 (ICML), Sec. 3.2.
    """
    color = jnp.mean(rearrange(patches, "b n (pixels c) -> b n pixels c", pixels=num_pixels), axis=2)
    step = jnp.clip(jnp.floor((color + 1) / 2 * levels), 0, levels - 1).astype(jnp.int32)
    return jnp.sum(step * levels ** jnp.arange(step.shape[-1], dtype=jnp.int32)[None, None], axis=-1)


def colors_of_classes(classes: Int[Array, "b n"], levels: int, channels: int) -> Float[Array, "b n c"]:
    """The colour in the middle of each class of `color_classes`."""
    steps = classes[:, :, None] // levels ** jnp.arange(channels, dtype=jnp.int32)[None, None] % levels
    return (steps.astype(jnp.float32) + 0.5) / levels * 2 - 1


class ColorEmbedding(nn.Module):
    """A learned vector for each class of colours (`color_classes`): patches as words.

    Reference: Chen et al., 2020 (ICML), Sec. 3.1 and 3.2.
    """

    width: int
    patch_size: int
    levels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, patches: Float[Array, "b n p"]) -> Float[Array, "b n d"]:
        num_pixels = self.patch_size**2
        shape = (self.levels ** (patches.shape[-1] // num_pixels), self.width)
        table = self.param("table", nn.initializers.normal(0.02), shape, jnp.float32)
        return table.astype(self.dtype)[color_classes(patches, num_pixels, self.levels)]
