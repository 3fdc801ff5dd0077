"""What methods of images and their texts share: two towers, run example by example, and a learned temperature."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfm_jax.core.errors import UserError
from vfm_jax.core.keys import example_keys, stream
from vfm_jax.core.types import Batch, Params
from vfm_jax.objectives.interface import (
    Extra,
    Variables,
    apply_network,
    encoder_predictions,
    init_network,
)


class Pair(NamedTuple):
    """Embeddings of images and of their texts, both (b d), not yet normalised."""

    image: jax.Array
    text: jax.Array

    @property
    def views(self) -> jax.Array:
        """As two views of one example (b 2 d): what is watched is then how near a text is to its image."""
        return jnp.stack([self.image, self.text], axis=1)


def init_towers(encoder: Any, text_encoder: Any, key: jax.Array, batch: Batch, method: str) -> Variables:
    """Fresh parameters of both towers.

    Raises:
        UserError: the data has no texts, or the towers end in different widths.
    """
    if "text" not in batch:
        raise UserError(
            f"{method} learns from images with texts, and this data has none. "
            'Take a source of pairs: config.data = dict(name="pairs", path=...).'
        )
    seen, params, state = init_network(encoder, stream(key, "encoder"), batch["image"])
    read, text_params, text_state = init_network(text_encoder, stream(key, "text_encoder"), batch["text"])
    widths = seen.pooled.shape[1], read.pooled.shape[1]
    if widths[0] != widths[1]:
        raise UserError(
            f"{method} compares images and texts in one space: the encoder ends in {widths[0]} numbers, the text "
            f"encoder in {widths[1]}. Set config.networks.text_encoder.projection={widths[0]}, or that of both."
        )
    return Variables({"encoder": params, "text_encoder": text_params}, {"encoder": state, "text_encoder": text_state})


def encode_pairs(
    encoder: Any,
    text_encoder: Any,
    params: Params,
    extra: Extra,
    batch: Batch,
    key: jax.Array,
    *,
    freeze_encoder: bool,
) -> tuple[Pair, Extra]:
    """Embeddings in training; with `freeze_encoder` the image tower is as it is, and gets no gradient."""
    keys, text_keys = (
        example_keys(stream(key, name), batch["epoch"], batch["index"]) for name in ("drop_path", "text_drop_path")
    )
    weights = jax.lax.stop_gradient(params["encoder"]) if freeze_encoder else params["encoder"]
    seen, state = apply_network(
        encoder, weights, extra["encoder"], batch["image"], keys=keys, train=not freeze_encoder
    )
    read, text_state = apply_network(
        text_encoder, params["text_encoder"], extra["text_encoder"], batch["text"], keys=text_keys, train=True
    )
    return Pair(seen.pooled, read.pooled), {**extra, "encoder": state, "text_encoder": text_state}


def pair_predictions(encoder: Any, text_encoder: Any) -> dict[str, Any]:
    """What the image tower offers, and the features of the texts."""

    def text_features(variables: Variables, batch: Batch) -> Any:
        params, extra = variables.result
        return apply_network(
            text_encoder, params["text_encoder"], extra.get("text_encoder", {}), batch["text"], train=False
        )[0]

    return encoder_predictions(encoder) | {"text_features": text_features}
