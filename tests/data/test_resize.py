"""Pictures resized on the host: as Pillow's antialiased filters, for every type and any number of channels."""

import numpy as np
import pytest
from PIL import Image

from vfm_jax.data.resize import resize

DTYPES = [np.uint8, np.uint16, np.float32]


def _smooth(height, width, seed=0):
    """A picture with detail of some pixels, as photos have."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize("shrinks", [1.3, 2.0, 3.1, 5.3, 9.0])
def test_it_is_near_to_pillows_filter(shrinks, bicubic):
    image = _smooth(480, 640)
    height, width = round(480 / shrinks), round(640 / shrinks)
    method = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    other = Image.Resampling.BILINEAR if bicubic else Image.Resampling.BICUBIC
    by_pillow, by_other = (
        np.asarray(Image.fromarray(image).resize((width, height), way)).astype(np.float32) for way in (method, other)
    )
    ours = np.abs(resize(image, height, width, bicubic=bicubic) - by_pillow).mean()
    assert ours < (5.5 if bicubic else 3.5)
    assert ours < 0.8 * np.abs(by_other - by_pillow).mean()


def test_antialiasing_keeps_stripes_of_one_pixel_from_becoming_stripes():
    stripes = np.zeros((400, 400, 1), np.uint8)
    stripes[:, ::2] = 255
    assert resize(stripes, 150, 150).std() < 30
    assert resize(stripes, 150, 150, antialias=False).std() > 60
    assert resize(stripes, 40, 40, bicubic=True).std() < 5


@pytest.mark.parametrize("channels", [1, 2, 4, 6, 16])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [24, 8])
@pytest.mark.parametrize("how", [{}, {"antialias": False}, {"bicubic": True}])
def test_every_number_of_channels_and_type_is_resized_band_by_band(channels, dtype, size, how):
    random = np.random.default_rng(0)
    part = random.random((40, 33, channels), np.float32)
    part = part if dtype is np.float32 else (part * np.iinfo(dtype).max).astype(dtype)
    out = resize(part, size, size, **how)
    assert out.shape == (size, size, channels)
    assert out.dtype == dtype
    for band in range(channels):
        alone = resize(part[..., band : band + 1], size, size, **how)[..., 0]
        # OpenCV sums in another order for another number of channels.
        np.testing.assert_allclose(out[..., band], alone, rtol=0, atol={"f": 4e-6, "u": 1}[out.dtype.kind])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [7, 13, 50])
def test_values_keep_their_range_and_an_even_picture_its_value(dtype, size):
    top = 1 if dtype is np.float32 else np.iinfo(dtype).max
    edges = np.zeros((60, 60, 1), dtype)
    edges[:, 30:] = top
    out = resize(edges, size, size, bicubic=True)
    assert out.min() == 0
    assert out.max() == top
    even = resize(np.full((60, 60, 2), top // 3 if top > 1 else 0.3, dtype), size, size, bicubic=True)
    np.testing.assert_allclose(even.astype(np.float64), top // 3 if top > 1 else 0.3, rtol=1e-6)


@pytest.mark.parametrize("bicubic", [False, True])
def test_nothing_moves(bicubic):
    """A slope stays the same slope, at the places that the new pixels cover."""
    slope = np.broadcast_to(np.arange(120, dtype=np.float32)[:, None, None] / 120, (120, 120, 1)).copy()
    for size in (100, 60, 37, 20, 12):
        out = resize(slope, size, size, bicubic=bicubic)[:, size // 2, 0]
        expected = ((np.arange(size) + 0.5) * 120 / size - 0.5) / 120
        inner = slice(size // 6, -(size // 6))
        np.testing.assert_allclose(out[inner], expected[inner], atol=2e-3)
