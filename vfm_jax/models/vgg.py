"""VGG (Simonyan and Zisserman, 2014, arXiv:1409.1556), with and without batch norm."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import lookup
from vfm_jax.core.types import Features
from vfm_jax.models.maps import Level, features_of_map, keys_of_layer, refuse_keep
from vfm_jax.nn.convolutions import Conv, adaptive_average_pool, convolve, max_pool
from vfm_jax.nn.layers import ACTIVATIONS, Dense
from vfm_jax.nn.normalization import BatchNorm

# 3x3 convolutions before each max pool: Simonyan and Zisserman, 2014, Table 1 (columns A, B, D, E)
DEPTHS = {"11": (1, 1, 2, 2, 2), "13": (2, 2, 2, 2, 2), "16": (2, 2, 3, 3, 3), "19": (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)  # the same table
CLASSIFIERS = ("pool", "slide")


class VGG(nn.Module):
    """Stages of 3x3 convolutions, each with a max pool behind; two hidden layers of a classifier.

    Attributes:
        variant: a row of `DEPTHS`.
        depths: convolutions of each stage; this and the next replace the variant's where they are given.
        widths: channels of each stage.
        batch_norm: norm behind each convolution (Ioffe and Szegedy, 2015, came after the paper).
        classifier_dim: width of the two hidden layers, whose last is `pooled`; None for none: the mean of the map.
        classifier: "pool" brings the map to 7 x 7 (torchvision; a smaller one is repeated); "slide" runs the hidden
            layers at every 7 x 7 window and takes the mean (the paper's dense evaluation, Sec. 3.2; timm).
        dropout: rate behind each hidden layer.
        norm_momentum: see `nn.normalization.BatchNorm`.
        levels: outputs returned too: indices of stages, behind their max pool.
        dtype: of products; parameters and statistics are float32.
    """

    variant: str = "16"
    depths: Sequence[int] | None = None
    widths: Sequence[int] | None = None
    batch_norm: bool = False
    classifier_dim: int | None = 4096
    classifier: str = "pool"
    activation: str = "relu"
    dropout: float = 0.5
    norm_momentum: float = 0.9
    norm_epsilon: float = 1e-5
    levels: Sequence[Level] = ()
    dtype: DTypeLike = jnp.float32

    @property
    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Convolutions and channels of each stage."""
        depths = tuple(self.depths or lookup(DEPTHS, self.variant, "variant"))
        widths = tuple(self.widths or WIDTHS[: len(depths)])
        if len(depths) != len(widths):
            raise UserError(f"Each stage has a depth and a width; found depths {depths} and widths {widths}.")
        return depths, widths

    @property
    def patch_size(self) -> int:
        """Pixels along one side of a cell of the last stage."""
        return 2 ** len(self.sizes[0])

    @property
    def num_levels(self) -> int:
        """How many stages there are to ask for by `levels`."""
        return len(self.sizes[0])

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b h w c"],
        *,
        keep: Int[Array, "b k"] | None = None,
        keys: jax.Array | None = None,
        train: bool = False,
    ) -> Features:
        """See `models.interface.Encoder`. Rows and columns of pixels that fill no cell are left out.

        Raises:
            UserError: `keep` is given, or an image without a cell.
        """
        refuse_keep(keep, "VGG")
        if self.classifier not in CLASSIFIERS:
            raise UserError(f'The classifier of a VGG is "pool" or "slide"; found {self.classifier!r}.')
        if min(image.shape[1:3]) < self.patch_size:
            raise UserError(
                f"This VGG halves the image {len(self.sizes[0])} times: it needs {self.patch_size} pixels along each "
                f"side; found {image.shape[1]} x {image.shape[2]}."
            )
        activate = lookup(ACTIVATIONS, self.activation, "activation")
        x, maps = image, {}
        for i, (depth, width) in enumerate(zip(*self.sizes, strict=True)):
            for j in range(depth):
                x = Conv(width, 3, dtype=self.dtype, name=f"stage_{i}_conv_{j}")(x)
                if self.batch_norm:
                    norm = BatchNorm(self.norm_momentum, self.norm_epsilon, unbiased=True, name=f"stage_{i}_norm_{j}")
                    x = norm(x, train=train)
                x = activate(x)
            x = maps[i] = max_pool(x, 2, 2)
        if self.classifier_dim is None:
            return features_of_map(x, jnp.mean(x.astype(jnp.float32), axis=(1, 2)), maps, self.levels)

        # At least 7 x 7: one window then; more windows where the classifier slides.
        size = (7, 7) if self.classifier == "pool" else (max(7, x.shape[1]), max(7, x.shape[2]))
        y = x if x.shape[1:3] == size else adaptive_average_pool(x, size)
        y = activate(_Windows(self.classifier_dim, self.dtype, name="hidden_0")(y))
        y = self._drop(y, keys if train else None, 0)
        kernel_init = nn.initializers.normal(0.01)  # torchvision's
        y = activate(Dense(self.classifier_dim, kernel_init=kernel_init, dtype=self.dtype, name="hidden_1")(y))
        y = self._drop(y, keys if train else None, 1)
        return features_of_map(x, jnp.mean(y.astype(jnp.float32), axis=(1, 2)), maps, self.levels)

    def _drop(self, y: jax.Array, keys: jax.Array | None, layer: int) -> jax.Array:
        keys = keys_of_layer(keys, layer)
        if keys is None or self.dropout == 0:
            return y
        alive = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.dropout, y.shape[1:]))(keys)
        return jnp.where(alive, y / (1 - self.dropout), jnp.zeros_like(y))


class _Windows(nn.Module):
    """A dense layer over every 7 x 7 window of the map."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (7, 7, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.01), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if x.shape[1:3] == (7, 7):  # one window: a matrix product
            y = x.reshape(x.shape[0], 1, 1, -1) @ kernel.reshape(-1, self.features)
        else:
            y = convolve(x, kernel, 1, ((0, 0), (0, 0)))
        return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)
