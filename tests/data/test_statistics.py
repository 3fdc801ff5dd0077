"""Statistics of channels agree with numpy's over all valid pixels at once."""

import numpy as np
import pytest

from vfm_jax.data.statistics import merge, moments, no_moments, stacked


def _measured(pictures):
    return merge(stacked([moments(picture) for picture in pictures]))


@pytest.mark.parametrize("channels", [1, 3, 6, 16])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_they_are_those_of_all_pixels_together(channels, dtype):
    random = np.random.RandomState(0)
    shapes = [(5, 7), (12, 3), (1, 1), (9, 9)]
    pictures = [random.uniform(0.1 * i, 0.4 + 0.2 * i, (*shape, channels)) for i, shape in enumerate(shapes)]
    scale = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    pictures = [np.clip(picture * scale, 0, scale).astype(dtype) for picture in pictures]
    found = _measured(pictures)
    values = np.concatenate([picture.reshape(-1, channels) for picture in pictures]).astype(np.float64) / scale
    assert found.num_images == 4
    assert found.num_pixels == 35 + 36 + 1 + 81
    for got, wanted in ((found.mean, values.mean(0)), (found.std, values.std(0))):
        np.testing.assert_allclose(got, wanted, rtol=1e-12)
    for got, wanted in ((found.low, values.min(0)), (found.high, values.max(0))):
        np.testing.assert_allclose(got, wanted, rtol=1e-15)
    assert found.not_finite_ratio == (0,) * channels


def test_a_small_spread_far_from_zero_is_not_lost():
    picture = (0.75 + 1e-6 * np.arange(8, dtype=np.float64)).astype(np.float32).reshape(2, 4, 1)
    found = _measured([picture] * 1000)
    np.testing.assert_allclose(found.std, picture.astype(np.float64).std(), rtol=1e-9)


def test_values_that_are_not_finite_are_counted_and_left_out():
    picture = np.array([[0.0, np.nan], [1.0, np.inf]], np.float32)[..., None]
    found = _measured([picture, np.full((2, 2, 1), 0.5, np.float32)])
    assert found.not_finite_ratio == (0.25,)
    assert found.mean == (0.5,)
    assert (found.low, found.high) == ((0.0,), (1.0,))
    np.testing.assert_allclose(found.std, np.std([0, 1, 0.5, 0.5, 0.5, 0.5]))


def test_no_picture_has_no_mean():
    found = merge(stacked([no_moments(2)]))
    assert np.isnan(found.mean).all()
    assert found.num_pixels == 0
