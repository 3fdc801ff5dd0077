"""Rows of the table of objectives: methods that predict an image from its beginning."""

from tests.objectives.case import Case, tiny_vit
from vfm_jax.models import MODELS
from vfm_jax.objectives import OBJECTIVES

IMAGE = {"image": (8, 12, 3)}

CASES = {
    "aim": Case(
        lambda: OBJECTIVES["aim"](
            tiny_vit(class_token=False, positions="sincos2d", qkv_bias=False, mlp_bias=False, out_bias=False),
            MODELS["token_decoder"](width=12, depth=2),
        ),
        IMAGE,
    ),
    "igpt": Case(
        lambda: OBJECTIVES["igpt"](
            tiny_vit(causal=True, color_levels=2, norm="rms_norm", activation="quick_gelu"),
            MODELS["token_decoder"](depth=0, positions="none", init_std=0.02),
        ),
        IMAGE,
    ),
    "nepa": Case(
        lambda: OBJECTIVES["nepa"](tiny_vit(causal=True, positions="rope", qk_norm=True, layer_scale=0.1)), IMAGE
    ),
}
