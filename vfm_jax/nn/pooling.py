"""One vector from many tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vfm_jax.nn.attention import attend, attention_weights
from vfm_jax.nn.layers import Dense, Initializer, LayerNorm, xavier_uniform
from vfm_jax.nn.transformer import Mlp


def mean_pool(tokens: Float[Array, "b n d"], valid: Bool[Array, "b n"] | None = None) -> Float[Array, "b d"]:
    """The mean of the tokens that are `valid` (None: all), in float32."""
    tokens = tokens.astype(jnp.float32)
    return jnp.mean(tokens, axis=1) if valid is None else jnp.mean(tokens, axis=1, where=valid[:, :, None])


class AttentionPooling(nn.Module):
    """A learned query attends to all tokens, then one residual MLP ("MAP" head).

    Reference: Zhai et al., Scaling Vision Transformers, 2021 (arXiv:2106.04560), Sec. 3.2; big_vision's `MAPHead`:
    the query is not normalised and is not added to the result.
    """

    width: int
    heads: int
    mlp_dim: int
    activation: str = "gelu"
    norm_epsilon: float = 1e-6
    kernel_init: Initializer = xavier_uniform
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        head_dim = self.width // self.heads
        self.probe = self.param("probe", xavier_uniform, (1, self.width), jnp.float32)
        self.query = Dense((self.heads, head_dim), kernel_init=self.kernel_init, dtype=self.dtype)
        self.key_value = Dense((2, self.heads, head_dim), kernel_init=self.kernel_init, dtype=self.dtype)
        self.out = Dense(self.width, contract=2, kernel_init=self.kernel_init, dtype=self.dtype)
        self.norm = LayerNorm(self.norm_epsilon, self.dtype)
        self.mlp = Mlp(self.width, self.mlp_dim, self.activation, self.kernel_init, self.dtype)

    def _query(self, batch_size: int) -> Float[Array, "b 1 heads head_dim"]:
        return self.query(jnp.broadcast_to(self.probe, (batch_size, 1, self.width)))

    def __call__(self, tokens: Float[Array, "b n d"], valid: Bool[Array, "b n"] | None = None) -> Float[Array, "b d"]:
        """One vector per example, of the tokens that are `valid` (None: all)."""
        key_value = self.key_value(tokens)  # b n 2 heads head_dim
        x = attend(self._query(tokens.shape[0]), key_value[:, :, 0], key_value[:, :, 1], mask=_as_mask(valid))
        x = self.out(x)
        x = x + self.mlp(self.norm(x))
        return x[:, 0]

    def weights(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b heads n"]:
        """How much the query attends to each token."""
        key_value = self.key_value(tokens)
        return attention_weights(self._query(tokens.shape[0]), key_value[:, :, 0])[:, :, 0]


class ProbePooling(nn.Module):
    """A learned query, used as it is, attends to all tokens; no MLP (AIM's and AIMv2's head).

    Reference: El-Nouby et al., AIM, 2024 (arXiv:2401.08541), Sec. 3.2; Fini et al., AIMv2, 2024 (arXiv:2411.14402).
    """

    width: int
    heads: int
    kernel_init: Initializer = xavier_uniform
    dtype: DTypeLike = jnp.float32
    key_value_bias: bool = False

    def setup(self) -> None:
        head_dim = self.width // self.heads
        self.probe = self.param("probe", nn.initializers.normal(0.02), (1, self.width), jnp.float32)
        self.key_value = Dense(
            (2, self.heads, head_dim),
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            use_bias=self.key_value_bias,
        )
        self.out = Dense(self.width, contract=2, kernel_init=self.kernel_init, dtype=self.dtype)

    def _query(self, batch_size: int) -> Float[Array, "b 1 heads head_dim"]:
        query = self.probe.astype(self.dtype).reshape(1, 1, self.heads, -1)
        return jnp.broadcast_to(query, (batch_size, *query.shape[1:]))

    def __call__(self, tokens: Float[Array, "b n d"], valid: Bool[Array, "b n"] | None = None) -> Float[Array, "b d"]:
        """One vector per example, of the tokens that are `valid` (None: all)."""
        key_value = self.key_value(tokens)  # b n 2 heads head_dim
        x = attend(self._query(tokens.shape[0]), key_value[:, :, 0], key_value[:, :, 1], mask=_as_mask(valid))
        return self.out(x)[:, 0]

    def weights(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b heads n"]:
        """How much the query attends to each token."""
        key = self.key_value(tokens)[:, :, 0]
        return attention_weights(self._query(tokens.shape[0]), key)[:, :, 0]


def _as_mask(valid: jax.Array | None) -> jax.Array | None:
    return None if valid is None else valid[:, None, None, :]  # b heads n k
