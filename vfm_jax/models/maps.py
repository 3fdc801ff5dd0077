"""What the encoders that compute maps share: their features, and what they refuse."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vfm_jax.core.errors import UserError
from vfm_jax.core.types import Features
from vfm_jax.nn.convolutions import as_tokens

Level = int | str  # a stage, or "stem"


def features_of_map(
    x: Float[Array, "b h w d"],
    pooled: Float[Array, "b d2"],
    maps: Mapping[Level, jax.Array],
    levels: Sequence[Level],
) -> Features:
    """Features of the last map.

    Args:
        x: the map whose cells are the tokens.
        pooled: one vector per image.
        maps: outputs of the stages by index, and of the "stem".
        levels: those that are wanted; -1 is the last stage.

    Raises:
        UserError: a level that the network does not have.
    """
    wanted = [maps[_place(level, maps)] for level in levels]
    return Features(
        as_tokens(x),
        pooled.astype(jnp.float32),
        tuple(as_tokens(level) for level in wanted),
        (x.shape[1], x.shape[2]),
        level_grids=tuple((level.shape[1], level.shape[2]) for level in wanted),
    )


def _place(level: Level, maps: Mapping[Level, Any]) -> Level:
    stages = sum(isinstance(name, int) for name in maps)
    place = level + stages if isinstance(level, int) and level < 0 else level
    if place not in maps:
        raise UserError(f'levels names {level!r}; this network has stages 0 to {stages - 1}, and "stem".')
    return place


def refuse_keep(keep: Any, name: str) -> None:
    """Raises UserError where patches are to be left out."""
    if keep is not None:
        raise UserError(
            f"{name} looks at whole images and cannot leave patches out. Choose a ViT as encoder, "
            "or an objective that hides no patches."
        )


def refuse_without_cells(x: Float[Array, "b rows columns d"], image: Float[Array, "b h w c"]) -> None:
    """Raises UserError where the images are too small to leave a cell of the last map."""
    if 0 in x.shape[1:3]:
        raise UserError(
            f"Images of {image.shape[1]} x {image.shape[2]} pixels leave {x.shape[1]} x {x.shape[2]} cells of the "
            "last map. Resize them to more pixels."
        )


def drop_rates(last: float, depths: Sequence[int]) -> list[tuple[float, ...]]:
    """Drop path rates, stage by stage: zero at the first block, rising linearly to `last`."""
    rates = np.linspace(0, last, int(np.sum(depths)))
    return [tuple(float(r) for r in stage) for stage in np.split(rates, np.cumsum(depths)[:-1])]


def keys_of_layer(keys: jax.Array | None, layer: int) -> jax.Array | None:
    """Each example's key, of its own for this layer."""
    return None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, layer))(keys)
