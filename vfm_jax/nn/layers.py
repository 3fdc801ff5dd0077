"""Dense, norms, activations, LayerScale, drop path: float32 where statistics are taken, `dtype` in products.

Where the backend matters, the form is chosen by `core.backend` (CPU: products over (b n) d, norm and GELU with
their own backward pass; measured in scripts/bench/README.md).
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vfm_jax.core.backend import target_backend

Initializer = Callable[..., jax.Array]

xavier_uniform = nn.initializers.xavier_uniform()


class _Affine(nn.Module):
    """The leaves and fields of `Dense`."""

    features: tuple[int, ...] | int
    contract: int = 1
    kernel_init: Initializer = xavier_uniform
    dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    bias_init: float = 0.0
    biased: tuple[bool, ...] | None = None

    def _operands(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None, tuple[int, ...]]:
        """Input, kernel and bias in the dtype of the product, and the leading axes of the input."""
        features = (self.features,) if isinstance(self.features, int) else tuple(self.features)
        lead, inputs = x.shape[: -self.contract], x.shape[-self.contract :]
        matrix = (int(np.prod(inputs)), int(np.prod(features)))
        kernel = self.param(
            "kernel", lambda key: self.kernel_init(key, matrix, jnp.float32).reshape(*inputs, *features)
        )
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.constant(self.bias_init), features, jnp.float32)
            if self.biased is not None:
                counts = np.reshape(self.biased, (-1,) + (1,) * (len(features) - 1))
                bias = jnp.where(np.broadcast_to(counts, features), bias, 0.0)
            bias = bias.astype(self.dtype)
        return x.astype(self.dtype), kernel.astype(self.dtype), bias, lead


class Dense(_Affine):
    """y = x W + b over the last axis; W is stored with the axes of `features`, e.g. (d, 3, heads, head_dim).

    Attributes:
        features: shape that replaces the last axis.
        contract: how many trailing axes of x are summed over.
        kernel_init: of the kernel, given as a matrix (inputs, outputs).
        dtype: of the product; parameters are float32.
        use_bias: whether there is a b.
        bias_init: its first value.
        biased: of the first axis of `features`, the parts whose bias counts: (True, False, True) leaves that of the
            second part out of the sum, though it has its place in the leaf. None: all.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return dense(*self._operands(x))


class DenseParts(_Affine):
    """A `Dense` that gives its parts along the first axis of `features` one by one: of (3, heads, head_dim) three."""

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> tuple[Float[Array, "..."], ...]:
        x, kernel, bias, lead = self._operands(x)
        if target_backend() == "cpu":  # which likes one large product
            return tuple(jnp.unstack(dense(x, kernel, bias, lead), axis=len(lead)))
        # Slicing the result, and joining its gradients, costs a TPU as much memory traffic as the product.
        kernels = jnp.unstack(kernel, axis=self.contract)
        biases = [None] * len(kernels) if bias is None else jnp.unstack(bias)
        return tuple(dense(x, one, offset, lead) for one, offset in zip(kernels, biases, strict=True))


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, lead: tuple[int, ...]) -> jax.Array:
    """x W + b with the trailing axes of x contracted, those after `lead`; W begins with those axes."""
    inputs, features = x.shape[len(lead) :], kernel.shape[x.ndim - len(lead) :]
    if target_backend() == "cpu":
        # One large matrix product: a 3-D one pulls the activation into itself and computes it twice.
        size = int(np.prod(inputs))
        y = x.reshape(-1, size) @ kernel.reshape(size, -1)
        if bias is not None:
            y = y + jnp.broadcast_to(bias.reshape(-1), y.shape)
        return y.reshape(*lead, *features)
    # Heads keep an axis of their own: one that is split over devices cannot be folded into another.
    contracted = tuple(range(len(lead), x.ndim)), tuple(range(len(inputs)))
    y = jax.lax.dot_general(x, kernel, (contracted, ((), ())))
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


class LayerNorm(nn.Module):
    """Layer norm over the last axis, with statistics in float32.

    Two passes: mean, then centred variance. Of bfloat16 one is enough on accelerators (`_standardize_in_one_pass`).

    Reference: Ba et al., Layer Normalization, 2016 (arXiv:1607.06450).

    Attributes:
        scale_init: initial value of the learned factors.
    """

    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32
    scale_init: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.constant(self.scale_init), (width,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (width,), jnp.float32)
        if target_backend() == "cpu":
            normalize = standardize_own_backward
        else:
            normalize = _standardize if x.dtype == jnp.float32 else _standardize_in_one_pass
        y = normalize(x.astype(jnp.float32), self.epsilon)
        y = y * jnp.broadcast_to(scale, y.shape) + jnp.broadcast_to(bias, y.shape)
        return y.astype(self.dtype)


