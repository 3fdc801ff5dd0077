"""Recipes against their papers: every structured field of the collected facts, and every recipe builds and trains.

The facts (tests/golden/recipes.json) are nested dicts; a field is known here by its path. Each field of a stage must
be read from our recipe by an entry of READERS, or stand in PROSE (words, results, hardware): a fact that nothing is
compared with is an error, so new facts cannot be passed over.
"""

import functools
import inspect
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.cli import load_recipe, override
from vfm_jax.core.trees import flatten_dict, named_leaves
from vfm_jax.data.sources import SOURCES
from vfm_jax.data.sources.arrays import ArraySource
from vfm_jax.experiment import build_experiment
from vfm_jax.losses.reconstruction import standardize_patches
from vfm_jax.models import MODELS
from vfm_jax.train.loop import train
from vfm_jax.train.stages import read_stages
from vfm_jax.train.state import init_state
from vfm_jax.train.step import make_step

ROOT = pathlib.Path(__file__).parents[1]
FACTS = json.loads((ROOT / "tests" / "golden" / "recipes.json").read_text())
MAE, SIMCLR = "configs/masked/mae_vit_b16_in1k.py", "configs/contrastive/simclr_r50_in1k.py"
STAGES = {
    ("mae", "vit_b16", "pretrain_800ep"): f"{MAE}:800",
    ("mae", "vit_b16", "pretrain_1600ep"): MAE,
    ("mae", "vit_b16", "finetune_1k"): f"{MAE}:finetune",
    ("mae", "vit_b16", "linear_probe"): f"{MAE}:linear_probe",
    ("simclr", "resnet50", "pretrain_1000ep_v1"): SIMCLR,
}
BUILDABLE = [MAE, f"{MAE}:800", f"{MAE}:finetune", f"{MAE}:linear_probe", SIMCLR, f"{SIMCLR}:vit_s16"]
BUILDABLE += [f"configs/quickstart.py{variant}" for variant in ("", ":simclr", ":photos")]

# Recipes that start from public weights, and small ones of the kind; vit_cifar10.py names tensors that only its own
# file has, and starts fresh here.
MODELS_KEPT = ROOT / "tests" / "golden" / "models"
ADAPT = {
    "configs/adapt/continue_mae.py": "hf_vit_cls",
    "configs/adapt/continue_mae.py:decoder": "hf_vitmae",
    "configs/adapt/continue_simclr.py": "hf_vit_cls",
    "configs/adapt/evaluate.py": "timm_vit",
    "configs/adapt/evaluate.py:classifier": "hf_vit_cls",
    **{f"configs/adapt/vit_cifar10.py{variant}": None for variant in ("", ":mae", ":simclr")},
}
BUILDABLE += ADAPT

# Words, results, and what says how rather than how much.
PROSE = {
    "source", "results", "hardware", "unverified", "dtype", "grad_accum", "loss", "mask.type", "mask.keep",
    "data.rrc_ratio", "data.augment", "optim.lr_scaling", "optim.wd_schedule", "optim.no_wd", "optim.params",
    "optim.no_layer_adaptation", "schedule.granularity", "decoder.pos_embed", "decoder.input", "init.linear",
    "init.patch_embed", "init.pos_embed", "init.cls_token", "init.mask_token", "head.pool", "head.features",
    "head.bn",
    "bn.global_stats", "hidden_norm", "aug.gaussian_blur.kernel",
}  # fmt: skip


def _ops(recipe, name):
    return [op for op in recipe["views"]["image"]["ops"] if op["name"] == name]


def _op(name, field, default=None):
    return lambda r: _ops(r, name)[0].get(field, default)


def _network(role, field):
    def read(recipe):
        spec = dict(recipe["networks"][role])
        built = MODELS[spec.pop("name")](**spec)
        if field == "patch":
            return built.patch_size
        return dict(zip(("dim", "depth", "mlp_dim", "heads"), built.sizes, strict=True))[field]

    return read


def _given(*path):
    return lambda recipe: functools.reduce(lambda place, name: place[name], path, recipe)


def _absent(name):
    return lambda recipe: None if not _ops(recipe, name) else _ops(recipe, name)


