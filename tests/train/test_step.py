"""Gradient accumulation is exact on the effective batch for every objective; one step on 1 and 8 devices agrees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vfm_jax.core.sharding import batch_sharding, make_mesh, replicated, shardings
from vfm_jax.models import MODELS
from vfm_jax.objectives import OBJECTIVES
from vfm_jax.train.state import init_state
from vfm_jax.train.step import gradients, make_step

BATCH = 16


def _networks(name):
    # Mean pooling: at initialisation the class tokens of all images are nearly equal, and batch norm would blow up
    # the rounding of their differences.
    encoder = MODELS["vit"](variant="mu/4", positions="learned", pooling="mean", drop_path=0.3)
    other = {
        "mae": {"decoder": MODELS["masked_decoder"](width=16, depth=1, heads=2)},
        "simclr": {"projector": MODELS["projection_head"](hidden_dim=24, out_dim=12, num_layers=3)},
        "supervised": {"head": MODELS["linear_head"](num_classes=5)},
        "supervised_with_batch_norm": {"head": MODELS["linear_head"](num_classes=5, batch_norm=True)},
    }
    return {"encoder": encoder, **other[name]}


def _objective(name):
    settings = {"simclr": {"temperature": 0.5}}.get(name, {})
    return OBJECTIVES[name.removesuffix("_with_batch_norm")](**_networks(name), **settings)


def _batch(name):
    views = (2,) if name == "simclr" else ()
    image = jax.random.normal(jax.random.key(2), (BATCH, *views, 8, 12, 3), jnp.float32)
    index = jnp.arange(BATCH) * 3 + 1
    return {"image": image, "label": index % 5, "index": index, "epoch": jnp.full(BATCH, 2, jnp.int32)}


@pytest.mark.parametrize("name", ["mae", "simclr", "supervised", "supervised_with_batch_norm"])
def test_accumulated_gradient_equals_that_of_the_whole_batch(name):
    objective, batch = _objective(name), _batch(name)
    params, extra = jax.jit(objective.init)(jax.random.key(0), batch)

    @functools.partial(jax.jit, static_argnums=0)
    def run(parts):
        return gradients(objective, params, extra, batch, jax.random.key(5), jnp.int32(3), parts)

    whole, parts = run(1), run(4)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole[0])) > 1e-3
    _assert_equal_but_for_rounding(parts, whole)


@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 2, "fsdp": 4}])
@pytest.mark.parametrize("name", ["mae", "simclr"])
def test_a_step_on_eight_devices_equals_one_on_a_single_device(name, mesh, monkeypatch):
    monkeypatch.setattr("vfm_jax.core.sharding.FSDP_MIN_SIZE", 64)
    objective, batch = _objective(name), _batch(name)
    optimizer = optax.sgd(0.1)  # linear in the gradient: a difference in the update is one in the gradient
    step = make_step(objective, optimizer, lambda key, batch: batch, seed=0, schedule=lambda step: jnp.float32(0.1))
    create = functools.partial(init_state, objective, optimizer, batch, with_ema=False)
    results = []
    for devices, sizes in ((jax.devices()[:1], {}), (jax.devices(), mesh)):
        device_mesh = make_mesh(**sizes, devices=devices)
        layout = shardings(jax.eval_shape(create, jax.random.key(0)), device_mesh)
        state = jax.jit(create, out_shardings=layout)(jax.random.key(0))
        placed = jax.device_put(batch, batch_sharding(device_mesh))
        state, measured = jax.jit(step, out_shardings=(layout, replicated(device_mesh)))(state, placed)
        results.append(jax.device_get((state.params, measured["loss"])))
    if "fsdp" in mesh:
        assert any("fsdp" in str(leaf.sharding.spec) for leaf in jax.tree.leaves(state.params))
    _assert_equal_but_for_rounding(results[1], results[0])


def _assert_equal_but_for_rounding(found, expected):
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-6, atol=1e-6 * max(1.0, np.abs(one).max()))
