"""Variables without an initialisation, whose compilation would take longer than the tests."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.trees import map_named


@pytest.fixture(scope="session")
def random_variables():
    """(model, *inputs, **static ones) -> variables of the right shapes and a sensible scale, by the leaves' names."""

    def leaf(name, shape):
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith(("scale", "var", "gamma")):
            value = generator.uniform(0.5, 1.5, shape.shape)
        else:
            deviation = 1 / np.sqrt(np.prod(shape.shape[:-1])) if len(shape.shape) > 1 else 0.1
            value = deviation * generator.standard_normal(shape.shape)
        return jnp.asarray(value, shape.dtype)

    def variables(model, *inputs, **fixed):
        init = functools.partial(model.init, **fixed)
        return map_named(leaf, jax.eval_shape(init, jax.random.key(0), *inputs))

    return variables
