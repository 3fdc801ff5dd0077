"""Losses of classes against timm's and big_vision's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.losses.classification import sigmoid_cross_entropy, smooth_labels, softmax_cross_entropy

CLOSE = dict(rtol=1e-5, atol=1e-6)
SMOOTHING, KEPT = 0.1, 0.3  # the reference's


def test_label_smoothing_and_soft_targets_are_timms_with_gradients(golden_directory):
    g = np.load(golden_directory / "losses" / "soft_targets.npz")
    logits, labels = jnp.asarray(g["logits"]), jnp.asarray(g["labels"])
    smooth = smooth_labels(labels, logits.shape[1], SMOOTHING)
    mixed = KEPT * smooth + (1 - KEPT) * smooth[::-1]
    np.testing.assert_allclose(mixed, g["mixup_target"], **CLOSE)
    for target, name in ((smooth, "ls"), (mixed, "soft")):
        value, grad = jax.value_and_grad(lambda x, t=target: jnp.mean(softmax_cross_entropy(x, t)))(logits)
        np.testing.assert_allclose(value, g[f"loss_{name}"], **CLOSE)
        np.testing.assert_allclose(grad, g[f"grad_{name}"], **CLOSE)


@pytest.mark.parametrize("name", ["siglip_bigvision", "siglip_bigvision_b"])
def test_cross_entropies_are_big_visions(golden_directory, name):
    g = np.load(golden_directory / "losses" / f"{name}.npz")
    logits, labels = jnp.asarray(g["logits"]), jnp.asarray(g["labels"])
    np.testing.assert_allclose(jnp.mean(sigmoid_cross_entropy(logits, labels)), g["sigmoid_xent"], **CLOSE)
    target = labels / jnp.sum(labels, axis=1, keepdims=True)  # the reference does so by itself
    entropy = -jnp.sum(jnp.where(target > 0, target * jnp.log(jnp.maximum(target, 1e-30)), 0.0), axis=1)
    cross = softmax_cross_entropy(logits, target)
    np.testing.assert_allclose(cross, g["softmax_xent"], **CLOSE)
    np.testing.assert_allclose(jnp.mean(cross - entropy), g["softmax_kl"], **CLOSE)
