"""Groups by leaf name, and the layer-wise decay of MAE's fine-tuning."""

import re

import jax
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import named_leaves
from vfm_jax.models import MODELS
from vfm_jax.models.vit import ViT
from vfm_jax.optim.groups import LeafSettings, layer_scales, leaf_settings

RENAMES = (
    (r"^blocks\.(\d+)\.attn\.", r"encoder/transformer/block_\1/attention/"),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"encoder/transformer/block_\1/mlp/up/"),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"encoder/transformer/block_\1/mlp/down/"),
    (r"^blocks\.(\d+)\.(norm\d)\.", r"encoder/transformer/block_\1/\2/"),
    (r"^patch_embed\.proj\.", "encoder/patch_embedding/"),
    (r"^norm\.", "encoder/norm/"),
    (r"^head\.", "head/"),
    (r"^cls_token$", "encoder/class_token"),
    (r"^pos_embed$", "encoder/positions"),
    (r"(norm\d?/)weight$", r"\1scale"),
    (r"weight$", "kernel"),
)


def ours(timm_name):
    for pattern, replacement in RENAMES:
        timm_name = re.sub(pattern, replacement, timm_name)
    return timm_name


def leaf(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)


PARAMS = {
    "encoder": {"norm": {"scale": leaf(3), "bias": leaf(3)}, "class_token": leaf(3)},
    "head": {"kernel": leaf(3, 5), "bias": leaf(5)},
}


def test_layer_decay_and_weight_decay_are_those_of_mae_finetuning(golden_directory):
    with np.load(golden_directory / "components" / "layer_decay_vitb.npz") as golden:
        names = [ours(name) for name in golden["names"].tolist()]
        lr_scale, weight_decay = golden["lr_scale"], golden["weight_decay"]
    groups = (dict(match=r"(bias|scale|class_token|positions)$", weight_decay=0.0), dict(match=".*"))
    settings = leaf_settings({name: leaf(1) for name in names}, groups, weight_decay=0.05, layer_decay=0.65)
    assert len(settings) == len(names) == 152
    np.testing.assert_allclose([settings[name].lr_scale for name in names], lr_scale, rtol=1e-12)
    np.testing.assert_array_equal([settings[name].weight_decay for name in names], weight_decay)


def test_layer_decay_knows_the_names_of_our_vit():
    vit = ViT(
        "mu/4", 8, 2, 12, 2, norm_input="tokens", prefix_positions=1, distillation_token=True, registers=1,
        relative_positions="shared", layer_scale=1e-5,
    )  # fmt: skip
    image = jax.ShapeDtypeStruct((1, 8, 12, 3), np.float32)
    params = {"encoder": jax.eval_shape(vit.init, jax.random.key(0), image)["params"]}
    scales = layer_scales(named_leaves(params), 0.5)
    by_scale = {}
    for name, scale in scales.items():
        by_scale.setdefault(scale, set()).add(re.sub(r"(block_\d)/.*", r"\1", name).removesuffix("/kernel"))
    assert by_scale[0.5**3] == {
        "encoder/class_token",
        "encoder/distillation_token",
        "encoder/registers",
        "encoder/positions",
        "encoder/prefix_positions",
        "encoder/norm_input/scale",
        "encoder/norm_input/bias",
        "encoder/patch_embedding",
        "encoder/patch_embedding/bias",
    }
    assert by_scale[0.5**2] == {"encoder/transformer/block_0"}
    assert by_scale[0.5] == {"encoder/transformer/block_1"}
    assert by_scale[1.0] == {"encoder/norm/scale", "encoder/norm/bias", "encoder/relative_positions/table"}


