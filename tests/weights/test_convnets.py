"""Files of convolutional encoders and MLP-Mixer, against what the libraries that wrote them gave."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import build
from vfm_jax.core.trees import map_named, named_leaves
from vfm_jax.models import MODELS
from vfm_jax.weights.convnets import FAMILIES
from vfm_jax.weights.rules import Bundle, foreign_tensors, read_leaf

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
    levels = (0, 1) if "intermediate_0" in io else levels
    features, logits, leaves = run(family, bundle, source, io, levels)
    grids = features.level_grids or [features.grid] * len(features.levels)
    maps = [as_map(level, grid) for level, grid in zip(features.levels, grids, strict=True)]
    cells = as_map(features.patch_tokens, features.grid)
    compared = {
        "logits": logits,
        "last_hidden_state": features.tokens,
        "pooler_output": features.pooled,
        "pre_logits": features.pooled,
        "forward_features": features.tokens if io.get("forward_features", cells).ndim == 3 else cells,
        "avgpool": None,  # tests/nn/test_convolutions.py
        "pixel_values": None,
        **{f"hidden_state_{i}": level for i, level in enumerate(maps)},
        **{f"intermediate_{i}": level for i, level in enumerate(maps)},
        **dict(zip(VGG_POOLS, maps, strict=False)),
    }
    for key in io.files:
        if compared[key] is not None:
            np.testing.assert_allclose(compared[key], io[key], **CLOSE, err_msg=key)
    check_round_trip(family, bundle, source, leaves)
    return family, bundle, source


NO_NAME = ("timm_bit", "timm_mixer")  # no architecture of timm's has these groups or sizes
IN_REPOSITORY = {
    "hf_convnext": "hf/convnext",
    "hf_dinov3_convnext": "hf/dinov3_convnext",
    "timm_convnextv2": "timm/convnext",
    "hf_resnet": "hf/resnet",
    "timm_resnet": "timm/resnet",
    "hf_bit": "hf/bit",
    "timm_bit": "timm/bit",
    "timm_mixer": "timm/mixer",
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
    if family.config and folder not in NO_NAME:
        assert family.read(family.config(bundle), source.shapes, {}).networks == bundle.networks


@pytest.mark.parametrize("folder", BESIDE)
def test_a_file_of_other_sizes_gives_what_its_library_gives(shared, folder):
    family, bundle, source = check(shared / "golden/models" / folder, BESIDE[folder])
    assert family.read(family.config(bundle), source.shapes, {}).networks == bundle.networks


@pytest.mark.parametrize("name", ["bit", "mixer"])
def test_an_npz_gives_what_big_vision_gives_and_comes_back_bit_by_bit(golden_directory, name):
    golden = np.load(golden_directory / "models" / f"bigvision_{name}.npz")
    source = Tensors({key.removeprefix("param/"): golden[key] for key in golden.files if key.startswith("param/")})
    family = recognise(None, source.shapes)
    assert family.name == f"big_vision/{name}"
    bundle = family.read(None, source.shapes, {})
    io = {"pixel_values": golden["pixel_values_nhwc"].transpose(0, 3, 1, 2)}
    features, logits, leaves = run(family, bundle, source, io, ("stem", 0) if name == "bit" else (0,))
    compared = {"pre_logits": features.pooled, "logits": logits}
    if name == "bit":
        compared |= dict(zip(("stem", "stage1"), features.levels, strict=True))
    else:
        compared["block_0"] = features.levels[0]
    for key, ours in compared.items():
        np.testing.assert_allclose(ours, golden[key].reshape(ours.shape), **CLOSE, err_msg=key)
    check_round_trip(family, bundle, source, leaves)


AUTHORS_BIT = (
    ("conv_root", "standardized_conv2d"),
    ("norm-pre-head", "group_norm"),
    ("conv_proj", "a/proj/standardized_conv2d"),
    ("^head", "head/conv2d"),
    *((rf"/gn{number}", f"/{letter}/group_norm") for number, letter in zip("123", "abc", strict=True)),
    *((rf"/conv{number}/", f"/{letter}/standardized_conv2d/") for number, letter in zip("123", "abc", strict=True)),
)


def test_the_authors_names_of_bit_are_those_of_big_vision_read_otherwise(golden_directory):
    golden = np.load(golden_directory / "models" / "bigvision_bit.npz")
    tensors = {}
    for key in (key for key in golden.files if key.startswith("param/")):
        name, tensor = key.removeprefix("param/"), golden[key]
        for pattern, replacement in AUTHORS_BIT:
            name = re.sub(pattern, replacement, name)
        if "group_norm" in name:
            name, tensor = name.replace("scale", "gamma").replace("bias", "beta"), tensor.reshape(-1)
        tensors[f"resnet/{name}"] = tensor[None, None] if name == "head/conv2d/kernel" else tensor
    source = Tensors(tensors)
    family = recognise(None, source.shapes)
    assert family.name == "original/bit"
    bundle = family.read(None, source.shapes, {})
    _, _, leaves = variables_of(family, bundle, source)
    np.testing.assert_array_equal(
        leaves["params", "encoder/stem/kernel"], golden["param/root_block/conv_root/kernel"]
    )
    check_round_trip(family, bundle, source, leaves)


def _renamed(folder, changes):
    """The tensors of a golden folder under other names."""
    _, source, io = load(folder)
    tensors = {}
    for name, tensor in source.tensors.items():
        for pattern, replacement in changes:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor
    return Tensors(tensors), io


AUTHORS_CONVNEXT = (
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
    (r"\.blocks\.", "."),
    ("conv_dw", "dwconv"),
    (r"mlp\.fc", "pwconv"),
    (r"mlp\.grn\.weight", "grn.gamma"),
    (r"mlp\.grn\.bias", "grn.beta"),
    (r"^head\.norm", "norm"),
    (r"^head\.fc", "head"),
)


def test_the_authors_names_of_convnext_need_no_config(golden_directory):
    source, io = _renamed(golden_directory / "models" / "timm_convnextv2", AUTHORS_CONVNEXT)
    source = Tensors({n: t.reshape(1, 1, 1, -1) if ".grn." in n else t for n, t in source.tensors.items()})
    family = recognise(None, source.shapes)
    assert family.name == "original/convnext"
    bundle = family.read(None, source.shapes, {})
    _, logits, leaves = run(family, bundle, source, io, ())
    np.testing.assert_allclose(logits, io["logits"], **CLOSE)
    check_round_trip(family, bundle, source, leaves)


AUTHORS_DINOV3 = (
    (r"^stages\.(\d)\.downsample_layers\.", r"downsample_layers.\1."),
    (r"\.layers\.", "."),
    ("depthwise_conv", "dwconv"),
    ("pointwise_conv", "pwconv"),
    ("layer_norm", "norm"),
)


def test_dinov3_lists_its_final_norm_twice_and_begins_with_the_mean(golden_directory):
    source, io = _renamed(golden_directory / "models" / "hf_dinov3_convnext", AUTHORS_DINOV3)
    source = Tensors(source.tensors | {f"norms.3.{part}": source.read(f"norm.{part}") for part in ("weight", "bias")})
    family = recognise(None, source.shapes)
    bundle = family.read(None, source.shapes, {})
    features, _, leaves = run(family, bundle, source, io, ())
    np.testing.assert_allclose(features.tokens, io["last_hidden_state"], **CLOSE)
    check_round_trip(family, bundle, source, leaves)


def test_a_state_dict_of_torchvision_needs_no_config_and_a_classifier_is_not_asked_for(golden_directory):
    _, source, io = load(golden_directory / "models" / "timm_resnet")
    tensors = {name: t for name, t in source.tensors.items() if "fc." not in name and "num_batches" not in name}
    source = Tensors(tensors)
    family = recognise(None, source.shapes)
    bundle = family.read(None, source.shapes, {})
    assert list(bundle.networks) == ["encoder"]
    features, _, leaves = run(family, bundle, source, io, ())
    np.testing.assert_allclose(features.pooled, io["pre_logits"], **CLOSE)
    check_round_trip(family, bundle, source, leaves)  # without counters, as it came


def test_timms_vgg_slides_its_classifier_and_shares_the_rest_with_torchvision(golden_directory):
    source, io = _renamed(
        golden_directory / "models" / "vgg16",
        ((r"classifier\.0", "pre_logits.fc1"), (r"classifier\.3", "pre_logits.fc2"), (r"classifier\.6", "head.fc")),
    )
    tensors = dict(source.tensors)
    tensors["pre_logits.fc1.weight"] = tensors["pre_logits.fc1.weight"].reshape(24, 8, 7, 7)
    tensors["pre_logits.fc2.weight"] = tensors["pre_logits.fc2.weight"].reshape(24, 24, 1, 1)
    source = Tensors(tensors)
    family = recognise(None, source.shapes)
    assert family.name == "timm/vgg"
    bundle = family.read(None, source.shapes, {})
    _, logits, leaves = run(family, bundle, source, io, ())
    np.testing.assert_allclose(logits, io["logits"], **CLOSE)  # below 7 x 7 cells both repeat the map
    check_round_trip(family, bundle, source, leaves)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("depths", [(1, 1, 2, 2, 2), (2, 3), (3, 1, 4)])
def test_the_stages_of_a_vgg_are_told_by_the_numbers_of_its_layers(depths, batch_norm):
    width, place, shapes = 4, 0, {}
    for depth in depths:
        for _ in range(depth):
            shapes[f"features.{place}.weight"], shapes[f"features.{place}.bias"] = (width, width, 3, 3), (width,)
            if batch_norm:
                shapes[f"features.{place + 1}.running_mean"] = (width,)
            place += 3 if batch_norm else 2
        place += 1
    bundle = BY_NAME["torchvision/vgg"].read(None, shapes, {})
    encoder = build(MODELS, bundle.networks["encoder"], "networks.encoder")
    assert encoder.sizes == (depths, (width,) * len(depths))
    assert (encoder.batch_norm, encoder.classifier_dim) == (batch_norm, None)


@pytest.mark.parametrize(
    ("family", "encoder", "words"),
    [
        ("hf/convnext", dict(name="convnext", grn=True), "grn in version 1"),
        ("hf/dinov3_convnext", dict(name="convnext"), "mean_token=False"),
        ("timm/convnext", dict(name="convnext", stem_size=8), "a stem of 8 pixels"),
        ("hf/resnet", dict(name="resnet", stem="cifar"), "the stem 'cifar'"),
        ("timm/resnet", dict(name="resnet", width=128), "a stem of 128 channels"),
        ("hf/bit", dict(name="bit", stem_pool="symmetric"), "symmetric"),
        ("timm/bit", dict(name="bit", groups=8), "8 groups"),
        ("timm/bit", dict(name="bit", variant="R26x1"), "blocks"),
        ("timm/vgg", dict(name="vgg"), "slides"),
        ("timm/mixer", dict(name="mixer", activation="gelu_tanh"), "gelu_tanh"),
    ],
)
def test_what_a_program_has_no_word_for_is_refused_on_export(family, encoder, words):
    with pytest.raises(UserError, match=words):
        BY_NAME[family].config(Bundle({"encoder": encoder}, (224, 224)))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"conv1.0.weight": (32, 3, 3, 3)}, "another stem"),
        ({"layer1.0.downsample.1.weight": (32, 64, 1, 1)}, "relative of ResNet"),
        ({"layer1.0.conv2.weight": (8, 4, 3, 3)}, "relative of ResNet"),
        ({"layer1.0.se.fc1.weight": (8, 32, 1, 1)}, "relative of ResNet"),
    ],
)
def test_a_relative_of_resnet_is_refused(golden_directory, tensors, words):
    _, source, _ = load(golden_directory / "models" / "timm_resnet")
    shapes = source.shapes | tensors
    if "conv1.0.weight" in tensors:
        del shapes["conv1.weight"]
    with pytest.raises(UserError, match=words):
        recognise(None, shapes).read(None, shapes, {})


def test_real_names_of_timm_say_what_shapes_cannot(golden_directory):
    config, source, _ = load(golden_directory / "models" / "timm_convnextv2")
    for name, epsilon in (("convnextv2_base.fcmae", 1e-6), ("convnext_xxlarge.clip_laion2b_soup", 1e-5)):
        real = {"architecture": name, "pretrained_cfg": config["pretrained_cfg"]}
        encoder = recognise(real, source.shapes).read(real, source.shapes, {}).networks["encoder"]
        assert encoder["norm_epsilon"] == epsilon
    with pytest.raises(UserError, match="no weight standardisation"):
        BY_NAME["timm/bit"].read({"architecture": "resnetv2_50d_gn"}, {}, {})
