"""Recipes against their papers: every structured field of the collected facts, and every recipe builds and trains.

The facts (tests/golden/recipes.json) are nested dicts; a field is known here by its path. Each field of a stage must
be read from our recipe by an entry of READERS, or stand in PROSE (words, results, hardware): a fact that nothing is
compared with is an error, so new facts cannot be passed over.
"""

import functools
import importlib.util
import json
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.recipe_facts import PROSE, READERS
from vfm_jax.cli import load_recipe, override
from vfm_jax.core.sharding import make_mesh
from vfm_jax.core.trees import flatten_dict
from vfm_jax.data.sources import SOURCES
from vfm_jax.data.sources.arrays import ArraySource
from vfm_jax.experiment import build_experiment
from vfm_jax.optim.groups import leaf_settings
from vfm_jax.train.loop import train
from vfm_jax.train.stages import read_stages
from vfm_jax.train.state import init_state
from vfm_jax.train.step import make_step

ROOT = pathlib.Path(__file__).parents[1]
FACTS = json.loads((ROOT / "tests" / "golden" / "recipes.json").read_text())


def _load(path):
    """A module of `tests/recipes`, which says of one method what reads its facts."""
    spec = importlib.util.spec_from_file_location(f"recipe_facts_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


METHODS = [_load(path) for path in sorted((ROOT / "tests" / "recipes").glob("*.py"))]


def _facts(stage):
    """The fields of a stage; None where the facts have no such one."""
    return functools.reduce(lambda place, name: place and place.get(name), stage, FACTS)


STAGES = {  # a method may name more than the facts at hand hold
    stage: (location, method)
    for method in METHODS
    for stage, location in method.STAGES.items()
    if _facts(stage) is not None
}

# Facts of no recipe of ours: of a method, or of one stage.
NO_RECIPE = {
    **dict.fromkeys(("siglip2", "beit_v2", "aimv2", "cappa", "coca"), "no objective of ours"),
    **dict.fromkeys(("flexivit", "naflex"), "images of many sizes in one batch: the networks take them, no recipe"),
    "depth_growth": "networks that grow from stage to stage",
    "eval_protocols": "protocols of evaluators, detectors and segmenters",
    "robustness": "test sets, and how they are scored",
    "vit_shapes": "the sizes of ViTs, in a table",
    "mae/transfer/detection_segmentation": "detection and segmentation",
    "augreg/presets/augmentation": "names that the readers of AugReg's recipes look up",
    **dict.fromkeys(
        (
            *(f"dinov2/eval/{kind}" for kind in ("linear", "knn")),
            "dinov3/vit_l16/dinotxt_text_alignment",
            *(f"dinov3/eval/{kind}" for kind in ("ade20k_linear", "linear_and_knn")),
        ),
        "the evaluations of DINOv2 and DINOv3, and texts aligned to DINOv3: not built",
    ),
}

MAE = "configs/masked/mae_vit_b16_in1k.py"
RECIPES = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "configs").glob("*/*.py") if path.parent.name != "adapt"
)


def _first_of_each(recipes, kind):
    """Every recipe as a parameter; those of whose kind an earlier one is are slow."""
    seen, chosen = set(), []
    for location in recipes:
        chosen.append(pytest.param(location, marks=[pytest.mark.slow] if kind(location) in seen else []))
        seen.add(kind(location))
    return chosen


def _method(location):
    return load_recipe(str(ROOT / location))["objective"]["name"]


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
QUICKSTART = [f"configs/quickstart.py{variant}" for variant in ("", ":simclr", ":photos")]
VARIANTS = sorted({location for location, _ in STAGES.values()} - set(RECIPES))
TRACED = [
    *_first_of_each(RECIPES, _method),
    *QUICKSTART,
    *ADAPT,
    *(pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS),
]
TINY_KEPT = {  # of every kind of data and network one; the others are slow
    "configs/autoregressive/aim_0_6b.py",
    "configs/image_text/clip_vit.py",
    "configs/masked/context_vgg16_in1k.py",
    "configs/redundancy/barlow_twins_r18_cifar10.py",
    "configs/supervised/augreg_in1k.py",
}
SHRUNK = [f"{MAE}:finetune", f"{MAE}:linear_probe", *QUICKSTART, *ADAPT]


