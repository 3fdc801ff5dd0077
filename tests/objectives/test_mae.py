"""MAE against the authors' code: masking, activations, loss and gradients."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.losses.reconstruction import masked_patch_mse, standardize_patches
from vfm_jax.models import MODELS
from vfm_jax.nn.masking import mask_by_noise
from vfm_jax.nn.patches import patchify, unpatchify
from vfm_jax.objectives.mae import mae

BATCH = 3


def _block(golden, name, heads):
    def get(leaf):
        return golden[f"param/{name}.{leaf}"]

    width = get("norm1.weight").shape[0]
    return {
        "norm1": {"scale": get("norm1.weight"), "bias": get("norm1.bias")},
        "norm2": {"scale": get("norm2.weight"), "bias": get("norm2.bias")},
        "attention": {
            "qkv": {
                "kernel": get("attn.qkv.weight").T.reshape(width, 3, heads, -1),
                "bias": get("attn.qkv.bias").reshape(3, heads, -1),
            },
            "out": {"kernel": get("attn.proj.weight").T.reshape(heads, -1, width), "bias": get("attn.proj.bias")},
        },
        "mlp": {
            "up": {"kernel": get("mlp.fc1.weight").T, "bias": get("mlp.fc1.bias")},
            "down": {"kernel": get("mlp.fc2.weight").T, "bias": get("mlp.fc2.bias")},
        },
    }


def _load(golden, config):
    """The authors' state dict as our parameters."""
    patch = golden["param/patch_embed.proj.weight"]
    encoder = {
        "class_token": golden["param/cls_token"].reshape(-1),
        "patch_embedding": {"kernel": patch.transpose(2, 3, 1, 0), "bias": golden["param/patch_embed.proj.bias"]},
        "transformer": {
            f"block_{i}": _block(golden, f"blocks.{i}", config["num_heads"]) for i in range(config["depth"])
        },
        "norm": {"scale": golden["param/norm.weight"], "bias": golden["param/norm.bias"]},
    }
    decoder = {
        "embed": {"kernel": golden["param/decoder_embed.weight"].T, "bias": golden["param/decoder_embed.bias"]},
        "mask_token": golden["param/mask_token"].reshape(-1),
        "transformer": {
            f"block_{i}": _block(golden, f"decoder_blocks.{i}", config["decoder_num_heads"])
            for i in range(config["decoder_depth"])
        },
        "norm": {"scale": golden["param/decoder_norm.weight"], "bias": golden["param/decoder_norm.bias"]},
        "pixels": {"kernel": golden["param/decoder_pred.weight"].T, "bias": golden["param/decoder_pred.bias"]},
    }
    return jax.tree.map(jnp.asarray, {"encoder": encoder, "decoder": decoder})


@pytest.mark.parametrize("name", ["mae_full", "mae_full_ratio60"])
@pytest.mark.parametrize("target", ["pix", "normpix"])
def test_loss_and_gradients_equal_the_authors(golden_directory, monkeypatch, name, target):
    golden = np.load(golden_directory / "losses" / f"{name}.npz")
    meta = json.loads(str(golden["meta"]))
    config = meta.get("config", meta)
    encoder = MODELS["vit"](
        variant=f"mu/{config['patch_size']}",
        width=config["embed_dim"],
        depth=config["depth"],
        heads=config["num_heads"],
        mlp_dim=4 * config["embed_dim"],
        positions="sincos2d",
    )
    decoder = MODELS["masked_decoder"](
        width=config["decoder_embed_dim"], depth=config["decoder_depth"], heads=config["decoder_num_heads"]
    )
    objective = mae(encoder, decoder, mask_ratio=config["mask_ratio"], normalize_target=target == "normpix")
    monkeypatch.setattr(sys.modules[mae.__module__], "masking_noise", lambda keys, n: jnp.asarray(golden["noise"]))
    images = jnp.asarray(golden["imgs"].transpose(0, 2, 3, 1))
    index = jnp.arange(images.shape[0])
    batch = {"image": images, "index": index, "epoch": index * 0}
    params = _load(golden, config)

    def loss(params):
        outputs, extra = objective.forward(params, {}, batch, jax.random.key(0), 0)
        return objective.criterion(params, extra, outputs, 0)[0], outputs

    (value, outputs), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    close = {"rtol": 2e-4, "atol": 2e-5}
    np.testing.assert_allclose(value, golden[f"loss_{target}"], rtol=1e-5)
    np.testing.assert_array_equal(outputs.masked, golden["mask"].astype(bool))
    np.testing.assert_allclose(outputs.prediction, golden["pred"], **close)
    np.testing.assert_allclose(outputs.target, golden["target_patches"], **close)
    ours = np.asarray(grads["encoder"]["patch_embedding"]["kernel"]).transpose(3, 2, 0, 1)
    np.testing.assert_allclose(ours, golden[f"grad_patch_embed_weight_{target}"], **close)
    mask_token = golden[f"grad_mask_token_{target}"].reshape(-1)
    np.testing.assert_allclose(grads["decoder"]["mask_token"], mask_token, **close)


