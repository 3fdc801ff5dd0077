"""Text transformer of image-text models: CLIP's (Radford et al., 2021, arXiv:2103.00020) and SigLIP's."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import lookup
from vfm_jax.core.types import Features
from vfm_jax.nn.layers import Dense, LayerNorm
from vfm_jax.nn.transformer import Transformer

# width, depth, mlp_dim, heads
SIZES = {
    "mu": (32, 1, 128, 2),  # for tests
    "CLIP-B": (512, 12, 2048, 8),  # Radford et al., 2021, Table 20
    "CLIP-L": (768, 12, 3072, 12),  # the same
    "CLIP-H": (1024, 24, 4096, 16),  # Cherti et al., OpenCLIP, 2022 (arXiv:2212.07143), Table 26
    "CLIP-bigG": (1280, 32, 5120, 20),  # open_clip
    "B": (768, 12, 3072, 12),  # Zhai et al., SigLIP, 2023 (arXiv:2303.15343): that of the image tower
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
}
POOLINGS = ("argmax", "end_token", "last")


class TextTransformer(nn.Module):
    """Token ids, positions, transformer, norm, pooling, and a linear map to the space shared with images.

    CLIP: causal, pooled at the end token, projection without offset. SigLIP: causal=False, pooling="last",
    activation="gelu_tanh", norm_epsilon=1e-6, projection_bias=True.

    Attributes:
        variant: a row of `SIZES`; the next four replace what it says.
        width: of every token.
        depth: number of blocks.
        mlp_dim: hidden width of the blocks' MLP.
        heads: attention heads.
        vocabulary: number of token ids.
        length: number of positions: the longest text.
        causal: a token looks at no later one.
        pooling: the token that stands for the text: the one of the highest id ("argmax", CLIP's first files: the end
            token has it), the first that is `end_token` ("end_token"), or the "last" one, padding or not.
        end_token: id of the end of a text.
        projection: width of the result; None for the tower's own, without a linear map.
        projection_bias: that map has an offset.
        levels: blocks whose outputs are returned too.
        scan: run the blocks by a scan (see `nn.transformer`).
        remat: what to recompute in the backward pass: "none", "dots" or "full".
        dtype: of matrix products; parameters, norms and softmax are float32.
    """

    variant: str = "CLIP-B"
    width: int | None = None
    depth: int | None = None
    mlp_dim: int | None = None
    heads: int | None = None
    vocabulary: int = 49408
    length: int = 77
    causal: bool = True
    pooling: str = "argmax"
    end_token: int | None = None
    projection: int | None = None
    projection_bias: bool = False
    activation: str = "gelu"
    norm_epsilon: float = 1e-5
    levels: Sequence[int] = ()
    scan: bool = False
    remat: str = "none"
    dtype: DTypeLike = jnp.float32

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Width, depth, MLP width and heads."""
        row = lookup(SIZES, self.variant, "variant")
        given = (self.width, self.depth, self.mlp_dim, self.heads)
        width, depth, mlp_dim, heads = (own or default for own, default in zip(given, row, strict=True))
        return width, depth, mlp_dim, heads

    def setup(self) -> None:
        if self.pooling not in POOLINGS:
            raise UserError(f"A text tower has pooling {', '.join(POOLINGS)}; found {self.pooling!r}.")
        if self.pooling == "end_token" and self.end_token is None:
            raise UserError('pooling="end_token" needs end_token, the id that ends a text.')
        width, depth, mlp_dim, heads = self.sizes
        self.words = self.param(
            "token_embedding", nn.initializers.normal(0.02), (self.vocabulary, width), jnp.float32
        )
        self.places = self.param("positions", nn.initializers.normal(0.01), (self.length, width), jnp.float32)
        self.transformer = Transformer(
            width,
            depth,
            heads,
            mlp_dim,
            self.activation,
            norm_epsilon=self.norm_epsilon,
            scan=self.scan,
            remat=self.remat,
            dtype=self.dtype,
            causal=self.causal,
        )
        self.norm = LayerNorm(self.norm_epsilon, self.dtype)
        if self.projection:
            self.projection_layer = Dense(
                self.projection,
                kernel_init=nn.initializers.normal(width**-0.5),
                dtype=self.dtype,
                use_bias=self.projection_bias,
                name="projection",
            )

    def __call__(
        self,
        text: Int[Array, "b l"],
        mask: Bool[Array, "b l"] | None = None,
        *,
        keys: jax.Array | None = None,
        train: bool = False,
    ) -> Features:
        """Tokens, normalised, and the projected one that stands for the text; float32.

        Args:
            text: token ids.
            mask: True where a token may be looked at; None: everywhere. SigLIP was trained without.
            keys: nothing is drawn here; taken so that both towers are called alike.
            train: the same.

        Raises:
            UserError: a text longer than the positions.
        """
        del keys, train
        length = text.shape[1]
        if length > self.length:
            raise UserError(f"Texts of {length} tokens, and positions for {self.length}: cut them to {self.length}.")
        x = (self.words[text] + self.places[None, :length]).astype(self.dtype)
        x, levels = self.transformer(x, levels=self.levels, mask=None if mask is None else mask[:, None, None, :])
        x = self.norm(x)
        pooled = self._pool(x, text)
        if self.projection:
            pooled = self.projection_layer(pooled)
        # float32: losses sum over these
        levels = tuple(level.astype(jnp.float32) for level in levels)
        return Features(x.astype(jnp.float32), pooled.astype(jnp.float32), levels)

    def _pool(self, x: Float[Array, "b l d"], text: Int[Array, "b l"]) -> Float[Array, "b d"]:
        if self.pooling == "last":
            return x[:, -1]
        place = jnp.argmax(text if self.pooling == "argmax" else text == self.end_token, axis=1)
        return jnp.take_along_axis(x, place[:, None, None], axis=1)[:, 0]
