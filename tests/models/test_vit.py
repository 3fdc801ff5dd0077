"""The ViT against its descendants' own code, and what is special about it; test_interface.py asks the rest."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import count_parameters, named_leaves
from vfm_jax.models import MODELS
from vfm_jax.nn.heads import LinearHead
from vfm_jax.nn.patches import patchify
from vfm_jax.nn.resample import resample_positions, resize_matrix

SIZES = dict(variant="mu/4", width=16, depth=2, heads=2, mlp_dim=24)
BATCH, HEIGHT, WIDTH = 3, 8, 12  # 2 x 3 patches


def _image(channels=3, height=HEIGHT, width=WIDTH):
    return jax.random.normal(jax.random.key(4), (BATCH, height, width, channels), jnp.float32)


def _shapes(vit, image, method=None):
    """Parameters and output of `vit`, as shapes."""

    def run(key, image):
        variables = vit.init(key, image)
        return variables["params"], vit.apply(variables, image, method=method)

    return jax.eval_shape(run, jax.random.key(0), image)


def _random_params(vit, image):
    """Parameters of the right shapes, none of them special; an initialisation would cost a compilation."""
    generator = np.random.default_rng(0)
    params, _ = _shapes(vit, image)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * generator.standard_normal(leaf.shape), leaf.dtype), params)


# ------------------------------------------------------------------------------------------------ reference numbers


def _layer_norm(param, name):
    return {"scale": param[f"{name}/scale"], "bias": param[f"{name}/bias"]}


def _mlp(param, name):
    return {
        part: {leaf: param[f"{name}/MlpBlock_0/{dense}/{leaf}"] for leaf in ("kernel", "bias")}
        for part, dense in (("up", "Dense_0"), ("down", "Dense_1"))
    }


def _joined(param, name, parts):
    attention = f"{name}/MultiHeadDotProductAttention_0"
    return {
        "kernel": np.stack([param[f"{attention}/{part}/kernel"] for part in parts], axis=1),
        "bias": np.stack([param[f"{attention}/{part}/bias"] for part in parts]),
    }


def _dense(param, name):
    return {"kernel": param[f"{name}/kernel"], "bias": param[f"{name}/bias"]}


def _from_big_vision(param, grid, depth):
    """big_vision's parameters under our names."""
    params = {
        "patch_embedding": _dense(param, "embedding"),
        "norm": _layer_norm(param, "Transformer/encoder_norm"),
        "transformer": {},
    }
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}"
        params["transformer"][f"block_{i}"] = {
            "norm1": _layer_norm(param, f"{block}/LayerNorm_0"),
            "attention": {
                "qkv": _joined(param, block, ("query", "key", "value")),
                "out": _dense(param, f"{block}/MultiHeadDotProductAttention_0/out"),
            },
            "norm2": _layer_norm(param, f"{block}/LayerNorm_1"),
            "mlp": _mlp(param, block),
        }
    if "pos_embedding" in param:
        params["positions"] = param["pos_embedding"].reshape(*grid, -1)
    if "pre_logits/kernel" in param:
        params["representation"] = _dense(param, "pre_logits")
    if "cls" in param:
        params["class_token"] = param["cls"].reshape(-1)
    if "MAPHead_0/probe" in param:
        attention = "MAPHead_0/MultiHeadDotProductAttention_0"
        params["pool"] = {
            "probe": param["MAPHead_0/probe"][0],
            "query": _dense(param, f"{attention}/query"),
            "key_value": _joined(param, "MAPHead_0", ("key", "value")),
            "out": _dense(param, f"{attention}/out"),
            "norm": _layer_norm(param, "MAPHead_0/LayerNorm_0"),
            "mlp": _mlp(param, "MAPHead_0"),
        }
    return jax.tree.map(jnp.asarray, params)


