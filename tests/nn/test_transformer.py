"""Loop, scan and recomputation give the same numbers from the same parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import named_leaves
from vfm_jax.nn.transformer import Transformer

BATCH, TOKENS, WIDTH, DEPTH = 4, 5, 12, 3
FIELDS = dict(width=WIDTH, depth=DEPTH, heads=2, mlp_dim=20, layer_scale=0.5, drop_path=0.6)


@functools.cache
def _init():
    return jax.jit(Transformer(**FIELDS).init)(jax.random.key(0), jnp.zeros((1, 1, WIDTH), jnp.float32))["params"]


@pytest.fixture(scope="module")
def params():
    params = _init()
    leaves, tree = jax.tree.flatten(params)  # biases and scales of their own, or mixing them up would not show
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([a + 0.1 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)])


@pytest.fixture(scope="module")
def tokens():
    return jax.random.normal(jax.random.key(2), (BATCH, TOKENS, WIDTH), jnp.float32)


def _run(params, tokens, **changes):
    """Output, levels and gradients, with drop path."""
    stack = Transformer(**FIELDS | changes)
    keys = jax.random.split(jax.random.key(5), BATCH)

    def total(params, tokens):
        output, levels = stack.apply({"params": params}, tokens, keys=keys, levels=(0, -2, -1))
        return jnp.sum(jnp.sin(output)), (output, levels)

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(params, tokens)


@pytest.fixture(scope="module")
def loop(params, tokens):
    return _run(params, tokens)


def test_blocks_are_named_by_number_and_drawn_apart():
    params = _init()
    assert list(params) == ["block_0", "block_1", "block_2"]
    assert "block_2/attention/qkv/kernel" in named_leaves(params)
    first, second = (params[name]["mlp"]["up"]["kernel"] for name in ("block_0", "block_1"))
    assert (first != second).all()


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_scan_has_the_parameters_of_the_loop(remat):
    def shapes(**changes):
        init = Transformer(**FIELDS | changes).init
        return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 1, WIDTH), jnp.float32))

    assert shapes(scan=True, remat=remat) == shapes()


@pytest.mark.parametrize(
    "changes", [{"scan": True}, {"remat": "full"}, {"remat": "dots"}, {"scan": True, "remat": "full"}]
)
def test_scan_and_recomputation_equal_the_loop_with_drop_path_levels_and_gradients(params, tokens, loop, changes):
    for one, other in zip(jax.tree.leaves(loop), jax.tree.leaves(_run(params, tokens, **changes)), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


def test_levels_are_outputs_of_the_named_blocks(loop):
    (_, (output, levels)), _ = loop
    np.testing.assert_array_equal(levels[2], output)
    assert (np.asarray(levels[0]) != np.asarray(levels[1])).any()


def test_a_level_is_the_output_of_a_stack_that_ends_there(params, tokens):
    @jax.jit
    def run(tokens):
        _, (level,) = Transformer(**FIELDS).apply({"params": params}, tokens, levels=(1,))
        return level, Transformer(**FIELDS | {"depth": 2}).apply({"params": params}, tokens)[0]

    level, shorter = run(tokens)
    np.testing.assert_allclose(level, shorter, rtol=1e-6, atol=1e-6)


def test_without_keys_nothing_is_dropped(params, tokens, loop):
    @functools.partial(jax.jit, static_argnums=0)
    def run(rate, keys):
        return Transformer(**FIELDS | {"drop_path": rate}).apply({"params": params}, tokens, keys=keys)[0]

    kept = run(0.6, None)
    np.testing.assert_array_equal(kept, run(0.0, jax.random.split(jax.random.key(5), BATCH)))
    assert not np.allclose(kept, loop[0][1][0])


def test_an_example_is_dropped_by_its_key_and_not_by_its_place(params, tokens, loop):
    keys = jax.random.split(jax.random.key(5), BATCH)
    run = jax.jit(lambda x, keys: Transformer(**FIELDS).apply({"params": params}, x, keys=keys)[0])
    turned = run(tokens[::-1], keys[::-1])
    np.testing.assert_allclose(turned[::-1], loop[0][1][0], rtol=1e-5, atol=1e-5)


def test_a_scan_equals_the_loop_in_bfloat16(params, tokens):
    def run(scan):
        stack = Transformer(**FIELDS, scan=scan, dtype=jnp.bfloat16)
        return jax.jit(lambda x: stack.apply({"params": params}, x)[0])(tokens.astype(jnp.bfloat16))

    one, other = run(False), run(True)
    assert one.dtype == other.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(one, np.float32), np.asarray(other, np.float32), rtol=2**-6, atol=2**-6)


def test_the_last_attention_is_of_the_last_block_for_what_reaches_it(params, tokens):
    run = jax.jit(lambda params: Transformer(**FIELDS).apply({"params": params}, tokens, method="last_attention"))
    weights = run(params)
    assert weights.shape == (BATCH, 2, TOKENS, TOKENS)
    np.testing.assert_allclose(jnp.sum(weights, axis=-1), np.ones((BATCH, 2, TOKENS)), rtol=1e-5)
    shifted = params | {"block_0": jax.tree.map(lambda a: 2 * a, params["block_0"])}
    assert not np.allclose(run(shifted), weights)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 5}, "width of 12 does not divide into 5 heads"),
        ({"activation": "gellu"}, "Unknown name 'gellu' in activation. Did you mean 'gelu'"),
        ({"remat": "all"}, "Unknown name 'all' in remat"),
    ],
)
def test_an_impossible_stack_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(Transformer(**FIELDS | fields).init, jax.random.key(0), jnp.zeros((1, 1, WIDTH), jnp.float32))
