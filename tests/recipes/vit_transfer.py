"""Facts of fine-tuning ViTs of ImageNet-21k: big_vision's transfer, AugReg's recommended files, the first ViTs."""

import re

from configs.supervised import vit_transfer
from tests.recipe_facts import given, op, ops
from vfm_jax.cli import load_recipe

TRANSFER = "configs/supervised/vit_transfer.py"
STAGES = {
    ("augreg", "b32_i21k", "transfer_bigvision"): TRANSFER,
    ("augreg", "i21k_recommended", "finetune_1k_384"): f"{TRANSFER}:augreg_b16",
    ("vit_supervised", "vit_orig_i21k", "finetune"): f"{TRANSFER}:original_b16_imagenet2012",
}
HYBRIDS = ("R50+L/32", "R26+S/32", "R+Ti/16")  # no such network here
PROSE = {f"optim.lr.{name}" for name in HYBRIDS}
COMPARED = 10
DATASETS = {
    "imagenet": "imagenet2012",
    "cifar": "cifar10",  # what it says of both
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "pets": "oxford_iiit_pet",
    "flowers": "oxford_flowers102",
}


def _is_big_visions(recipe):
    return recipe["eval_views"]["image"]["ops"][0]["name"] == "center_crop"


def _on(dataset, read):
    """Reads big_vision's recipe, or that of the first ViTs, of another data set."""

    def of(recipe):
        kind = "b32" if _is_big_visions(recipe) else "original_b16"
        return read(load_recipe(f"{TRANSFER}:{kind}_{DATASETS[dataset]}"))

    return of


def _recommended(variant, read):
    return lambda recipe: read(load_recipe(f"{TRANSFER}:augreg_{variant.lower().replace('/', '')}"))


def _optimizer(recipe):
    """The plain name, or with all that big_vision's facts say of it."""
    optimizer = recipe["optimizer"]
    if not _is_big_visions(recipe):
        return optimizer["name"]
    kept = {"bfloat16": "bf16"}[optimizer["momentum_dtype"]]
    return f"{optimizer['name']} momentum {optimizer['momentum']} ({kept})"


def _decay(recipe):
    """None is big_vision's word for zero."""
    decay = recipe["optimizer"]["weight_decay"]
    return decay or None if _is_big_visions(recipe) else decay


def _crop(recipe):
    (crop,) = (*ops(recipe, "random_resized_crop"), *ops(recipe, "random_crop"))
    if crop["name"] == "random_crop":
        return "resmall_crop {resize_shorter}->{size}".format(**crop)
    return "inception"


def _warmup(datasets):
    """The steps of warm-up that these data sets share."""

    def read(recipe):
        (steps,) = {_on(name, given("schedule", "warmup_steps"))(recipe) for name in datasets}
        return steps

    return read


def _upstream(recipe):
    """Of the file's name."""
    augmentation, decay = re.search(r"aug_(\w+?)-wd_([\d.]+)-", recipe["init"]["weights"]).groups()
    return f"{augmentation} wd {decay.removeprefix('0')}"


def _evaluated(recipe):
    return "resize small {resize_shorter}, centre crop {size}".format(**recipe["eval_views"]["image"]["ops"][0])


VARIANTS = [variant for variant, *_ in vit_transfer.AUGREG.values()]
READERS = {
    "optim.name": _optimizer,
    "optim.momentum_dtype": given("optimizer", "momentum_dtype"),
    "optim.weight_decay": _decay,
    "optim.lr.default": given("schedule", "base"),
    "optim.lr.b16_cifar10": _on("cifar10", given("schedule", "base")),
    **{f"optim.lr.{name}": _on(name, given("schedule", "base")) for name in DATASETS},
    **{f"optim.lr.{variant}": _recommended(variant, given("schedule", "base")) for variant in VARIANTS},
    "steps": given("total_steps"),
    **{f"steps.{name}": _on(name, given("total_steps")) for name in DATASETS},
    **{f"crop.{name}": _on(name, _crop) for name in DATASETS},
    "warmup.large": _warmup(("imagenet", "cifar10", "cifar100")),
    "warmup.small": _warmup(("pets", "flowers")),
    "warmup_steps": given("schedule", "warmup_steps"),
    "schedule.warmup_steps": given("schedule", "warmup_steps"),
    "decay": given("schedule", "name"),
    "image_size": op("random_resized_crop", "size"),
    "eval": _evaluated,
    **{f"upstream.{variant}": _recommended(variant, _upstream) for variant in VARIANTS},
}