@pytest.mark.parametrize(("name", "pooling"), [("map", "attention"), ("tok", "class"), ("gap", "mean")])
def test_tokens_pooled_and_logits_equal_big_vision(golden_directory, name, pooling):
    with np.load(golden_directory / "models" / f"bigvision_vit_{name}.npz") as file:
        golden = dict(file)
    config = json.loads(str(golden["meta"]))["config"]
    param = {name.removeprefix("param/"): a for name, a in golden.items() if name.startswith("param/")}
    vit = MODELS["vit"](
        variant=f"mu/{config['patch_size'][0]}",
        width=config["width"],
        depth=config["depth"],
        heads=config["num_heads"],
        mlp_dim=config.get("mlp_dim", 4 * config["width"]),
        positions={"learn": "learned", "sincos2d": "sincos2d_bigvision"}[config["posemb"]],
        class_token=pooling == "class",
        pooling=pooling,
        representation=config["width"] if config.get("rep_size") else None,
        activation="gelu_tanh",
    )
    image = jnp.asarray(golden["x_nhwc"])
    params = _from_big_vision(param, golden["out/stem"].shape[1:3], config["depth"])
    ours, _ = _shapes(vit, image)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, ours)  # not a leaf too many or too few
    features = jax.jit(vit.apply)({"params": params}, image)
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(features.tokens, golden["out/encoded"], **close)
    embedded = vit.apply({"params": params}, image, method="embed")
    np.testing.assert_allclose(embedded[:, features.num_prefix_tokens :], golden["out/with_posemb"], **close)
    np.testing.assert_allclose(features.pooled, golden["out/pre_logits"], **close)
    logits = np.asarray(features.pooled) @ param["head/kernel"] + param["head/bias"]
    np.testing.assert_allclose(logits, golden["out/logits"], **close)


NAMES = {  # of torch's ViTs -> ours, and how their axes become ours
    "patch_embed.proj.weight": ("patch_embedding/kernel", "d c h w -> h w c d"),
    "patch_embed.proj.bias": ("patch_embedding/bias", "d -> d"),
    "cls_token": ("class_token", "1 1 d -> d"),
    "register_tokens": ("registers", "1 n d -> n d"),
    "storage_tokens": ("registers", "1 n d -> n d"),
    "mask_token": ("mask_token", "1 d -> d"),
    "norm.weight": ("norm/scale", "d -> d"),
    "norm.bias": ("norm/bias", "d -> d"),
}
BLOCK_NAMES = {
    "norm1.weight": ("norm1/scale", "d -> d"),
    "norm1.bias": ("norm1/bias", "d -> d"),
    "attn.qkv.weight": ("attention/qkv/kernel", "(three heads e) d -> d three heads e"),
    "attn.qkv.bias": ("attention/qkv/bias", "(three heads e) -> three heads e"),
    "attn.proj.weight": ("attention/out/kernel", "d (heads e) -> heads e d"),
    "attn.proj.bias": ("attention/out/bias", "d -> d"),
    "ls1.gamma": ("scale1/gamma", "d -> d"),
    "norm2.weight": ("norm2/scale", "d -> d"),
    "norm2.bias": ("norm2/bias", "d -> d"),
    "mlp.fc1.weight": ("mlp/up/kernel", "o i -> i o"),
    "mlp.fc1.bias": ("mlp/up/bias", "d -> d"),
    "mlp.fc2.weight": ("mlp/down/kernel", "o i -> i o"),
    "mlp.fc2.bias": ("mlp/down/bias", "d -> d"),
    "mlp.gate.weight": ("mlp/gate/kernel", "o i -> i o"),
    "mlp.gate.bias": ("mlp/gate/bias", "d -> d"),
    "ls2.gamma": ("scale2/gamma", "d -> d"),
}


def _from_torch(param, heads, names=NAMES, block_names=BLOCK_NAMES, block="blocks"):
    """Parameters of a torch ViT under our names; the class token's position is the first row of `pos_embed`."""
    leaves = {}
    for name, tensor in param.items():
        if name == "pos_embed":
            side = round((tensor.shape[1] - 1) ** 0.5)
            leaves["prefix_positions"] = tensor[0, :1]
            leaves["positions"] = tensor[0, 1:].reshape(side, side, -1)
            continue
        ours, pattern = names.get(name, (None, None))
        if name.startswith(f"{block}."):
            _, layer, rest = name.split(".", 2)
            ours, pattern = block_names[rest]
            ours = f"transformer/block_{layer}/{ours}"
        sizes = {axis: size for axis, size in (("heads", heads), ("three", 3)) if axis in pattern}
        leaves[ours] = jnp.asarray(rearrange(tensor, pattern, **sizes))
    return unflatten_dict(leaves, sep="/")


def _with_gate_apart(param):
    """DINOv2 keeps gate and value of SwiGLU in one tensor."""
    for name in [name for name in param if ".mlp.w12." in name]:
        for part, tensor in zip(("gate", "fc1"), np.split(param.pop(name), 2), strict=True):
            param[name.replace("w12", part)] = tensor
    return {name.replace(".mlp.w3.", ".mlp.fc2."): tensor for name, tensor in param.items()}


