"""Convolutions and pooling over maps (b h w d), kernels (rows, columns, inputs, outputs).

Products in `dtype`, parameters in float32. Where the backend matters, the form is chosen by `core.backend`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vfm_jax.core.backend import target_backend
from vfm_jax.nn.layers import Initializer, drop_path

Padding = int | str | None
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def pad_widths(padding: Padding, length: int, kernel: int, stride: int = 1, dilation: int = 1) -> tuple[int, int]:
    """Positions added before and after one axis.

    Args:
        padding: a number on both sides; None for PyTorch's usual half of the kernel; "same" for TensorFlow's rule,
            which covers ceil(length / stride) windows and puts the odd position last.
        length: of the axis.
        kernel: its side.
        stride: of the windows.
        dilation: of the kernel.
    """
    reach = dilation * (kernel - 1)
    if padding == "same":
        total = max((-(-length // stride) - 1) * stride + reach + 1 - length, 0)
        return total // 2, total - total // 2
    side = reach // 2 if padding is None else int(padding)
    return side, side


class Conv(nn.Module):
    """A convolution of a map.

    Attributes:
        features: channels of the result.
        kernel_size: its side, odd unless it equals the stride.
        padding: see `pad_widths`.
        groups: the channels are split into so many independent convolutions; as many as channels is depthwise.
        standardize: epsilon of weight standardisation (see `standardize_weights`); None for none.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: Padding = None
    dilation: int = 1
    groups: int = 1
    use_bias: bool = True
    standardize: float | None = None
    kernel_init: Initializer = kaiming_normal
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 d2"]:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        if self.standardize is not None:
            kernel = standardize_weights(kernel, self.standardize)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        pads = tuple(
            pad_widths(self.padding, length, self.kernel_size, self.stride, self.dilation) for length in x.shape[1:3]
        )
        y = convolve(x, kernel, self.stride, pads, self.dilation, self.groups)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)
        return y


def standardize_weights(kernel: Float[Array, "kh kw i o"], epsilon: float) -> Float[Array, "kh kw i o"]:
    """The kernel with mean 0 and variance 1 for each output channel; in float32.

    Reference: Qiao et al., Micro-Batch Training with Batch-Channel Normalization and Weight Standardization, 2019
    (arXiv:1903.10520), Eq. 5 and 6.
    """
    centred = kernel - jnp.mean(kernel, axis=(0, 1, 2), keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=(0, 1, 2), keepdims=True) + epsilon)


def convolve(
    x: Float[Array, "b h w d"],
    kernel: Float[Array, "kh kw i o"],
    stride: int,
    pads: tuple[tuple[int, int], ...],
    dilation: int = 1,
    groups: int = 1,
) -> Float[Array, "b h2 w2 o"]:
    """The convolution (cross-correlation) of a padded map."""
    side = kernel.shape[0]
    if groups == 1 and side == stride and not np.any(pads):
        return _patch_product(x, kernel)
    if side == 1 and groups == 1 and not np.any(pads):
        return _patch_product(x[:, ::stride, ::stride], kernel)
    if target_backend() == "cpu" and groups == x.shape[-1] == kernel.shape[-1] and stride == dilation == 1:
        return _depthwise(x, kernel, pads)
    if target_backend() == "cpu" and groups > 1:
        return _grouped(x, kernel, stride, pads, dilation, groups)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, rhs_dilation=(dilation, dilation), dimension_numbers=_DIMENSIONS,
        feature_group_count=groups,
    )  # fmt: skip


