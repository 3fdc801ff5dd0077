"""Attention against numpy in float64, in the form of every backend that runs here."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.backend import compiling_for
from vfm_jax.nn.attention import SelfAttention, attend, attention_weights

SHAPES = {"query": (2, 5, 3, 8), "key": (2, 7, 3, 8), "value": (2, 7, 3, 8)}  # b n heads d


@pytest.fixture(scope="module")
def arrays():
    keys = jax.random.split(jax.random.key(0), 3)
    return [2 * jax.random.normal(k, shape, jnp.float32) for k, shape in zip(keys, SHAPES.values(), strict=True)]


def _softmax(query, key):
    logits = np.einsum("bnhd,bkhd->bhnk", np.asarray(query, np.float64), np.asarray(key, np.float64))
    weights = np.exp(logits / np.sqrt(query.shape[-1]))
    return weights / weights.sum(axis=-1, keepdims=True)


def _value_and_gradients(backend, arrays):
    def run(*arrays):
        value, pull = jax.vjp(attend, *arrays)
        return value, pull(jax.random.normal(jax.random.key(9), value.shape, value.dtype))

    with compiling_for(backend), jax.numpy_dtype_promotion("standard"):  # JAX's own attention promotes inside
        return jax.jit(run)(*arrays)


def test_attend_is_the_softmax_of_scaled_products_over_the_values(arrays):
    query, key, value = arrays
    expected = np.einsum("bhnk,bkhd->bnhd", _softmax(query, key), np.asarray(value, np.float64))
    np.testing.assert_allclose(attend(query, key, value), expected, rtol=1e-5, atol=1e-5)


def test_attention_weights_are_that_softmax(arrays):
    weights = attention_weights(*arrays[:2])
    np.testing.assert_allclose(weights, _softmax(*arrays[:2]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_the_forms_for_cpu_and_tpu_agree_in_value_and_gradients(arrays, dtype, tolerance):
    arrays = [a.astype(dtype) for a in arrays]
    cpu, tpu = (jax.tree.leaves(_value_and_gradients(backend, arrays)) for backend in ("cpu", "tpu"))
    for one, other in zip(cpu, tpu, strict=True):
        assert one.dtype == other.dtype == dtype
        one, other = (np.asarray(a, np.float32) for a in (one, other))
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_the_softmax_is_taken_in_float32_under_bfloat16(arrays, backend):
    with compiling_for(backend), jax.numpy_dtype_promotion("standard"):
        traced = str(jax.make_jaxpr(lambda *a: attend(*a))(*(a.astype(jnp.bfloat16) for a in arrays)))
    assert set(re.findall(r":(\w+)\[[\d,]*\] = exp\b", traced)) == {"f32"}


def test_large_logits_do_not_overflow(arrays):
    query, key, value = arrays
    assert np.isfinite(attend(100 * query, 100 * key, value)).all()


def test_a_layer_attends_by_the_weights_that_it_shows(key):
    layer = SelfAttention(width=12, heads=3)
    x = jax.random.normal(key, (2, 5, 12), jnp.float32)
    params = jax.jit(layer.init)(key, x)["params"]
    assert params["qkv"]["kernel"].shape == (12, 3, 3, 4)
    weights = np.asarray(layer.apply({"params": params}, x, method="weights"))
    np.testing.assert_allclose(weights.sum(axis=-1), np.ones((2, 3, 5)), rtol=1e-5)
    value = np.einsum("bnd,dhe->bnhe", x, params["qkv"]["kernel"][:, 2])
    expected = np.einsum("bhnk,bkhe,hed->bnd", weights, value, params["out"]["kernel"])
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-5)
