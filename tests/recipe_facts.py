"""How a recipe is compared with the facts collected of its paper, for all methods; `recipes/METHOD.py` adds its own.

A module there has STAGES: (method, variant, stage) of tests/golden/recipes.json, or that may come to be there -> the
recipe; READERS: path of a
fact -> function of the completed recipe; PROSE: paths that are words, results or hardware. A reader may compute, but
holds no number of its own. (`from tests.recipe_facts import given, op, ...`)
"""

import functools
import inspect

from vfm_jax.losses.reconstruction import standardize_patches
from vfm_jax.models import MODELS

# Words, results, and what says how rather than how much.
PROSE = {
    "source", "results", "hardware", "unverified", "notes", "dtype", "grad_accum", "loss", "mask.type", "mask.keep",
    "data.rrc_ratio", "data.augment", "optim.lr_scaling", "optim.wd_schedule", "optim.no_wd", "optim.params",
    "optim.no_layer_adaptation", "schedule.granularity", "decoder.pos_embed", "decoder.input", "init.linear",
    "init.patch_embed", "init.pos_embed", "init.cls_token", "init.mask_token", "head.pool", "head.features",
    "head.bn",
    "bn.global_stats", "hidden_norm", "aug.gaussian_blur.kernel",
}  # fmt: skip


def ops(recipe, name, field="image", view=0):
    """The operations of a name among those of one view; `view` counts the lists of a field that has several."""
    views = recipe["views"][field]
    return [op for op in (views if "ops" in views else views[view])["ops"] if op["name"] == name]


def op(name, key, default=None, field="image", view=0):
    """Reads one keyword of one operation; `default` is the operation's own where the recipe leaves it."""
    return lambda recipe: ops(recipe, name, field, view)[0].get(key, default)


def absent(name, field="image", view=0):
    """Reads None where there is no such operation."""
    return lambda recipe: ops(recipe, name, field, view) or None


def network(role, field):
    """Reads "patch", "dim", "depth", "mlp_dim" or "heads" of a ViT, its variant's rows included."""

    def read(recipe):
        spec = dict(recipe["networks"][role])
        built = MODELS[spec.pop("name")](**spec)
        if field == "patch":
            return built.patch_size
        return dict(zip(("dim", "depth", "mlp_dim", "heads"), built.sizes, strict=True))[field]

    return read


def given(*path):
    """Reads the field of the completed recipe at this path."""
    return lambda recipe: functools.reduce(lambda place, name: place[name], path, recipe)


def scaled(per):
    """Reads the learning rate for `per` examples, of a linear rule."""
    return lambda recipe: recipe["schedule"]["base"] * per / recipe["data"]["batch_size"]


