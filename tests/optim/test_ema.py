"""The average of the weights agrees with MoCo v3's update and timm's warm-up."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.optim import ema_momentum, update_ema


@pytest.mark.parametrize("name", ["ema", "ema_b"])
@pytest.mark.parametrize("traced", [False, True])
def test_update_is_moco_v3s(golden_directory, name, traced):
    with np.load(golden_directory / "components" / f"{name}.npz") as golden:
        params, ema, new = ({k: golden[f"{part}_{k}"] for k in ("w", "b")} for part in ("base", "ema", "new"))
        momentum = json.loads(str(golden["meta"]))["config"]["m"]
    found = update_ema(ema, params, jnp.float32(momentum)) if traced else update_ema(ema, params, momentum)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, new)


def test_average_of_bfloat16_weights_is_float32_and_moves():
    found = update_ema({"w": jnp.ones(3)}, {"w": jnp.full(3, 1.0078125, jnp.bfloat16)}, 0.999)
    assert found["w"].dtype == jnp.float32
    np.testing.assert_allclose(found["w"], 1 + 0.0078125e-3, rtol=1e-7)


def test_warmed_momentum_is_timms(golden_directory):
    with np.load(golden_directory / "components" / "ema.npz") as golden:
        expected = golden["timm_warmup_decay"]
    steps = jnp.arange(50, dtype=jnp.int32)
    found = jax.jit(jax.vmap(lambda s: ema_momentum(s, momentum=0.999, warmup=True)))(steps)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_warmed_momentum_ends_at_the_given_one():
    assert ema_momentum(10**6, momentum=0.9, warmup=True) == np.float32(0.9)
    assert ema_momentum(3, momentum=0.9) == 0.9