ORIGINALS = {  # fields that the shapes do not tell
    "orig_dino": dict(position_resampling="bicubic_offset", norm_levels=True, levels=(-2, -1)),
    "orig_dinov2_reg_interp": dict(
        registers=4, mask_token=True, layer_scale=1.0, norm_levels=True, levels=(-2, -1), prefix_positions=1
    ),
    "orig_dinov2_swiglu": dict(
        position_resampling="bicubic_offset",
        mask_token=True,
        layer_scale=1.0,
        norm_levels=True,
        levels=(-2, -1),
        mlp="swiglu",
        activation="silu",
    ),
    "orig_dinov3": dict(
        positions="rope",
        registers=4,
        mask_token=True,
        layer_scale=1.0,
        key_bias=False,
        norm_epsilon=1e-5,
        prefix_positions=0,
    ),
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_originals_of_dino_are_equalled_layer_by_layer(golden_directory, request, name):
    path = golden_directory / "models" / f"{name}.npz"
    if not path.is_file():  # one is too large to be kept here
        path = request.getfixturevalue("shared") / "golden" / "models" / f"{name}.npz"
    with np.load(path) as file:
        golden = dict(file)
    config = json.loads(str(golden["meta"]))["config"]
    param = {name.removeprefix("param/"): a for name, a in golden.items() if name.startswith("param/")}
    not_learned = ("bias_mask", "rope_embed.periods")
    param = _with_gate_apart({name: a for name, a in param.items() if not name.endswith(not_learned)})
    params = jax.tree.map(jnp.asarray, _from_torch(param, config["num_heads"]))
    fields = dict(
        variant=f"mu/{config['patch_size']}",
        width=config["embed_dim"],
        depth=config["depth"],
        heads=config["num_heads"],
        mlp_dim=params["transformer"]["block_0"]["mlp"]["up"]["kernel"].shape[1],
        prefix_positions=1,
    )
    vit = MODELS["vit"](**fields | ORIGINALS[name])
    image = jnp.asarray(golden["x_nchw"].transpose(0, 2, 3, 1))
    first = jnp.zeros((1, config["patch_size"] * 3, config["patch_size"] * 3, 3), jnp.float32)
    shapes = jax.tree.map(jnp.shape, _shapes(vit, first)[0])
    if "positions" in params:
        shapes["positions"] = params["positions"].shape  # for the size that it was trained at
    assert shapes == jax.tree.map(jnp.shape, params)  # not a leaf too many or too few

    run = jax.jit(lambda image, masked: vit.apply({"params": params}, image, masked=masked))
    close = {"rtol": 1e-3, "atol": 1e-4}
    prefix = 1 + vit.registers
    for masked in ("", "masked_") if "mask" in golden else ("",):
        features = run(image, jnp.asarray(golden["mask"]) if masked else None)
        if name == "orig_dino":
            np.testing.assert_allclose(features.pooled, golden["y"], **close)
            for i, level in enumerate(features.levels):
                np.testing.assert_allclose(level, golden[f"intermediate_{i}"], **close)
            continue
        np.testing.assert_allclose(features.pooled, golden[f"{masked}x_norm_clstoken"], **close)
        np.testing.assert_allclose(features.patch_tokens, golden[f"{masked}x_norm_patchtokens"], **close)
        for registers in ("x_norm_regtokens", "x_storage_tokens"):
            if masked + registers in golden:
                np.testing.assert_allclose(features.tokens[:, 1:prefix], golden[masked + registers], **close)
        for i, level in enumerate(() if masked else features.levels):
            np.testing.assert_allclose(level[:, 0], golden[f"intermediate_{i}_cls"], **close)
            np.testing.assert_allclose(level[:, prefix:], golden[f"intermediate_{i}_patch"], **close)
    if "x_prenorm" in golden:
        raw = MODELS["vit"](**fields | ORIGINALS[name] | dict(levels=(-1,), norm_levels=False))
        level = jax.jit(lambda image: raw.apply({"params": params}, image).levels[0])(image)
        np.testing.assert_allclose(level, golden["x_prenorm"], **close)
    if "last_attention" in golden:
        weights = jax.jit(lambda image: vit.apply({"params": params}, image, method="attention"))(image)
        expected = golden["last_attention"][:, :, 0, prefix:]
        np.testing.assert_allclose(weights.reshape(expected.shape), expected, **close)


def test_images_of_different_shapes_in_one_batch_equal_siglip2(golden_directory):
    folder = golden_directory / "models" / "hf_siglip2_naflex"
    config = json.loads((folder / "config.json").read_text())["vision_config"]
    heads = config["num_attention_heads"]
    param = {
        name.removeprefix("vision_model."): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if name.startswith("vision_model.")
    }
    with np.load(folder / "io.npz") as file:
        golden = dict(file)
    split = "(heads e) d -> d heads e"

    def joined(name, parts):
        kernels = [rearrange(param.pop(f"{name}.{part}.weight"), split, heads=heads) for part in parts]
        biases = [rearrange(param.pop(f"{name}.{part}.bias"), "(heads e) -> heads e", heads=heads) for part in parts]
        return {"kernel": np.stack(kernels, axis=1), "bias": np.stack(biases)}

    def norm(name):
        return {"scale": param.pop(f"{name}.weight"), "bias": param.pop(f"{name}.bias")}

    def dense(name):
        return {"kernel": param.pop(f"{name}.weight").T, "bias": param.pop(f"{name}.bias")}

    def out(name):
        kernel = rearrange(param.pop(f"{name}.weight"), "d (heads e) -> heads e d", heads=heads)
        return {"kernel": kernel, "bias": param.pop(f"{name}.bias")}

    for leaf in ("weight", "bias"):  # torch's attention keeps query, key and value in one
        parts = np.split(param.pop(f"head.attention.in_proj_{leaf}"), 3)
        param |= {f"head.attention.{part}.{leaf}": tensor for part, tensor in zip("qkv", parts, strict=True)}
    query = joined("head.attention", "q")
    patch = config["patch_size"]
    kernel, side = param.pop("embeddings.patch_embedding.weight"), round(config["num_patches"] ** 0.5)
    params = {
        "patch_embedding": {
            "kernel": kernel.T.reshape(patch, patch, -1, config["hidden_size"]),
            "bias": param.pop("embeddings.patch_embedding.bias"),
        },
        "positions": param.pop("embeddings.position_embedding.weight").reshape(side, side, -1),
        "transformer": {
            f"block_{i}": {
                "norm1": norm(f"encoder.layers.{i}.layer_norm1"),
                "attention": {
                    "qkv": joined(f"encoder.layers.{i}.self_attn", ("q_proj", "k_proj", "v_proj")),
                    "out": out(f"encoder.layers.{i}.self_attn.out_proj"),
                },
                "norm2": norm(f"encoder.layers.{i}.layer_norm2"),
                "mlp": {
                    "up": dense(f"encoder.layers.{i}.mlp.fc1"),
                    "down": dense(f"encoder.layers.{i}.mlp.fc2"),
                },
            }
            for i in range(config["num_hidden_layers"])
        },
        "norm": norm("post_layernorm"),
        "pool": {
            "probe": param.pop("head.probe")[0],
            "query": {"kernel": query["kernel"][:, 0], "bias": query["bias"][0]},
            "key_value": joined("head.attention", "kv"),
            "out": out("head.attention.out_proj"),
            "norm": norm("head.layernorm"),
            "mlp": {"up": dense("head.mlp.fc1"), "down": dense("head.mlp.fc2")},
        },
    }
    assert param == {}
    params = jax.tree.map(jnp.asarray, params)
    vit = MODELS["vit"](
        variant=f"mu/{patch}",
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=heads,
        mlp_dim=config["intermediate_size"],
        class_token=False,
        pooling="attention",
        activation="gelu_tanh",
    )
    patches, shapes = jnp.asarray(golden["pixel_values"]), jnp.asarray(golden["spatial_shapes"], jnp.int32)
    valid = golden["pixel_attention_mask"].astype(bool)
    run = jax.jit(lambda patches: vit.apply({"params": params}, patches, shapes, jnp.asarray(valid), method="packed"))
    features = run(patches)
    close = {"rtol": 1e-3, "atol": 1e-4}
    np.testing.assert_allclose(features.tokens[valid], golden["vision_last_hidden_state"][valid], **close)
    np.testing.assert_allclose(features.pooled, golden["vision_pooler"], **close)
    noise = jnp.where(jnp.asarray(valid)[:, :, None], patches, 7.0)
    np.testing.assert_allclose(run(noise).pooled, features.pooled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("size", "millions"), [("Ti", 5.7), ("S", 22.1), ("B", 86.6), ("L", 304.3)])
def test_parameter_counts_are_the_published_ones(size, millions):
    """With the 1000-class head, at 224 pixels (Touvron et al., 2020, Table 1; Steiner et al., 2021, Table 2)."""
    params, features = _shapes(
        MODELS["vit"](variant=f"{size}/16"), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    )
    head = jax.eval_shape(lambda x: LinearHead(1000).init(jax.random.key(0), x, train=True), features.pooled)
    assert (count_parameters(params) + count_parameters(head)) / 1e6 == pytest.approx(millions, rel=0.01)


# ----------------------------------------------------------------------------------------------- patches and places


def test_a_patch_becomes_the_token_of_its_row_and_column():
    vit = MODELS["vit"](**SIZES | {"depth": 1}, positions="sincos2d", class_token=False, pooling="mean")
    image = _image()
    params = _random_params(vit, image)
    out = params["transformer"]["block_0"]["attention"]["out"]
    out["kernel"] = jnp.zeros_like(out["kernel"])  # no token hears of another
    run = jax.jit(lambda image: vit.apply({"params": params}, image).tokens)
    difference = np.abs(run(image) - run(image.at[:, 4:8, 8:12].add(3.0)))
    assert np.flatnonzero(difference.max(axis=(0, 2)) > 1e-3).tolist() == [5]  # row 1, column 2 of 2 x 3


@pytest.mark.parametrize(
    "fields", [dict(), dict(positions="rope", registers=1), dict(positions="none", relative_positions="block")]
)
def test_hidden_patches_are_not_looked_at_and_visible_ones_keep_their_positions(fields):
    vit = MODELS["vit"](**SIZES, **fields)
    image = _image()
    params = _random_params(vit, image)
    keep = jnp.array([[4, 0], [1, 5], [2, 3]])
    run = jax.jit(lambda image, keep: vit.apply({"params": params}, image, keep=keep))
    some = run(image, keep).tokens
    turned = run(image, keep[:, ::-1]).patch_tokens
    np.testing.assert_allclose(turned, some[:, -2:][:, ::-1], rtol=1e-3, atol=1e-4)
    other = image.at[0, :4, 4:].add(3.0).at[0, 4:, :4].set(0.0).at[0, 4:, 8:].set(0.0)  # patches 1, 2, 3, 5
    np.testing.assert_array_equal(run(other, keep).tokens[0], some[0])
    same = image.at[0, :4, 4:8].set(image[0, 4:, 4:8])  # patch 1 is patch 4 in another place
    assert np.abs(run(same, jnp.array([[1, 0], [1, 5], [2, 3]])).tokens[0] - some[0]).max() > 1e-3
    everything = jnp.broadcast_to(jnp.arange(6)[None], (BATCH, 6))
    whole = jax.jit(lambda image: vit.apply({"params": params}, image).tokens)(image)
    np.testing.assert_allclose(run(image, everything).tokens, whole, rtol=1e-3, atol=1e-4)


def test_drop_path_is_drawn_in_training_alone():
    vit = MODELS["vit"](**SIZES, drop_path=0.9)
    image = _image()
    params = _random_params(vit, image)
    keys = jax.random.split(jax.random.key(1), BATCH)

    @functools.partial(jax.jit, static_argnums=1)
    def run(keys, train):
        return vit.apply({"params": params}, image, keys=keys, train=train).pooled

    evaluation = run(keys, False)
    np.testing.assert_array_equal(evaluation, run(None, False))
    assert not np.allclose(run(keys, True), evaluation)


def test_fixed_positions_serve_any_grid():
    vit = MODELS["vit"](**SIZES, positions="sincos2d")
    params, _ = _shapes(vit, _image())
    features = jax.eval_shape(vit.apply, {"params": params}, _image(height=16, width=4))
    assert features.grid == (4, 1)


def test_learned_positions_serve_another_grid_by_their_rule():
    image = _image(height=12, width=8)  # 3 x 2 patches
    for rule in ("bicubic_antialias", "linear_corners"):
        vit = MODELS["vit"](**SIZES, position_resampling=rule)
        params = _random_params(vit, _image())
        resized = params | {"positions": resample_positions(params["positions"], (3, 2), rule)}
        run = jax.jit(lambda params, vit=vit: vit.apply({"params": params}, image).tokens)
        np.testing.assert_allclose(run(params), run(resized), rtol=1e-5, atol=1e-5)


def test_patches_of_another_size_use_the_same_parameters():
    """FlexiViT: an image of twice the size in patches of twice the size is about the same sequence."""
    fields = SIZES | dict(kernel_size=4, pooling="mean")
    small, large = (MODELS["vit"](**fields | dict(variant=f"mu/{size}")) for size in (4, 8))
    image = jax.image.resize(_image(height=2, width=3), (BATCH, HEIGHT, WIDTH, 3), "linear")  # without fine detail
    params = _random_params(small, image)
    doubled = jnp.asarray(
        np.einsum("ih,jw,bhwc->bijc", resize_matrix(8, 16, "bilinear"), resize_matrix(12, 24, "bilinear"), image),
        jnp.float32,
    )
    embed = {"params": params}
    one, other = (np.asarray(vit.apply(embed, x, method="embed")) for vit, x in ((small, image), (large, doubled)))
    assert one.shape == other.shape
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    "fields",
    [
        dict(pooling="attention", class_token=False),
        dict(positions="rope", registers=1, rope_normalize="max"),
        dict(positions="sincos2d_bigvision", pooling="class_mean"),
        dict(pooling="attention_aim", class_token=False),
    ],
)
def test_packed_images_have_the_features_that_each_has_alone(fields):
    vit = MODELS["vit"](**SIZES, position_resampling="bilinear_antialias", **fields)
    params = _random_params(vit, _image())
    images = [_image(height=4 * h, width=4 * w)[:1] for h, w in ((2, 3), (1, 4), (3, 3))]
    packed = np.full((3, 10, 48), 9.0, np.float32)
    for row, image in zip(packed, images, strict=True):
        patches = patchify(image, 4)[0]
        row[: len(patches)] = patches
    valid = jnp.arange(10)[None] < jnp.asarray([6, 4, 9])[:, None]
    shapes = jnp.asarray([[2, 3], [1, 4], [3, 3]])
    run = jax.jit(lambda packed: vit.apply({"params": params}, packed, shapes, valid, method="packed"))
    features = run(jnp.asarray(packed))
    assert features.num_prefix_tokens == vit.num_prefix_tokens
    for i, image in enumerate(images):
        alone = jax.jit(lambda image: vit.apply({"params": params}, image))(image)
        tokens = features.tokens[i : i + 1, : alone.tokens.shape[1]]
        np.testing.assert_allclose(tokens, alone.tokens, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(features.pooled[i : i + 1], alone.pooled, rtol=1e-3, atol=1e-4)


def test_masked_patches_are_not_seen_and_all_others_keep_their_tokens():
    vit = MODELS["vit"](**SIZES, mask_token=True)
    image = _image()
    params = _random_params(vit, image)
    masked = jnp.arange(6)[None] == jnp.asarray([5, 0, 7])[:, None]  # the last image: none
    embed = jax.jit(lambda image, masked: vit.apply({"params": params}, image, None, masked, method="embed"))
    seen, plain = embed(image, masked), embed(image, None)
    np.testing.assert_array_equal(seen[:, 1:][~np.asarray(masked)], plain[:, 1:][~np.asarray(masked)])
    np.testing.assert_allclose(seen[0, 6], params["mask_token"] + params["positions"][1, 2], rtol=1e-5)
    np.testing.assert_array_equal(embed(image.at[0, 4:, 8:].add(5.0), masked), seen)
    keep = jnp.array([[5, 1], [0, 2], [3, 4]])
    some = vit.apply({"params": params}, image, keep, masked, method="embed")
    np.testing.assert_allclose(some[0, 1:], seen[0, [6, 2]], rtol=1e-6)


def test_coordinates_change_at_random_in_training_alone_and_by_each_examples_key():
    vit = MODELS["vit"](**SIZES, positions="rope", rope_shift=0.5, rope_jitter=2.0, rope_rescale=2.0)
    image = _image()
    params = _random_params(vit, image)
    keys = jax.random.split(jax.random.key(1), BATCH)
    run = jax.jit(
        lambda image, keys, train: vit.apply({"params": params}, image, keys=keys, train=train).tokens,
        static_argnums=2,
    )
    still = run(image, keys, False)
    np.testing.assert_array_equal(still, run(image, None, False))
    moved = run(image, keys, True)
    assert (np.abs(moved - still).max(axis=(1, 2)) > 1e-3).all()
    np.testing.assert_allclose(run(image[::-1], keys[::-1], True)[::-1], moved, rtol=1e-4, atol=1e-5)


def test_prefix_tokens_have_a_norm_of_their_own_and_another_for_local_crops_in_training():
    vit = MODELS["vit"](**SIZES, registers=1, class_norm=True, local_class_norm=True)
    image = _image()
    params = _random_params(vit, image)

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def run(params, train, local):
        return vit.apply({"params": params}, image, train=train, local=local).tokens

    plain = run(params, True, False)
    for name, train, local in (("class_norm", False, False), ("local_class_norm", True, True)):
        other = run(params | {name: jax.tree.map(lambda a: a + 1, params[name])}, train, local)
        np.testing.assert_array_equal(other[:, 2:], plain[:, 2:])
        assert (np.abs(other - run(params, train, local))[:, :2].max(axis=-1) > 0.1).all()
    np.testing.assert_array_equal(run(params, False, True), plain)  # not in training
    assert not np.allclose(run(params, True, True)[:, :2], plain[:, :2])


# -------------------------------------------------------------------------------------------------- what is refused


def test_masked_patches_need_a_token():
    vit = MODELS["vit"](**SIZES)
    with pytest.raises(UserError, match="mask_token=True"):
        vit.init(jax.random.key(0), _image(), masked=jnp.zeros((BATCH, 6), bool))


def test_packed_images_need_positions_of_any_grid_that_exist_already():
    packed = (jnp.zeros((2, 5, 48)), jnp.ones((2, 2), jnp.int32), jnp.ones((2, 5), bool))
    with pytest.raises(UserError, match="cannot share a table of relative positions"):
        MODELS["vit"](**SIZES, relative_positions="block").init(jax.random.key(0), *packed, method="packed")
    with pytest.raises(UserError, match="Initialise the ViT with images"):
        MODELS["vit"](**SIZES).init(jax.random.key(0), *packed, method="packed")


def test_an_image_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="8 x 14 pixels does not divide into patches of 4"):
        _shapes(MODELS["vit"](**SIZES), _image(width=14))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "XS/4"}, "Unknown name 'XS' in variant"),
        ({"variant": "S"}, "variant 'S' has no patch size; write SIZE/PATCH"),
        ({"variant": "S/0"}, "has no patch size"),
        ({"positions": "rotary"}, "positions is one of 'learned', 'sincos2d', .*; found 'rotary'"),
        ({"pooling": "max"}, "pooling is one of 'class', 'mean', .*; found 'max'"),
        ({"position_resampling": "cubic"}, "position_resampling is one of 'bicubic', .*; found 'cubic'"),
        ({"relative_positions": "all"}, "relative_positions is one of 'none', 'block', 'shared'; found 'all'"),
        ({"norm_input": "image"}, "norm_input is one of '', 'patches', 'tokens'; found 'image'"),
        ({"norm": "batch_norm"}, "Unknown name 'batch_norm' in norm"),
        ({"norm_order": "sandwich"}, "norm_order is pre or post; found 'sandwich'"),
        ({"mlp": "glu"}, "Unknown name 'glu' in mlp"),
        ({"norm_pooled": True, "pooling": "attention"}, "norm_pooled .* not 'attention'"),
        ({"class_norm": True, "final_norm": False}, "they need such tokens, final_norm=True and norm_pooled=False"),
        ({"local_class_norm": True, "norm_pooled": True}, "they need such tokens"),
        ({"class_norm": True, "class_token": False, "pooling": "mean"}, "they need such tokens"),
        ({"prefix_positions": 2}, "prefix_positions=2, of 1 prefix tokens"),
        ({"positions": "rope", "rope_normalize": "sum"}, "rope_normalize is separate, max or min; found 'sum'"),
        ({"positions": "rope", "rope_min_period": 1.0}, "go together; found one of them alone"),
        ({"positions": "rope", "width": 12}, "width that is a multiple of 4; found 6"),
        ({"pooled_blocks": 3}, "pooled_blocks is 3; this ViT has 2 blocks"),
        ({"pooled_blocks": 2, "pooling": "mean"}, 'it needs pooling="class" or "class_mean"'),
        ({"pooled_blocks": 2, "levels_of": "mlp"}, 'levels_of="block"'),
        ({"class_token": False}, 'pooling "class" needs class_token=True'),
        ({"heads": 3}, "width of 16 does not divide into 3 heads"),
    ],
)
def test_an_impossible_encoder_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        _shapes(MODELS["vit"](**SIZES | fields), _image())


