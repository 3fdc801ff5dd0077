"""Losses between representations against the authors' code, and their properties."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from vfm_jax.losses.prediction import masked_smooth_l1, negative_cosine, smooth_l1, standardize_features
from vfm_jax.nn.masking import gather_tokens


def test_ijepas_target_and_loss_equal_the_authors_with_gradient(golden_directory):
    golden = np.load(golden_directory / "losses" / "ijepa_loss.npz")
    index = jnp.asarray(golden["pred_masks"])  # blocks, examples, patches
    blocks = len(index)
    tokens = standardize_features(jnp.asarray(golden["teacher_tokens"]))
    target = gather_tokens(tokens, rearrange(index, "t b q -> b (t q)"))
    rows = rearrange(target, "b (t q) d -> (t b) q d", t=blocks)
    np.testing.assert_allclose(rows, golden["target"], rtol=1e-5, atol=1e-6)

    def loss(prediction):
        own = rearrange(prediction, "(t b) q d -> b (t q) d", t=blocks)
        return jnp.mean(masked_smooth_l1(own, target, jnp.ones(own.shape[:2], bool)))

    value, grad = jax.value_and_grad(loss)(jnp.asarray(golden["pred"]))
    np.testing.assert_allclose(value, golden["loss"], rtol=1e-5)
    np.testing.assert_allclose(grad, golden["grad_pred"], rtol=1e-5, atol=1e-6)


def test_smooth_l1_is_a_parabola_that_goes_on_as_a_line():
    errors = jnp.array([-3.0, -0.5, 0.0, 0.25, 2.0])
    for beta in (0.5, 1.0, 2.0):
        expected = np.where(np.abs(errors) < beta, errors**2 / (2 * beta), np.abs(errors) - beta / 2)
        np.testing.assert_allclose(smooth_l1(errors, jnp.zeros(5), beta), expected, rtol=1e-6)


def test_predictions_of_padding_carry_neither_loss_nor_gradient(key):
    prediction, target, other = jax.random.normal(key, (3, 2, 5, 4), jnp.float32)
    valid = jnp.array([[True, True, False, True, False], [True, True, True, True, True]])
    loss = masked_smooth_l1(prediction, target, valid)
    changed = jnp.where(valid[:, :, None], prediction, other)
    np.testing.assert_array_equal(masked_smooth_l1(changed, target, valid), loss)
    np.testing.assert_allclose(loss[0], jnp.mean(smooth_l1(prediction[0], target[0])[valid[0]]), rtol=1e-5)
    grad = jax.grad(lambda prediction: jnp.sum(masked_smooth_l1(prediction, target, valid)))(prediction)
    assert (np.abs(np.asarray(grad)).max(axis=-1) > 0).tolist() == valid.tolist()


def test_a_standardized_feature_has_mean_zero_and_biased_variance_one(key):
    x = standardize_features(3 + 5 * jax.random.normal(key, (4, 6, 32), jnp.float32))
    np.testing.assert_allclose(np.mean(x, axis=-1), np.zeros((4, 6)), atol=1e-5)
    np.testing.assert_allclose(np.var(x, axis=-1), np.ones((4, 6)), rtol=1e-4)


def test_negative_cosine_knows_directions_alone_and_teaches_the_prediction_alone(key):
    prediction, target = jax.random.normal(key, (2, 5, 8), jnp.float32)
    expected = -np.sum(
        prediction * target / np.linalg.norm(prediction, axis=-1, keepdims=True)
        / np.linalg.norm(target, axis=-1, keepdims=True),
        axis=-1,
    )  # fmt: skip
    np.testing.assert_allclose(negative_cosine(prediction, target), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(negative_cosine(3 * prediction, target / 7), expected, rtol=1e-5, atol=1e-6)
    grads = jax.grad(lambda p, t: jnp.sum(negative_cosine(p, t)), argnums=(0, 1))(prediction, target)
    assert np.abs(grads[0]).max() > 0.1 and np.abs(grads[1]).max() == 0
    assert np.isfinite(jax.grad(lambda p: jnp.sum(negative_cosine(p, target)))(jnp.zeros_like(prediction))).all()