@functools.cache
def _abstract(location):
    """Shapes of a recipe's networks for two images of 32 pixels."""
    networks = _recipe(location)["networks"]
    encoder, decoder = (
        MODELS[spec.pop("name")](**spec) for spec in (dict(networks[r]) for r in ("encoder", "decoder"))
    )
    keep, image = jnp.zeros((2, 1), jnp.int32), jnp.zeros((2, 32, 32, 3), jnp.float32)
    seen, encoder_shapes = jax.eval_shape(lambda: encoder.init_with_output(jax.random.key(0), image, keep=keep))
    tokens = jnp.zeros(seen.tokens.shape, jnp.float32)
    pixels, _ = jax.eval_shape(lambda: decoder.init_with_output(jax.random.key(0), tokens, keep, (2, 2), 768))
    return named_leaves({"encoder": encoder_shapes["params"]}), seen.tokens.shape, pixels.shape


def _leaves(recipe):
    del recipe
    return _abstract(MAE)[0]


def _decodes_the_class_token(recipe):
    """The decoder takes the class token beside the one kept patch, and gives the pixels of the four patches alone."""
    del recipe
    _, tokens, pixels = _abstract(MAE)
    return tokens[1] == 2 and pixels[1] == 4


READERS = {
    **{f"arch.{field}": _network("encoder", field) for field in ("dim", "depth", "heads", "mlp_dim", "patch")},
    "arch.qkv_bias": lambda r: "encoder/transformer/block_0/attention/qkv/bias" in _leaves(r),
    "arch.backbone": lambda r: "ResNet-{variant}".format(**r["networks"]["encoder"]),
    "arch.cls_token": lambda r: r["networks"]["encoder"].get("class_token", True),
    "arch.class_token_in_decoder": _decodes_the_class_token,
    "epochs": _given("total_epochs"),
    "batch_size": _given("data", "batch_size"),
    "data.dataset": lambda r: {"imagenet2012": "ImageNet-1k"}[r["data"]["dataset"]],
    "data.image_size": _op("random_resized_crop", "size"),
    "data.crops": lambda r: r["views"]["image"].get("num_views") or 1,
    "data.random_resized_crop_scale": _op("random_resized_crop", "scale"),
    "data.interpolation": _op("random_resized_crop", "interpolation"),
    "data.hflip_p": _op("flip", "probability"),
    "data.color_jitter": _absent("color_jitter"),
    "data.normalize.mean": _op("normalize", "mean"),
    "data.normalize.std": _op("normalize", "std"),
    "data.rand_augment": lambda r: "rand-m{magnitude}-mstd{magnitude_std}-inc1".format(**_ops(r, "rand_augment")[0]),
    "data.random_erasing.p": _op("random_erasing", "probability"),
    "data.random_erasing.mode": _op("random_erasing", "mode"),
    "data.random_erasing.count": lambda r: len(_ops(r, "random_erasing")),
    "data.label_smoothing": _given("mix", "label_smoothing"),
    "data.mixup": _given("mix", "mixup"),
    "data.cutmix": _given("mix", "cutmix"),
    "data.mixup_prob": _given("mix", "probability"),
    "data.mixup_switch_prob": _given("mix", "switch_probability"),
    "data.eval": lambda r: "resize {resize_shorter} {interpolation}, centre crop {size}".format(
        **r["eval_views"]["image"]["ops"][0]
    ),
    "mask.ratio": _given("objective", "mask_ratio"),
    "targets.norm_pix": _given("objective", "normalize_target"),
    "targets.eps": lambda r: inspect.signature(standardize_patches).parameters["epsilon"].default,
    "optim.name": _given("optimizer", "name"),
    "optim.betas": lambda r: [r["optimizer"]["b1"], r["optimizer"]["b2"]],
    "optim.eps": _given("optimizer", "eps"),
    "optim.momentum": _given("optimizer", "momentum"),
    "optim.nesterov": _given("optimizer", "nesterov"),
    "optim.classic_momentum": _given("optimizer", "classic_momentum"),
    "optim.trust_coefficient": _given("optimizer", "trust_coefficient"),
    "optim.base_lr": lambda r: r["schedule"]["base"] * 256 / r["data"]["batch_size"],
    "optim.lr_abs": _given("schedule", "base"),
    "optim.weight_decay": _given("optimizer", "weight_decay"),
    "optim.layer_decay": _given("optimizer", "layer_decay"),
    "optim.clip_grad": lambda r: r["optimizer"].get("clip_norm"),
    "schedule.warmup_epochs": _given("schedule", "warmup_epochs"),
    "schedule.decay": lambda r: r["schedule"]["name"],
    "schedule.min_lr": _given("schedule", "end"),
    "schedule.warmup_start": _given("schedule", "start"),
    "drop_path": lambda r: r["networks"]["encoder"].get("drop_path", 0.0),
    "decoder.dim": _given("networks", "decoder", "width"),
    "decoder.depth": _given("networks", "decoder", "depth"),
    "decoder.heads": _given("networks", "decoder", "heads"),
    "decoder.mlp_ratio": _given("networks", "decoder", "mlp_ratio"),
    "init.layernorm_eps": _given("networks", "encoder", "norm_epsilon"),
    "head.init": lambda r: f"trunc_normal std {r['networks']['head']['init_std']:g}".replace("e-0", "e-"),
    "temperature": _given("objective", "temperature"),
    "aug.crop.area": _op("random_resized_crop", "scale"),
    "aug.crop.ratio": _op("random_resized_crop", "ratio", (3 / 4, 4 / 3)),
    "aug.crop.size": _op("random_resized_crop", "size"),
    "aug.crop.resize": _op("random_resized_crop", "interpolation"),
    "aug.hflip_p": _op("flip", "probability"),
    "aug.color_jitter.strength": lambda r: _ops(r, "color_jitter")[0]["brightness"] / 0.8,
    "aug.color_jitter.p": _op("color_jitter", "probability"),
    **{
        f"aug.color_jitter.{field}": _op("color_jitter", field)
        for field in ("brightness", "contrast", "saturation", "hue", "random_order")
    },
    "aug.grayscale_p": _op("grayscale", "probability"),
    "aug.gaussian_blur.p": _op("gaussian_blur", "probability"),
    "aug.gaussian_blur.sigma": _op("gaussian_blur", "sigma"),
    "bn.decay": _given("networks", "projector", "batch_norm_momentum"),
    "bn.eps": _given("networks", "projector", "batch_norm_epsilon"),
    "head.layers": _given("networks", "projector", "num_layers"),
    "head.out_dim": _given("networks", "projector", "out_dim"),
    "head.hidden": _given("networks", "projector", "hidden_dim"),
}


