"""Logistic regression on frozen features."""

import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import TrainingError, UserError
from vfm_jax.evaluators import linear_probe as constructor
from vfm_jax.evaluators.linear_probe import fit_sgd, lbfgs, minimize_logistic


def problem(num=60, width=5, num_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num, width)).astype(np.float32)
    labels = np.argmax(x[:, :num_classes] + rng.normal(size=(num, num_classes)), axis=1).astype(np.int32)
    return np.concatenate([x, np.ones((num, 1), np.float32)], axis=1), labels


def loss(matrix, x, labels, l2):
    matrix, x = np.asarray(matrix, np.float64), x.astype(np.float64)
    logits = x @ matrix
    largest = logits.max(axis=1, keepdims=True)
    log_p = logits - largest - np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(x)), labels].mean() + 0.5 * l2 * np.square(matrix[:-1]).sum()


def minimize(x, labels, l2, weights=None, start=None, num_classes=4, **fields):
    weights = np.ones(len(x), np.float32) if weights is None else weights
    start = jnp.zeros((x.shape[1], num_classes)) if start is None else start
    arrays = (jnp.asarray(array) for array in (x, labels, weights))
    return minimize_logistic(*arrays, jnp.float32(l2), start, num_classes, **fields)


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
def test_the_minimum_is_scikit_learns(l2):
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    x, labels = problem()
    peer = linear_model.LogisticRegression(C=1 / (l2 * len(x)), tol=1e-8, max_iter=10_000).fit(
        x[:, :-1].astype(np.float64), labels
    )
    best = np.concatenate([peer.coef_.T, peer.intercept_[None]])
    matrix, num_iterations = minimize(x, labels, l2, tolerance=1e-6)
    assert loss(matrix, x, labels, l2) == pytest.approx(loss(best, x, labels, l2), rel=1e-6)
    np.testing.assert_allclose(np.asarray(matrix)[:-1], best[:-1], rtol=1e-2, atol=1e-3)  # the bias: up to a constant
    assert num_iterations < 100


@pytest.mark.parametrize("scale", [1e-2, 1e3])
def test_it_converges_from_a_badly_scaled_start(scale):
    x, labels = problem()
    start = scale * np.random.default_rng(1).normal(size=(x.shape[1], 4)).astype(np.float32)
    matrix, _ = minimize(x, labels, 0.1, start=jnp.asarray(start), tolerance=1e-5)
    expected, _ = minimize(x, labels, 0.1, tolerance=1e-5)
    assert loss(matrix, x, labels, 0.1) == pytest.approx(loss(expected, x, labels, 0.1), rel=1e-5)


def test_it_ends_when_float32_is_exhausted():
    x, labels = problem()
    matrix, num_iterations = minimize(x, labels, 0.1, tolerance=0.0, max_iterations=10_000)
    assert num_iterations < 200
    assert np.isfinite(matrix).all()


def test_max_iterations_is_kept_and_more_iterations_lower_the_loss():
    x, labels = problem()
    losses = []
    for limit in (1, 3, 9):
        matrix, num_iterations = minimize(x, labels, 1e-4, max_iterations=limit, tolerance=0.0)
        assert num_iterations == limit
        losses.append(loss(matrix, x, labels, 1e-4))
    assert np.log(4) > losses[0] > losses[1] > losses[2]


def test_rows_of_weight_zero_are_as_if_absent():
    x, labels = problem()
    weights = (np.arange(len(x)) % 3 > 0).astype(np.float32)
    kept = weights > 0
    found, _ = minimize(x, labels, 0.1, weights, tolerance=1e-6)
    expected, _ = minimize(x[kept], labels[kept], 0.1, tolerance=1e-6)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_sgd_runs_every_learning_rate_as_if_alone_and_skips_rows_of_weight_zero():
    x, labels = problem()
    spoiled = np.where(np.arange(len(x)) % 4 == 0, (labels + 1) % 4, labels)
    arrays = [jnp.asarray(x), jnp.asarray(labels), jnp.asarray(np.arange(len(x)) % 4 > 0, jnp.float32)]
    rates = np.float32([0.03, 0.3, 0.1])
    both = fit_sgd(*arrays, jnp.asarray(rates), 4, num_epochs=3, batch_size=16)
    arrays[1] = jnp.asarray(spoiled)
    for i, rate in enumerate(rates):
        alone = fit_sgd(*arrays, jnp.asarray([rate]), 4, num_epochs=3, batch_size=16)
        np.testing.assert_allclose(both[i], alone[0], atol=1e-5)


