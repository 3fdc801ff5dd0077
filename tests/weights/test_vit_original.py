"""Checkpoints as their authors save them: the network is found, the rest is named, a wrong guess is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from vfm_jax.core.errors import UserError
from vfm_jax.weights import load_pretrained
from vfm_jax.weights.load import read_weights

WIDTH, PATCH, GRID = 32, 4, 3


def tensors(shapes):
    generator = np.random.default_rng(0)
    return {name: 0.1 * generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def vit(prefix="", depth=2, width=WIDTH, blocks="blocks"):
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + GRID**2, width),
        "patch_embed.proj.weight": (width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    } | _blocks(blocks, depth, width)
    return tensors({prefix + name: shape for name, shape in shapes.items()})


def _blocks(blocks, depth, width):
    shapes = {}
    for i in range(depth):
        for norm in ("norm1", "norm2"):
            shapes |= {f"{blocks}.{i}.{norm}.{part}": (width,) for part in ("weight", "bias")}
        dense = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (2, 1), "mlp.fc2": (1, 2)}
        for name, (rows, columns) in dense.items():
            shapes[f"{blocks}.{i}.{name}.weight"] = (rows * width, columns * width)
            shapes[f"{blocks}.{i}.{name}.bias"] = (rows * width,)
    return shapes


def dino_head(prefix):
    shapes = {"mlp.0.weight": (20, WIDTH), "mlp.0.bias": (20,), "mlp.2.weight": (12, 20), "mlp.2.bias": (12,)}
    shapes |= {"last_layer.weight_g": (24, 1), "last_layer.weight_v": (24, 12)}
    return tensors({prefix + name: shape for name, shape in shapes.items()})


def mae_decoder(prefix, width=24):
    shapes = {"mask_token": (1, 1, width), "decoder_pos_embed": (1, 1 + GRID**2, width)}
    shapes |= {"decoder_embed.weight": (width, WIDTH), "decoder_embed.bias": (width,)}
    shapes |= {"decoder_norm.weight": (width,), "decoder_norm.bias": (width,)}
    pixels = 3 * PATCH**2
    shapes |= {"decoder_pred.weight": (pixels, width), "decoder_pred.bias": (pixels,)}
    return tensors({prefix + k: v for k, v in (shapes | _blocks("decoder_blocks", 1, width)).items()})


def scale(prefix, blocks=2):
    return tensors({f"{prefix}blocks.{i}.ls{j}.gamma": (WIDTH,) for i in range(blocks) for j in (1, 2)})


CLASSIFIER = {"head.weight": (5, WIDTH), "head.bias": (5,)}
CHECKPOINTS = {
    "dino": (vit(), {"encoder"}),
    "dino, in training": (
        vit("teacher/backbone.")
        | dino_head("teacher/head.")
        | vit("student/module.backbone.")
        | tensors({"optimizer/state/0/exp_avg": (3,)}),
        {"encoder", "projector"},
    ),
    "dinov2": (vit() | scale("") | tensors({"mask_token": (1, WIDTH)}), {"encoder"}),
    "dinov2, in training": (
        vit("teacher/backbone.")
        | scale("teacher/backbone.")
        | tensors({"teacher/backbone.mask_token": (1, WIDTH)})
        | dino_head("teacher/dino_head."),
        {"encoder", "projector"},
    ),
    "mae": (vit("model/"), {"encoder"}),
    "mae, in training": (vit("model/") | mae_decoder("model/"), {"encoder", "decoder"}),
    "moco_v3": (
        vit("state_dict/module.base_encoder.")
        | vit("state_dict/module.momentum_encoder.")
        | tensors({"state_dict/module.predictor.0.weight": (4, 5)}),
        {"encoder"},
    ),
    "ibot": (vit("state_dict/"), {"encoder"}),
    "deit": (vit("model/") | tensors({f"model/{k}": v for k, v in CLASSIFIER.items()}), {"encoder", "head"}),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_network_in_a_checkpoint_is_found_and_the_rest_named(name, tmp_path):
    held, roles = CHECKPOINTS[name]
    save_file(held, tmp_path / "checkpoint.safetensors")
    weights = read_weights(tmp_path / "checkpoint.safetensors", heads={"encoder": 4, "decoder": 3})
    assert weights.family.name == f"original/{name.split(',')[0]}"
    assert set(weights.bundle.networks) == roles
    assert not weights.unused
    wrapped = [
        n for n in held if "student" in n or "momentum" in n or n.startswith("optimizer") or ".predictor." in n
    ]
    assert sorted(weights.others) == sorted(wrapped)
    assert "4 attention heads" in str(weights.account())


def test_heads_that_nobody_knows_are_asked_for(tmp_path):
    save_file(vit(width=40), tmp_path / "checkpoint.safetensors")
    with pytest.raises(UserError, match="heads=N"):
        read_weights(tmp_path / "checkpoint.safetensors")


def test_a_dinov3_file_whose_rotation_is_another_is_refused(tmp_path):
    held = {name: value for name, value in vit().items() if name != "pos_embed"} | scale("")
    held |= tensors({"mask_token": (1, WIDTH), "storage_tokens": (1, 4, WIDTH)})
    held["rope_embed.periods"] = np.array([1.0, 10.0], np.float32)  # of heads of 8 channels
    save_file(held, tmp_path / "checkpoint.safetensors")
    assert load_pretrained(tmp_path / "checkpoint.safetensors", heads=4).account.family == "original/dinov3"
    with pytest.raises(UserError, match="periods"):
        read_weights(tmp_path / "checkpoint.safetensors", heads=2)


def test_ijepas_file_gives_what_its_authors_code_gave(shared, tmp_path):
    golden = np.load(shared / "golden" / "models" / "orig_ijepa.npz")
    held = {}
    for part, prefix in {"encoder": "target_encoder/module.", "predictor": "predictor/module."}.items():
        own = {k: golden[k] for k in golden.files if k.startswith(f"{part}/")}
        held |= {prefix + name.removeprefix(f"{part}/"): np.ascontiguousarray(value) for name, value in own.items()}
    save_file(held, tmp_path / "checkpoint.safetensors")
    loaded = load_pretrained(tmp_path / "checkpoint.safetensors", heads={"encoder": 4, "predictor": 3})
    image = jnp.asarray(golden["x_nchw"].transpose(0, 2, 3, 1), jnp.float32)
    context, targets = (jnp.asarray(golden[name]) for name in ("enc_masks", "pred_masks"))

    def run(model, image, context, targets):
        everything = model.encoder(image).tokens
        seen = model.encoder(image, keep=context[0])
        return everything, seen.tokens, model.predictor(seen.tokens, context, targets, seen.grid)

    found = jax.jit(lambda v, *x: loaded.model.apply(v, *x, method=run))(loaded.variables, image, context, targets)
    for value, name in zip(found, ("encoded_full", "encoded_context", "predicted"), strict=True):
        np.testing.assert_allclose(value, golden[name], rtol=1e-3, atol=1e-4, err_msg=name)
