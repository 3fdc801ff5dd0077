"""Facts of DeiT III by way of ImageNet-21k: Touvron et al., 2022; both parts of a run stand in one stage."""

from tests.recipe_facts import given, ops
from tests.recipes.supervised import DEIT3
from tests.recipes.supervised import READERS as SUPERVISED
from vfm_jax.cli import load_recipe

STAGES = {
    ("deit3", f"vit_{size}", "pretrain_21k_then_1k"): f"{DEIT3}:in21k_{size}" for size in ("s16", "b16", "l16", "h14")
}


def _pixels(recipe):
    return ops(recipe, "random_crop")[0]["size"]


def _simple_crop(recipe):
    (crop,) = ops(recipe, "random_crop")
    return crop["size"] == crop["resize_shorter"] and not ops(recipe, "random_resized_crop")


def _finetuned(read):
    """Reads the recipe that goes on from this one."""

    def of(recipe):
        size = recipe["networks"]["encoder"]["variant"].lower().replace("/", "")
        return read(load_recipe(f"{DEIT3}:in21k_finetune_{size}"))

    return of


_TABLE = {
    "optim": SUPERVISED["optim.name"],
    "lr_abs": given("schedule", "base"),
    "weight_decay": given("optimizer", "weight_decay"),
    "epochs": given("total_epochs"),
    "batch": given("data", "batch_size"),
    "image_size": _pixels,
    "drop_path": given("networks", "encoder", "drop_path"),
    "mixup": given("mix", "mixup"),
    "cutmix": given("mix", "cutmix"),
    "label_smoothing": given("mix", "label_smoothing"),
    "simple_random_crop": _simple_crop,
}
READERS = {
    **{f"pretrain.{field}": read for field, read in _TABLE.items()},
    **{f"finetune.{field}": _finetuned(read) for field, read in _TABLE.items()},
}
