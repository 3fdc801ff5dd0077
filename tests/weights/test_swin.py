"""Swin files of Hugging Face, timm and the authors, against what those libraries gave."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import build
from vfm_jax.core.trees import map_named, named_leaves
from vfm_jax.models import MODELS
from vfm_jax.weights.rules import foreign_tensors, read_leaf
from vfm_jax.weights.swin import FAMILIES

BY_NAME = {family.name: family for family in FAMILIES}


class Tensors:
    """Tensors by name, as a file's reader gives them."""

    def __init__(self, tensors):
        self.tensors = tensors
        self.shapes = {name: tensor.shape for name, tensor in tensors.items()}

    def read(self, name):
        return self.tensors[name]


def load(folder):
    config = json.loads((folder / "config.json").read_text())
    return config, Tensors(load_file(folder / "model.safetensors")), np.load(folder / "io.npz")


def recognise(config, shapes):
    found = [family for family in FAMILIES if family.matches(config, shapes)]
    assert len(found) == 1
    return found[0]


def params_of(family, bundle, source, channels=3):
    """The leaves by role, after checking that they are those of the networks."""
    leaves = {rule.leaf: read_leaf(rule, source) for rule in family.rules(bundle)}
    encoder = build(MODELS, bundle.networks["encoder"], "networks.encoder")
    image = jnp.zeros((1, *bundle.image_size, channels), jnp.float32)
    shapes = {"encoder": jax.eval_shape(encoder.init, jax.random.key(0), image)["params"]}
    if "head" in bundle.networks:
        head = build(MODELS, bundle.networks["head"], "networks.head")
        width = leaves["head/logits/kernel"].shape[0]
        pooled = jnp.zeros((1, width), jnp.float32)
        shapes["head"] = jax.eval_shape(lambda key: head.init(key, pooled, train=False), jax.random.key(0))["params"]
    assert {name: leaf.shape for name, leaf in leaves.items()} == {
        name: leaf.shape for name, leaf in named_leaves(shapes).items()
    }
    return map_named(lambda name, _: jnp.asarray(leaves[name]), shapes), leaves


def check(folder, name):
    config, source, io = load(folder)
    family = recognise(config, source.shapes)
    assert family.name == name
    bundle = family.read(config, source.shapes, {})
    channels = io["pixel_values"].shape[1]
    assert bundle.channels == channels
    params, leaves = params_of(family, bundle, source, channels)

    count = len(bundle.networks["encoder"].get("depths", ())) or 4
    hf = name.startswith("hf/")
    spec = dict(bundle.networks["encoder"]) | {"levels": tuple(range(count)), "merged_levels": hf}
    encoder = build(MODELS, spec, "networks.encoder")
    image = jnp.asarray(io["pixel_values"].transpose(0, 2, 3, 1))
    masked = jnp.asarray(io["masked"]) if "masked" in io else None
    features = jax.jit(encoder.apply)({"params": params["encoder"]}, image, masked=masked)
    close = {"rtol": 1e-3, "atol": 1e-4}
    stem, _ = encoder.apply({"params": params["encoder"]}, image, masked, method="embed")
    for key, ours in {
        "last_hidden_state": features.tokens,
        "pooler_output": features.pooled,
        "pre_logits": features.pooled,
        "forward_features": features.tokens.reshape(len(image), *features.grid, -1),
        "hidden_state_0": stem,
        **{f"hidden_state_{i + 1}": level for i, level in enumerate(features.levels)},
    }.items():
        if key in io:
            np.testing.assert_allclose(ours, io[key], **close, err_msg=key)
    for i, (level, grid) in enumerate(zip(features.levels, features.level_grids, strict=True)):
        if f"intermediate_{i}" in io:
            theirs = level.reshape(len(image), *grid, -1).transpose(0, 3, 1, 2)
            np.testing.assert_allclose(theirs, io[f"intermediate_{i}"], **close)
    if "logits" in io:
        head = build(MODELS, bundle.networks["head"], "networks.head")
        logits = head.apply({"params": params["head"]}, features.pooled, train=False)
        np.testing.assert_allclose(logits, io["logits"], **close)

    # and back
    rules = family.rules(bundle)
    back = dict(foreign_tensors(rules, {("params", name): leaf for name, leaf in leaves.items()}))
    assert set(back) == set(source.shapes)
    for key, tensor in back.items():
        np.testing.assert_array_equal(tensor, source.read(key), strict=True)
    assert family.read(family.config(bundle), source.shapes, {}) == bundle


