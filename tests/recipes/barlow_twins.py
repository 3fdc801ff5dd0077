"""Barlow Twins' facts: Zbontar et al., 2021."""

import jax

from tests.recipe_facts import given, op, ops, scaled
from vfm_jax.optim.groups import leaf_settings

STAGES = {
    ("barlow_twins", "resnet50", "pretrain_1000ep"): "configs/redundancy/barlow_twins_r50_in1k.py",
    ("barlow_twins", "eval", "linear"): "configs/redundancy/barlow_twins_r50_in1k.py:linear",
}
COMPARED = 6  # the probe has few


def _settings(recipe):
    """Of a weight, a bias and a scale."""
    names = ("stem/kernel", "stem_norm/norm/bias", "stem_norm/norm/scale")
    shapes = {"encoder": {name: jax.ShapeDtypeStruct((8,), "float32") for name in names}}
    adaptive = recipe["optimizer"]["name"] == "lars"
    decay = recipe["optimizer"]["weight_decay"]
    found = leaf_settings(shapes, recipe["optimizer"].get("groups"), weight_decay=decay, adaptive=adaptive)
    return [found[f"encoder/{name}"] for name in names]


def _without(recipe, field):
    """["biases", "BN"] where biases and scales are without what weights have."""
    weight, *others = _settings(recipe)
    return ["biases", "BN"] if getattr(weight, field) and not any(getattr(one, field) for one in others) else []


def _of_both_views(name):
    """The probabilities of an operation in the two views, 0 where one has it not."""
    return lambda r: [sum(found["probability"] for found in ops(r, name, view=view)) for view in (0, 1)]


def _widths(recipe):
    head = recipe["networks"]["projector"]
    return [head["hidden_dim"]] * (head["num_layers"] - 1) + [head["out_dim"]]


TWO_VIEWS = {
    "heads.projector": _widths,
    "aug.rrc": lambda r: "{interpolation} {size}".format(**ops(r, "random_resized_crop")[0]),
    "aug.color_jitter.b": op("color_jitter", "brightness"),
    "aug.color_jitter.c": op("color_jitter", "contrast"),
    "aug.color_jitter.s": op("color_jitter", "saturation"),
    "aug.color_jitter.h": op("color_jitter", "hue"),
    "aug.blur_p": _of_both_views("gaussian_blur"),
    "aug.solarize_p": _of_both_views("solarize"),
    "optim.eta": given("optimizer", "trust_coefficient"),
    "schedule.epochs": given("total_epochs"),
    "schedule.decay": lambda r: f"cosine to {r['schedule']['end'] / r['schedule']['base']:g} x base",
}
READERS = {
    **TWO_VIEWS,
    "lambd": given("objective", "redundancy_weight"),
    "optim.lr_weights": lambda r: scaled(256)(r) * _settings(r)[0].lr_scale,
    "optim.lr_biases": lambda r: scaled(256)(r) * _settings(r)[1].lr_scale,
    "optim.no_wd": lambda r: _without(r, "weight_decay"),
    "optim.no_adaptation": lambda r: _without(r, "trust_ratio"),
    "optim.lr": given("schedule", "base"),
    "schedule": given("schedule", "name"),
}
