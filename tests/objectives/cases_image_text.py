"""Methods of images and texts on tiny towers."""

import jax.numpy as jnp
import numpy as np

from tests.objectives.case import HEIGHT, WIDTH, Case, tiny_vit
from vfm_jax.models import MODELS
from vfm_jax.objectives import OBJECTIVES

IMAGE = {"image": (HEIGHT, WIDTH, 3)}


def text_encoder():
    return MODELS["text"](
        variant="mu", width=16, depth=1, heads=2, mlp_dim=24, vocabulary=11, length=6, projection=12
    )


def _captions(size):
    return {"text": jnp.asarray(np.random.default_rng(0).integers(0, 11, (size, 6)), jnp.int32)}


def _case(name, still=(), **settings):
    return Case(
        lambda: OBJECTIVES[name](tiny_vit(projection=12, drop_path=0.2), text_encoder(), **settings),
        IMAGE,
        still=still,
        more=_captions,
    )


CASES = {
    "clip": _case("clip"),
    "clip locked": _case("clip", ("^encoder/",), freeze_encoder=True),
    "siglip": _case("siglip"),
    "siglip blocks": _case("siglip", num_blocks=8),
}
