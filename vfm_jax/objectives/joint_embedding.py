"""What methods share that embed several views of an image by one encoder and one projector, and compare those."""

from typing import Any

import jax
from einops import rearrange

from vfm_jax.core.keys import stream
from vfm_jax.core.types import Batch, Params
from vfm_jax.objectives.interface import Extra, Variables, encode_views, init_network, view_keys, views_of


def init_embedding(key: jax.Array, encoder: Any, projector: Any, batch: Batch, method: str) -> Variables:
    """Fresh parameters and batch statistics of an encoder and of a projector on its pooled features."""
    views = views_of(batch, "image", 2, method)
    seen, encoder_params, encoder_state = init_network(encoder, stream(key, "encoder"), views[:, 0])
    _, projector_params, projector_state = init_network(projector, stream(key, "projector"), seen.pooled, train=True)
    params = {"encoder": encoder_params, "projector": projector_params}
    return Variables(params, {"encoder": encoder_state, "projector": projector_state})


def pooled_views(
    encoder: Any, params: Params, extra: Extra, batch: Batch, key: jax.Array, method: str, *, together: bool = True
) -> tuple[jax.Array, Extra]:
    """Pooled features (b v d) of the two views `batch["image"]` in training, and `extra` after it.

    Args:
        encoder: images -> Features.
        params: of all networks.
        extra: what the method carries.
        batch: with the views.
        key: for drop path and the like; every view has its own.
        method: its name, for messages.
        together: as for `encode_views`.
    """
    views = views_of(batch, "image", 2, method)
    keys = view_keys(batch, stream(key, "drop_path"), views.shape[1])
    seen, statistics = encode_views(encoder, params["encoder"], extra["encoder"], views, keys, together=together)
    return rearrange(seen.pooled, "(b v) d -> b v d", b=views.shape[0]), {**extra, "encoder": statistics}