def test_masking_keeps_the_authors_patches(golden_directory):
    golden = np.load(golden_directory / "losses" / "mae_full_ratio60.npz")
    keep, masked = mask_by_noise(jnp.asarray(golden["noise"]), 0.6)
    np.testing.assert_array_equal(keep, golden["ids_keep"])
    np.testing.assert_array_equal(masked, golden["mask"].astype(bool))


@pytest.mark.parametrize("target", ["pix", "normpix"])
def test_loss_of_unequal_masks_equals_the_authors_weighted_by_masked_patches(golden_directory, target):
    golden = np.load(golden_directory / "losses" / "mae_loss.npz")
    patches = patchify(jnp.asarray(golden["imgs"].transpose(0, 2, 3, 1)), 4)
    np.testing.assert_allclose(patches, golden["patches"], rtol=1e-5, atol=1e-6)
    wanted = standardize_patches(patches) if target == "normpix" else patches
    masked = jnp.asarray(golden["mask"].astype(bool))
    share = masked.sum(axis=1) / masked.sum()

    def loss(prediction):
        return jnp.sum(masked_patch_mse(prediction, wanted, masked) * share)

    value, grad = jax.value_and_grad(loss)(jnp.asarray(golden["pred"]))
    np.testing.assert_allclose(value, golden[f"loss_{target}"], rtol=1e-5)
    np.testing.assert_allclose(grad, golden[f"grad_pred_{target}"], rtol=1e-5, atol=1e-6)


def test_unpatchify_equals_the_authors(golden_directory):
    golden = np.load(golden_directory / "losses" / "mae_loss.npz")
    image = unpatchify(jnp.asarray(golden["pred"]), (4, 4), 4)
    np.testing.assert_array_equal(image, golden["unpatchify_pred"].transpose(0, 2, 3, 1))


@pytest.fixture(scope="module")
def small():
    encoder = MODELS["vit"](variant="mu/4", positions="sincos2d")
    decoder = MODELS["masked_decoder"](width=16, depth=1, heads=2)
    objective = mae(encoder, decoder, mask_ratio=0.5)
    image = jax.random.normal(jax.random.key(3), (BATCH, 8, 12, 2), jnp.float32)
    batch = {"image": image, "index": jnp.arange(BATCH) + 5, "epoch": jnp.zeros(BATCH, jnp.int32)}
    return objective, batch, objective.init(jax.random.key(1), batch)


def test_hidden_pixels_never_reach_the_encoder(small):
    """The prediction's gradient to the image is zero at hidden patches: only visible ones were looked at."""
    objective, batch, variables = small

    def total(image):
        outputs, _ = objective.forward(variables.params, {}, batch | {"image": image}, jax.random.key(7), 0)
        return outputs.prediction.sum(), outputs.masked

    grad, masked = jax.grad(total, has_aux=True)(batch["image"])
    touched = np.abs(patchify(grad, 4)).sum(axis=2) > 0
    np.testing.assert_array_equal(touched, ~np.asarray(masked))


def test_mask_follows_the_example_and_the_step_key_not_the_place_in_the_batch(small):
    objective, batch, variables = small

    def masks(batch, key):
        return np.asarray(objective.forward(variables.params, {}, batch, key, 0)[0].masked)

    whole = masks(batch, jax.random.key(7))
    turned = masks(jax.tree.map(lambda a: a[::-1], batch), jax.random.key(7))
    np.testing.assert_array_equal(whole, turned[::-1])
    assert (whole != masks(batch, jax.random.key(8))).any()


def test_reconstruction_shows_true_pixels_where_visible(small):
    objective, batch, variables = small
    made = objective.predict["reconstruction"](variables, batch)
    assert {name: image.shape for name, image in made.items()} == dict.fromkeys(
        ("original", "reconstructed", "hidden"), (BATCH, 8, 12, 2)
    )
    visible = np.asarray(made["hidden"]) == 0
    assert visible.mean() == 0.5
    np.testing.assert_array_equal(np.asarray(made["reconstructed"])[visible], np.asarray(batch["image"])[visible])
    assert (np.asarray(made["reconstructed"]) != np.asarray(batch["image"]))[~visible].all()
