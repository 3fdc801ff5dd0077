"""Facts of Scenic's ViT-B/16 and of ViT-g/14 on JFT-3B: Zhai et al., 2021, and both codes."""

import jax

from tests.recipe_facts import given, ops
from tests.recipes.supervised import READERS as SUPERVISED
from vfm_jax.optim.groups import leaf_settings

SCENIC, JFT = "configs/supervised/vit_b16_scenic_in1k.py", "configs/supervised/vit_g14_jft3b.py"
STAGES = {
    ("vit_supervised", "vit_b16_scenic", "train_90ep"): SCENIC,
    ("vit_supervised", "scaling_vit_g14", "pretrain_jft3b"): JFT,
}
PROSE = {"note"}


def _pool(recipe):
    return {"class": "cls", "attention": "map"}[recipe["networks"]["encoder"]["pooling"]]


def _loss(recipe):
    return {"sigmoid": "sigmoid (multilabel)"}[recipe["objective"]["loss"]]


def _decay(recipe):
    """The name of the shape and the number that goes with it."""
    schedule = recipe["schedule"]
    if schedule["name"] == "rsqrt":
        return f"rsqrt, timescale {schedule['timescale_steps']}"
    return f"{schedule['name']} to {schedule['end']:.0e}".replace("e-0", "e-")


def _times_the_first(name):
    """Reads how many times the optimizer's decay a leaf has."""

    def read(recipe):
        shapes = {"head": {}, "encoder": {}}
        for group in shapes.values():
            group["logits"] = {"kernel": jax.ShapeDtypeStruct((8,), "float32")}
        decay = recipe["optimizer"]["weight_decay"]
        groups = [group for group in recipe["optimizer"]["groups"] if group["match"] != ".*"]
        return leaf_settings(shapes, groups, weight_decay=decay)[f"{name}/logits/kernel"].weight_decay / decay

    return read


READERS = {
    "arch.pool": _pool,
    "arch.rep_size": given("networks", "encoder", "representation"),
    "arch.dropout": given("networks", "encoder", "dropout"),
    "optim.name": lambda r: {"adamw": "adam", "adafactor": "big_vision adafactor"}[r["optimizer"]["name"]],
    "optim.wd_bigvision": lambda r: r["optimizer"]["weight_decay"] * r["schedule"]["base"],
    "optim.wd_mults.head kernel": _times_the_first("head"),
    "optim.wd_mults.other kernels": _times_the_first("encoder"),
    "optim.clip_grad": given("optimizer", "clip_norm"),
    "schedule.steps": given("total_steps"),
    "schedule.warmup_steps": given("schedule", "warmup_steps"),
    "schedule.cooldown_steps": given("schedule", "cooldown_steps"),
    "schedule.epochs": given("total_epochs"),
    "schedule.decay": _decay,
    "num_classes": SUPERVISED["num_classes"],
    "init_head_bias": SUPERVISED["init_head_bias"],
    "data": lambda r: "inception crop {size} + flip".format(**ops(r, "random_resized_crop")[0]),
    "loss": _loss,
}
