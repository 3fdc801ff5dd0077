"""Multi-head attention; `attend` is the one function through which every attention goes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vfm_jax.core.backend import target_backend
from vfm_jax.nn.layers import Dense, Initializer, xavier_uniform


def attend(
    query: Float[Array, "b n heads d"], key: Float[Array, "b k heads d"], value: Float[Array, "b k heads d"]
) -> Float[Array, "b n heads d"]:
    """softmax(q k / √d) v, with the softmax in float32.

    On a GPU cuDNN's fused kernel where it applies (half precision, heads of a multiple of 8 up to 128); on the CPU
    products over (b heads) n d, which its compiler runs fastest; elsewhere XLA's own form.
    """
    backend = target_backend()
    if backend == "cpu":
        heads = query.shape[2]
        q, k, v = (rearrange(x, "b n heads d -> (b heads) n d") for x in (query, key, value))
        mixed = _mix_own_backward(q * q.shape[-1] ** -0.5, k, v)
        return rearrange(mixed, "(b heads) n d -> b n heads d", heads=heads)
    width = query.shape[-1]
    fused = backend == "gpu" and query.dtype in (jnp.bfloat16, jnp.float16) and width % 8 == 0 and width <= 128
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn" if fused else "xla")


def attention_weights(
    query: Float[Array, "b n heads d"], key: Float[Array, "b k heads d"]
) -> Float[Array, "b heads n k"]:
    """softmax(q k / √d): how much each query attends to each key; rows sum to one."""
    q, k = (rearrange(x, "b n heads d -> (b heads) n d") for x in (query, key))
    return rearrange(_weights(q, k), "(b heads) n k -> b heads n k", heads=query.shape[2])


def _weights(query: jax.Array, key: jax.Array) -> jax.Array:
    logits = (query * query.shape[-1] ** -0.5) @ jnp.swapaxes(key, 1, 2)
    # float32: in bfloat16 the sum over keys loses the small weights
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1).astype(query.dtype)


def _mix(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    return _mix_forward(query, key, value)[0]


def _mix_forward(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    logits = (query @ jnp.swapaxes(key, 1, 2)).astype(jnp.float32)
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    # dividing the d numbers of a result in place of the k weights
    rate = 1 / jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights.astype(query.dtype)
    mixed = (weights @ value) * rate.astype(query.dtype)
    return mixed, (query, key, value, weights, rate, mixed)


def _mix_backward(kept: tuple[jax.Array, ...], g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    query, key, value, weights, rate, mixed = kept
    g = g * rate.astype(g.dtype)
    # p (dp - Σ p dp), where Σ_k p_nk dp_nk = o_n · g_n (Dao et al., 2022, arXiv:2205.14135, App. B.2)
    inner = jnp.sum((g * mixed).astype(jnp.float32), axis=-1, keepdims=True).astype(g.dtype)
    slope = weights * (g @ jnp.swapaxes(value, 1, 2) - inner)
    return slope @ key, jnp.swapaxes(slope, 1, 2) @ query, jnp.swapaxes(weights, 1, 2) @ g


# Differentiated by JAX, a softmax keeps two more arrays of b heads n k, and divides each of its weights.
_mix_own_backward = jax.custom_vjp(_mix)
_mix_own_backward.defvjp(_mix_forward, _mix_backward)


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017, arXiv:1706.03762, Sec. 3.2.2).

    Query, key and value are one kernel (d, 3, heads, head_dim): the heads are an axis that can be split over devices.
    """

    width: int
    heads: int
    kernel_init: Initializer = xavier_uniform
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        head_dim = self.width // self.heads
        self.qkv = Dense((3, self.heads, head_dim), kernel_init=self.kernel_init, dtype=self.dtype)
        self.out = Dense(self.width, contract=2, kernel_init=self.kernel_init, dtype=self.dtype)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        qkv = self.qkv(x)  # b n 3 heads head_dim
        return self.out(attend(*jnp.unstack(qkv, axis=2)))

    def weights(self, x: Float[Array, "b n d"]) -> Float[Array, "b heads n n"]:
        """How much each token (third axis) attends to each other (last axis); rows sum to one."""
        qkv = self.qkv(x)
        return attention_weights(qkv[:, :, 0], qkv[:, :, 1])