@pytest.mark.parametrize("scan", [False, True])
def test_dropout_is_in_training_alone_and_each_examples_own(scan):
    image, vit = _image(), MODELS["vit"](**SIZES, pooling="mean", dropout=0.5, scan=scan)
    variables = {"params": _random_params(vit, image)}
    keys = jax.random.split(jax.random.key(3), BATCH)
    plain = MODELS["vit"](**SIZES, pooling="mean").apply(variables, image)
    np.testing.assert_allclose(vit.apply(variables, image, keys=keys).tokens, plain.tokens, rtol=1e-5, atol=1e-5)
    dropped = vit.apply(variables, image, keys=keys, train=True).pooled
    assert np.abs(dropped - plain.pooled).max() > 0.1
    alone = vit.apply(variables, image[1:2], keys=keys[1:2], train=True).pooled
    np.testing.assert_allclose(alone[0], dropped[1], rtol=1e-4, atol=1e-4)
    other = vit.apply(variables, image[1:2], keys=keys[:1], train=True).pooled
    assert np.abs(other[0] - dropped[1]).max() > 0.1


@pytest.mark.parametrize("scan", [False, True])
def test_class_tokens_of_the_last_blocks_stand_side_by_side(scan):
    """As DINO's `eval_linear.py` has them, of `get_intermediate_layers`: each normalised, the last block's last."""
    image, fields = _image(), SIZES | dict(depth=3, scan=scan)
    plain = MODELS["vit"](**fields, levels=(0, 1, 2), norm_levels=True)
    variables = {"params": _random_params(plain, image)}
    seen = plain.apply(variables, image)
    _, second, third = (level[:, 0] for level in seen.levels)
    two = MODELS["vit"](**fields, pooled_blocks=2, levels=(0,)).apply(variables, image)
    np.testing.assert_allclose(two.pooled, np.concatenate([second, third], axis=1), rtol=1e-5, atol=1e-5)
    assert len(two.levels) == 1 and np.abs(second - third).max() > 0.1
    with_mean = MODELS["vit"](**fields, pooled_blocks=2, pooling="class_mean").apply(variables, image)
    mean = jnp.mean(seen.patch_tokens, axis=1)
    np.testing.assert_allclose(with_mean.pooled, np.concatenate([second, third, mean], axis=1), rtol=1e-5, atol=1e-5)


