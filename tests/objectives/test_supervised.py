"""Supervised training: the loss by its formula, and a frozen encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.models import MODELS
from vfm_jax.objectives.supervised import supervised

BATCH, CLASSES = 4, 5


def _objective(drop_path=0.0, batch_norm=False, **fields):
    encoder = MODELS["vit"](variant="mu/4", width=16, depth=2, mlp_dim=24, positions="sincos2d", drop_path=drop_path)
    return supervised(
        encoder, MODELS["linear_head"](num_classes=CLASSES, init_std=0.5, batch_norm=batch_norm), **fields
    )


@pytest.fixture(scope="module")
def batch():
    image = jax.random.normal(jax.random.key(2), (BATCH, 8, 12, 3), jnp.float32)
    label = jnp.array([3, 0, 4, 3], jnp.int32)
    return {"image": image, "label": label, "index": jnp.arange(BATCH) + 9, "epoch": jnp.zeros(BATCH, jnp.int32)}


@pytest.fixture(scope="module")
def variables(batch):
    return jax.jit(_objective().init)(jax.random.key(0), batch)


def _loss(objective, variables, batch, params=None):
    params = variables.params if params is None else params
    outputs, extra = objective.forward(params, variables.extra, batch, jax.random.key(1), 0)
    loss, (_, measurements) = objective.criterion(params, extra, outputs, 0)
    return loss, measurements


def test_the_loss_is_the_smoothed_cross_entropy_of_the_predicted_logits(batch, variables):
    objective = _objective(label_smoothing=0.2)

    @jax.jit
    def run(batch):
        return objective.predict["logits"](variables, batch), *_loss(objective, variables, batch)

    logits, loss, measurements = run(batch)
    assert logits.shape == (BATCH, CLASSES)
    logits, label = np.asarray(logits, np.float64), np.asarray(batch["label"])
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -(0.8 * log_p[np.arange(BATCH), label] + 0.2 / CLASSES * log_p.sum(axis=1))
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(measurements["accuracy"], (logits.argmax(axis=1) == label).mean())


def test_targets_that_are_distributions_are_taken_as_they_are(batch, variables):
    target = jax.nn.softmax(jax.random.normal(jax.random.key(6), (BATCH, CLASSES), jnp.float32))
    objective = _objective(label_smoothing=0.2)
    outputs, _ = jax.jit(objective.forward)(
        variables.params, variables.extra, batch | {"target": target}, jax.random.key(1), 0
    )
    np.testing.assert_array_equal(outputs.target, target)


def test_logits_are_the_head_on_the_pooled_features(batch, variables):
    predict = _objective().predict

    @jax.jit
    def run(batch):
        return predict["logits"](variables, batch), predict["features"](variables, batch).pooled

    logits, pooled = run(batch)
    head = variables.params["head"]["logits"]
    np.testing.assert_allclose(logits, np.asarray(pooled) @ head["kernel"] + head["bias"][None], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("freeze_encoder", [False, True])
def test_a_frozen_encoder_gets_no_gradient_and_the_head_does(batch, variables, freeze_encoder):
    objective = _objective(freeze_encoder=freeze_encoder)
    grads = jax.jit(jax.grad(lambda params: _loss(objective, variables, batch, params)[0]))(variables.params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads["head"]))
    encoder = [np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads["encoder"])]
    assert not any(encoder) if freeze_encoder else all(encoder)


@pytest.mark.parametrize("freeze_encoder", [False, True])
def test_a_frozen_encoder_drops_no_path(batch, variables, freeze_encoder):
    objective = _objective(drop_path=0.9, freeze_encoder=freeze_encoder)

    @jax.jit
    def run(batch):
        outputs, _ = objective.forward(variables.params, variables.extra, batch, jax.random.key(1), 0)
        return outputs.pooled, objective.predict["features"](variables, batch).pooled

    seen, features = run(batch)
    assert np.allclose(seen, features, atol=1e-5) == freeze_encoder


def test_a_head_with_batch_norm_couples_the_examples_and_moves_its_averages(batch):
    assert _objective().separable
    objective = _objective(batch_norm=True)
    assert not objective.separable

    @jax.jit
    def run(batch):
        fresh = objective.init(jax.random.key(0), batch)
        outputs, extra = objective.forward(fresh.params, fresh.extra, batch, jax.random.key(1), 0)
        return outputs.pooled, objective.criterion(fresh.params, extra, outputs, 0)[1][0]

    pooled, extra = run(batch)
    # the first batch was also seen by `init`, which moves nothing
    mean = extra["head"]["batch_stats"]["norm"]["norm"]["mean"]
    np.testing.assert_allclose(mean, 0.1 * np.asarray(pooled).mean(axis=0), rtol=1e-4, atol=1e-6)
