"""Losses of images and texts against the authors' code, and the ring against the plain loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.sharding import batch_sharding, make_mesh
from vfm_jax.losses.captioning import caption_cross_entropy
from vfm_jax.losses.image_text import (
    clip_loss,
    pair_accuracy,
    pairwise_sigmoid,
    sigmoid_loss,
    sigmoid_loss_in_blocks,
)

CLOSE = dict(rtol=1e-5, atol=1e-6)


@pytest.fixture
def golden(golden_directory):
    def load(name):
        with np.load(golden_directory / "losses" / f"{name}.npz") as arrays:
            return {k: jnp.asarray(v.astype(np.float32) if v.dtype == np.float64 else v)
                    for k, v in arrays.items() if k != "meta"}  # fmt: skip

    return load


def _mean(loss):
    return lambda *args: jnp.mean(loss(*args))


@pytest.mark.parametrize("name", ["clip", "coca"])
def test_the_softmax_loss_is_the_authors_with_gradients(golden, name):
    g = golden(name)
    value, grads = jax.value_and_grad(_mean(clip_loss), (0, 1, 2))(g["image"], g["text"], g["log_logit_scale"])
    np.testing.assert_allclose(value, g["contrastive_loss" if name == "coca" else "loss"], **CLOSE)
    for grad, field in zip(grads, ("grad_image", "grad_text", "grad_log_logit_scale"), strict=True):
        if field in g:
            np.testing.assert_allclose(grad, g[field], **CLOSE)


@pytest.mark.parametrize("loss", [_mean(sigmoid_loss), lambda *args: sigmoid_loss_in_blocks(*args, num_blocks=3)])
def test_the_sigmoid_loss_is_open_clips_with_gradients(golden, loss):
    g = golden("siglip")
    given = g["image"], g["text"], g["log_logit_scale"], g["logit_bias"]
    value, grads = jax.value_and_grad(loss, (0, 1, 2, 3))(*given)
    np.testing.assert_allclose(value, g["loss"], **CLOSE)
    for grad, field in zip(grads, ("image", "text", "log_logit_scale", "logit_bias"), strict=True):
        np.testing.assert_allclose(grad, g[f"grad_{field}"], **CLOSE)


@pytest.mark.parametrize("name", ["siglip_bigvision", "siglip_bigvision_b"])
class TestBigVision:
    def test_sigmoid_loss_and_gradients(self, golden, name):
        g = golden(name)

        def loss(image, text, scale, bias):
            return jnp.mean(pairwise_sigmoid(scale * (image @ text.T) + bias))

        value, grads = jax.value_and_grad(loss, (0, 1, 2, 3))(g["zimg"], g["ztxt"], g["t"], g["b"])
        np.testing.assert_allclose(value, g["loss"], **CLOSE)
        for grad, field in zip(grads, ("zimg", "ztxt", "t", "b"), strict=True):
            np.testing.assert_allclose(grad, g[f"grad_{field}"], **CLOSE)
        np.testing.assert_allclose(
            jnp.mean(sigmoid_loss(g["zimg"], g["ztxt"], jnp.log(g["t"]), g["b"])), g["loss"], **CLOSE
        )

    def test_softmax_loss_of_each_pair_and_of_those_in_a_mask(self, golden, name):
        g = golden(name)
        given = g["zimg"], g["ztxt"], jnp.log(g["t"])
        np.testing.assert_allclose(clip_loss(*given), g["clip_per_example"], **CLOSE)
        np.testing.assert_array_equal(pair_accuracy(g["zimg"], g["ztxt"]), g["clip_ncorrect"])
        masked = jnp.sum(clip_loss(*given, g["mask"])) / (float(jnp.sum(g["mask"])) + 1e-8)
        np.testing.assert_allclose(masked, g["clip_masked"], **CLOSE)


def test_what_is_masked_gets_no_gradient_and_gives_none(key):
    image, text = jax.random.normal(key, (2, 5, 4), jnp.float32)
    mask = jnp.array([True, True, False, True, False])
    loss = lambda image, text: jnp.sum(clip_loss(image, text, jnp.float32(1.0), mask))  # noqa: E731
    kept = jnp.array([0, 1, 3])
    np.testing.assert_allclose(
        loss(image, text), jnp.sum(clip_loss(image[kept], text[kept], jnp.float32(1.0))), **CLOSE
    )
    for grad in jax.grad(loss, (0, 1))(image, text):
        assert np.isfinite(grad).all()
        assert not np.any(grad[~mask])


def test_caption_loss_is_the_authors_with_gradient(golden):
    g = golden("coca")
    value, grad = jax.value_and_grad(lambda x: 2.0 * caption_cross_entropy(x, g["labels"]))(g["caption_logits"])
    np.testing.assert_allclose(value, g["caption_loss"], **CLOSE)
    np.testing.assert_allclose(grad, g["grad_caption_logits"], **CLOSE)


def test_captions_of_padding_alone_have_no_loss():
    logits = jnp.ones((2, 3, 5), jnp.float32)
    value, grad = jax.value_and_grad(caption_cross_entropy)(logits, jnp.zeros((2, 3), jnp.int32))
    assert value == 0
    assert not np.any(grad)


def _placed(mesh, size, width=8):
    image, text = (
        jax.device_put(x, batch_sharding(mesh)) for x in jax.random.normal(jax.random.key(1), (2, size, width))
    )
    return image, text, jnp.float32(1.3), jnp.float32(-2.0)


@pytest.mark.parametrize("num_blocks", [1, 8, 16])
@pytest.mark.parametrize("axes", [dict(data=-1), dict(data=2, fsdp=4)])
def test_the_ring_over_devices_is_the_plain_loss_with_gradients(num_blocks, axes):
    given = _placed(make_mesh(**axes), 32)
    ring = jax.jit(jax.value_and_grad(lambda *a: 3 * sigmoid_loss_in_blocks(*a, num_blocks), (0, 1, 2, 3)))(*given)
    plain = jax.jit(jax.value_and_grad(lambda *a: 3 * jnp.mean(sigmoid_loss(*a)), (0, 1, 2, 3)))(*given)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ring, plain)


def test_the_ring_gathers_nothing_and_its_memory_does_not_grow_with_the_devices():
    """For 64 examples a device: on two devices and on eight."""

    def compiled(count):
        mesh = make_mesh(devices=jax.devices()[:count])
        loss = lambda *a: sigmoid_loss_in_blocks(*a, num_blocks=count)  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3))).lower(*_placed(mesh, 64 * count, 32)).compile()

    few, many = compiled(2), compiled(8)
    assert "all-gather" not in many.as_text()
    assert "collective-permute" in many.as_text()
    assert many.memory_analysis().temp_size_in_bytes <= 1.05 * few.memory_analysis().temp_size_in_bytes
