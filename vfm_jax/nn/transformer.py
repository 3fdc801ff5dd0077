"""A stack of transformer blocks, pre-norm (Dosovitskiy et al., 2020, arXiv:2010.11929, Eq. 2 and 3) or post-norm."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vfm_jax.core.backend import compiling_for, target_backend
from vfm_jax.core.errors import UserError
from vfm_jax.core.sharding import by_examples
from vfm_jax.core.tables import lookup
from vfm_jax.nn.attention import SelfAttention
from vfm_jax.nn.layers import ACTIVATIONS, NORMS, Dense, Initializer, LayerScale, drop_path, dropout, xavier_uniform
from vfm_jax.nn.positions import RelativeIndex, Rotation

REMAT_POLICIES: dict[str, Callable[..., Any]] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def _all_products(primitive: Any, *operands: Any, **params: Any) -> bool:
    """What the turns of a scan keep for the backward pass, where nothing is to be computed twice.

    The compiler sees one turn at a time, and cannot tell that a norm or an activation is computed again faster than
    what it keeps is read: those of a ViT's block take twice as much as its products. Without a scan it does that
    unasked. cuDNN's attention is a product too.
    """
    return jax.checkpoint_policies.dots_saveable(primitive, *operands, **params) or primitive.name.startswith(
        ("dot_product_attention", "conv_general_dilated")
    )


class Mlp(nn.Module):
    """Dense, activation, dense."""

    width: int
    hidden_dim: int
    activation: str = "gelu"
    kernel_init: Initializer = xavier_uniform
    dtype: DTypeLike = jnp.float32
    use_bias: bool = True

    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], keys: jax.Array | None = None) -> Float[Array, "b n d"]:
        dense: dict[str, Any] = dict(kernel_init=self.kernel_init, dtype=self.dtype, use_bias=self.use_bias)
        hidden = Dense(self.hidden_dim, **dense, name="up")(x)
        hidden = dropout(keys, ACTIVATIONS[self.activation](hidden), self.dropout)
        return Dense(self.width, **dense, name="down")(hidden)


class GatedMlp(nn.Module):
    """One dense layer gates another, then a third: activation(x G) * (x U), times D. SwiGLU with "silu".

    Reference: Shazeer, GLU Variants Improve Transformer, 2020 (arXiv:2002.05202), Eq. 6.
    """

    width: int
    hidden_dim: int
    activation: str = "silu"
    kernel_init: Initializer = xavier_uniform
    dtype: DTypeLike = jnp.float32
    use_bias: bool = True

    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], keys: jax.Array | None = None) -> Float[Array, "b n d"]:
        dense: dict[str, Any] = dict(kernel_init=self.kernel_init, dtype=self.dtype, use_bias=self.use_bias)
        gate = ACTIVATIONS[self.activation](Dense(self.hidden_dim, **dense, name="gate")(x))
        hidden = dropout(keys, gate * Dense(self.hidden_dim, **dense, name="up")(x), self.dropout)
        return Dense(self.width, **dense, name="down")(hidden)


MLPS = {"mlp": Mlp, "swiglu": GatedMlp}
NORM_ORDERS = ("pre", "post")
LEVELS_OF = ("block", "mlp")


class Block(nn.Module):
    """Norm, attend, add; norm, mix channels, add. Or ("post") attend, add, norm; mix channels, add, norm.

    The fields are those of `Transformer`; in the post-norm order the residual sum itself is normalised
    (Vaswani et al., 2017, arXiv:1706.03762, Sec. 3.1).
    """

    width: int
    heads: int
    mlp_dim: int
    activation: str = "gelu"
    layer_scale: float | None = None
    norm_epsilon: float = 1e-6
    kernel_init: Initializer = xavier_uniform
    dtype: DTypeLike = jnp.float32
    norm: str = "layer_norm"
    norm_order: str = "pre"
    mlp_kind: str = "mlp"
    mlp_bias: bool = True
    qkv_bias: bool = True
    key_bias: bool = True
    out_bias: bool = True
    qk_norm: bool = False
    relative: bool = False
    causal: bool = False
    dropout: float = 0.0

    def setup(self) -> None:
        norm = NORMS[self.norm]
        self.norm1 = norm(self.norm_epsilon, self.dtype)
        self.attention = SelfAttention(
            self.width,
            self.heads,
            self.kernel_init,
            self.dtype,
            self.qkv_bias,
            self.key_bias,
            self.out_bias,
            self.qk_norm,
            self.norm,
            self.norm_epsilon,
            self.relative,
            self.causal,
        )
        self.norm2 = norm(self.norm_epsilon, self.dtype)
        self.mlp = MLPS[self.mlp_kind](
            self.width, self.mlp_dim, self.activation, self.kernel_init, self.dtype, self.mlp_bias, self.dropout
        )
        scaled = self.layer_scale is not None
        self.scale1 = LayerScale(self.layer_scale) if scaled else lambda x: x
        self.scale2 = LayerScale(self.layer_scale) if scaled else lambda x: x

    def __call__(
        self,
        x: Float[Array, "b n d"],
        keys: jax.Array | None = None,
        drop_rate: float | jax.Array = 0.0,
        *,
        mask: Bool[Array, "#b #heads #n n"] | None = None,
        bias: Float[Array, "#b #heads n n"] | None = None,
        rope: Rotation | None = None,
        where: RelativeIndex | None = None,
    ) -> Float[Array, "b n d"]:
        """The tokens after this block; `mask`, `bias`, `rope` and `where` as in `SelfAttention`."""
        return self.with_mlp(x, keys, drop_rate, mask=mask, bias=bias, rope=rope, where=where)[0]

    def with_mlp(
        self, x: Float[Array, "b n d"], keys: jax.Array | None, drop_rate: float | jax.Array, **told: Any
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b n d"]]:
        """The tokens after this block, and what its MLP gave before it was added."""
        keys1, keys2 = (None, None) if keys is None else _two_streams(keys)

        def attend(x: jax.Array) -> jax.Array:
            return dropout(_stream(keys1, 0), self.attention(x, **told), self.dropout)

        def mix(x: jax.Array) -> jax.Array:
            return dropout(_stream(keys2, 0), self.mlp(x, _stream(keys2, 1)), self.dropout)

        if self.norm_order == "post":
            x = self.norm1(x + drop_path(keys1, self.scale1(attend(x)), drop_rate))
            mixed = mix(x)
            return self.norm2(x + drop_path(keys2, self.scale2(mixed), drop_rate)), mixed
        x = x + drop_path(keys1, self.scale1(attend(self.norm1(x))), drop_rate)
        mixed = mix(self.norm2(x))
        return x + drop_path(keys2, self.scale2(mixed), drop_rate), mixed

    def attention_weights(self, x: Float[Array, "b n d"], **told: Any) -> Float[Array, "b heads n n"]:
        """Of this block, for its input x."""
        return self.attention.weights(x if self.norm_order == "post" else self.norm1(x), **told)


def places_of_levels(levels: Sequence[int], count: int, what: str = "blocks") -> list[int]:
    """Levels as places from 0, of which there are `count`; -1 is the last.

    Raises:
        UserError: one that is not there.
    """
    for level in levels:
        if not -count <= level < count:
            raise UserError(f"levels names {level}; this network has {what} 0 to {count - 1}, and -1 for the last.")
    return [level % count for level in levels]


def _stream(keys: jax.Array | None, number: int) -> jax.Array | None:
    return None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def _two_streams(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    pairs = jax.vmap(jax.random.split)(keys)
    return pairs[:, 0], pairs[:, 1]


class Transformer(nn.Module):
    """`depth` blocks, run by a loop or by a scan: equal in value, and in parameters (`block_0`, `block_1`, ...).

    A scan compiles one block instead of `depth`, and with `remat` holds the activations of one. On accelerators it
    keeps the results of products for the backward pass, and computes what is between them again. It stacks the
    layers' parameters inside the step, in the compute dtype: one more copy of them while it runs.

    Attributes:
        mlp_dim: hidden width of the MLPs.
        activation: name in `ACTIVATIONS`.
        layer_scale: initial value of LayerScale; None for none.
        drop_path: rate of the last block; it rises linearly from zero at the first, or is "constant" (DeiT III) by
            `drop_path_shape`.
        remat: "none" keeps all activations for the backward pass, "dots" the matrix products', "full" only each
            block's input. On CPUs and GPUs it saves memory together with `scan` alone (their compilers undo it).
        norm: "layer_norm" or "rms_norm".
        norm_order: "pre" (before attention and MLP) or "post" (after their sums).
        mlp_kind: "mlp" or "swiglu" (gated).
        mlp_bias: the MLPs have offsets; and so `qkv_bias`, `key_bias`, `out_bias`, `qk_norm` as in `SelfAttention`.
        relative: a table of relative positions in every block; calls then need `where`.
        causal: a token looks at no later one.
        levels_of: what is returned as a level: the output of the "block", or of its "mlp" before it is added.
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
    norm: str = "layer_norm"
    norm_order: str = "pre"
    mlp_kind: str = "mlp"
    mlp_bias: bool = True
    qkv_bias: bool = True
    key_bias: bool = True
    out_bias: bool = True
    qk_norm: bool = False
    relative: bool = False
    causal: bool = False
    levels_of: str = "block"
    drop_path_shape: str = "linear"
    dropout: float = 0.0

    def setup(self) -> None:
        if self.width % self.heads:
            raise UserError(f"A width of {self.width} does not divide into {self.heads} heads.")
        if self.norm_order not in NORM_ORDERS:
            raise UserError(f"norm_order is {' or '.join(NORM_ORDERS)}; found {self.norm_order!r}.")
        if self.levels_of not in LEVELS_OF:
            raise UserError(f"levels_of is {' or '.join(LEVELS_OF)}; found {self.levels_of!r}.")
        if self.drop_path_shape not in ("linear", "constant"):
            raise UserError(f"drop_path_shape is linear or constant; found {self.drop_path_shape!r}.")
        lookup(ACTIVATIONS, self.activation, "activation")
        lookup(NORMS, self.norm, "norm")
        lookup(MLPS, self.mlp_kind, "mlp")
        self.block = Block(
            self.width,
            self.heads,
            self.mlp_dim,
            self.activation,
            self.layer_scale,
            self.norm_epsilon,
            self.kernel_init,
            self.dtype,
            self.norm,
            self.norm_order,
            self.mlp_kind,
            self.mlp_bias,
            self.qkv_bias,
            self.key_bias,
            self.out_bias,
            self.qk_norm,
            self.relative,
            self.causal,
            self.dropout,
            parent=None,  # a pure function of the layer's parameters, which are this module's own
        )

    def _layers(self, where: RelativeIndex | None) -> list[Any]:
        if self.is_initializing() and not self.has_variable("params", "block_0"):
            # All layers in one go: a trace and a compilation for one block, not for `depth`.
            sample = jnp.zeros((1, 1, self.width), self.dtype)
            one = None if where is None else RelativeIndex(where.grid, jnp.zeros((1, 1, 1), jnp.int32))
            keys = jax.random.split(self.make_rng("params"), self.depth)
            # What is drawn is the same in every form, and this one can be mapped anywhere.
            with compiling_for("cpu"):
                stacked = jax.vmap(lambda key: self.block.init(key, sample, where=one)["params"])(keys)
            for i in range(self.depth):
                self.put_variable("params", f"block_{i}", jax.tree.map(lambda leaf, i=i: leaf[i], stacked))
        return [self.get_variable("params", f"block_{i}") for i in range(self.depth)]

    def __call__(
        self,
        x: Float[Array, "b n d"],
        *,
        keys: jax.Array | None = None,
        levels: Sequence[int] = (),
        mask: Bool[Array, "#b #heads #n n"] | None = None,
        bias: Float[Array, "#b #heads n n"] | None = None,
        rope: Rotation | None = None,
        where: RelativeIndex | None = None,
    ) -> tuple[Float[Array, "b n d"], tuple[Float[Array, "b n d"], ...]]:
        """The last block's output, and those of the blocks named in `levels` (0 is the first, -1 the last).

        Args:
            x: tokens.
            keys: one per example, to draw which examples skip which block; None draws none (evaluation).
            levels: indices of blocks.
            mask: True where a token (third axis) may look at another (last axis); None: everywhere.
            bias: added to the logits of every block's attention.
            rope: by which queries and keys are turned, in every block.
            where: the tokens' places, for the blocks' own relative positions.
        """
        layers = self._layers(where)
        told: dict[str, Any] = dict(mask=mask, bias=bias, rope=rope, where=where)
        first = 0.0 if self.drop_path_shape == "linear" else self.drop_path
        rates = np.linspace(first, self.drop_path, self.depth, dtype=np.float32)
        keys = keys if self.drop_path > 0 or self.dropout > 0 else None
        wanted = places_of_levels(levels, self.depth)

        def run(x: jax.Array, params: Any, rate: jax.Array, layer: jax.Array) -> tuple[jax.Array, jax.Array]:
            own = None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, layer))(keys)
            x, mixed = self.block.apply({"params": params}, by_examples(x), own, rate, **told, method="with_mlp")
            return x, x if self.levels_of == "block" else mixed

        if self.remat != "none":
            policy = lookup(REMAT_POLICIES, self.remat, "remat")
            run = jax.checkpoint(run, policy=policy, prevent_cse=not self.scan)
        elif self.scan and target_backend() != "cpu":
            run = jax.checkpoint(run, policy=_all_products, prevent_cse=False)

        if not self.scan:
            outputs = []
            for i, params in enumerate(layers):
                x, output = run(x, params, jnp.asarray(rates[i]), jnp.asarray(i))
                outputs.append(output)
            return x, tuple(outputs[i] for i in wanted)

        def turn(x: jax.Array, layer: tuple[Any, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array | None]:
            x, output = run(x, *layer)
            return x, output if wanted else None

        def stack(path: tuple[Any, ...], *leaves: jax.Array) -> jax.Array:
            return jnp.stack([self._as_used(path, leaf) for leaf in leaves])

        stacked = jax.tree_util.tree_map_with_path(stack, *layers)
        x, outputs = jax.lax.scan(turn, x, (stacked, jnp.asarray(rates), jnp.arange(self.depth)))
        return x, tuple(outputs[i] for i in wanted)

    def _as_used(self, path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        # Matrices are cast where they are used anyway, and stack at half the memory; norms, scales and the tables
        # that are added to logits stay float32.
        return leaf.astype(self.dtype) if leaf.ndim > 1 and path[-1].key != "table" else leaf

    def last_attention(self, x: Float[Array, "b n d"], **told: Any) -> Float[Array, "b heads n n"]:
        """Attention weights of the last block; `told` as in a call: mask, bias, rope, where."""
        *layers, last = self._layers(told.get("where"))
        for params in layers:
            x = self.block.apply({"params": params}, x, **told)
        return self.block.apply({"params": last}, x, **told, method="attention_weights")
