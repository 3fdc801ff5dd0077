"""CLIP's facts: Radford et al., 2021."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from configs.image_text import clip_vit
from tests.recipe_facts import given, network, op
from vfm_jax.models import MODELS

CLIP = "configs/image_text/clip_vit.py"
STAGES = {
    ("clip", "vit_b32", "pretrain_wit400m"): CLIP,
    ("clip", "vit_b16", "pretrain_wit400m"): f"{CLIP}:b16",
    ("clip", "vit_l14", "pretrain_wit400m"): f"{CLIP}:l14",
    ("clip", "vit_l14_336", "finetune_336"): f"{CLIP}:l14_336",
}
PROSE = {"init.attn", "init.proj", "init.fc"}  # the blocks start by Glorot's rule, as the recipe says
COMPARED = 2  # of the fine-tuning


@functools.cache
def _fresh():
    """Parameters of a narrow text tower; starts that depend on the width are divided by it."""
    tower = MODELS["text"](variant="mu", width=64, depth=1, heads=2, projection=64)
    return tower.init(jax.random.key(0), jnp.zeros((1, tower.length), jnp.int32))["params"]


def deviation(leaf):
    """Reads "normal 0.02", the deviation that a leaf of the text tower starts with."""
    return lambda recipe: f"normal {float(np.std(_fresh()[leaf])):.2f}"


def _projection(recipe):
    return "width^-0.5" if abs(float(np.std(_fresh()["projection"]["kernel"])) * 64**0.5 - 1) < 0.05 else None


def _crop(recipe):
    crop = recipe["views"]["image"]["ops"][0]
    square = crop["name"] == "random_crop" and crop["size"] == crop["resize_shorter"]
    return "random square crop from the resized image" if square else crop["name"]


READERS = {
    "arch.pre_ln": lambda r: r["networks"]["encoder"]["norm_input"] == "tokens",
    "arch.act": lambda r: r["networks"]["encoder"]["activation"],
    **{f"text_arch.{field}": network("text_encoder", field) for field in ("dim", "depth", "heads")},
    "embed_dim": lambda r: r["networks"]["encoder"]["projection"],
    "schedule.epochs": lambda r: r["total_examples"] / clip_vit.PAIRS,
    "epochs": lambda r: r["total_examples"] / clip_vit.PAIRS,
    "image_size": op("random_crop", "size"),
    "schedule.warmup_steps": given("schedule", "warmup_steps"),
    "temperature.init": lambda r: 1 / r["objective"]["initial_scale"],
    "temperature.max_scale": given("objective", "max_scale"),
    "aug": _crop,
    "text.context": given("networks", "text_encoder", "length"),
    "text.vocab": given("networks", "text_encoder", "vocabulary"),
    "text.causal": given("networks", "text_encoder", "causal"),
    "text.pool": lambda r: {"argmax": "end-of-text token"}[r["networks"]["text_encoder"]["pooling"]],
    "init.token_embedding": deviation("token_embedding"),
    "init.positional": deviation("positions"),
    "init.text_projection": _projection,
}