READERS = {
    **{f"arch.{field}": network("encoder", field) for field in ("dim", "depth", "heads", "mlp_dim", "patch")},
    "arch.backbone": lambda r: "ResNet-{variant}".format(**r["networks"]["encoder"]),
    "arch.cls_token": lambda r: r["networks"]["encoder"].get("class_token", True),
    "epochs": given("total_epochs"),
    "batch_size": given("data", "batch_size"),
    "data.dataset": lambda r: {"imagenet2012": "ImageNet-1k"}[r["data"]["dataset"]],
    "data.image_size": op("random_resized_crop", "size"),
    "data.crops": lambda r: r["views"]["image"].get("num_views") or 1,
    "data.random_resized_crop_scale": op("random_resized_crop", "scale"),
    "data.interpolation": op("random_resized_crop", "interpolation"),
    "data.hflip_p": op("flip", "probability"),
    "data.color_jitter": absent("color_jitter"),
    "data.normalize.mean": op("normalize", "mean"),
    "data.normalize.std": op("normalize", "std"),
    "data.rand_augment": lambda r: "rand-m{magnitude}-mstd{magnitude_std}-inc1".format(**ops(r, "rand_augment")[0]),
    "data.random_erasing.p": op("random_erasing", "probability"),
    "data.random_erasing.mode": op("random_erasing", "mode"),
    "data.random_erasing.count": lambda r: len(ops(r, "random_erasing")),
    "data.label_smoothing": given("mix", "label_smoothing"),
    "data.mixup": given("mix", "mixup"),
    "data.cutmix": given("mix", "cutmix"),
    "data.mixup_prob": given("mix", "probability"),
    "data.mixup_switch_prob": given("mix", "switch_probability"),
    "data.eval": lambda r: "resize {resize_shorter} {interpolation}, centre crop {size}".format(
        **r["eval_views"]["image"]["ops"][0]
    ),
    "mask.ratio": given("objective", "mask_ratio"),
    "targets.norm_pix": given("objective", "normalize_target"),
    "targets.eps": lambda r: inspect.signature(standardize_patches).parameters["epsilon"].default,
    "optim.name": given("optimizer", "name"),
    "optim.betas": lambda r: [r["optimizer"]["b1"], r["optimizer"]["b2"]],
    "optim.eps": given("optimizer", "eps"),
    "optim.momentum": given("optimizer", "momentum"),
    "optim.nesterov": given("optimizer", "nesterov"),
    "optim.classic_momentum": given("optimizer", "classic_momentum"),
    "optim.trust_coefficient": given("optimizer", "trust_coefficient"),
    "optim.base_lr": scaled(256),
    "optim.lr_abs": given("schedule", "base"),
    "optim.weight_decay": given("optimizer", "weight_decay"),
    "optim.layer_decay": given("optimizer", "layer_decay"),
    "optim.clip_grad": lambda r: r["optimizer"].get("clip_norm"),
    "schedule.warmup_epochs": given("schedule", "warmup_epochs"),
    "schedule.decay": lambda r: r["schedule"]["name"],
    "schedule.min_lr": given("schedule", "end"),
    "schedule.warmup_start": given("schedule", "start"),
    "drop_path": lambda r: r["networks"]["encoder"].get("drop_path", 0.0),
    "decoder.dim": given("networks", "decoder", "width"),
    "decoder.depth": given("networks", "decoder", "depth"),
    "decoder.heads": given("networks", "decoder", "heads"),
    "decoder.mlp_ratio": given("networks", "decoder", "mlp_ratio"),
    "init.layernorm_eps": given("networks", "encoder", "norm_epsilon"),
    "head.init": lambda r: f"trunc_normal std {r['networks']['head']['init_std']:g}".replace("e-0", "e-"),
    "temperature": given("objective", "temperature"),
    "aug.crop.area": op("random_resized_crop", "scale"),
    "aug.crop.ratio": op("random_resized_crop", "ratio", (3 / 4, 4 / 3)),
    "aug.crop.size": op("random_resized_crop", "size"),
    "aug.crop.resize": op("random_resized_crop", "interpolation"),
    "aug.hflip_p": op("flip", "probability"),
    "aug.color_jitter.strength": lambda r: ops(r, "color_jitter")[0]["brightness"] / 0.8,
    "aug.color_jitter.p": op("color_jitter", "probability"),
    **{
        f"aug.color_jitter.{field}": op("color_jitter", field)
        for field in ("brightness", "contrast", "saturation", "hue", "random_order")
    },
    "aug.grayscale_p": op("grayscale", "probability"),
    "aug.gaussian_blur.p": op("gaussian_blur", "probability"),
    "aug.gaussian_blur.sigma": op("gaussian_blur", "sigma"),
    "bn.decay": given("networks", "projector", "batch_norm_momentum"),
    "bn.eps": given("networks", "projector", "batch_norm_epsilon"),
    "head.layers": given("networks", "projector", "num_layers"),
    "head.out_dim": given("networks", "projector", "out_dim"),
    "head.hidden": given("networks", "projector", "hidden_dim"),
}
