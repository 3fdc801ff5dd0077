"""Facts of supervised pretraining: big_vision's ViT-S/16, AugReg, DeiT III, BiT, VGG-16."""

import json
import pathlib

from tests.recipe_facts import given, op, ops
from vfm_jax.models import MODELS

S16, AUGREG = "configs/supervised/vit_s16_in1k.py", "configs/supervised/augreg_in"
DEIT3, BIT, VGG = (f"configs/supervised/{name}.py" for name in ("deit3_in1k", "bit_r50x1", "vgg16_in1k"))
STAGES = {
    ("vit_supervised", "vit_s16_i1k", "train_90ep"): S16,
    ("vit_supervised", "vit_s16_i1k", "train_300ep"): f"{S16}:300",
    **{
        ("augreg", f"{size}_i{data}", "pretrain"): f"{AUGREG}{data}.py:{size}"
        for size in ("ti16", "s32", "s16", "b32", "b16", "l16")
        for data in ("1k", "21k")
    },
    **{("deit3", f"vit_{size}", "pretrain_1k_800ep"): f"{DEIT3}:{size}" for size in ("s16", "b16", "l16", "h14")},
    **{
        ("deit3", f"vit_{size}", "finetune_224_20ep"): f"{DEIT3}:finetune_{size}_224"
        for size in ("b16", "l16", "h14")
    },
    **{
        ("deit3", f"vit_{size}", "finetune_384_20ep"): f"{DEIT3}:finetune_{size}_384"
        for size in ("s16", "b16", "l16")
    },
    ("bit", "r50x1", "pretrain_i1k_bigvision"): BIT,
    ("bit", "r50x1", "pretrain_i21k_bigvision"): f"{BIT}:in21k",
    ("vgg16", "vgg16", "train_in1k"): VGG,
}
COMPARED = 6  # of VGG-16 little is known
PROSE = {
    "init", "split", "optim.no_wd", "params_m", "arch.head_bias", "arch.backbone", "arch.model",
    "aug.three_augment", "optim.lr_rule", "optim.wd_rule", "optim.wd_bigvision", "data.eval",
}  # fmt: skip
LOSSES = {"softmax": "softmax_xent", "sigmoid": "sigmoid_xent", "sigmoid_mean": "bce"}


def _pool(recipe):
    names = {"tok": "class", "gap": "mean"}
    return next(short for short, ours in names.items() if ours == recipe["networks"]["encoder"]["pooling"])


def _positions(recipe):
    kind = recipe["networks"]["encoder"]["positions"]
    return {"sincos2d_bigvision": "sincos2d", "learned": "learn"}[kind]


def _representation(recipe):
    encoder = recipe["networks"]["encoder"]
    words = f"dim {encoder['representation']} with tanh"
    return words if encoder["pooling"] == "mean" else bool(encoder["representation"])


def _augmentation(recipe):
    """The preset's name in the facts' own table, from the recipe's magnitude and mixup."""
    drawn = ops(recipe, "rand_augment")
    magnitude = drawn[0]["magnitude"] if drawn else None
    mixed = recipe["mix"].get("mixup", 0.0) if recipe["mix"] else 0.0
    told = {None: "", 0.0: "randaug(2,0)", 10.0: "randaug(2,10)", 15.0: "randaug(2,15)", 20.0: "randaug(2,20)"}
    return next(name for name, row in PRESETS.items() if (row["randaug"], row["mixup_p"]) == (told[magnitude], mixed))


FACTS = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "recipes.json").read_text())
PRESETS = FACTS["augreg"]["presets"]["augmentation"]["table"]


def _depth(recipe):
    encoder = recipe["networks"]["encoder"]
    if encoder["name"] == "bit":
        return int(encoder["variant"].partition("x")[0][1:])
    return MODELS["vit"](variant=encoder["variant"]).sizes[1]


def _decay(recipe):
    schedule = recipe["schedule"]
    if schedule["name"] == "staircase":
        return f"x{schedule['factor']} at {','.join(map(str, schedule['drop_epochs']))}"
    return schedule["name"]


def _optimizer(recipe):
    """Adam with decoupled decay is "adam" in big_vision's words, which tell of its moment too; "adamw" in DeiT's."""
    optimizer = recipe["optimizer"]
    if optimizer["name"] != "adamw":
        return {"lamb": "fused lamb", "sgd": "sgd"}[optimizer["name"]]
    return "adam" + {"bfloat16": ", first moment in bfloat16", "float32": ""}[optimizer["momentum_dtype"]]


READERS = {
    "arch.variant": given("networks", "encoder", "variant"),
    "arch.posemb": _positions,
    "arch.pool": _pool,
    "arch.rep_size": _representation,
    "arch.layerscale": given("networks", "encoder", "layer_scale"),
    "arch.depth": _depth,
    "arch.width": lambda r: int(r["networks"]["encoder"]["variant"].partition("x")[2]),
    "aug_preset": _augmentation,
    "loss": lambda r: LOSSES[r["objective"]["loss"]],
    "num_classes": given("networks", "head", "num_classes"),
    "init_head_bias": given("networks", "head", "init_bias"),
    "schedule.epochs": given("total_epochs"),
    "schedule.warmup_steps": given("schedule", "warmup_steps"),
    "schedule.decay": _decay,
    "optim.name": _optimizer,
    "optim.momentum_dtype": given("optimizer", "momentum_dtype"),
    # LAMB's own limit of the gradient's norm is no setting of the authors'.
    "optim.clip_grad": lambda r: None if r["optimizer"]["name"] == "lamb" else r["optimizer"]["clip_norm"],
    "optim.wd_adamw_equivalent": given("optimizer", "weight_decay"),
    "optim.clip_grad_global_norm": given("optimizer", "clip_norm"),
    "optim.min_lr": given("schedule", "end"),
    "optim.warmup_lr": given("schedule", "start"),
    "data": lambda r: (
        "inception crop {size} + flip, ".format(**ops(r, "random_resized_crop")[0]) + r["data"]["split"]
    ),
    "data.crop": lambda r: "inception crop {size}".format(**ops(r, "random_resized_crop")[0]),
    "data.hflip": op("flip", "probability"),
    "repeated_aug": lambda r: r["data"].get("repeats", 1) > 1,
    "data.value_range": lambda r: [
        (edge - ops(r, "normalize")[0]["mean"]) / ops(r, "normalize")[0]["std"] for edge in (0, 1)
    ],
    "data.randaug": lambda r: "({num_ops},{magnitude:.0f})".format(**ops(r, "rand_augment")[0]),
    "data.mixup_p": given("mix", "mixup"),
    "data.cutmix": lambda r: r["mix"]["cutmix"] or None,
    "image_size": op("random_resized_crop", "size"),
    "drop_path_shape": given("networks", "encoder", "drop_path_shape"),
    "label_smoothing": given("mix", "label_smoothing"),
    "mixup": given("mix", "mixup"),
    "cutmix": given("mix", "cutmix"),
    "random_erasing": lambda r: float(len(ops(r, "random_erasing"))),
    "rand_augment": lambda r: "rand-m{magnitude}-mstd{magnitude_std}-inc1".format(**ops(r, "rand_augment")[0]),
    "aug.color_jitter": op("color_jitter", "brightness"),
    "aug.rrc_scale": op("random_resized_crop", "scale"),
    "aug.hflip_p": op("flip", "probability"),
    "eval_crop_ratio": lambda r: (
        r["eval_views"]["image"]["ops"][0]["size"] / r["eval_views"]["image"]["ops"][0]["resize_shorter"]
    ),
}
