"""Heads: what has an offset, and how a classifier starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.trees import named_leaves
from vfm_jax.nn.heads import LinearHead, ProjectionHead


@pytest.fixture
def features(key):
    deviation = jnp.linspace(0.1, 3, 5, dtype=jnp.float32)
    return 50 + deviation[None] * jax.random.normal(key, (16, 5), jnp.float32)


def _standardized(x, epsilon):
    x = np.asarray(x, np.float64)
    return (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + epsilon)


def test_the_projector_has_an_offset_in_every_norm_but_the_last(key, features):
    head = ProjectionHead(hidden_dim=7, out_dim=4, num_layers=3)
    variables = jax.eval_shape(lambda: head.init(key, features, train=True))
    assert {name: leaf.shape for name, leaf in named_leaves(variables["params"]).items()} == {
        "kernel_0": (5, 7),
        "kernel_1": (7, 7),
        "kernel_2": (7, 4),
        "norm_0/norm/scale": (7,),
        "norm_0/norm/bias": (7,),
        "norm_1/norm/scale": (7,),
        "norm_1/norm/bias": (7,),
        "norm_2/norm/scale": (4,),
    }


def test_the_projector_is_dense_norm_relu_dense_norm(key, features):
    head = ProjectionHead(out_dim=4, batch_norm_epsilon=1e-3)
    y, variables = head.init_with_output(key, features, train=True)
    kernels = [np.asarray(variables["params"][f"kernel_{i}"], np.float64) for i in (0, 1)]
    assert kernels[0].shape == (5, 5)  # hidden layers are as wide as the input, if nothing else is said
    hidden = np.maximum(_standardized(np.asarray(features, np.float64) @ kernels[0], 1e-3), 0)
    np.testing.assert_allclose(y, _standardized(hidden @ kernels[1], 1e-3), atol=1e-3)


def test_the_projector_gives_float32_under_bfloat16(key, features):
    head = ProjectionHead(out_dim=4, dtype=jnp.bfloat16)
    assert jax.eval_shape(lambda: head.init_with_output(key, features, train=True)[0]).dtype == jnp.float32


def test_a_classifier_of_deviation_zero_starts_from_equal_logits(key, features):
    logits, _ = LinearHead(num_classes=3, init_std=0.0).init_with_output(key, features, train=True)
    np.testing.assert_array_equal(logits, np.zeros((16, 3)))


def test_a_classifier_draws_its_kernel_with_the_deviation_asked_for(key):
    kernel = LinearHead(num_classes=50, init_std=0.02).init(key, jnp.ones((1, 400), jnp.float32), train=True)
    np.testing.assert_allclose(np.std(kernel["params"]["logits"]["kernel"]), 0.02, rtol=0.05)


def test_a_classifier_with_batch_norm_standardises_without_learned_factors(key, features):
    head = LinearHead(num_classes=3, init_std=1.0, batch_norm=True, dtype=jnp.bfloat16)
    logits, variables = head.init_with_output(key, features, train=True)
    assert logits.dtype == jnp.float32
    assert list(named_leaves(variables["params"])) == ["logits/bias", "logits/kernel"]
    kernel = np.asarray(variables["params"]["logits"]["kernel"], np.float64)
    np.testing.assert_allclose(logits, _standardized(features, 1e-6) @ kernel, rtol=2e-2, atol=5e-2)