def _recipe(location, *overrides):
    if location in ADAPT:
        name = ADAPT[location]
        overrides = (("init.weights", str(MODELS_KEPT / name)) if name else ("init", "None"), *overrides)
    return override(load_recipe(str(ROOT / location)), overrides, location)


def _says_the_same(ours, fact):
    if isinstance(fact, str):
        return isinstance(ours, str) and fact.lower().startswith(ours.lower())
    if isinstance(fact, list):
        return len(ours) == len(fact) and all(_says_the_same(o, f) for o, f in zip(ours, fact, strict=True))
    return ours == pytest.approx(fact, rel=1e-3 if fact == 1.333 else 1e-9)


@pytest.mark.parametrize("stage", STAGES, ids="/".join)
def test_every_structured_field_equals_the_source(stage):
    facts = functools.reduce(lambda place, name: place[name], stage, FACTS)
    unverified = {line.split()[0] for line in facts.get("unverified", ())}
    recipe, compared = _recipe(STAGES[stage]), 0
    for path, fact in flatten_dict(facts).items():
        if path.split(".")[0] in PROSE or path in PROSE or path in unverified:
            continue
        assert path in READERS, f"{path} = {fact!r} is compared with nothing"
        ours = READERS[path](recipe)
        same = ours is None if fact is None else _says_the_same(ours, fact)
        assert same, f"{path}: the source has {fact!r}, the recipe {ours!r}"
        compared += 1
    assert compared >= 15


