"""Contrastive losses against the authors' code, and their properties."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.losses.contrastive import (
    contrastive_accuracy,
    info_nce,
    l2_normalize,
    nt_xent,
    sigmoid_pairs,
    supervised_contrastive,
)

same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def test_nt_xent_is_half_the_authors_sum_with_gradient(golden_directory):
    golden = np.load(golden_directory / "losses" / "simclr.npz")
    meta = json.loads(str(golden["meta"]))
    temperature = meta.get("config", meta)["temperature"]
    x = jnp.asarray(golden["x"])
    b = x.shape[0] // 2
    value, grad = jax.value_and_grad(lambda x: jnp.mean(nt_xent(x[:b], x[b:], temperature)))(x)
    np.testing.assert_allclose(2 * value, golden["loss"], rtol=1e-5)
    np.testing.assert_allclose(2 * grad, golden["grad_x"], rtol=1e-5, atol=1e-6)


def test_nt_xent_does_not_depend_on_the_order_of_examples_or_views(key):
    first, second = jax.random.normal(key, (2, 7, 5), jnp.float32)
    straight = nt_xent(first, second, 0.3)
    np.testing.assert_allclose(nt_xent(second, first, 0.3), straight, rtol=1e-5)
    np.testing.assert_allclose(nt_xent(first[::-1], second[::-1], 0.3), straight[::-1], rtol=1e-5)


def test_nt_xent_of_indistinguishable_embeddings_is_the_log_of_the_choices():
    same = jnp.ones((6, 3), jnp.float32)
    np.testing.assert_allclose(nt_xent(same, same, 0.1), np.log(2 * 6 - 1), rtol=1e-6)


def test_a_zero_embedding_has_a_finite_gradient(key):
    first = jax.random.normal(key, (4, 3), jnp.float32).at[0].set(0.0)
    grad = jax.grad(lambda x: jnp.mean(nt_xent(x, x[::-1], 0.5)))(first)
    assert np.isfinite(grad).all()


def test_contrastive_accuracy_counts_examples_nearest_to_their_own_pair():
    first = jnp.eye(3, dtype=jnp.float32)
    second = first[jnp.array([0, 2, 1])]
    np.testing.assert_array_equal(contrastive_accuracy(first, second), [1.0, 0.0, 0.0])


def test_contrastive_accuracy_with_a_queue_compares_with_the_queue_alone():
    first = jnp.eye(3, dtype=jnp.float32)
    queue = l2_normalize(jnp.array([[1.0, 0.1, 0.0], [0.0, 0.0, 1.0]]))
    second = jnp.array([[1.0, 0.2, 0.0], [0.1, 1.0, 0.0], [0.0, 0.1, 1.0]])
    np.testing.assert_array_equal(contrastive_accuracy(first, second, queue), [0.0, 1.0, 0.0])


def test_info_nce_equals_the_authors_of_moco_v3_with_gradients(golden_directory):
    golden = np.load(golden_directory / "losses" / "mocov3.npz")
    temperature = json.loads(str(golden["meta"]))["config"]["T"]
    k1, k2 = jnp.asarray(golden["k1"]), jnp.asarray(golden["k2"])

    def loss(q1, q2):
        both = [2 * temperature * jnp.mean(info_nce(q, k, temperature)) for q, k in ((q1, k2), (q2, k1))]
        return sum(both), both

    queries = jnp.asarray(golden["q1"]), jnp.asarray(golden["q2"])
    (value, both), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(*queries)
    for found, name in ((value, "loss"), (both[0], "loss_q1k2"), (both[1], "loss_q2k1")):
        np.testing.assert_allclose(found, golden[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grads[0], golden["grad_q1"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grads[1], golden["grad_q2"], rtol=1e-5, atol=1e-6)


def test_info_nce_with_a_queue_compares_with_the_own_key_and_the_queue_alone(key):
    """Written out in float64 for each query."""
    q, k = jax.random.normal(key, (2, 4, 6), jnp.float32)
    queue = l2_normalize(jax.random.normal(jax.random.key(1), (9, 6), jnp.float32))
    unit = [np.asarray(x, np.float64) / np.linalg.norm(np.asarray(x, np.float64), axis=1)[:, None] for x in (q, k)]
    for i, loss in enumerate(info_nce(q, k, 0.3, queue)):
        others = np.exp(np.asarray(queue, np.float64) @ unit[0][i] / 0.3).sum()
        own = np.exp(unit[0][i] @ unit[1][i] / 0.3)
        np.testing.assert_allclose(loss, -np.log(own / (own + others)), rtol=1e-5)


def test_info_nce_against_a_queue_of_the_other_keys_is_that_of_the_batch(key):
    q, k = jax.random.normal(key, (2, 3, 5), jnp.float32)
    straight = info_nce(q, k, 0.5)
    for i in range(3):
        others = l2_normalize(jnp.delete(k, i, axis=0))
        np.testing.assert_allclose(info_nce(q[i : i + 1], k[i : i + 1], 0.5, others)[0], straight[i], rtol=1e-5)


@pytest.mark.parametrize("name", ["supcon", "supcon_b"])
@pytest.mark.parametrize(
    ("variant", "labelled", "temperature", "anchors"),
    [("supcon", True, 0.07, None), ("simclr", False, 0.07, None), ("one", True, 0.07, 1), ("t0.1", True, 0.1, None)],
)
def test_supcon_is_the_authors_with_gradient(golden_directory, name, variant, labelled, temperature, anchors):
    golden = np.load(golden_directory / "losses" / f"{name}.npz")
    label = jnp.asarray(golden["labels"]) if labelled else None

    def loss(features):
        return jnp.mean(supervised_contrastive(features, label, temperature, anchors=anchors))

    value, grad = jax.value_and_grad(loss)(jnp.asarray(golden["features"]))
    same(value, golden[f"loss_{variant}"])
    same(grad, golden[f"grad_{variant}"])


def test_supcon_without_labels_is_nt_xent(key):
    views = jax.random.normal(key, (6, 2, 5), jnp.float32)
    views = views / jnp.linalg.norm(views, axis=2, keepdims=True)
    ours = supervised_contrastive(views, None, 0.3, base_temperature=0.3)
    np.testing.assert_allclose(ours, nt_xent(views[:, 0], views[:, 1], 0.3), rtol=1e-5)


def test_an_anchor_without_positives_costs_nothing_and_has_a_finite_gradient(key):
    single = jax.random.normal(key, (4, 1, 3), jnp.float32)
    label = jnp.array([0, 1, 1, 2])
    loss, grad = jax.value_and_grad(lambda x: jnp.sum(supervised_contrastive(x, label, 0.5)))(single)
    np.testing.assert_array_equal(supervised_contrastive(single, label, 0.5) > 0, [False, True, True, False])
    assert np.isfinite(loss) and np.isfinite(grad).all()


def test_sigmoid_pairs_is_the_formula_pair_by_pair(key):
    x = np.asarray(jax.random.normal(key, (3, 2, 4), jnp.float32), np.float64)
    label, scale, bias = np.array([5, 2, 5]), 3.0, -1.5
    flat = x.reshape(6, 4) / np.linalg.norm(x.reshape(6, 4), axis=1, keepdims=True)
    owner = np.repeat(np.arange(3), 2)
    for by_label in (True, False):
        kind = label[owner] if by_label else owner
        expected = np.zeros(3)
        for i in range(6):
            for j in set(range(6)) - {i}:
                similarity = scale * flat[i] @ flat[j] + bias
                expected[owner[i]] += np.log1p(np.exp(-similarity if kind[i] == kind[j] else similarity)) / 2
        given = jnp.asarray(label) if by_label else None
        np.testing.assert_allclose(
            sigmoid_pairs(jnp.asarray(x, jnp.float32), given, scale, bias), expected, rtol=1e-5
        )


def test_sigmoid_pairs_is_siglip_in_both_orders_and_the_negatives_within_a_view(golden_directory):
    golden = np.load(golden_directory / "losses" / "siglip.npz")
    scale, bias = float(np.exp(golden["log_logit_scale"])), float(golden["logit_bias"])
    first, second = (jnp.asarray(golden[name]) for name in ("image", "text"))
    within = [
        jnp.sum(jax.nn.softplus(scale * (z @ z.T) + bias) * (1 - jnp.eye(len(z), dtype=jnp.float32)), axis=1)
        for z in (view / jnp.linalg.norm(view, axis=1, keepdims=True) for view in (first, second))
    ]
    expected = golden["loss"] + np.mean(within)  # each view is an anchor once, so the two orders are averaged
    value = jnp.mean(sigmoid_pairs(jnp.stack([first, second], axis=1), None, scale, bias))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
