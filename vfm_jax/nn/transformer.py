"""A stack of pre-norm transformer blocks (Dosovitskiy et al., 2020, arXiv:2010.11929, Eq. 2 and 3)."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import lookup
from vfm_jax.nn.attention import SelfAttention
from vfm_jax.nn.layers import ACTIVATIONS, Dense, Initializer, LayerNorm, LayerScale, drop_path, xavier_uniform

REMAT_POLICIES: dict[str, Callable[..., Any]] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Mlp(nn.Module):
    """Dense, activation, dense."""

    width: int
    hidden_dim: int
    activation: str = "gelu"
    kernel_init: Initializer = xavier_uniform
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        hidden = Dense(self.hidden_dim, kernel_init=self.kernel_init, dtype=self.dtype, name="up")(x)
        hidden = ACTIVATIONS[self.activation](hidden)
        return Dense(self.width, kernel_init=self.kernel_init, dtype=self.dtype, name="down")(hidden)


class Block(nn.Module):
    """Norm, attend, add; norm, mix channels, add."""

    width: int
    heads: int
    mlp_dim: int
    activation: str = "gelu"
    layer_scale: float | None = None
    norm_epsilon: float = 1e-6
    kernel_init: Initializer = xavier_uniform
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.norm1 = LayerNorm(self.norm_epsilon, self.dtype)
        self.attention = SelfAttention(self.width, self.heads, self.kernel_init, self.dtype)
        self.norm2 = LayerNorm(self.norm_epsilon, self.dtype)
        self.mlp = Mlp(self.width, self.mlp_dim, self.activation, self.kernel_init, self.dtype)
        scaled = self.layer_scale is not None
        self.scale1 = LayerScale(self.layer_scale) if scaled else lambda x: x
        self.scale2 = LayerScale(self.layer_scale) if scaled else lambda x: x

    def __call__(
        self, x: Float[Array, "b n d"], keys: jax.Array | None = None, drop_rate: float | jax.Array = 0.0
    ) -> Float[Array, "b n d"]:
        keys1, keys2 = (None, None) if keys is None else _two_streams(keys)
        x = x + drop_path(keys1, self.scale1(self.attention(self.norm1(x))), drop_rate)
        return x + drop_path(keys2, self.scale2(self.mlp(self.norm2(x))), drop_rate)

    def attention_weights(self, x: Float[Array, "b n d"]) -> Float[Array, "b heads n n"]:
        """Of this block, for its input x."""
        return self.attention.weights(self.norm1(x))


def _two_streams(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    pairs = jax.vmap(jax.random.split)(keys)
    return pairs[:, 0], pairs[:, 1]


class Transformer(nn.Module):
    """`depth` blocks, run by a loop or by a scan: equal in value, and in parameters (`block_0`, `block_1`, ...).

    A scan compiles one block instead of `depth`, and with `remat` holds the activations of one. It stacks the layers'
    parameters inside the step, in the compute dtype: one more copy of them while it runs.

    Attributes:
        drop_path: rate of the last block; it rises linearly from zero at the first.
        layer_scale: initial value of LayerScale; None for none.
        remat: "none" keeps all activations for the backward pass, "dots" the matrix products', "full" only each
            block's input. On the CPU it saves memory together with `scan` alone (its compiler undoes it in a loop).
    """

    width: int
    depth: int
    heads: int
    mlp_dim: int
    activation: str = "gelu"
    layer_scale: float | None = None
    drop_path: float = 0.0
    norm_epsilon: float = 1e-6
    scan: bool = False
    remat: str = "none"
    kernel_init: Initializer = xavier_uniform
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        if self.width % self.heads:
            raise UserError(f"A width of {self.width} does not divide into {self.heads} heads.")
        lookup(ACTIVATIONS, self.activation, "activation")
        self.block = Block(
            self.width,
            self.heads,
            self.mlp_dim,
            self.activation,
            self.layer_scale,
            self.norm_epsilon,
            self.kernel_init,
            self.dtype,
            parent=None,  # a pure function of the layer's parameters, which are this module's own
        )
        if self.is_initializing() and not self.has_variable("params", "block_0"):
            # All layers in one go: a trace and a compilation for one block, not for `depth`.
            sample = jnp.zeros((1, 1, self.width), self.dtype)
            keys = jax.random.split(self.make_rng("params"), self.depth)
            stacked = jax.vmap(lambda key: self.block.init(key, sample)["params"])(keys)
            for i in range(self.depth):
                self.put_variable("params", f"block_{i}", jax.tree.map(lambda leaf, i=i: leaf[i], stacked))

    def _layers(self) -> list[Any]:
        return [self.get_variable("params", f"block_{i}") for i in range(self.depth)]

    def __call__(
        self, x: Float[Array, "b n d"], *, keys: jax.Array | None = None, levels: Sequence[int] = ()
    ) -> tuple[Float[Array, "b n d"], tuple[Float[Array, "b n d"], ...]]:
        """The last block's output, and those of the blocks named in `levels` (0 is the first, -1 the last).

        Args:
            x: tokens.
            keys: one per example, to draw which examples skip which block; None draws none (evaluation).
            levels: indices of blocks.
        """
        rates = np.linspace(0, self.drop_path, self.depth, dtype=np.float32)
        keys = keys if self.drop_path > 0 else None
        wanted = [range(self.depth)[level] for level in levels]

        def run(x: jax.Array, params: Any, rate: jax.Array, layer: jax.Array) -> jax.Array:
            own = None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, layer))(keys)
            return self.block.apply({"params": params}, x, own, rate)

        if self.remat != "none":
            policy = lookup(REMAT_POLICIES, self.remat, "remat")
            run = jax.checkpoint(run, policy=policy, prevent_cse=not self.scan)

        if not self.scan:
            outputs = []
            for i, params in enumerate(self._layers()):
                x = run(x, params, jnp.asarray(rates[i]), jnp.asarray(i))
                outputs.append(x)
            return x, tuple(outputs[i] for i in wanted)

        def turn(x: jax.Array, layer: tuple[Any, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array | None]:
            x = run(x, *layer)
            return x, x if wanted else None

        stacked = jax.tree.map(
            lambda *leaves: jnp.stack([_cast_matrix(a, self.dtype) for a in leaves]), *self._layers()
        )
        x, outputs = jax.lax.scan(turn, x, (stacked, jnp.asarray(rates), jnp.arange(self.depth)))
        return x, tuple(outputs[i] for i in wanted)

    def last_attention(self, x: Float[Array, "b n d"]) -> Float[Array, "b heads n n"]:
        """Attention weights of the last block."""
        *layers, last = self._layers()
        for params in layers:
            x = self.block.apply({"params": params}, x)
        return self.block.apply({"params": last}, x, method="attention_weights")


def _cast_matrix(leaf: jax.Array, dtype: DTypeLike) -> jax.Array:
    # Matrices are cast where they are used anyway, and stack at half the memory; norms and scales stay float32.
    return leaf.astype(dtype) if leaf.ndim > 1 else leaf
