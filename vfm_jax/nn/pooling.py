"""One vector from many tokens."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vfm_jax.nn.attention import attend, attention_weights
from vfm_jax.nn.layers import Dense, Initializer, LayerNorm, xavier_uniform
from vfm_jax.nn.transformer import Mlp


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

    def __call__(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        key_value = self.key_value(tokens)  # b n 2 heads head_dim
        x = self.out(attend(self._query(tokens.shape[0]), key_value[:, :, 0], key_value[:, :, 1]))
        x = x + self.mlp(self.norm(x))
        return x[:, 0]

    def weights(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b heads n"]:
        """How much the query attends to each token."""
        key_value = self.key_value(tokens)
        return attention_weights(self._query(tokens.shape[0]), key_value[:, :, 0])[:, :, 0]