def _patch_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Windows that do not overlap: one matrix product; rows and columns that fill no window are left out."""
    side, channels, width = kernel.shape[0], x.shape[-1], kernel.shape[-1]
    rows, columns = x.shape[1] // side, x.shape[2] // side
    if side > 1:
        x = x[:, : rows * side, : columns * side]
        x = x.reshape(x.shape[0], rows, side, columns, side, channels).transpose(0, 1, 3, 2, 4, 5)
    y = x.reshape(-1, side * side * channels) @ kernel.reshape(-1, width)
    return y.reshape(x.shape[0], rows, columns, width)


def _grouped(
    x: jax.Array, kernel: jax.Array, stride: int, pads: tuple[tuple[int, int], ...], dilation: int, groups: int
) -> jax.Array:
    """A product for each group of its windows, laid out, and its kernel: what XLA's CPU takes 12 to 46 times over.

    Left to `einsum` it takes a quarter longer.
    """
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = ((x.shape[1 + i] - dilation * (kernel.shape[i] - 1) - 1) // stride + 1 for i in (0, 1))
    x = x.reshape(*x.shape[:3], groups, -1).transpose(3, 0, 1, 2, 4)  # groups b h w i
    windows = [
        x[:, :, top : top + stride * (rows - 1) + 1 : stride, left : left + stride * (columns - 1) + 1 : stride]
        for top in range(0, dilation * kernel.shape[0], dilation)
        for left in range(0, dilation * kernel.shape[1], dilation)
    ]
    inputs = jnp.stack(windows, axis=4).reshape(groups, -1, len(windows) * x.shape[4])
    kernel = kernel.reshape(len(windows), x.shape[4], groups, -1).transpose(2, 0, 1, 3)
    y = inputs @ kernel.reshape(groups, inputs.shape[2], -1)
    return (
        y.reshape(groups, x.shape[1], rows, columns, -1)
        .transpose(1, 2, 3, 0, 4)
        .reshape(x.shape[1], rows, columns, -1)
    )


# Depthwise on the CPU: XLA turns its own grouped convolution into a dense one there (10 to 40 times slower than this
# sum of shifted maps, which fuses into one loop). The kernel's gradient runs over the rows by a scan: as 49 sums
# over the whole map it took six times as long.
def _shifted_sum(x: jax.Array, kernel: jax.Array, pads: tuple[tuple[int, int], ...]) -> jax.Array:
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = (padded.shape[1 + i] - kernel.shape[i] + 1 for i in (0, 1))
    out = jnp.zeros((x.shape[0], rows, columns, x.shape[-1]), x.dtype)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            out = out + padded[:, i : i + rows, j : j + columns] * kernel[i, j, 0][None, None, None]
    return out


_depthwise = jax.custom_vjp(_shifted_sum, nondiff_argnums=(2,))


def _depthwise_backward(
    pads: tuple[tuple[int, int], ...], kept: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    height, width = kernel.shape[:2]
    sides = zip(pads, (height, width), strict=True)
    mirrored = tuple((side - 1 - before, side - 1 - after) for (before, after), side in sides)
    dx = _shifted_sum(g, kernel[::-1, ::-1], mirrored)
    padded, columns = jnp.pad(x, ((0, 0), *pads, (0, 0))), g.shape[2]

    def turn(total: jax.Array, row: jax.Array) -> tuple[jax.Array, None]:
        g_row = jax.lax.dynamic_slice_in_dim(g, row, 1, axis=1).astype(jnp.float32)  # b 1 w d
        x_rows = jax.lax.dynamic_slice_in_dim(padded, row, height, axis=1).astype(jnp.float32)  # b kh w d
        products = [jnp.sum(x_rows[:, :, j : j + columns] * g_row, axis=(0, 2)) for j in range(width)]
        return total + jnp.stack(products, axis=1), None

    start = jnp.zeros((height, width, x.shape[-1]), jnp.float32)
    dk, _ = jax.lax.scan(turn, start, jnp.arange(g.shape[1]))
    return dx, dk[:, :, None].astype(kernel.dtype)


_depthwise.defvjp(lambda x, kernel, pads: (_shifted_sum(x, kernel, pads), (x, kernel)), _depthwise_backward)


def max_pool(
    x: Float[Array, "b h w d"], kernel_size: int, stride: int, padding: Padding = 0, fill: float = -np.inf
) -> Float[Array, "b h2 w2 d"]:
    """The largest of each window.

    Args:
        x: map.
        kernel_size: side of the windows.
        stride: between them.
        padding: see `pad_widths`.
        fill: value of the padding: never the largest, or 0 as in BiT.
    """
    pads = [pad_widths(padding, length, kernel_size, stride) for length in x.shape[1:3]]
    if np.any(pads) and np.isfinite(fill):
        x, pads = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill), [(0, 0), (0, 0)]
    window, strides = (1, kernel_size, kernel_size, 1), (1, stride, stride, 1)
    return jax.lax.reduce_window(x, -np.inf, jax.lax.max, window, strides, ((0, 0), *pads, (0, 0)))


def adaptive_average_pool(x: Float[Array, "b h w d"], size: tuple[int, int]) -> Float[Array, "b h2 w2 d"]:
    """Means over windows that cover the map evenly; a smaller map is repeated. As PyTorch's AdaptiveAvgPool2d."""
    rows, columns = (jnp.asarray(_pooling_matrix(old, new)) for old, new in zip(x.shape[1:3], size, strict=True))
    y = jnp.einsum("ph,bhwd,qw->bpqd", rows, x.astype(jnp.float32), columns)
    return y.astype(x.dtype)


def _pooling_matrix(old: int, new: int) -> np.ndarray:
    matrix = np.zeros((new, old), np.float32)
    for i in range(new):
        start, stop = i * old // new, -(-(i + 1) * old // new)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix


def drop_path_of_map(keys: jax.Array | None, x: Float[Array, "b h w d"], rate: float) -> Float[Array, "b h w d"]:
    """`layers.drop_path` of a map."""
    return drop_path(keys, x.reshape(x.shape[0], -1, x.shape[-1]), rate).reshape(x.shape)


def as_tokens(x: Float[Array, "b h w d"]) -> Float[Array, "b n d"]:
    """The positions of a map in raster order, in float32."""
    return x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)
