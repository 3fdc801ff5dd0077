"""The axis legend and the values that travel between floors.

Axis letters, used in every jaxtyping signature and einops pattern:

    b  examples of a batch        n  tokens (patches, with or without prefix tokens)
    v  views of one example       k  kept (visible) tokens
    h  image or grid height       l  text length
    w  image or grid width        d  width of a representation
    c  image channels             p  pixels of one patch (rows x columns x channels)
    m  prototypes or classes
"""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
from jaxtyping import Array, Float

Batch = Mapping[str, Any]  # field name -> array with the batch axis first
Params = Any  # nested dict of arrays
Measurements = dict[str, jax.Array]  # name -> scalar, reported as they are


class Features(flax.struct.PyTreeNode):
    """What every encoder returns.

    Attributes:
        tokens: final normalised tokens; prefix tokens (class, register) first where the encoder has them.
        pooled: one vector per image, by the encoder's own pooling rule.
        levels: intermediate outputs asked for by index, shallow to deep.
        grid: rows and columns of patches that the non-prefix tokens came from.
        num_prefix_tokens: how many leading tokens belong to no patch.
        level_grids: rows and columns of each level; empty where they are all `grid` (and prefix tokens lead them).
    """

    tokens: Float[Array, "b n d"]
    pooled: Float[Array, "b d"]
    levels: tuple[Float[Array, "b n d"], ...] = ()
    grid: tuple[int, int] = flax.struct.field(pytree_node=False, default=(0, 0))
    num_prefix_tokens: int = flax.struct.field(pytree_node=False, default=0)
    level_grids: tuple[tuple[int, int], ...] = flax.struct.field(pytree_node=False, default=())

    @property
    def patch_tokens(self) -> Float[Array, "b n d"]:
        """Tokens of the patches alone."""
        return self.tokens[:, self.num_prefix_tokens :]
