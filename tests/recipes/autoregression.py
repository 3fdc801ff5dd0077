"""AIM's and iGPT's facts: El-Nouby et al., 2024; Chen et al., 2020."""

import jax
import jax.numpy as jnp

from tests.recipe_facts import given, network, op
from vfm_jax.core.trees import count_parameters
from vfm_jax.models import MODELS

AIM = "configs/autoregressive/aim_0_6b.py"
IGPT = "configs/autoregressive/igpt_s_in1k.py"
STAGES = {
    ("aim", "0.6b", "pretrain"): AIM,
    **{("aim", size, "pretrain"): f"{AIM}:{size}" for size in ("1b", "3b", "7b")},
    ("igpt", "s", "pretrain"): IGPT,
    **{("igpt", size, "pretrain"): f"{IGPT}:{size}" for size in ("m", "l", "xl")},
}
PROSE = {
    "dataset",  # neither paper's is public
    "embedding", "linear_probe", "bert",
    "optim.lr_search", "optim.lr_rule",  # a search, not a value
}  # fmt: skip
COMPARED = 9  # of iGPT-XL


def _parameters(recipe):
    """Of the encoder, in billions."""
    spec = dict(recipe["networks"]["encoder"])
    encoder = MODELS[spec.pop("name")](**spec)
    side = op("random_resized_crop", "size")(recipe)
    image = jnp.zeros((1, side, side, 3), jnp.float32)
    return f"{count_parameters(jax.eval_shape(encoder.init, jax.random.key(0), image)) / 1e9:.1f}B"


def _biased(recipe):
    encoder = recipe["networks"]["encoder"]
    return {encoder[field] for field in ("qkv_bias", "mlp_bias", "out_bias")} == {True}


def _positions(recipe):
    words = {"sincos2d": "sinusoidal"}
    networks = recipe["networks"]
    assert networks["encoder"]["positions"] == networks["head"]["positions"]
    return f"{words[networks['encoder']['positions']]}, before trunk and before head"


def _decay(recipe):
    """In AIM's words and in iGPT's."""
    schedule = recipe["schedule"]
    if schedule.get("warmup_steps"):
        return f"linear warm-up + {schedule['name']}"
    return f"{schedule['name']} to {schedule['end']:g}"


READERS = {
    "arch.mlp_ratio": lambda r: network("encoder", "mlp_dim")(r) / network("encoder", "dim")(r),
    "arch.bias": _biased,
    "arch.pos": _positions,
    "arch.context": lambda r: op("random_resized_crop", "size")(r) ** 2,
    "arch.resolution": op("random_resized_crop", "size"),
    "arch.vocab": lambda r: r["networks"]["encoder"]["color_levels"] ** 3,
    "arch.activation": lambda r: {"quick_gelu": "x*sigmoid(1.702x)"}[r["networks"]["encoder"]["activation"]],
    "arch.norm": lambda r: {("rms_norm", 1e-5): "RMS-style, gain only, eps 1e-5"}[
        r["networks"]["encoder"]["norm"], r["networks"]["encoder"]["norm_epsilon"]
    ],
    "arch.start_token": lambda r: {True: "learned"}[r["networks"]["encoder"]["class_token"]],
    "arch.params": _parameters,
    "head.mlp_blocks": given("networks", "head", "depth"),
    "steps": given("total_steps"),
    "schedule.steps": given("total_steps"),
    "schedule.decay": _decay,
    "schedule.warmup": lambda r: f"{r['schedule']['warmup_epochs']} epoch",
    # Adam is AdamW without decay.
    "optim.name": lambda r: "adamw" if r["optimizer"]["weight_decay"] else "adam",
    "dropout": lambda r: r["networks"]["encoder"].get("dropout", 0.0),
}
