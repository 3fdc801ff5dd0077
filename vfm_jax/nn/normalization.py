"""Norms of feature maps and batches: batch, group and global response norm, all with statistics in float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float


class BatchNorm(nn.Module):
    """Batch norm of the last axis over all others, of all examples of the effective batch; keeps the dtype.

    Under `jit` a batch split over devices is one array, so these are the statistics of the whole ("global") batch.

    Reference: Ioffe and Szegedy, 2015 (arXiv:1502.03167).

    Attributes:
        momentum: share of the running averages that stays at each step (PyTorch's momentum is the rest).
        unbiased: the running variance is that of a sample, n / (n - 1) times the batch's, as PyTorch's.
        scale_init: initial value of the learned factors.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    unbiased: bool = False
    scale_init: float = 1.0

    def setup(self) -> None:
        self.norm = _BatchNorm(
            self.momentum, self.epsilon, self.use_scale, self.use_bias, self.unbiased, self.scale_init
        )

    def __call__(self, x: Float[Array, "... d"], *, train: bool) -> Float[Array, "... d"]:
        return self.norm(x.astype(jnp.float32), train).astype(x.dtype)


class _BatchNorm(nn.Module):
    momentum: float
    epsilon: float
    use_scale: bool
    use_bias: bool
    unbiased: bool
    scale_init: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width, axes = x.shape[-1:], tuple(range(x.ndim - 1))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, width, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, width, jnp.float32)
        if train:
            # Two passes: E[x²] - E[x]² loses everything when the mean is large.
            mean = jnp.mean(x, axis=axes)
            centred = x - jnp.broadcast_to(mean, x.shape)
            var = jnp.mean(jnp.square(centred), axis=axes)
            if not self.is_initializing():
                count = x.size // x.shape[-1]
                factor = count / max(count - 1, 1) if self.unbiased else 1.0
                running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
                running_var.value = self.momentum * running_var.value + (1 - self.momentum) * factor * var
        else:
            mean, var = running_mean.value, running_var.value
            centred = x - jnp.broadcast_to(mean, x.shape)
        rate = jax.lax.rsqrt(var + self.epsilon)
        if self.use_scale:
            rate = rate * self.param("scale", nn.initializers.constant(self.scale_init), width, jnp.float32)
        y = centred * jnp.broadcast_to(rate, x.shape)
        if self.use_bias:
            y = y + jnp.broadcast_to(self.param("bias", nn.initializers.zeros, width, jnp.float32), x.shape)
        return y


class GroupNorm(nn.Module):
    """Norm over space and the channels of a group.

    Reference: Wu and He, Group Normalization, 2018 (arXiv:1803.08494).
    """

    groups: int = 32
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (width,), jnp.float32)
        grouped = x.astype(jnp.float32).reshape(*x.shape[:-1], self.groups, width // self.groups)
        centred = grouped - jnp.mean(grouped, axis=(1, 2, 4), keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=(1, 2, 4), keepdims=True)
        y = (centred * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        y = y * jnp.broadcast_to(scale, x.shape) + jnp.broadcast_to(bias, x.shape)
        return y.astype(self.dtype)


class GlobalResponseNorm(nn.Module):
    """x + γ x N(x) + β, where N(x) is each channel's norm over space relative to the mean of all channels'.

    Reference: Woo et al., ConvNeXt V2, 2023 (arXiv:2301.00808), Sec. 3.3 and Algorithm 1.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w d"], visible: Bool[Array, "b h w"] | None = None
    ) -> Float[Array, "b h w d"]:
        """The map after it; norms are taken over the `visible` cells alone, where they are given."""
        scale = self.param("scale", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        seen = x.astype(jnp.float32) if visible is None else jnp.where(visible[..., None], x.astype(jnp.float32), 0.0)
        squares = jnp.sum(jnp.square(seen), axis=(1, 2), keepdims=True)
        # The square root has no slope at a channel that is zero everywhere (dead, or outside a mask).
        norms = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
        relative = norms / (jnp.mean(norms, axis=-1, keepdims=True) + self.epsilon)
        factor = (1.0 + relative * scale[None, None, None]).astype(x.dtype)
        return x * factor + jnp.broadcast_to(bias.astype(x.dtype), x.shape)