def test_parameters_without_decay_are_those_of_the_sources():
    """MAE pretrains with decayed class and mask tokens (3-D there), and fine-tunes with an undecayed class token."""
    from vfm_jax.optim.groups import leaf_settings

    for location, undecayed in ((MAE, False), (f"{MAE}:finetune", True)):
        recipe = _recipe(location)
        shapes = {"encoder": {"class_token": jax.ShapeDtypeStruct((768,), "float32")}}
        shapes["encoder"] |= {
            "patch_embedding": {n: jax.ShapeDtypeStruct((8,), "float32") for n in ("bias", "kernel")}
        }
        settings = leaf_settings(
            shapes, recipe["optimizer"].get("groups"), weight_decay=0.05, layer_decay=None, path="config.optimizer"
        )
        assert (settings["encoder/class_token"].weight_decay == 0) is undecayed
        assert settings["encoder/patch_embedding/bias"].weight_decay == 0
        assert settings["encoder/patch_embedding/kernel"].weight_decay == 0.05


@pytest.fixture
def fake_imagenet(monkeypatch):
    """ImageNet's form without ImageNet: noise on the recipe's own canvas, a thousand classes; a folder with five."""

    def tfds(dataset, *, split, canvas_size):
        images = np.random.default_rng(0).integers(0, 256, (32, canvas_size, canvas_size, 3), np.uint8)
        names = tuple(f"class {i}" for i in range(1000))
        return ArraySource(images, np.arange(32), class_names=names, described=f"{dataset} {split}")

    def folder(path, *, split=None, labels="subfolders", canvas_size=256, channels=3):
        images = np.random.default_rng(0).integers(0, 256, (32, canvas_size, canvas_size, channels), np.uint8)
        return ArraySource(images, np.arange(32) % 5, class_names=tuple("abcde"), described=f"{path} {split}")

    monkeypatch.setitem(SOURCES, "tfds", tfds)
    monkeypatch.setitem(SOURCES, "folder", folder)


@pytest.mark.parametrize("location", BUILDABLE)
def test_the_full_size_step_has_shapes_that_fit(fake_imagenet, location):
    """Nothing is allocated or compiled: the whole step is traced at the recipe's own batch and image size."""
    for stage in read_stages(_recipe(location)):
        e = build_experiment(**stage.recipe)
        step = make_step(e.objective, e.optimizer, e.views, seed=0, schedule=e.schedule, update_ema=e.update_ema)
        sample = {name: jnp.asarray(value) for name, value in e.sample.items()}
        state = jax.eval_shape(
            lambda key, e=e, sample=sample: init_state(
                e.objective, e.optimizer, e.views(key, sample), key, with_ema=e.update_ema is not None
            ),
            jax.random.key(0),
        )
        batch = {n: jax.ShapeDtypeStruct((e.batch_size, *v.shape[1:]), v.dtype) for n, v in sample.items()}
        after, measured = jax.eval_shape(step, state, batch)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), state)
        assert measured["loss"].shape == ()


SMALL = {"vit": {"depth": 1, "width": 16, "heads": 2, "mlp_dim": 32}, "resnet": {"variant": "18", "width": 8}}


def _shrunk(location, **changes):
    recipe = _recipe(
        location,
        ("total_epochs", "None"),
        ("evals", "None"),
        ("baselines", "None"),
        ("data.batch_size", "16"),
    )
    if not ADAPT.get(location):  # public weights have the size they have, and these are small
        recipe["networks"]["encoder"] |= SMALL[recipe["networks"]["encoder"]["name"]]
    if "decoder" in recipe["networks"] and not location.endswith(":decoder"):
        recipe["networks"]["decoder"] |= {"width": 16, "depth": 1, "heads": 2}
    if "canvas_size" in recipe["data"]:
        recipe["data"]["canvas_size"] = 40
        for op in recipe["views"]["image"]["ops"]:
            if op["name"] == "random_resized_crop":
                op["size"] = 32
    recipe["schedule"] = {k: v for k, v in recipe["schedule"].items() if not k.startswith("warmup_e")}
    return recipe | {"total_steps": 2, "log_every_steps": 1} | changes


@pytest.mark.parametrize("location", BUILDABLE)
def test_the_recipe_trains_two_steps_when_shrunk(fake_imagenet, tmp_path, location):
    changes = {}
    if _recipe(location)["start_from"]:
        changes["start_from"] = str(tmp_path / "pretrained")
        train(_shrunk(MAE), tmp_path / "pretrained")
    summary = train(_shrunk(location, **changes), tmp_path / "run")
    assert summary["finished"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(np.isfinite(row["loss"]) and row["gradient_norm"] > 0 for row in rows)
