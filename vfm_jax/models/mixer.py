"""MLP-Mixer (Tolstikhin et al., 2021, arXiv:2105.01601)."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import lookup
from vfm_jax.core.types import Features
from vfm_jax.models.maps import keys_of_layer, refuse_keep
from vfm_jax.nn.layers import ACTIVATIONS, LayerNorm, drop_path
from vfm_jax.nn.patches import PatchEmbedding, grid_of, patch_size_of, patchify
from vfm_jax.nn.transformer import Mlp, places_of_levels

# width, depth, hidden width of the token MLP, of the channel MLP: Tolstikhin et al., 2021, Table 1
SIZES = {
    "S": (512, 8, 256, 2048),
    "B": (768, 12, 384, 3072),
    "L": (1024, 24, 512, 4096),
    "H": (1280, 32, 640, 5120),
}
_INIT = nn.initializers.lecun_normal()


class Mixer(nn.Module):
    """Patches, blocks that mix tokens and then channels, norm, mean; for images of one size.

    Attributes:
        variant: "SIZE/PATCH": a row of `SIZES`, and the pixels along one side of a patch.
        width: of every token; this and the next three replace the variant's where they are given.
        depth: number of blocks.
        token_dim: hidden width of the MLP over tokens.
        channel_dim: hidden width of the MLP over channels.
        activation: "gelu_tanh" as the authors'; timm has "gelu".
        drop_path: rate of the last block, rising linearly from zero.
        levels: blocks whose outputs are returned too.
        dtype: of matrix products; parameters and norms are float32.
    """

    variant: str = "S/16"
    width: int | None = None
    depth: int | None = None
    token_dim: int | None = None
    channel_dim: int | None = None
    activation: str = "gelu_tanh"
    drop_path: float = 0.0
    norm_epsilon: float = 1e-6
    levels: Sequence[int] = ()
    dtype: DTypeLike = jnp.float32

    @property
    def patch_size(self) -> int:
        """Pixels along one side of a patch."""
        return patch_size_of(self.variant)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Width, depth, and hidden width of the MLPs over tokens and channels."""
        row = lookup(SIZES, self.variant.partition("/")[0], "variant")
        given = (self.width, self.depth, self.token_dim, self.channel_dim)
        width, depth, token_dim, channel_dim = (own or default for own, default in zip(given, row, strict=True))
        return width, depth, token_dim, channel_dim

    @property
    def num_levels(self) -> int:
        """How many blocks there are to ask for by `levels`."""
        return self.sizes[1]

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b h w c"],
        *,
        keep: Int[Array, "b k"] | None = None,
        keys: jax.Array | None = None,
        train: bool = False,
    ) -> Features:
        """See `models.interface.Encoder`.

        Raises:
            ValueError: the patch size does not divide the image.
            UserError: `keep` is given, or another number of patches than the parameters are for.
        """
        refuse_keep(keep, "MLP-Mixer")
        lookup(ACTIVATIONS, self.activation, "activation")
        grid = grid_of((image.shape[1], image.shape[2]), self.patch_size)
        self._check_tokens(grid)
        width, depth, token_dim, channel_dim = self.sizes
        keys = keys if train and self.drop_path > 0 else None
        embed = PatchEmbedding(width, self.patch_size, kernel_init=_INIT, dtype=self.dtype, name="patch_embedding")
        x = embed(patchify(image, self.patch_size))
        outputs = []
        for i, rate in enumerate(np.linspace(0, self.drop_path, depth)):
            block = _Block(token_dim, channel_dim, self.activation, self.norm_epsilon, self.dtype, name=f"block_{i}")
            x = block(x, keys_of_layer(keys, i), float(rate))
            outputs.append(x)
        x = LayerNorm(self.norm_epsilon, self.dtype, name="norm")(x).astype(jnp.float32)
        levels = tuple(outputs[place].astype(jnp.float32) for place in places_of_levels(self.levels, depth))
        return Features(x, jnp.mean(x, axis=1), levels, grid)

    def _check_tokens(self, grid: tuple[int, int]) -> None:
        if not self.has_variable("params", "block_0"):
            return
        tokens = self.get_variable("params", "block_0")["token_mixing"]["up"]["kernel"].shape[0]
        if tokens != grid[0] * grid[1]:
            raise UserError(
                f"This MLP-Mixer mixes {tokens} patches; these images have {grid[0]} x {grid[1]}. "
                "Resize the images: its weights know one size only."
            )


class _Block(nn.Module):
    token_dim: int
    channel_dim: int
    activation: str
    norm_epsilon: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None, rate: float) -> jax.Array:
        def mlp(width: int, hidden_dim: int, name: str) -> Mlp:
            return Mlp(
                width=width, hidden_dim=hidden_dim, activation=self.activation, kernel_init=_INIT, dtype=self.dtype,
                name=name,
            )  # fmt: skip

        y = LayerNorm(self.norm_epsilon, self.dtype, name="norm1")(x).swapaxes(1, 2)  # b d n
        y = mlp(x.shape[1], self.token_dim, "token_mixing")(y).swapaxes(1, 2)
        x = x + drop_path(keys_of_layer(keys, 0), y, rate)
        y = LayerNorm(self.norm_epsilon, self.dtype, name="norm2")(x)
        y = mlp(x.shape[2], self.channel_dim, "channel_mixing")(y)
        return x + drop_path(keys_of_layer(keys, 1), y, rate)
