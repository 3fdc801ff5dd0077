"""Attention against numpy in float64, in the form of every backend that runs here."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from vfm_jax.core.backend import compiling_for
from vfm_jax.nn.attention import SelfAttention, _at_even_lengths, attend, attention_weights, prefix_causal_mask
from vfm_jax.nn.positions import RelativeIndex, places, relative_rows, rope_coordinates, rope_periods, rotation

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


@pytest.mark.parametrize(("num_queries", "num_keys"), [(5, 7), (4, 7), (5, 6), (4, 6)])
@pytest.mark.parametrize("causal", [False, True])
def test_what_cudnn_is_given_at_odd_lengths_is_the_same_attention(arrays, num_queries, num_keys, causal):
    """By XLA's form, which takes the same arguments; cuDNN's own runs on a GPU alone."""
    arrays = [arrays[0][:, :num_queries], *(a[:, :num_keys] for a in arrays[1:])]

    def run(function):
        def of_one(*one):  # under vmap, as data2vec 2 encodes its choices of patches
            return function(*(a[None] for a in one))[0]

        def value_and_gradients(function):
            value, pull = jax.vjp(function, *arrays)
            return value, pull(jax.random.normal(jax.random.key(9), value.shape, value.dtype))

        return [value_and_gradients(function), value_and_gradients(jax.vmap(of_one))]

    with jax.numpy_dtype_promotion("standard"):  # JAX's own attention promotes inside
        plain = run(lambda *a: attend(*a, causal=causal))[0]
        given = run(lambda *a: _at_even_lengths(*a, causal=causal, implementation="xla"))
    for one in given:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), one, plain)


def _told(mask, bias, causal):
    generator = np.random.default_rng(0)
    told = {"causal": causal}
    if mask == "of keys":
        told["mask"] = jnp.asarray(np.arange(7)[None, None, None] < np.array([7, 4])[:, None, None, None])
    elif mask:
        told["mask"] = jnp.asarray(generator.random((2, 3, 5, 7)) < 0.5).at[:, :, :, 0].set(True)
    if bias:
        told["bias"] = jnp.asarray(generator.standard_normal((1, 3, 5, 7)), jnp.float32)
    return told


TOLD = [("of keys", False, False), ("of pairs", True, False), (None, True, False), (None, False, True)]


@pytest.mark.parametrize(("mask", "bias", "causal"), [*TOLD, ("of pairs", True, True)])
def test_masks_and_biases_are_those_of_the_formula(arrays, mask, bias, causal):
    query, key, value = (np.asarray(a, np.float64) for a in arrays)
    told = _told(mask, bias, causal)
    logits = np.einsum("bnhd,bkhd->bhnk", query, key) / np.sqrt(8) + np.asarray(told.get("bias", 0.0), np.float64)
    seen = np.broadcast_to(np.asarray(told.get("mask", True)), logits.shape)
    seen = seen & np.tri(5, 7, dtype=bool) if causal else seen
    weights = np.where(seen, np.exp(logits), 0)
    weights /= weights.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(attention_weights(*arrays[:2], **told), weights, rtol=1e-5, atol=1e-6)
    expected = np.einsum("bhnk,bkhd->bnhd", weights, value)
    np.testing.assert_allclose(attend(*arrays, **told), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("mask", "bias", "causal"), TOLD)
def test_the_forms_agree_on_masks_and_biases_in_value_and_gradients(arrays, mask, bias, causal):
    told = _told(mask, bias, causal)
    fixed = {name: value for name, value in told.items() if name != "bias"}

    def run(backend):
        def compute(arrays, bias):
            value, pull = jax.vjp(lambda arrays, bias: attend(*arrays, bias=bias, **fixed), arrays, bias)
            return value, pull(jnp.sin(jnp.arange(value.size, dtype=jnp.float32)).reshape(value.shape))

        with compiling_for(backend), jax.numpy_dtype_promotion("standard"):
            return jax.tree.leaves(jax.jit(compute)(arrays, told.get("bias")))

    for one, other in zip(run("cpu"), run("tpu"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_query_that_may_look_nowhere_gives_a_number(arrays):
    mask = jnp.ones((2, 1, 5, 7), bool).at[0, :, 2].set(False)
    assert np.isfinite(attend(*arrays, mask=mask)).all()


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


def test_rotary_attention_equals_dinov3(golden_directory):
    with np.load(golden_directory / "components" / "rope_dinov3.npz") as golden:
        golden = dict(golden)
    kernel, bias = golden["param/qkv.weight"], golden["param/qkv.bias"]
    params = {
        "qkv": {
            "kernel": rearrange(kernel, "(three heads e) d -> d three heads e", three=3, heads=2),
            "bias": rearrange(bias, "(three heads e) -> three heads e", three=3, heads=2),
        },
        "out": {
            "kernel": rearrange(golden["param/proj.weight"], "d (heads e) -> heads e d", heads=2),
            "bias": golden["param/proj.bias"],
        },
    }
    params = jax.tree.map(jnp.asarray, params)
    coordinates = rope_coordinates(places((5, 3))[None], np.array((5, 3))[None], "separate")
    rope = rotation(coordinates, rope_periods(32))  # of 15 patches; five tokens before them are not turned
    layer = SelfAttention(width=64, heads=2)
    output = layer.apply({"params": params}, jnp.asarray(golden["x"]), rope=rope)
    np.testing.assert_allclose(output, golden["attn_out"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "leaves"),
    [
        (dict(qkv_bias=False, out_bias=False), ["out/kernel", "qkv/kernel"]),
        (dict(qk_norm=True, out_bias=False), [f"{name}_norm/{leaf}" for name in "kq" for leaf in ("bias", "scale")]),
        (dict(qk_norm=True, norm="rms_norm"), ["k_norm/scale", "q_norm/scale", "out/bias"]),
        (dict(relative=True), ["relative_positions/table", "qkv/bias"]),
    ],
)
def test_options_have_their_leaves_and_the_layer_attends_by_the_weights_that_it_shows(key, fields, leaves):
    layer = SelfAttention(width=12, heads=3, **fields)
    where = RelativeIndex((2, 2), jnp.asarray(relative_rows((2, 2), 1))[None])
    x = jax.random.normal(key, (2, 5, 12), jnp.float32)
    shapes = jax.eval_shape(lambda key: layer.init(key, x, where=where)["params"], key)
    params = jax.tree.map(lambda a: jax.random.normal(key, a.shape, a.dtype), shapes)
    assert set(leaves) <= {"/".join(str(k.key) for k in path) for path, _ in jax.tree.leaves_with_path(params)}
    assert len(jax.tree.leaves(params)) == 2 + sum(
        count * bool(fields.get(field, default))
        for field, default, count in [
            ("qkv_bias", True, 1),
            ("out_bias", True, 1),
            ("qk_norm", False, 2 if "norm" in fields else 4),
            ("relative", False, 1),
        ]
    )
    run = jax.jit(
        lambda params: (layer.apply({"params": params}, x, where=where), _weights_of(layer, params, x, where))
    )
    output, weights = run(params)
    value = jnp.einsum("bnd,dhe->bnhe", x, params["qkv"]["kernel"][:, 2])
    value = value + (params["qkv"]["bias"][2][None, None] if "bias" in params["qkv"] else 0.0)
    expected = jnp.einsum("bhnk,bkhe,hed->bnd", weights, value, params["out"]["kernel"])
    expected = expected + (params["out"]["bias"][None, None] if "bias" in params["out"] else 0.0)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)


def _weights_of(layer, params, x, where):
    return layer.apply({"params": params}, x, where=where, method="weights")


def test_an_offset_of_the_keys_that_does_not_count_changes_nothing(key):
    layer = SelfAttention(width=12, heads=3, key_bias=False)
    x = jax.random.normal(key, (2, 5, 12), jnp.float32)
    params = jax.jit(layer.init)(key, x)["params"]
    assert params["qkv"]["bias"].shape == (3, 3, 4)
    other = params | {"qkv": params["qkv"] | {"bias": params["qkv"]["bias"].at[1].set(jnp.nan)}}
    np.testing.assert_array_equal(layer.apply({"params": other}, x), layer.apply({"params": params}, x))


def test_prefix_causal_attention_equals_aims_with_its_gradient(golden_directory):
    golden = np.load(golden_directory / "losses" / "aim_prefix_attention.npz")
    heads = json.loads(str(golden["meta"]))["config"]["num_heads"]
    x, width = jnp.asarray(golden["x"]), golden["x"].shape[2]
    mask = prefix_causal_mask(jnp.asarray(golden["prefix_len"]), x.shape[1])
    np.testing.assert_array_equal(mask, golden["attn_mask"])
    qkv, out = (golden[f"param/{name}.weight"].T for name in ("qkv", "proj"))
    params = {
        "qkv": {"kernel": jnp.asarray(qkv.reshape(width, 3, heads, -1))},
        "out": {"kernel": jnp.asarray(out.reshape(heads, -1, width)), "bias": jnp.asarray(golden["param/proj.bias"])},
    }
    attention = SelfAttention(width, heads, qkv_bias=False)
    y, pull = jax.vjp(lambda x: attention.apply({"params": params}, x, mask=mask[:, None]), x)
    np.testing.assert_allclose(y, golden["y"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pull(jnp.asarray(golden["cotangent"]))[0], golden["grad_x"], rtol=1e-4, atol=1e-5)
