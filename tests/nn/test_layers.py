"""Layers against numpy in float64, and their forms against each other."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.backend import compiling_for
from vfm_jax.nn.layers import (
    ACTIVATIONS,
    Dense,
    LayerNorm,
    LayerScale,
    RMSNorm,
    drop_path,
    standardize_own_backward,
)


def _on_both_backends(function, *args):
    """Results of `function` in the form for the CPU, and in the form for a TPU."""
    results = []
    for backend in ("cpu", "tpu"):
        with compiling_for(backend):
            # a new function each time: a jitted one is traced once for all backends
            results.append(jax.jit(lambda *args: function(*args))(*args))
    return results


def _with_gradients(function):
    """Value, and gradients of the sum of the value times a fixed random array."""

    def run(*args):
        value, pull = jax.vjp(function, *args)
        return value, pull(jax.random.normal(jax.random.key(99), value.shape, value.dtype))

    return run


@pytest.mark.parametrize(
    ("features", "contract", "pattern"),
    [(6, 1, "bnd,de->bne"), ((3, 2, 4), 1, "bnd,dxyz->bnxyz"), (7, 2, "bnd,nde->be")],
)
def test_dense_is_the_product_and_the_bias_in_both_forms(key, features, contract, pattern):
    layer = Dense(features, contract=contract, kernel_init=jax.nn.initializers.normal(1.0))
    x = jax.random.normal(key, (2, 3, 5), jnp.float32)
    params = jax.jit(layer.init)(key, x)["params"]
    params["bias"] = jax.random.normal(jax.random.key(1), params["bias"].shape, jnp.float32)
    run = _with_gradients(lambda params, x: layer.apply({"params": params}, x))
    cpu, tpu = _on_both_backends(run, params, x)
    kernel, bias = (np.asarray(params[name], np.float64) for name in ("kernel", "bias"))
    np.testing.assert_allclose(cpu[0], np.einsum(pattern, np.asarray(x, np.float64), kernel) + bias, atol=1e-5)
    for one, other in zip(jax.tree.leaves(cpu), jax.tree.leaves(tpu), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_dense_keeps_its_parameters_in_float32_and_gives_its_dtype(key):
    layer = Dense((2, 3), dtype=jnp.bfloat16)
    y, variables = layer.init_with_output(key, jnp.ones((4, 5), jnp.float32))
    assert y.dtype == jnp.bfloat16
    shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), variables["params"])
    assert shapes == {"kernel": ((5, 2, 3), "float32"), "bias": ((2, 3), "float32")}


def test_dense_draws_its_kernel_as_a_matrix(key):
    """Xavier's bound is of inputs and outputs, however many axes they are stored in."""
    kernel = Dense((3, 20, 10)).init(key, jnp.ones((1, 200), jnp.float32))["params"]["kernel"]
    bound = math.sqrt(6 / (200 + 600))
    assert 0.99 * bound < np.abs(kernel).max() <= bound


def test_a_part_of_the_bias_can_be_left_out_and_hears_nothing(key):
    layer = Dense((3, 2), kernel_init=jax.nn.initializers.normal(1.0), biased=(True, False, True))
    x = jax.random.normal(key, (4, 5), jnp.float32)
    params = {"kernel": jnp.zeros((5, 3, 2)), "bias": jnp.arange(6.0).reshape(3, 2) + 1}
    value, pull = jax.vjp(lambda params: layer.apply({"params": params}, x), params)
    np.testing.assert_array_equal(value[0], [[1, 2], [0, 0], [5, 6]])
    np.testing.assert_array_equal(pull(jnp.ones_like(value))[0]["bias"], [[4, 4], [0, 0], [4, 4]])
    assert list(Dense(2, use_bias=False).init(key, x)["params"]) == ["kernel"]


