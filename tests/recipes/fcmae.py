"""FCMAE's facts: Woo et al., 2023."""

from tests.recipe_facts import given, op
from vfm_jax.models import MODELS

FCMAE = "configs/masked/fcmae_convnextv2_b_in1k.py"
STAGES = {
    **{("fcmae", f"convnextv2_{size}", "pretrain"): f"{FCMAE}:{size}" for size in "afpntblh"},
    ("fcmae", "convnextv2_atto", "finetune_1k"): f"{FCMAE}:a_finetune",
    ("fcmae", "convnextv2_tiny", "finetune_1k"): f"{FCMAE}:t_finetune",
    ("fcmae", "convnextv2_base", "finetune_1k"): f"{FCMAE}:finetune",
}
PROSE = {"decoder.block", "optim.layer_decay_type", "note"}


def encoder(recipe):
    """The network, built."""
    spec = dict(recipe["networks"]["encoder"])
    return MODELS[spec.pop("name")](**spec)


def _mixed(field):
    return lambda recipe: (recipe["mix"] or {}).get(field, 0.0)


def _smoothing(recipe):
    return recipe["mix"]["label_smoothing"] if recipe["mix"] else recipe["objective"]["label_smoothing"]


def _layer_decay(recipe):
    """Of the authors' layers: one block each, or in a long third stage groups of as many as the first stage has."""
    depths = encoder(recipe).sizes[0]
    grouped = depths[2] >= depths[0] ** 3
    return recipe["optimizer"]["layer_decay"] ** (depths[0] if grouped else 1)


READERS = {
    "arch.depths": lambda r: list(encoder(r).sizes[0]),
    "arch.dims": lambda r: list(encoder(r).sizes[1]),
    "mask.patch": lambda r: encoder(r).patch_size,
    "norm_pix": given("objective", "normalize_target"),
    "schedule.epochs": given("total_epochs"),
    "data.rrc_scale": op("random_resized_crop", "scale"),
    "optim.layer_decay": _layer_decay,
    "mixup": _mixed("mixup"),
    "cutmix": _mixed("cutmix"),
    "label_smoothing": _smoothing,
    "random_erasing": op("random_erasing", "probability"),
    "ema": lambda r: bool(r["ema"]),
}
