"""Variables without an initialisation, whose compilation would take longer than the tests."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.trees import map_named


@pytest.fixture
def random_variables():
    """(model, image) -> variables of the right shapes and a sensible scale; equal names have equal values."""

    def leaf(name, shape):
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith(("scale", "var", "gamma")):
            value = generator.uniform(0.5, 1.5, shape.shape)
        else:
            deviation = 1 / np.sqrt(np.prod(shape.shape[:-1])) if len(shape.shape) > 1 else 0.1
            value = deviation * generator.standard_normal(shape.shape)
        return jnp.asarray(value, shape.dtype)

    return lambda model, image: map_named(leaf, jax.eval_shape(model.init, jax.random.key(0), image))
