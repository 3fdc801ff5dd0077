"""SigLIP's facts: Zhai et al., 2023."""

from tests.recipe_facts import given, op
from vfm_jax.cli import load_recipe

SIGLIP, SIGLIT = "configs/image_text/siglip_vit.py", "configs/image_text/siglit_vit.py"
STAGES = {
    ("siglip", "b16_224", "pretrain"): SIGLIP,
    ("siglip", "b16_256", "pretrain"): f"{SIGLIP}:b16_256",
    ("siglip", "b16_384", "resolution_adaptation"): f"{SIGLIP}:b16_384",
    ("siglip", "b16_512", "resolution_adaptation"): f"{SIGLIP}:b16_512",
    ("siglip", "so400m14_224", "pretrain"): f"{SIGLIP}:so400m_224",
    ("siglip", "so400m14_384", "resolution_adaptation"): f"{SIGLIP}:so400m_384",
    ("siglip", "l16_384", "resolution_adaptation"): f"{SIGLIP}:l16_384",
    ("siglip", "siglit_4chips", "lit_variant"): SIGLIT,
    ("siglip", "unlocked_b16", "finetune_pretrained_tower"): f"{SIGLIP}:unlocked_b16",
}
PROSE = {"image", "text", "text.tokenizer"}
COMPARED = 3  # of the unlocked tower


def _image_group(field):
    """Reads a setting of the image tower's own group of parameters."""
    return lambda recipe: next(g for g in recipe["optimizer"]["groups"] if g["match"] == "^encoder/")[field]


def _pool(recipe):
    return {"attention": "map"}[recipe["networks"]["encoder"]["pooling"]]


def _decay(recipe):
    """big_vision's form, which the learning rate does not multiply."""
    return recipe["optimizer"]["weight_decay"] * recipe["schedule"]["base"]


def _examples(recipe):
    """Of the pretraining: an adaptation begins where it has ended."""
    adapted = recipe["init"].get("weights") is not None
    return load_recipe(SIGLIP)["total_examples"] if adapted else recipe["total_examples"]


def _data(recipe):
    names = [op["name"] for op in recipe["views"]["image"]["ops"] if op["name"] != "center_crop"]  # of 378 pixels
    return "WebLI English pairs, images resized without augmentation" if names == ["resize", "normalize"] else names


READERS = {
    "arch.pool": _pool,
    "image_size": op("resize", "size"),
    "optim.name": lambda r: {"adafactor": "ScalingViT-Adafactor", "lion": "lion"}[r["optimizer"]["name"]],
    "optim.beta2": given("optimizer", "decay_cap"),
    "optim.weight_decay": _decay,
    "init.t_prime": lambda r: f"log {r['objective']['initial_scale']:g}",
    "init.bias": given("objective", "initial_bias"),
    "examples_seen": _examples,
    "text.tokens": given("networks", "text_encoder", "length"),
    "text.vocab": given("networks", "text_encoder", "vocabulary"),
    "text.causal": given("networks", "text_encoder", "causal"),
    "text.pool": lambda r: f"{r['networks']['text_encoder']['pooling']} token",
    "data": _data,
    "adaptation.examples": given("total_examples"),
    "adaptation.lr_factor": lambda r: r["schedule"]["base"] / load_recipe(SIGLIP)["schedule"]["base"],
    "adaptation.weight_decay": given("optimizer", "weight_decay"),
    "schedule.steps": given("total_steps"),
    "schedule.warmup_steps": given("schedule", "warmup_steps"),
    "schedule.decay": lambda r: f"{r['schedule']['name']} to {r['schedule']['end']:g}",
    "image_lr_mult": _image_group("lr_scale"),
    "image_weight_decay": _image_group("weight_decay"),
}