def _recipe(location, *overrides):
    if location in ADAPT:
        name = ADAPT[location]
        overrides = (("init.weights", str(MODELS_KEPT / name)) if name else ("init", "None"), *overrides)
    return override(load_recipe(str(ROOT / location)), overrides, location)


def _says_the_same(ours, fact):
    if isinstance(fact, str) and (parts := re.fullmatch(r"(\d+) per (?:GPU|core|device) x (\d+)", fact)):
        fact = int(parts[1]) * int(parts[2])  # a batch, told by its parts
    if isinstance(fact, str):
        return isinstance(ours, str) and fact.lower().startswith(ours.lower())
    if isinstance(fact, list):
        return len(ours) == len(fact) and all(_says_the_same(o, f) for o, f in zip(ours, fact, strict=True))
    return ours == pytest.approx(fact, rel=1e-3 if fact == 1.333 else 1e-9)


def _stages_with_facts():
    """Every stage that has a field to compare, of the methods that have a recipe."""
    for method, variants in FACTS.items():
        if method.startswith("_") or method in NO_RECIPE:
            continue
        for variant, stages in variants.items():
            for stage, facts in stages.items() if not variant.startswith("_") else ():
                if set(facts) - PROSE - {"note"}:
                    yield method, variant, stage


def test_every_stage_of_the_facts_has_a_recipe():
    found = list(_stages_with_facts())
    missing = ["/".join(stage) for stage in found if stage not in STAGES and "/".join(stage) not in NO_RECIPE]
    assert not missing, f"{len(missing)} stages are compared with nothing: {', '.join(missing)}"
    known = {*FACTS, *("/".join(stage) for stage in found)}
    covered = {*("/".join(stage) for stage in STAGES), *(stage[0] for stage in STAGES)}
    assert NO_RECIPE.keys() <= known - covered  # none too many


@pytest.mark.parametrize("stage", STAGES, ids="/".join)
def test_every_structured_field_equals_the_source(stage):
    facts = _facts(stage)
    location, method = STAGES[stage]
    unverified = facts.get("unverified", ())
    readers, prose = READERS | getattr(method, "READERS", {}), PROSE | getattr(method, "PROSE", set())
    recipe, compared = _recipe(location), 0
    for path, fact in flatten_dict(facts).items():
        if path.split(".")[0] in prose or path in prose or any(path in line for line in unverified):
            continue
        assert path in readers, f"{path} = {fact!r} is compared with nothing"
        ours = readers[path](recipe)
        same = ours is None if fact is None else _says_the_same(ours, fact)
        assert same, f"{path}: the source has {fact!r}, the recipe {ours!r}"
        compared += 1
    assert compared >= getattr(method, "COMPARED", 15)


def test_parameters_without_decay_are_those_of_the_sources():
    """MAE pretrains with decayed class and mask tokens (3-D there), and fine-tunes with an undecayed class token."""
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


class OnlyShapes:
    """As many examples as the recipe's data have, and none to look at."""

    def __init__(self, num_examples, canvas_size, num_classes, channels=3):
        sides = (canvas_size, canvas_size) if isinstance(canvas_size, int) else tuple(canvas_size)
        self.image_shape = (*sides, channels)
        self.class_names = tuple(f"class {i}" for i in range(num_classes)) if num_classes else None
        self._num_examples = num_examples

    def __len__(self):
        return self._num_examples


