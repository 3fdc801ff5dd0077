"""Norms against numpy: over which axes, what the running averages keep, in which precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.sharding import batch_sharding, make_mesh
from vfm_jax.core.trees import named_leaves
from vfm_jax.nn.normalization import BatchNorm, GlobalResponseNorm, GroupNorm


@pytest.fixture
def features(key):
    deviation = jnp.linspace(0.1, 3, 5, dtype=jnp.float32)
    return 50 + deviation[None] * jax.random.normal(key, (16, 5), jnp.float32)


@pytest.fixture
def maps(key):
    return 3 + 2 * jax.random.normal(key, (3, 4, 5, 6), jnp.float32)


def _standardized(x, epsilon):
    x = np.asarray(x, np.float64)
    return (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + epsilon)


def test_batch_statistics_are_of_the_whole_batch_on_any_number_of_devices(key, features):
    norm = BatchNorm(epsilon=1e-3)
    variables = norm.init(key, features, train=True)
    split = jax.device_put(features, batch_sharding(make_mesh()))

    @jax.jit
    def run(x):
        return norm.apply(variables, x, train=True, mutable=["batch_stats"])[0]

    for x in (features, split):
        np.testing.assert_allclose(run(x), _standardized(features, 1e-3), atol=1e-3)


def test_running_averages_move_by_the_momentum_and_are_what_evaluation_uses(key, features):
    norm = BatchNorm(momentum=0.8, epsilon=1e-3)
    variables = norm.init(key, features, train=False)
    _, moved = norm.apply(variables, features, train=True, mutable=["batch_stats"])
    running = moved["batch_stats"]["norm"]
    exact = np.asarray(features, np.float64)
    np.testing.assert_allclose(running["mean"], 0.2 * exact.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(running["var"], 0.8 + 0.2 * exact.var(axis=0), rtol=1e-4)
    y = norm.apply({"params": variables["params"], **moved}, features[:3], train=False)
    expected = (exact[:3] - np.asarray(running["mean"])) / np.sqrt(np.asarray(running["var"]) + 1e-3)
    np.testing.assert_allclose(y, expected, rtol=1e-4)


def test_batch_norm_takes_its_statistics_in_float32_and_keeps_the_dtype(key, features):
    x = features.astype(jnp.bfloat16)
    y, _ = BatchNorm().init_with_output(key, x, train=True)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float64), _standardized(x, 1e-5), rtol=2**-8, atol=1e-2)


def test_batch_norm_of_maps_counts_every_position_and_can_keep_the_variance_of_a_sample(key, maps):
    norm = BatchNorm(momentum=0.9, unbiased=True)
    variables = norm.init(key, maps, train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["norm"]["var"], np.ones(6))  # a sample moves nothing
    y, moved = norm.apply(variables, maps, train=True, mutable=["batch_stats"])
    flat = np.asarray(maps, np.float64).reshape(-1, 6)
    np.testing.assert_allclose(y.reshape(-1, 6), _standardized(flat, 1e-5), atol=1e-5)
    np.testing.assert_allclose(moved["batch_stats"]["norm"]["var"], 0.9 + 0.1 * flat.var(axis=0, ddof=1), rtol=1e-5)


def test_group_norm_standardises_each_image_over_space_and_the_channels_of_a_group(key, maps):
    y, variables = GroupNorm(groups=2).init_with_output(key, maps)
    assert {name: leaf.shape for name, leaf in named_leaves(variables["params"]).items()} == {
        "scale": (6,),
        "bias": (6,),
    }
    grouped = np.asarray(maps, np.float64).reshape(3, 20, 2, 3)
    mean, var = grouped.mean(axis=(1, 3), keepdims=True), grouped.var(axis=(1, 3), keepdims=True)
    np.testing.assert_allclose(y.reshape(3, 20, 2, 3), (grouped - mean) / np.sqrt(var + 1e-5), atol=1e-5)


def test_global_response_norm_starts_as_the_identity_and_weighs_channels_by_their_norm(key, maps):
    norm = GlobalResponseNorm()
    y, _ = norm.init_with_output(key, maps)
    np.testing.assert_array_equal(y, maps)
    scale, bias = np.linspace(-1, 1, 6), np.linspace(2, 3, 6)
    params = {"scale": jnp.asarray(scale, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    exact = np.asarray(maps, np.float64)
    norms = np.sqrt(np.square(exact).sum(axis=(1, 2), keepdims=True))
    expected = exact + scale * exact * norms / (norms.mean(axis=-1, keepdims=True) + 1e-6) + bias
    np.testing.assert_allclose(norm.apply({"params": params}, maps), expected, rtol=1e-5)


def test_global_response_norm_has_a_gradient_where_a_channel_is_silent():
    x = jnp.zeros((1, 2, 3, 4), jnp.float32).at[..., 1].set(1.0)
    params = {"scale": jnp.ones((4,), jnp.float32), "bias": jnp.zeros((4,), jnp.float32)}
    slope = jax.grad(lambda x: jnp.sum(GlobalResponseNorm().apply({"params": params}, x)))(x)
    assert np.isfinite(slope).all()
