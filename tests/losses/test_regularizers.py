"""Regularisers against the authors' code, and their properties."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.losses.regularizers import gram_anchor, koleo, random_directions, sigreg

SAME: dict[str, Any] = dict(rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["koleo", "koleo_distributed", "koleo_distributed_b"])
def test_koleo_is_the_authors_with_gradient(golden_directory, name):
    golden = np.load(golden_directory / "losses" / f"{name}.npz")
    neighbors = json.loads(str(golden["meta"])).get("config", {}).get("topk", 1)
    value, grad = jax.value_and_grad(lambda x: jnp.mean(koleo(x, neighbors)))(jnp.asarray(golden["x"]))
    np.testing.assert_allclose(value, golden["loss"], **SAME)
    np.testing.assert_allclose(grad, golden["grad_x"], **SAME)


def test_koleo_of_groups_is_that_of_each_alone(key):
    x = jax.random.normal(key, (6, 4), jnp.float32)
    np.testing.assert_allclose(koleo(x, group_size=3), np.concatenate([koleo(x[:3]), koleo(x[3:])]), rtol=1e-5)


def test_koleo_of_equal_vectors_is_finite_with_a_finite_gradient():
    value, grad = jax.value_and_grad(lambda x: jnp.sum(koleo(x)))(jnp.ones((4, 3), jnp.float32))
    assert np.isfinite(value) and np.isfinite(grad).all()


@pytest.mark.parametrize(("neighbors", "size"), [(1, 4), (3, 3), (1, 1)])
def test_groups_without_enough_neighbours_are_refused(neighbors, size):
    with pytest.raises(ValueError, match="does not fit a batch of 6"):
        koleo(jnp.ones((6, 2), jnp.float32), neighbors, size)


def _settings(golden):
    said = json.loads(str(golden["meta"])).get("config", {})
    negatives = "kept" if not said.get("remove_neg", True) else "cut"
    negatives = "cut_from_teacher" if said.get("remove_only_teacher_neg") else negatives
    return {"normalize": said.get("apply_norm", True), "negatives": negatives}


@pytest.mark.parametrize("name", ["gram", "gram_raw", "gram_raw_b", "gram_teacher_neg", "gram_teacher_neg_b"])
@pytest.mark.parametrize("level", ["img", "batch"])
def test_gram_anchoring_is_the_authors_with_gradient(golden_directory, name, level):
    golden = np.load(golden_directory / "losses" / f"{name}.npz")
    student, teacher = jnp.asarray(golden["student"]), jnp.asarray(golden["teacher"])
    shape = student.shape if level == "img" else (1, -1, student.shape[-1])

    def loss(student):
        return jnp.mean(gram_anchor(student.reshape(shape), teacher.reshape(shape), **_settings(golden)))

    value, grad = jax.value_and_grad(loss)(student)
    np.testing.assert_allclose(value, golden[f"loss_{level}"], **SAME)
    np.testing.assert_allclose(grad, golden[f"grad_student_{level}"], **SAME)


def test_gram_anchoring_sees_similarities_alone(key):
    """A rotation of all tokens changes none of their similarities: the student is free to be another basis."""
    student, other = jax.random.normal(key, (2, 2, 5, 4), jnp.float32)
    rotation, _ = jnp.linalg.qr(other[0, :4])
    np.testing.assert_allclose(gram_anchor(student, student @ rotation), 0.0, atol=1e-9)
    assert gram_anchor(student, other).min() > 1e-3


def test_zero_vectors_have_finite_gradients(key):
    """A mask token that starts as zero and that no block has touched."""
    student, teacher = jax.random.normal(key, (2, 2, 5, 4), jnp.float32)
    student = student.at[0, :2].set(0.0)
    assert np.isfinite(jax.grad(lambda x: jnp.sum(gram_anchor(x, teacher)))(student)).all()
    assert np.isfinite(jax.grad(lambda x: jnp.sum(koleo(x)))(student[0])).all()


def test_sigreg_is_the_authors_with_gradient(golden_directory):
    golden = np.load(golden_directory / "losses" / "lejepa_sigreg.npz")
    directions = golden["directions"] / np.linalg.norm(golden["directions"], axis=0, keepdims=True)
    x = jnp.asarray(golden["x"])
    value, grad = jax.value_and_grad(lambda x: jnp.mean(sigreg(x, jnp.asarray(directions))))(x)
    np.testing.assert_allclose(sigreg(x, jnp.asarray(directions)), golden["per_slice"], **SAME)
    np.testing.assert_allclose(value, golden["loss"], **SAME)
    np.testing.assert_allclose(grad, golden["grad_x"], **SAME)
    axes = jnp.eye(3, dtype=jnp.float32)  # each column as it is
    np.testing.assert_allclose(sigreg(jnp.asarray(golden["x_univariate"]), axes), golden["univariate"], **SAME)


def test_sigreg_is_small_for_normal_embeddings_alone(key):
    keys = jax.random.split(key, 2)
    directions = random_directions(keys[0], 8, 64)
    np.testing.assert_allclose(jnp.linalg.norm(directions, axis=0), 1, rtol=1e-6)
    normal = jax.random.normal(keys[1], (512, 8), jnp.float32)
    good = jnp.mean(sigreg(normal, directions))
    for other in (normal * 2, normal * 0.5, normal + 1, jnp.zeros_like(normal), normal.at[:, 1].set(normal[:, 0])):
        assert jnp.mean(sigreg(other, directions)) > 5 * good