@pytest.fixture
def only_shapes(monkeypatch):
    """ImageNet-1k, ImageNet-21k and CIFAR-10 by their sizes; any other data set, and a folder, of a million."""
    sizes = {
        "imagenet2012": (1_281_167, 1000),
        "imagenet2012_subset/1pct": (12_811, 1000),
        "imagenet21k": (13_153_500, 21_843),
        "cifar10": (50_000, 10),
    }

    @functools.wraps(SOURCES["tfds"])
    def tfds(dataset, *, canvas_size, **fields):
        num_examples, num_classes = sizes.get(dataset, (1_000_000, 0))
        return OnlyShapes(num_examples, canvas_size or 32, num_classes)

    @functools.wraps(SOURCES["folder"])
    def folder(path, *, canvas_size=256, channels=3, **fields):
        return OnlyShapes(1_000_000, canvas_size, 5, channels)

    @functools.wraps(SOURCES["pairs"])
    def pairs(path, *, canvas_size=256, text_length=64, tokenizer, **fields):
        made = OnlyShapes(400_000_000, canvas_size, 0)
        made.text_shape, made.tokenizer = (5, text_length), tokenizer
        if isinstance(tokenizer, dict):
            ids = {"clip": 49408, "sentencepiece": 32000, "learned": tokenizer.get("vocabulary")}[tokenizer["name"]]
            made.tokenizer = types.SimpleNamespace(vocabulary_size=ids)
        return made

    monkeypatch.setitem(SOURCES, "tfds", tfds)
    monkeypatch.setitem(SOURCES, "folder", folder)
    monkeypatch.setitem(SOURCES, "pairs", pairs)


@pytest.mark.parametrize("location", TRACED)
def test_the_full_size_step_has_shapes_that_fit(only_shapes, location):
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


def _shrunk(location, **changes):
    recipe = _recipe(
        location,
        ("total_epochs", "None"),
        ("evals", "None"),
        ("baselines", "None"),
        ("data.batch_size", "16"),
    )
    if not ADAPT.get(location):  # public weights have the size they have, and these are small
        recipe["networks"]["encoder"] |= {"depth": 1, "width": 16, "heads": 2, "mlp_dim": 32}
    if "decoder" in recipe["networks"] and not location.endswith(":decoder"):
        recipe["networks"]["decoder"] |= {"width": 16, "depth": 1, "heads": 2}
    if "canvas_size" in recipe["data"]:
        recipe["data"]["canvas_size"] = 40
        for op in recipe["views"]["image"]["ops"]:
            if op["name"] == "random_resized_crop":
                op["size"] = 32
    recipe["schedule"] = {k: v for k, v in recipe["schedule"].items() if not k.startswith("warmup_e")}
    return recipe | {"total_steps": 2, "log_every_steps": 1} | changes


@pytest.fixture
def one_device(monkeypatch):
    """As a laptop has: programs for eight take longer to compile than these take to run."""
    monkeypatch.setattr("vfm_jax.experiment.make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))


@pytest.mark.usefixtures("fake_imagenet", "one_device")
@pytest.mark.parametrize("location", SHRUNK)
def test_the_recipe_trains_two_steps_when_shrunk(tmp_path, location):
    changes = {}
    if _recipe(location)["start_from"]:
        changes["start_from"] = str(tmp_path / "pretrained")
        train(_shrunk(MAE), tmp_path / "pretrained")
    summary = train(_shrunk(location, **changes), tmp_path / "run")
    assert summary["finished"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(np.isfinite(row["loss"]) and row["gradient_norm"] > 0 for row in rows)


def test_every_recipe_has_a_toy_size_with_images_to_look_at_while_it_trains():
    for location in RECIPES:
        recipe = _recipe(f"{location}:tiny")
        assert recipe["data"]["name"] in ("photos", "photo_pairs"), location
        assert recipe["evals"] and recipe["eval_views"], location


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(
    "location", [pytest.param(v, marks=[] if v in TINY_KEPT else pytest.mark.slow) for v in RECIPES]
)
def test_the_tiny_recipe_trains_two_steps_on_embedded_images(tmp_path, location):
    recipe = _recipe(f"{location}:tiny")
    full = _recipe(location)
    assert recipe["objective"]["name"] == full["objective"]["name"]
    assert recipe["optimizer"]["name"] == full["optimizer"]["name"]
    assert set(recipe["views"]) == set(full["views"])
    short = {"total_steps": 2, "log_every_steps": 1, "evals": {}, "baselines": ()}
    stages = tuple({**stage, "total_steps": 1, "evals": {}} for stage in recipe["stages"])
    train(recipe | short | {"stages": stages}, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) >= 2
    assert all(np.isfinite(row["loss"]) and row["gradient_norm"] > 0 for row in rows)