@pytest.mark.parametrize(
    ("name", "fields", "outside"),
    [
        (
            "swin",
            dict(width=8, heads=(2, 2, 4), window=2, patch=2, positions="learned", mask_token=True),
            ["patch_embedding", "norm_patches", "positions", "mask_token"],
        ),
        ("convnext", dict(widths=(4, 6, 8)), ["stem", "stem_norm"]),
        ("resnet", dict(width=4), ["stem", "stem_norm"]),
        ("bit", dict(widths=(32, 32, 64), stem_width=16, groups=8), ["stem"]),
    ],
)
def test_blocks_are_counted_on_across_stages(name, fields, outside):
    """Depths 1, 3 and 2 are the layers 1, 2 to 4, and 5 to 6; what leads to a stage is of its first block's."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    encoder = MODELS[name](**fields, depths=(1, 3, 2))
    params = {"encoder": jax.eval_shape(encoder.init, jax.random.key(0), image)["params"], "head": leaf(3)}
    layers = {}
    for leaf_name, scale in layer_scales(named_leaves(params), 0.5).items():
        part = re.sub(r"^(encoder/(?:stage_\d/)?\w+).*", r"\1", leaf_name)
        layers.setdefault(round(7 + np.log2(scale)), set()).add(part.removeprefix("encoder/"))
    assert layers.pop(0) == set(outside)
    assert layers.pop(7) - {"norm"} == {"head"}
    blocks = {layer: {part for part in parts if "block" in part} for layer, parts in layers.items()}
    places = ["stage_0/block_0", "stage_1/block_0", "stage_1/block_1", "stage_1/block_2", "stage_2/block_0"]
    assert blocks == {i: {place} for i, place in enumerate([*places, "stage_2/block_1"], start=1)}
    between = {layer: parts - blocks[layer] for layer, parts in layers.items() if parts != blocks[layer]}
    assert set(between) == ({2, 5} if name in ("swin", "convnext") else set())


def test_blocks_of_a_decoder_are_no_layers_of_the_encoder():
    names = [f"{network}/transformer/block_{i}/mlp/up/kernel" for network in ("encoder", "decoder") for i in range(2)]
    scales = layer_scales([*names, "decoder/mask_token"], 0.5)
    assert list(scales.values()) == [0.25, 0.5, 1.0, 1.0, 1.0]


def test_biases_and_scales_do_not_decay_by_default():
    settings = leaf_settings(PARAMS, weight_decay=0.1)
    decays = {name: leaf.weight_decay for name, leaf in settings.items()}
    assert decays == {
        "encoder/class_token": 0.1,
        "encoder/norm/bias": 0.0,
        "encoder/norm/scale": 0.0,
        "head/bias": 0.0,
        "head/kernel": 0.1,
    }


def test_the_first_matching_group_decides_and_scales_multiply():
    groups = (dict(match="^head/", lr_scale=10.0), dict(match="bias$", weight_decay=0.0), dict(match=".*"))
    settings = leaf_settings(PARAMS, groups, weight_decay=0.1)
    assert settings["head/bias"] == LeafSettings(0.1, 10.0)
    assert settings["encoder/norm/bias"] == LeafSettings(0.0)
    block = {"encoder": {"block_0": {"kernel": leaf(2)}}}
    scaled = leaf_settings(block, (dict(match=".*", lr_scale=3.0),), layer_decay=0.5)
    assert scaled["encoder/block_0/kernel"].lr_scale == 1.5


def test_the_patch_embedding_of_dinov2_learns_at_a_fifth_of_its_layers_rate():
    """DINOv2's `get_params_groups_with_decay` multiplies the layer's factor by `patch_embed_lr_mult`."""
    names = ["encoder/patch_embedding/kernel", "encoder/patch_embedding/bias", "encoder/class_token"]
    names += [f"encoder/transformer/block_{i}/mlp/up/kernel" for i in range(12)] + ["dino_head/layer_0/kernel"]
    groups = (
        dict(match="patch_embedding/bias$", lr_scale=0.2, weight_decay=0.0),
        dict(match="patch_embedding/", lr_scale=0.2),
        dict(match=".*"),
    )
    settings = leaf_settings({name: leaf(1) for name in names}, groups, weight_decay=0.04, layer_decay=0.9)
    scales = {name: found.lr_scale for name, found in settings.items()}
    assert scales["encoder/patch_embedding/kernel"] == scales["encoder/patch_embedding/bias"] == 0.2 * 0.9**13
    assert scales["encoder/class_token"] == 0.9**13
    assert scales["encoder/transformer/block_0/mlp/up/kernel"] == 0.9**12
    assert scales["encoder/transformer/block_11/mlp/up/kernel"] == 0.9
    assert scales["dino_head/layer_0/kernel"] == 1.0
    assert settings["encoder/patch_embedding/bias"].weight_decay == 0.0


@pytest.mark.parametrize(
    ("over", "units"),
    [("all", {""}), ("network", {"encoder", "head"}), ("leaf", {"encoder/norm/scale", "encoder/norm/bias"})],
)
def test_the_norm_that_is_clipped_is_of_all_a_network_or_a_leaf_or_of_a_group(over, units):
    groups = (dict(match="class_token", clip_norm=0.5), dict(match=".*"))
    settings = leaf_settings(PARAMS, groups, clip_norm=3.0, clip_over=over)
    assert settings.pop("encoder/class_token").clip == ("group 0", 0.5)
    assert units <= {found.clip[0] for found in settings.values()}
    assert {found.clip[1] for found in settings.values()} == {3.0}
    assert {found.clip for found in leaf_settings(PARAMS).values()} == {None}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((dict(match="head"),), "no pattern matches encoder/class_token, encoder/norm/bias, encoder/norm/scale"),
        ((dict(match="hed/"), dict(match=".*")), r"'hed/' matches no leaf"),
        ((dict(match=".*"), dict(match="bias$", weight_decay=0.0)), r"groups\[1\].*taken by an earlier group"),
        ((dict(match=".*", decay=0.0),), r"groups\[0\]\.decay"),
        ((dict(match=".*", trust_ratio=False),), r"groups\[0\]\.trust_ratio"),
        ((dict(weight_decay=0.0),), r"groups\[0\] lacks match"),
        ((dict(match="(bias"), dict(match=".*")), "no regular expression"),
        ((dict(match=".*", lr_scale=-1.0),), "zero or more"),
        ((dict(match=".*", freeze_steps=-1),), "zero or more"),
        ((dict(match=".*", clip_norm=0.0),), r"groups\[0\]\.clip_norm is 0\.0"),
    ],
)
def test_groups_that_cannot_be_meant_are_refused(groups, message):
    with pytest.raises(UserError, match=message):
        leaf_settings(PARAMS, groups)


def test_a_closing_rule_may_have_nothing_left():
    settings = leaf_settings(PARAMS, (dict(match="^encoder/"), dict(match="^head/"), dict(match=".*")))
    assert len(settings) == 5


@pytest.mark.parametrize(("factor", "message"), [(0.0, "factor in"), (1.5, "factor in"), (0.75, "made of blocks")])
def test_layer_decay_needs_a_factor_and_blocks(factor, message):
    with pytest.raises(UserError, match=message):
        leaf_settings(PARAMS, layer_decay=factor)
