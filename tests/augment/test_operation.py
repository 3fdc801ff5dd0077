"""What all operations share."""

import jax
import numpy as np
import pytest

from vfm_jax.augment.operation import as_float, map_rows_and_columns, sometimes


def test_a_separable_map_is_its_sum(key):
    image, rows, columns = (
        np.asarray(jax.random.normal(k, shape))
        for k, shape in zip(jax.random.split(key, 3), ((5, 7, 3), (2, 5), (4, 7)), strict=True)
    )
    expected = np.einsum("yh,xw,hwc->yxc", rows, columns, image)
    np.testing.assert_allclose(map_rows_and_columns(image, rows, columns), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_integers_become_the_share_of_their_largest_value(dtype):
    largest = np.iinfo(dtype).max
    pixels = as_float(np.array([0, largest // 5, largest], dtype))
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, [0, 0.2, 1], atol=1e-7)


def test_sometimes_happens_at_its_probability(key):
    keys = jax.random.split(key, 2000)
    one, zero = np.ones((1, 1, 1), np.float32), np.zeros((1, 1, 1), np.float32)
    for probability in (0.0, 0.3, 1.0):
        happened = jax.vmap(lambda k, p=probability: sometimes(k, p, one, zero))(keys)
        assert abs(float(np.mean(happened)) - probability) <= 0.04 * (0 < probability < 1)  # 4 standard errors
