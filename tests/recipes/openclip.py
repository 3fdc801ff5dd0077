"""OpenCLIP's facts: Cherti et al., 2022, and the names and tables of mlfoundations/open_clip."""

import math

from configs.image_text import openclip_vit
from tests.recipe_facts import given, network
from vfm_jax.cli import load_recipe

OPENCLIP = "configs/image_text/openclip_vit.py"
STAGES = {
    ("openclip", "vit_b32", "laion400m"): OPENCLIP,
    ("openclip", "vit_b32", "laion2b_e16"): f"{OPENCLIP}:b32_2b_e16",
    ("openclip", "vit_b32", "laion2b_s34b_b79k"): f"{OPENCLIP}:b32_2b",
    ("openclip", "vit_b16", "laion400m"): f"{OPENCLIP}:b16_400m",
    ("openclip", "vit_b16", "laion2b_s34b_b88k"): f"{OPENCLIP}:b16_2b",
    ("openclip", "vit_b16", "datacomp_xl_s13b_b90k"): f"{OPENCLIP}:b16_datacomp",
    ("openclip", "vit_b16_plus_240", "laion400m"): f"{OPENCLIP}:b16plus_400m",
    ("openclip", "vit_l14", "laion400m"): f"{OPENCLIP}:l14_400m",
    ("openclip", "vit_l14", "laion2b_s32b_b82k"): f"{OPENCLIP}:l14_2b",
    ("openclip", "vit_l14", "datacomp_xl_s13b_b90k"): f"{OPENCLIP}:l14_datacomp",
    ("openclip", "vit_h14", "laion2b_s32b_b79k"): f"{OPENCLIP}:h14_2b",
    ("openclip", "vit_g14", "laion2b_s12b_b42k"): f"{OPENCLIP}:g14_2b",
    ("openclip", "vit_bigg14", "laion2b_s39b_b160k"): f"{OPENCLIP}:bigg14_2b",
    ("openclip", "architectures", "configs"): f"{OPENCLIP}:h14_2b",
}
COMPARED = 1  # of most runs the batch alone is published


def _of(size, read):
    """Reads another size than the recipe's: the table of architectures has several."""
    return lambda recipe: read(load_recipe(f"{OPENCLIP}:{size.removeprefix('vit_')}_2b"))


def _head_width(recipe):
    return network("encoder", "dim")(recipe) / network("encoder", "heads")(recipe)


def _mlp_ratio(recipe):
    """To four places, rounded up: open_clip cuts width times ratio down to a whole number."""
    return math.ceil(1e4 * network("encoder", "mlp_dim")(recipe) / network("encoder", "dim")(recipe)) / 1e4


_ARCHITECTURE = {
    **{f"vision.{field}": network("encoder", field) for field in ("dim", "depth", "patch")},
    "vision.head_width": _head_width,
    "vision.mlp_ratio": _mlp_ratio,
    **{f"text.{field}": network("text_encoder", field) for field in ("dim", "depth", "heads")},
    "embed": lambda r: r["networks"]["encoder"]["projection"],
}
READERS = {
    "epochs": lambda r: r["total_examples"] / openclip_vit.LAION400M,
    "warmup_steps": given("schedule", "warmup_steps"),
    **{
        f"{size}.{field}": _of(size, read)
        for size in ("vit_h14", "vit_g14", "vit_bigg14")
        for field, read in _ARCHITECTURE.items()
    },
}
