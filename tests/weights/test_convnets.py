"""Files of convolutional encoders and MLP-Mixer, against what the libraries that wrote them gave."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from vfm_jax.core.tables import build
from vfm_jax.core.trees import map_named, named_leaves
from vfm_jax.models import MODELS
from vfm_jax.weights.convnets import FAMILIES
from vfm_jax.weights.rules import foreign_tensors, read_leaf

BY_NAME = {family.name: family for family in FAMILIES}
CLOSE = {"rtol": 1e-3, "atol": 1e-4}
VGG_POOLS = ("features_4", "features_9", "features_16", "features_23", "features_30")


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
    assert [family.name for family in found] == [family.name for family in found[:1]]
    return found[0]


def variables_of(family, bundle, source):
    """Networks and their variables by role, after checking that the rules fill each leaf once."""
    leaves = {(rule.collection, rule.leaf): read_leaf(rule, source) for rule in family.rules(bundle)}
    encoder = build(MODELS, bundle.networks["encoder"], "networks.encoder")
    image = jnp.zeros((1, *bundle.image_size, bundle.channels), jnp.float32)
    seen, shapes = jax.eval_shape(lambda: encoder.init_with_output(jax.random.key(0), image))
    networks, trees = {"encoder": encoder}, {"encoder": shapes}
    if "head" in bundle.networks:
        head = networks["head"] = build(MODELS, bundle.networks["head"], "networks.head")
        trees["head"] = jax.eval_shape(
            lambda: head.init(jax.random.key(0), jnp.zeros(seen.pooled.shape), train=False)
        )
    by_collection = {
        kind: {role: tree[kind] for role, tree in trees.items() if kind in tree} for kind in ("params", "batch_stats")
    }
    expected = {
        (kind, name): leaf.shape for kind, tree in by_collection.items() for name, leaf in named_leaves(tree).items()
    }
    assert {place: leaf.shape for place, leaf in leaves.items()} == expected
    filled = {
        kind: map_named(lambda name, _, kind=kind: jnp.asarray(leaves[kind, name]), tree)
        for kind, tree in by_collection.items()
    }
    return networks, {role: {k: tree[role] for k, tree in filled.items() if role in tree} for role in trees}, leaves


def run(family, bundle, source, io, levels):
    """Features and logits for the pixels of `io`."""
    networks, variables, leaves = variables_of(family, bundle, source)
    encoder = networks["encoder"].clone(levels=levels)
    image = jnp.asarray(io["pixel_values"].transpose(0, 2, 3, 1))
    features = jax.jit(encoder.apply)(variables["encoder"], image)
    head = networks.get("head")
    logits = None if head is None else head.apply(variables["head"], features.pooled, train=False)
    return features, logits, leaves


def as_map(tokens, grid):
    return np.asarray(tokens).reshape(len(tokens), *grid, -1).transpose(0, 3, 1, 2)


def check_round_trip(family, bundle, source, leaves):
    back = dict(foreign_tensors(family.rules(bundle), leaves))
    back |= {buffer.tensor: buffer.value for buffer in family.buffers(bundle)}
    assert set(back) == set(source.shapes)
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, source.read(name), strict=True)


def check(folder, name):
    config, source, io = load(folder)
    family = recognise(config, source.shapes)
    assert family.name == name
    bundle = family.read(config, source.shapes, {})
    stages = sum(key.startswith("hidden_state_") for key in io) - 1
    levels = ("stem", *range(stages)) if stages > 0 else (-1,)
    levels = tuple(range(5)) if "features_4" in io else levels
    features, logits, leaves = run(family, bundle, source, io, levels)
    maps = [as_map(level, grid) for level, grid in zip(features.levels, features.level_grids, strict=True)]
    cells = as_map(features.patch_tokens, features.grid)
    compared = {
        "logits": logits,
        "last_hidden_state": features.tokens,
        "pooler_output": features.pooled,
        "pre_logits": features.pooled,
        "forward_features": cells,
        "avgpool": None,  # tests/nn/test_convolutions.py
        "pixel_values": None,
        **{f"hidden_state_{i}": level for i, level in enumerate(maps)},
        **dict(zip(VGG_POOLS, maps, strict=False)),
    }
    for key in io.files:
        if compared[key] is not None:
            np.testing.assert_allclose(compared[key], io[key], **CLOSE, err_msg=key)
    check_round_trip(family, bundle, source, leaves)
    return family, bundle, source


IN_REPOSITORY = {
    "hf_convnext": "hf/convnext",
    "hf_dinov3_convnext": "hf/dinov3_convnext",
    "timm_convnextv2": "timm/convnext",
    "hf_resnet": "hf/resnet",
    "timm_resnet": "timm/resnet",
    "hf_bit": "hf/bit",
    "timm_bit": "timm/bit",
    "vgg16": "torchvision/vgg",
}
BESIDE = {
    "hf_convnext_b": "hf/convnext",
    "hf_convnextv2": "hf/convnextv2",
    "timm_convnext": "timm/convnext",
    "timm_convnextv2_b": "timm/convnext",
    "hf_resnet_b": "hf/resnet",
}


@pytest.mark.parametrize("folder", IN_REPOSITORY)
def test_a_file_gives_what_its_library_gives_and_comes_back_bit_by_bit(golden_directory, folder):
    family, bundle, source = check(golden_directory / "models" / folder, IN_REPOSITORY[folder])
    if family.config and folder != "timm_bit":
        assert family.read(family.config(bundle), source.shapes, {}).networks == bundle.networks


@pytest.mark.parametrize("folder", BESIDE)
def test_a_file_of_other_sizes_gives_what_its_library_gives(shared, folder):
    family, bundle, source = check(shared / "golden/models" / folder, BESIDE[folder])
    assert family.read(family.config(bundle), source.shapes, {}).networks == bundle.networks
