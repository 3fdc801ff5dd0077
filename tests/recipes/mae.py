"""MAE's facts: He et al., 2021."""

import jax
import jax.numpy as jnp

from vfm_jax.core.trees import named_leaves
from vfm_jax.models import MODELS

MAE = "configs/masked/mae_vit_b16_in1k.py"
STAGES = {
    ("mae", size, stage): f"{MAE}:{size}_{argument}"
    for size in ("vit_b16", "vit_l16", "vit_h14")
    for stage, argument in {
        "pretrain_800ep": "800",
        "pretrain_1600ep": "1600",
        "pretrain_800ep_unnormalised_baseline": "raw",
        "finetune_1k": "finetune",
        "linear_probe": "linear_probe",
    }.items()
}
PROSE = {"note"}


def _abstract(recipe):
    """Shapes of a recipe's networks for two images of four patches."""
    networks = recipe["networks"]
    encoder, decoder = (
        MODELS[spec.pop("name")](**spec) for spec in (dict(networks[r]) for r in ("encoder", "decoder"))
    )
    side = 2 * encoder.patch_size
    keep, image = jnp.zeros((2, 1), jnp.int32), jnp.zeros((2, side, side, 3), jnp.float32)
    seen, encoder_shapes = jax.eval_shape(lambda: encoder.init_with_output(jax.random.key(0), image, keep=keep))
    tokens = jnp.zeros(seen.tokens.shape, jnp.float32)
    pixels, _ = jax.eval_shape(lambda: decoder.init_with_output(jax.random.key(0), tokens, keep, (2, 2), 768))
    return named_leaves({"encoder": encoder_shapes["params"]}), seen.tokens.shape, pixels.shape


def _leaves(recipe):
    return _abstract(recipe)[0]


def _decodes_the_class_token(recipe):
    """The decoder takes the class token beside the one kept patch, and gives the pixels of the four patches alone."""
    _, tokens, pixels = _abstract(recipe)
    return tokens[1] == 2 and pixels[1] == 4


READERS = {
    "arch.qkv_bias": lambda recipe: "encoder/transformer/block_0/attention/qkv/bias" in _leaves(recipe),
    "arch.class_token_in_decoder": _decodes_the_class_token,
}
