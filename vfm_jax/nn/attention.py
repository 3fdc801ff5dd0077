"""Multi-head attention; `attend` is the one function through which every attention goes."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vfm_jax.core.backend import target_backend
from vfm_jax.nn.layers import NORMS, Dense, DenseParts, Initializer, xavier_uniform
from vfm_jax.nn.positions import RelativeIndex, RelativePositions, Rotation, rotate


def attend(
    query: Float[Array, "b n heads d"],
    key: Float[Array, "b k heads d"],
    value: Float[Array, "b k heads d"],
    *,
    mask: Bool[Array, "#b #heads #n k"] | None = None,
    bias: Float[Array, "#b #heads n k"] | None = None,
    causal: bool = False,
) -> Float[Array, "b n heads d"]:
    """softmax(q k / √d + bias) v, with the softmax in float32.

    On a GPU cuDNN's fused kernel where it applies (half precision, heads of a multiple of 8 up to 128, neither mask
    nor bias: it takes those at even lengths alone); on the CPU products over (b heads) n d, which its compiler runs
    fastest; on a TPU, where there is neither mask nor bias, `_softmax_own_backward`; elsewhere XLA's own form.

    Args:
        query: one row per token that looks.
        key: one row per token that is looked at.
        value: what is seen there.
        mask: True where a query may look; each query needs one such key.
        bias: added to the logits.
        causal: a query looks at no key after its own place.
    """
    backend = target_backend()
    if backend == "cpu" and (mask is not None or bias is not None or causal):
        weights = attention_weights(query, key, mask=mask, bias=bias, causal=causal)
        return jnp.einsum("bhnk,bkhd->bnhd", weights, value)
    if backend == "cpu":
        heads = query.shape[2]
        q, k, v = (rearrange(x, "b n heads d -> (b heads) n d") for x in (query, key, value))
        mixed = _mix_own_backward(q * q.shape[-1] ** -0.5, k, v)
        return rearrange(mixed, "(b heads) n d -> b n heads d", heads=heads)
    if backend == "tpu" and mask is None and bias is None and not causal:
        # Logits leave their product in its dtype, as on the CPU: half the bytes to write and to read again.
        logits = jnp.einsum("bnhd,bkhd->bhnk", query * query.shape[-1] ** -0.5, key)
        return jnp.einsum("bhnk,bkhd->bnhd", _softmax_own_backward(logits), value)
    width = query.shape[-1]
    fused = backend == "gpu" and query.dtype in (jnp.bfloat16, jnp.float16) and width % 8 == 0 and width <= 128
    if fused and mask is None and bias is None:
        return _at_even_lengths(query, key, value, causal=causal, implementation="cudnn")
    return jax.nn.dot_product_attention(query, key, value, bias, mask, is_causal=causal, implementation="xla")


def _at_even_lengths(
    query: jax.Array, key: jax.Array, value: jax.Array, *, causal: bool, implementation: Literal["cudnn", "xla"]
) -> jax.Array:
    """The same for lengths that are odd (196 patches and a class token): JAX refuses cuDNN's gradients at those.

    It means those with a bias, for which cuDNN has no kernel, but takes the empty one that it passes for one
    (`check_is_flash_attention` in jax/_src/cudnn/fused_attention_stablehlo.py of 0.10). So a token is added that
    nothing looks at.
    """
    num_queries, num_keys = query.shape[1], key.shape[1]
    if num_queries % 2 == num_keys % 2 == 0:
        return jax.nn.dot_product_attention(query, key, value, is_causal=causal, implementation=implementation)
    query, key, value = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (query, key, value))
    # Of each example, the same twice: under vmap JAX's kernel wants these mapped wherever the query is.
    lengths = [jnp.where(query[:, 0, 0, 0] == 0, n, n).astype(jnp.int32) for n in (num_queries, num_keys)]
    mixed = jax.nn.dot_product_attention(
        query,
        key,
        value,
        is_causal=causal,
        query_seq_lengths=lengths[0],
        key_value_seq_lengths=lengths[1],
        implementation=implementation,
    )
    return mixed[:, :num_queries]


def attention_weights(
    query: Float[Array, "b n heads d"],
    key: Float[Array, "b k heads d"],
    *,
    mask: Bool[Array, "#b #heads #n k"] | None = None,
    bias: Float[Array, "#b #heads n k"] | None = None,
    causal: bool = False,
) -> Float[Array, "b heads n k"]:
    """The softmax of `attend`: how much each query attends to each key; rows sum to one."""
    q, k = (rearrange(x, "b n heads d -> (b heads) n d") for x in (query, key))
    logits = (q * q.shape[-1] ** -0.5) @ jnp.swapaxes(k, 1, 2)
    # float32: in bfloat16 the sum over keys loses the small weights
    logits = rearrange(logits, "(b heads) n k -> b heads n k", heads=query.shape[2]).astype(jnp.float32)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    lowest = jnp.finfo(jnp.float32).min  # finite: a row with nothing to see stays a number
    if mask is not None:
        logits = jnp.where(mask, logits, lowest)
    if causal:
        logits = jnp.where(jnp.tri(*logits.shape[2:], dtype=bool)[None, None], logits, lowest)
    return jax.nn.softmax(logits, axis=-1).astype(query.dtype)


def prefix_causal_mask(prefix: Int[Array, " b"], num_tokens: int) -> Bool[Array, "b n n"]:
    """Where a token (second axis) may look: at those up to itself, and at the first `prefix` ones of its example.

    Reference: El-Nouby et al., AIM, 2024 (arXiv:2401.08541), Sec. 3.2, "Prefix Transformer".
    """
    place = jnp.arange(num_tokens)
    return jnp.tri(num_tokens, dtype=bool)[None] | (place[None, None, :] < prefix[:, None, None])


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


def _softmax(logits: jax.Array) -> jax.Array:
    return _softmax_forward(logits)[0]


def _softmax_forward(logits: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # The difference in their own dtype, which a TPU computes in float32 all the same: so written, its compiler makes
    # one pass of product, maximum, exponential and sum.
    below = logits - jnp.max(logits, axis=-1, keepdims=True)
    unscaled = jnp.exp(below.astype(jnp.float32)).astype(logits.dtype)
    rate = 1 / jnp.sum(unscaled.astype(jnp.float32), axis=-1, keepdims=True)
    return (unscaled.astype(jnp.float32) * rate).astype(logits.dtype), (unscaled, rate)


def _softmax_backward(kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array]:
    unscaled, rate = kept
    weights, g = unscaled.astype(jnp.float32) * rate, g.astype(jnp.float32)
    return ((weights * (g - jnp.sum(weights * g, axis=-1, keepdims=True))).astype(unscaled.dtype),)


# Keeps one array of b heads n k for the backward pass, in the logits' dtype, where JAX keeps two in float32.
_softmax_own_backward = jax.custom_vjp(_softmax)
_softmax_own_backward.defvjp(_softmax_forward, _softmax_backward)


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017, arXiv:1706.03762, Sec. 3.2.2).

    Query, key and value are one kernel (d, 3, heads, head_dim): the heads are an axis that can be split over devices.

    Attributes:
        qkv_bias: queries, keys and values have an offset.
        key_bias: that of the keys counts (False: BEiT, DINOv3; the leaf keeps its shape).
        out_bias: the result has an offset.
        qk_norm: queries and keys are normalised over each head's width (Dehghani et al., 2023, arXiv:2302.05442).
        norm: name of that norm in `NORMS`.
        relative: a table of relative positions is learned, one for each layer.
        causal: a token looks at no later one.
    """

    width: int
    heads: int
    kernel_init: Initializer = xavier_uniform
    dtype: DTypeLike = jnp.float32
    qkv_bias: bool = True
    key_bias: bool = True
    out_bias: bool = True
    qk_norm: bool = False
    norm: str = "layer_norm"
    norm_epsilon: float = 1e-6
    relative: bool = False
    causal: bool = False

    def setup(self) -> None:
        self.qkv = DenseParts(
            (3, self.heads, self.width // self.heads),
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            use_bias=self.qkv_bias,
            biased=None if self.key_bias else (True, False, True),
        )
        self.out = Dense(
            self.width, contract=2, kernel_init=self.kernel_init, dtype=self.dtype, use_bias=self.out_bias
        )
        if self.qk_norm:
            self.q_norm = NORMS[self.norm](self.norm_epsilon, self.dtype)
            self.k_norm = NORMS[self.norm](self.norm_epsilon, self.dtype)
        if self.relative:
            self.relative_positions = RelativePositions(self.heads)

    def _query_key_value(self, x: jax.Array, rope: Rotation | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        query, key, value = self.qkv(x)  # each b n heads head_dim
        if self.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        if rope is not None:
            query, key = rotate(query, rope), rotate(key, rope)
        return query, key, value

    def _bias(self, bias: jax.Array | None, where: RelativeIndex | None) -> jax.Array | None:
        if not self.relative or where is None:
            return bias
        own = self.relative_positions(where)
        return own if bias is None else own + bias

    def __call__(
        self,
        x: Float[Array, "b n d"],
        *,
        mask: Bool[Array, "#b #heads #n n"] | None = None,
        bias: Float[Array, "#b #heads n n"] | None = None,
        rope: Rotation | None = None,
        where: RelativeIndex | None = None,
    ) -> Float[Array, "b n d"]:
        """What the tokens see of each other.

        Args:
            x: tokens.
            mask: True where a token (third axis) may look at another (last axis).
            bias: added to the logits.
            rope: by which queries and keys are turned.
            where: the tokens' places, for this layer's own relative positions.
        """
        query, key, value = self._query_key_value(x, rope)
        return self.out(attend(query, key, value, mask=mask, bias=self._bias(bias, where), causal=self.causal))

    def weights(
        self,
        x: Float[Array, "b n d"],
        *,
        mask: Bool[Array, "#b #heads #n n"] | None = None,
        bias: Float[Array, "#b #heads n n"] | None = None,
        rope: Rotation | None = None,
        where: RelativeIndex | None = None,
    ) -> Float[Array, "b heads n n"]:
        """How much each token (third axis) attends to each other (last axis); rows sum to one."""
        query, key, _ = self._query_key_value(x, rope)
        return attention_weights(query, key, mask=mask, bias=self._bias(bias, where), causal=self.causal)