def test_sgd_on_one_batch_without_momentum_is_gradient_descent_under_a_cosine():
    x, labels = problem(num=12, num_classes=3)
    found = fit_sgd(
        jnp.asarray(x), jnp.asarray(labels), jnp.ones(12), jnp.float32([0.5]), 3, num_epochs=4, momentum=0.0
    )
    matrix = np.zeros((x.shape[1], 3))
    for step in range(4):
        exponent = np.exp(x @ matrix)
        residual = exponent / exponent.sum(axis=1, keepdims=True) - np.eye(3)[labels]
        matrix -= 0.5 * 0.5 * (1 + np.cos(np.pi * step / 4)) * x.T @ residual / 12
    np.testing.assert_allclose(found[0], matrix, atol=1e-5)


@pytest.mark.parametrize(
    "solver", ["lbfgs", dict(name="sgd", num_epochs=20, batch_size=32, learning_rates=(0.1, 0.3))]
)
def test_separable_classes_are_learnt_whatever_the_scale_of_the_features(toy, blobs, solver):
    train, test = blobs(90, seed=1, noise=0.05), blobs(31, seed=2, noise=0.05)
    for scale in (1.0, 1e3):
        predict, batches, _ = toy({"train": (scale * train[0], train[1]), "test": (scale * test[0], test[1])})
        figures = constructor(solver=solver).run(predict, batches)
        assert figures["accuracy"] == figures["train_accuracy"] == figures["accuracy_top5"] == 1.0


def test_the_strength_is_the_one_that_does_best_on_held_out_images(toy, blobs):
    """An l2 of 1e4 leaves nothing but the class frequencies."""
    predict, batches, _ = toy({"train": blobs(90, seed=1), "test": blobs(31, seed=2)}, batch_size=45)
    figures = constructor(solver=dict(name="lbfgs", l2=(1e4, 0.01))).run(predict, batches)
    assert figures["l2"] == 0.01
    assert figures["accuracy"] > 0.8


def test_a_learning_rate_that_diverges_is_not_chosen(toy, blobs):
    predict, batches, _ = toy({"train": blobs(90, seed=1), "test": blobs(31, seed=2)}, batch_size=45)
    fields = dict(name="sgd", num_epochs=20, batch_size=32)
    with pytest.raises(TrainingError, match=r"diverged at learning_rate=3e\+38"):
        constructor(solver=dict(fields, learning_rates=3e38)).run(predict, batches)
    figures = constructor(solver=dict(fields, learning_rates=(3e38, 0.1))).run(predict, batches)
    assert figures["learning_rate"] == 0.1


def test_a_feature_that_is_constant_in_train_does_no_harm(toy, blobs):
    train, test = blobs(90, seed=1, noise=0.05), blobs(31, seed=2, noise=0.05)
    train[0][..., 0], test[0][..., 0] = 0.0, 50.0
    predict, batches, _ = toy({"train": train, "test": test}, batch_size=45)
    assert constructor().run(predict, batches)["accuracy"] > 0.95


def test_the_grid_goes_from_strong_to_weak():
    assert lbfgs(l2=(0.1, 10.0, 1.0)).grid == (10.0, 1.0, 0.1)
    assert lbfgs(l2=0.5).grid == (0.5,)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(solver="newton"), "lbfgs, sgd"),
        (dict(solver=dict(name="lbfgs", learning_rates=(0.1,))), "learning_rates"),
        (dict(solver=dict(name="lbfgs", l2=(-1.0,))), "0 or more"),
        (dict(solver=dict(name="sgd", learning_rates=(0.0,))), "above 0"),
        (dict(solver=dict(name="sgd", learning_rates=float("nan"))), "above 0"),
        (dict(solver=dict(name="sgd", num_epochs=0)), "num_epochs=0"),
    ],
)
def test_fields_without_meaning_are_refused_when_built(fields, words):
    with pytest.raises(UserError, match=words):
        constructor(**fields)