def test_rms_norm_divides_by_the_root_mean_square_in_float32(key):
    x = (3 + jax.random.normal(key, (4, 3, 7), jnp.float32)).astype(jnp.bfloat16)
    scale = jax.random.uniform(jax.random.key(1), (7,), jnp.float32)
    layer = RMSNorm(1e-3)
    y = layer.apply({"params": {"scale": scale}}, x)
    assert y.dtype == jnp.float32 and RMSNorm(dtype=jnp.bfloat16).init_with_output(key, x)[0].dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    expected = exact / np.sqrt((exact**2).mean(axis=-1, keepdims=True) + 1e-3) * np.asarray(scale)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_layer_norm_keeps_its_digits_where_the_mean_dwarfs_the_deviation(key, backend):
    """A variance by E[x²] - E[x]² is lost in float32 at a mean of 100 and a deviation of 0.01."""
    x = 100 + 0.01 * jax.random.normal(key, (3, 5, 64), jnp.float32)
    scale, bias = (jax.random.uniform(jax.random.key(i), (64,), jnp.float32) for i in (1, 2))
    with compiling_for(backend):
        y = LayerNorm(1e-6).apply({"params": {"scale": scale, "bias": bias}}, x)
    exact = np.asarray(x, np.float64)
    centred = exact - exact.mean(axis=-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    expected = expected * np.asarray(scale) + np.asarray(bias)
    # 100 is rounded in steps of 8e-6, each 8e-4 of the deviation; ten of them for the mean of 64
    np.testing.assert_allclose(y, expected, rtol=0, atol=8e-3)
    fast = nn.LayerNorm(1e-6, use_fast_variance=True).apply({"params": {"scale": scale, "bias": bias}}, x)
    assert np.abs(fast - expected).max() > 0.1


def test_layer_norm_takes_its_statistics_in_float32_and_gives_its_dtype(key):
    x = (8 + jax.random.normal(key, (3, 512), jnp.float32)).astype(jnp.bfloat16)
    y = LayerNorm(dtype=jnp.bfloat16).init_with_output(key, x)[0]
    exact = np.asarray(x, np.float64)
    expected = (exact - exact.mean(1, keepdims=True)) / exact.std(1, keepdims=True)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("mean", [0.0, 1.0, 100.0, 3e4])
@pytest.mark.parametrize("deviation", [1e-3, 1e-2, 0.1, 1.0])
def test_one_pass_loses_less_than_the_rounding_of_its_input(key, mean, deviation):
    """Relative to the mean, or to one: a deviation of 1e-3 is a quarter of a step of bfloat16."""
    exact = np.asarray(mean + deviation * max(mean, 1.0) * jax.random.normal(key, (64, 768)), np.float64)
    x = jnp.asarray(exact, jnp.bfloat16)

    def normalized(x):
        centred = x - x.mean(axis=-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)

    with compiling_for("tpu"):
        y, _ = LayerNorm(1e-6).init_with_output(key, x)
    rounded = np.asarray(x, np.float64)
    by_rounding = np.abs(normalized(rounded) - normalized(exact)).max()
    by_one_pass = np.abs(np.asarray(y, np.float64) - normalized(rounded)).max()
    assert by_one_pass < by_rounding


def test_one_pass_has_the_slope_of_two(key):
    x = (2 + 3 * jax.random.normal(key, (4, 3, 96), jnp.float32)).astype(jnp.bfloat16)
    norm = LayerNorm(1e-6)
    params = norm.init(key, x)
    g = jax.random.normal(jax.random.key(1), x.shape, jnp.float32)

    def pulled(x):
        return jax.grad(lambda x: jnp.sum(norm.apply(params, x) * g))(x)

    with compiling_for("tpu"):
        one, two = pulled(x), pulled(x.astype(jnp.float32))
    np.testing.assert_allclose(one.astype(jnp.float32), two, rtol=2**-7, atol=1e-4)


def test_the_own_backward_of_the_norm_equals_automatic_differentiation(key):
    x = 2 + 3 * jax.random.normal(key, (4, 3, 7), jnp.float32)

    def plain(x):
        return (x - jnp.mean(x, -1, keepdims=True)) * jax.lax.rsqrt(jnp.var(x, -1, keepdims=True) + 1e-3)

    own = _with_gradients(lambda x: standardize_own_backward(x, 1e-3))(x)
    automatic = _with_gradients(plain)(x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), own, automatic)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_their_slopes_are_those_of_their_formulas(name):
    x = jnp.linspace(-6, 6, 101, dtype=jnp.float32)
    points = np.asarray(x, np.float64)
    tanh_form = np.tanh(np.sqrt(2 / np.pi) * (points + 0.044715 * points**3))
    expected = {
        "gelu": points * 0.5 * (1 + np.vectorize(math.erf)(points / np.sqrt(2))),
        "gelu_tanh": points * 0.5 * (1 + tanh_form),
        "quick_gelu": points / (1 + np.exp(-1.702 * points)),
        "relu": np.maximum(points, 0),
        "silu": points / (1 + np.exp(-points)),
    }[name]
    plain = {"gelu": lambda x: x * (0.5 + 0.5 * jax.lax.erf(x * np.float32(0.5**0.5)))}.get(name, ACTIVATIONS[name])
    value, (slope,) = _with_gradients(ACTIVATIONS[name])(x)
    np.testing.assert_allclose(value, expected, atol=1e-6)
    np.testing.assert_allclose(slope, _with_gradients(plain)(x)[1][0], atol=2e-6)


def test_layer_scale_multiplies_each_channel_by_its_factor(key):
    x = jax.random.normal(key, (2, 3, 5), jnp.float32)
    y, variables = LayerScale(1e-2).init_with_output(key, x)
    np.testing.assert_allclose(y, 1e-2 * x, rtol=1e-6)
    gamma = jnp.arange(5.0)
    assert variables["params"]["gamma"].shape == (5,)
    np.testing.assert_allclose(LayerScale(1e-2).apply({"params": {"gamma": gamma}}, x), x * gamma[None, None])


def test_drop_path_keeps_the_expectation_and_drops_whole_examples():
    keys = jax.random.split(jax.random.key(0), 4000)
    y = np.asarray(drop_path(keys, jnp.ones((4000, 2, 3), jnp.float32), 0.3))
    assert (y == y[:, :1, :1]).all()
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.7], rtol=1e-6)
    # four deviations of a mean of 4000 draws
    np.testing.assert_allclose(y.mean(), 1, atol=4 * math.sqrt(0.3 / 0.7 / 4000))


def test_the_fate_of_an_example_follows_its_key_and_not_its_place():
    keys = jax.random.split(jax.random.key(1), 64)
    x = jnp.ones((64, 1, 2), jnp.float32)
    whole = drop_path(keys, x, 0.5)
    assert 0 < np.count_nonzero(whole) < whole.size
    np.testing.assert_array_equal(drop_path(keys[::-1][:9], x[:9], 0.5), whole[::-1][:9])


def test_without_keys_or_at_rate_zero_nothing_is_dropped(key):
    x = jax.random.normal(key, (4, 2, 3), jnp.bfloat16)
    np.testing.assert_array_equal(drop_path(None, x, 0.9), x)
    np.testing.assert_array_equal(drop_path(jax.random.split(key, 4), x, 0.0), x)