@pytest.mark.parametrize("name", ["hf_swin", "timm_swin"])
def test_a_swin_file_gives_what_its_library_gives(golden_directory, name):
    check(golden_directory / "models" / name, name.replace("_", "/"))


def test_a_swin_of_three_stages_gives_what_its_library_gives(shared):
    check(shared / "golden/models/hf_swin_b", "hf/swin")


@pytest.mark.parametrize("name", ["hf_swinv2", "timm_swinv2"])
def test_a_swin_of_version_2_gives_what_its_library_gives(golden_directory, name):
    check(golden_directory / "models" / name, name.replace("_", "/"))


@pytest.mark.parametrize(("name", "family"), [("hf_swin_odd", "hf/swin"), ("timm_swin_odd", "timm/swin")])
def test_maps_that_windows_do_not_divide_are_treated_as_each_library_does(golden_directory, name, family):
    check(golden_directory / "models" / name, family)


def authors_file(source, config):
    """timm's tensors under the authors' names, with the buffers their files carry."""
    renamed = {}
    for name, tensor in source.tensors.items():
        if name.startswith("layers.1.downsample"):
            name = name.replace("layers.1", "layers.0")
        renamed[name.replace("head.fc", "head")] = tensor
    return renamed


def test_the_authors_names_make_the_same_leaves_as_timms(golden_directory):
    config, source, _ = load(golden_directory / "models" / "timm_swin")
    timm = BY_NAME["timm/swin"]
    ours = {r.leaf: read_leaf(r, source) for r in timm.rules(timm.read(config, source.shapes, {}))}
    renamed = authors_file(source, config)
    grid = 16
    mask = np.zeros(((grid // 4) ** 2, 16, 16), np.float32)
    index = np.zeros((16, 16), np.int64)
    blocks = [f"layers.{s}.blocks.{i}" for s in (0, 1) for i in (0, 1)]
    renamed |= {f"{block}.attn.relative_position_index": index for block in blocks}
    renamed |= {"layers.0.blocks.1.attn_mask": mask, "layers.1.blocks.1.attn_mask": mask[:4]}
    authors = Tensors(renamed)
    family = recognise(None, authors.shapes)
    assert family.name == "original/swin"
    bundle = family.read(None, authors.shapes, {})
    assert bundle.image_size == (32, 32)
    for rule in family.rules(bundle):
        np.testing.assert_array_equal(read_leaf(rule, authors), ours[rule.leaf])
    buffers = {buffer.tensor: buffer.value for buffer in family.buffers(bundle)}
    known = {name for rule in family.rules(bundle) for name in rule.names} | set(buffers)
    assert known == set(renamed)
    assert {name: value.shape for name, value in buffers.items()} == {name: renamed[name].shape for name in buffers}


def test_a_file_that_does_not_say_its_windows_asks_for_them(golden_directory):
    _, source, _ = load(golden_directory / "models" / "timm_swinv2")
    with pytest.raises(UserError, match="window=8"):
        BY_NAME["timm/swinv2"].read(None, source.shapes, {})
    bundle = BY_NAME["timm/swinv2"].read(None, source.shapes, {"window": 6, "image_size": (28, 40)})
    assert bundle.networks["encoder"]["window"] == 6


def test_a_name_of_timm_says_windows_and_those_before_fine_tuning(golden_directory):
    _, source, _ = load(golden_directory / "models" / "timm_swinv2")
    config = {"architecture": "swinv2_base_window12to16_192to256.ms_in22k_ft_in1k"}
    bundle = BY_NAME["timm/swinv2"].read(config, source.shapes, {})
    assert bundle.image_size == (256, 256)
    encoder = bundle.networks["encoder"]
    assert encoder["window"] == 16
    assert encoder["trained_window"] == 12