def test_a_mask_and_padding_hide_tokens_and_causal_is_such_a_mask():
    image, vit = _image(), MODELS["vit"](**SIZES, pooling="mean")
    variables = {"params": _random_params(vit, image)}
    past = jnp.tri(7, dtype=bool)[None]  # the class token and six patches
    one_way = vit.apply(variables, image, mask=past)
    causal = MODELS["vit"](**SIZES, pooling="mean", causal=True).apply(variables, image)
    np.testing.assert_allclose(one_way.tokens, causal.tokens, rtol=1e-5, atol=1e-5)
    assert np.abs(one_way.tokens - vit.apply(variables, image).tokens).max() > 0.01

    keep = jnp.tile(jnp.array([[4, 1, 3, 0]]), (BATCH, 1))
    valid = jnp.tile(jnp.array([[True, True, True, False]]), (BATCH, 1))
    bare, padded = vit.apply(variables, image, keep=keep[:, :3]), vit.apply(variables, image, keep=keep, valid=valid)
    np.testing.assert_allclose(padded.tokens[:, :4], bare.tokens, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(padded.pooled, bare.pooled, rtol=1e-5, atol=1e-5)
    both = vit.apply(variables, image, keep=keep, valid=valid, mask=jnp.tri(5, dtype=bool)[None])
    expected = vit.apply(variables, image, keep=keep[:, :3], mask=jnp.tri(4, dtype=bool)[None])
    np.testing.assert_allclose(both.tokens[:, :4], expected.tokens, rtol=1e-5, atol=1e-5)


def test_kernels_start_from_the_deviation_that_is_asked_for():
    vit = MODELS["vit"](variant="S/16", depth=1, init_std=0.02)
    params = jax.jit(vit.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    for name, leaf in named_leaves(params).items():
        if name.endswith("kernel"):
            np.testing.assert_allclose(np.std(leaf), 0.02, rtol=0.02, err_msg=name)
