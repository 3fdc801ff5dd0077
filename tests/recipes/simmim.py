"""SimMIM's facts: Xie et al., 2021."""

from tests.recipe_facts import given, op, ops, scaled
from vfm_jax.models import MODELS

VIT, SWIN = "configs/masked/simmim_vit_b16_in1k.py", "configs/masked/simmim_swin_b_in1k.py"
STAGES = {
    ("simmim", "vit_b16", "pretrain_800ep"): VIT,
    ("simmim", "vit_b16", "finetune_1k"): f"{VIT}:finetune",
    ("simmim", "swin_b", "pretrain_800ep"): SWIN,
    ("simmim", "swin_b", "pretrain_100ep"): f"{SWIN}:100",
    ("simmim", "swin_b", "finetune_1k"): f"{SWIN}:finetune",
    ("simmim", "swin_l", "pretrain_800ep"): f"{SWIN}:l",
    ("simmim", "swin_l", "finetune_1k"): f"{SWIN}:l_finetune",
}
PROSE = {
    "head", "batch_note", "mask.count",
    "aug.color_jitter",  # timm leaves it out beside RandAugment
}  # fmt: skip


def _size(place):
    """Reads a number of the encoder: of a ViT width, depth, mlp_dim, heads; of a Swin width, depths, heads."""

    def read(recipe):
        spec = dict(recipe["networks"]["encoder"])
        sizes = MODELS[spec.pop("name")](**spec).sizes
        found = sizes[place]
        return list(found) if isinstance(found, tuple) else found

    return read


def _heads(recipe):
    return _size(2 if recipe["networks"]["encoder"]["name"] == "swin" else 3)(recipe)


def _patch(recipe):
    spec = dict(recipe["networks"]["encoder"])
    return MODELS[spec.pop("name")](**spec).masked_size


def _decay(recipe):
    schedule = recipe["schedule"]
    if schedule["name"] != "staircase":
        return schedule["name"]
    return "step: x{factor:g} at epoch {drop}".format(drop=", ".join(map(str, schedule["drop_epochs"])), **schedule)


def _for_512(field):
    """Reads another value of the schedule for as many examples as base_lr is for."""
    return lambda recipe: recipe["schedule"][field] * scaled(512)(recipe) / recipe["schedule"]["base"]


READERS = {
    "arch.dim": _size(0),
    "arch.depth": _size(1),
    "arch.depths": _size(1),
    "arch.mlp_dim": _size(2),
    "arch.heads": _heads,
    "arch.window": given("networks", "encoder", "window"),
    "arch.patch": _patch,
    "arch.drop_path": lambda r: r["networks"]["encoder"].get("drop_path", 0.0),
    "arch.layerscale": given("networks", "encoder", "layer_scale"),
    "arch.rel_pos": lambda r: "{relative_positions} bias".format(**r["networks"]["encoder"]),
    "arch.abs_pos": lambda r: r["networks"]["encoder"]["positions"] != "none",
    "image_size": op("random_resized_crop", "size"),
    "optim.base_lr": scaled(512),
    "optim.warmup_lr": _for_512("start"),
    "optim.min_lr": _for_512("end"),
    "mask.patch": given("objective", "mask_patch_size"),
    "data.rrc_scale": op("random_resized_crop", "scale"),
    "data.ratio": op("random_resized_crop", "ratio"),
    "schedule.epochs": given("total_epochs"),
    "schedule.decay": _decay,
    "aug.rand_augment": lambda r: "rand-m{magnitude}-mstd{magnitude_std}-inc1".format(**ops(r, "rand_augment")[0]),
    "aug.random_erasing": op("random_erasing", "probability"),
    "aug.mixup": given("mix", "mixup"),
    "aug.cutmix": given("mix", "cutmix"),
    "aug.label_smoothing": given("mix", "label_smoothing"),
}