def _standardize_with_rate(x: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    rate = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    return centred * rate, rate


def _standardize(x: jax.Array, epsilon: float) -> jax.Array:
    return _standardize_with_rate(x, epsilon)[0]


def _standardize_in_one_pass(x: jax.Array, epsilon: float) -> jax.Array:
    """By E[x²] - E[x]², of which the product that makes x can sum both parts while it writes x.

    For x that was bfloat16 alone: its rounding, to 8 bits, moves the variance more than the difference of two
    float32 sums loses (`test_one_pass_loses_less_than_the_rounding_of_its_input`).
    """
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.maximum(jnp.mean(jnp.square(x), axis=-1, keepdims=True) - jnp.square(mean), 0.0)
    return (x - mean) * jax.lax.rsqrt(variance + epsilon)


# The plain form, differentiated by JAX, keeps more and passes over it more often on a CPU.
standardize_own_backward = jax.custom_vjp(_standardize, nondiff_argnums=(1,))


def _standardize_forward(x: jax.Array, epsilon: float) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y, rate = _standardize_with_rate(x, epsilon)
    return y, (y, rate)


def _standardize_backward(epsilon: float, kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array]:
    del epsilon
    y, rate = kept
    # dx = r (g - mean(g) - y mean(g y)): mean and variance both depend on x.
    return (rate * (g - jnp.mean(g, axis=-1, keepdims=True) - y * jnp.mean(g * y, axis=-1, keepdims=True)),)


standardize_own_backward.defvjp(_standardize_forward, _standardize_backward)


class RMSNorm(nn.Module):
    """x over its root mean square, times a learned scale; in float32.

    Reference: Zhang and Sennrich, Root Mean Square Layer Normalization, 2019 (arXiv:1910.07467), Eq. 4.
    """

    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (x * jnp.broadcast_to(scale, x.shape)).astype(self.dtype)


NORMS = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}


_SQRT_HALF = float(np.sqrt(0.5))
_ONE_OVER_SQRT_2_PI = float(1 / np.sqrt(2 * np.pi))


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x Φ(x) with the exact normal distribution (PyTorch's and timm's default).

    Reference: Hendrycks and Gimpel, 2016 (arXiv:1606.08415).
    """
    return _gelu_own_backward(x)


def _normal_distribution(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jax.lax.erf(x * _SQRT_HALF)


# JAX's form keeps three arrays of x's size for the backward pass; x is enough.
_gelu_own_backward = jax.custom_vjp(lambda x: x * _normal_distribution(x))


def _gelu_backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    # Φ by way of -x: the compiler would keep the forward pass's in memory rather than take it twice.
    distribution = 0.5 - 0.5 * jax.lax.erf(x * -_SQRT_HALF)
    density = jnp.exp(-0.5 * jnp.square(x)) * _ONE_OVER_SQRT_2_PI
    return (g * (distribution + x * density),)


_gelu_own_backward.defvjp(lambda x: (x * _normal_distribution(x), x), _gelu_backward)


def gelu_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU by its tanh approximation (big_vision's and Flax's default); Sec. 2 of the same paper."""
    return jax.nn.gelu(x, approximate=True)


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x σ(1.702 x), GELU by a logistic function (OpenAI's CLIP); Sec. 2 of the same paper."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class LayerScale(nn.Module):
    """x γ, one learned factor per channel.

    Reference: Touvron et al., Going deeper with Image Transformers, 2021 (arXiv:2103.17239), Sec. 2.
    """

    initial: float

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        gamma = self.param("gamma", nn.initializers.constant(self.initial), (x.shape[-1],), jnp.float32)
        return x * jnp.broadcast_to(gamma.astype(x.dtype), x.shape)


def dropout(keys: jax.Array | None, x: Float[Array, "b n d"], rate: float) -> Float[Array, "b n d"]:
    """Sets single numbers to zero, with probability `rate`, and scales up the others. No keys, one per example: none.

    Reference: Srivastava et al., Dropout, 2014 (JMLR 15).
    """
    if keys is None or rate == 0:
        return x
    alive = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(alive, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros_like(x))


def drop_path(keys: jax.Array | None, x: Float[Array, "b n d"], rate: float | jax.Array) -> Float[Array, "b n d"]:
    """Drops the residual branch of some examples, with probability `rate`, and scales up the others.

    One key per example, so that an example's fate does not depend on the batch it stands in. No keys: no drop.

    Reference: Huang et al., Deep Networks with Stochastic Depth, 2016 (arXiv:1603.09382).
    """
    if keys is None:
        return x
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    alive = jax.vmap(lambda key: jax.random.bernoulli(key, keep))(keys)
    factor = jnp.where(alive, 1.0 / keep, 0.0).astype(x.dtype)
    return x * factor[:, None, None]
