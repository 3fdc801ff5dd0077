"""SupCon's facts: Khosla et al., 2020."""

from tests.recipe_facts import given, op
from vfm_jax.cli import load_recipe

CIFAR, IMAGENET = "configs/contrastive/supcon_r50_cifar10.py", "configs/contrastive/supcon_r50_in1k.py"
STAGES = {
    ("supcon", "resnet50_cifar", "pretrain"): CIFAR,
    ("supcon", "resnet50_imagenet", "pretrain"): IMAGENET,
    ("supcon", "resnet200_imagenet", "pretrain"): f"{IMAGENET}:200",
}
PROSE = {"note", "arch.feature_dim", "linear.optim", "linear.epochs"}
COMPARED = 6  # of ImageNet little is told


def _policy(recipe):
    names = {"color_jitter": "stacked ", "auto_augment": "AutoAugment", "rand_augment": "RandAugment"}
    return "".join(names.get(one["name"], "") for one in recipe["views"]["image"]["ops"])


READERS = {
    "optim.lr": given("schedule", "base"),
    "schedule": lambda r: "{name}, {warmup_epochs} warm-up epochs from {start:g}".format(**r["schedule"]),
    "aug": _policy,
    "aug.rrc_scale": op("random_resized_crop", "scale"),
    "aug.size": op("random_resized_crop", "size"),
    "aug.color_jitter.b": op("color_jitter", "brightness"),
    "aug.color_jitter.c": op("color_jitter", "contrast"),
    "aug.color_jitter.s": op("color_jitter", "saturation"),
    "aug.color_jitter.h": op("color_jitter", "hue"),
    "linear.lr": lambda r: load_recipe(f"{CIFAR}:linear")["schedule"]["base"],
    "linear.batch": lambda r: load_recipe(f"{CIFAR}:linear")["data"]["batch_size"],
    "loss_scale": lambda r: "loss multiplied by tau" if r["objective"]["base_temperature"] == 1 else "",
}
