"""Masks that the global crops of a batch share out among themselves: DINOv2's and DINOv3's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from vfm_jax.core.errors import UserError
from vfm_jax.core.keys import stream
from vfm_jax.core.types import Batch
from vfm_jax.losses.self_distillation import mask_weights
from vfm_jax.nn.masking import block_masks, gather_tokens, masked_indices
from vfm_jax.objectives.interface import view_keys


@dataclasses.dataclass(frozen=True)
class CropMasks:
    """A share of the crops is masked, at ratios spread evenly over a range and dealt out in random order.

    An image may so have all of its global crops masked, or none. The number of masks, and nearly that of the patches
    they hide, is the same in every batch.

    Reference: `collate_data_and_cast` of the codes of DINOv2 (Oquab et al., 2023, arXiv:2304.07193) and DINOv3
    (Siméoni et al., 2025, arXiv:2508.10104), which deal among the images of one GPU.

    Attributes:
        share: of the crops that are masked, in (0, 1].
        ratio: least and largest share of a masked crop's patches that are hidden. The range is divided into as many
            intervals as crops are masked, one for each.
        exact: a mask hides as much as its interval's upper end says, with single patches where blocks hide too few
            (DINOv3); else blocks alone hide at most a share drawn from the interval (DINOv2).
        group_size: images that stand side by side and share out masks; None: the batch.
    """

    share: float
    ratio: tuple[float, float]
    exact: bool
    group_size: int | None

    def draw(self, key: jax.Array, batch: Batch, num_crops: int, grid: tuple[int, int]) -> Bool[Array, "b t n"]:
        """Which patches of the crops of a whole batch are hidden.

        Raises:
            UserError: groups do not divide the batch, or the ratios hide not one patch.
        """
        b, num_patches = batch["index"].shape[0], grid[0] * grid[1]
        group = b if self.group_size is None else self.group_size
        if b % group:
            raise UserError(
                f"config.objective.mask_group_size is {group}, and the batch has {b} images: groups must divide it."
            )
        low, high = self._intervals(group * num_crops)
        most = np.floor(num_patches * high)
        if not most.any():
            raise UserError(
                f"config.objective.mask_ratio is {self.ratio}, of crops that have {num_patches} patches and of "
                f"{group} images at a time: no patch would be hidden. Use larger crops, ratios or groups."
            )

        def deal(key: jax.Array) -> jax.Array:
            place = 1.0 if self.exact else jax.random.uniform(stream(key, "ratio"), low.shape, jnp.float32)
            counts = jnp.minimum(jnp.floor(num_patches * (low + (high - low) * place)), most)
            return jax.random.permutation(stream(key, "order"), jnp.pad(counts, (0, group * num_crops - low.size)))

        keys = jax.random.split(key, b // group)
        counts = jax.vmap(deal)(keys).reshape(-1).astype(jnp.int32)
        masked = block_masks(view_keys(batch, stream(key, "place"), num_crops), grid, counts, exact=self.exact)
        return rearrange(masked, "(b t) n -> b t n", t=num_crops)

    def hidden(self, masked: Bool[Array, "b t n"]) -> tuple[Int[Array, "g k"], Float[Array, "g k"]]:
        """Where patches are hidden among those of each group, filled up to a fixed number; and their weights.

        The weights of one crop's sum to 1; 0 for the filling.
        """
        b, t, num_patches = masked.shape
        group = b if self.group_size is None else self.group_size
        most = int(np.floor(num_patches * self._intervals(group * t)[1]).sum())
        index, _ = masked_indices(rearrange(masked, "(g i) t n -> g (i t n)", i=group), most)
        weight = mask_weights(rearrange(masked, "b t n -> (b t) n")).reshape(-1, group * t * num_patches)
        return index, jnp.take_along_axis(weight, index, axis=1)

    def take(self, tokens: Float[Array, "b t n d"], index: Int[Array, "g k"]) -> Float[Array, "_ d"]:
        """The tokens at `index` of each group, one below another."""
        grouped = tokens.reshape(index.shape[0], -1, tokens.shape[-1])
        return rearrange(gather_tokens(grouped, index), "g k d -> (g k) d")

    def _intervals(self, num_crops: int) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
        """Lower and upper end of each masked crop's ratios."""
        edges = np.linspace(*self.ratio, int(num_crops * self.share) + 1, dtype=np.float32)
        return edges[:-1], edges[1:]
