"""Crops are Pillow's crop().resize() where torchvision would put them; flips and shifts move whole pixels."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image

from vfm_jax.augment import geometry
from vfm_jax.core.errors import UserError

PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def photo(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).random((height, width, channels), np.float32)


def on_canvas(image, height, width):
    """The photo at the top left of a canvas of noise, which nothing may read."""
    canvas = photo(height, width, image.shape[2], seed=9)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas, np.array(image.shape[:2], np.int32)


def pillow_resize(image, height, width, interpolation):
    """Pillow in floating point (mode F), one channel at a time; clipped, as its 8-bit images are."""
    channels = [
        np.asarray(Image.fromarray(plane).resize((width, height), PILLOW[interpolation]))
        for plane in np.moveaxis(image, -1, 0)
    ]
    return np.clip(np.stack(channels, axis=-1), 0, 1)


def torchvision_crop(rng, height, width, scale, ratio):
    """The algorithm of torchvision's RandomResizedCrop.get_params, in plain Python: top, left, height, width."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    if width / height < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif width / height > ratio[1]:
        h, w = height, round(height * ratio[1])
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((370, 530), (0.08, 1.0), (3 / 4, 4 / 3)),
        ((530, 370), (0.2, 1.0), (3 / 4, 4 / 3)),
        ((90, 310), (0.3, 1.0), (3 / 4, 4 / 3)),  # many tries do not fit, and often none does
    ],
)
def test_crops_are_distributed_as_torchvisions(key, size, scale, ratio):
    draw = jax.jit(jax.vmap(lambda k: geometry.draw_crop(k, jnp.array(size, jnp.int32), scale, ratio)))
    origin, shape = (np.asarray(a) for a in draw(jax.random.split(key, 6000)))
    rng = np.random.default_rng(0)
    reference = np.array([torchvision_crop(rng, *size, scale, ratio) for _ in range(6000)])
    ours = np.concatenate([origin, shape], axis=1)

    assert (origin >= 0).all()
    assert (origin + shape <= size).all()
    quantities = {
        "top": lambda c: c[:, 0] / size[0],
        "left": lambda c: c[:, 1] / size[1],
        "area": lambda c: c[:, 2] * c[:, 3] / math.prod(size),
        "ratio": lambda c: np.log(c[:, 3] / c[:, 2]),
        "place in what is free": lambda c: (c[:, 1] + 0.5) / (size[1] - c[:, 3] + 1),
    }
    for name, quantity in quantities.items():
        a, b = quantity(ours), quantity(reference)
        assert scipy.stats.ks_2samp(a, b).pvalue > 1e-3, name
        assert abs(a.mean() - b.mean()) < 4 * (a.std() + 1e-6) * math.sqrt(2 / 6000), name


@pytest.mark.parametrize("size", [(11, 100), (100, 11), (60, 70)])
def test_a_crop_that_never_fits_is_the_largest_central_one(key, size):
    """A scale above one never fits; the builder refuses it, the draw itself does not mind."""
    origin, shape = geometry.draw_crop(key, jnp.array(size, jnp.int32), (1.5, 2.0), (3 / 4, 4 / 3))
    expected = torchvision_crop(np.random.default_rng(0), *size, (1.5, 2.0), (3 / 4, 4 / 3))
    assert (*origin.tolist(), *shape.tolist()) == expected


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [9, 64])
def test_a_random_crop_is_pillows_crop_then_resize(key, interpolation, size):
    """To float32's accuracy, smaller and larger, with the photo alone or on a canvas: nothing around it leaks in."""
    image = photo(41, 53)
    canvas, valid = on_canvas(image, 60, 57)
    operation = jax.jit(geometry.random_resized_crop(size=size, scale=(0.1, 0.9), interpolation=interpolation))
    for k in jax.random.split(key, 5):
        (y, x), (h, w) = (np.asarray(a) for a in geometry.draw_crop(k, jnp.array(valid), (0.1, 0.9), (3 / 4, 4 / 3)))
        expected = pillow_resize(image[y : y + h, x : x + w], size, size, interpolation)
        out, left = operation(k, canvas, valid)
        assert left is None
        np.testing.assert_allclose(out, expected, atol=1e-5)
        np.testing.assert_allclose(operation(k, image, None)[0], expected, atol=1e-5)


def test_reading_around_the_crop_would_have_been_a_visible_error(key):
    """`jax.image.scale_and_translate`, which does, is off by several of the 255 levels at the crop's edges."""
    image, (y, x, h, w), size = photo(41, 53), (7, 9, 30, 24), 8
    scale = np.array([size / h, size / w], np.float32)
    leaky = jax.image.scale_and_translate(
        image, (size, size, 3), (0, 1), scale, -np.array([y, x], np.float32) * scale, "linear", antialias=True
    )
    expected = pillow_resize(image[y : y + h, x : x + w], size, size, "bilinear")
    assert np.abs(leaky - expected).max() > 5 / 255
    np.testing.assert_allclose(leaky[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(41, 53), (53, 41), (20, 20)])
def test_the_evaluation_crop_is_resize_then_center_crop(key, interpolation, shape):
    image = photo(*shape)
    height, width = shape
    resized = pillow_resize(image, 32 * height // min(shape), 32 * width // min(shape), interpolation)
    top, left = round((resized.shape[0] - 25) / 2), round((resized.shape[1] - 25) / 2)
    expected = resized[top : top + 25, left : left + 25]
    operation = jax.jit(geometry.center_crop(size=25, resize_shorter=32, interpolation=interpolation))
    np.testing.assert_allclose(operation(key, image, None)[0], expected, atol=1e-5)
    np.testing.assert_allclose(operation(key, *on_canvas(image, 60, 57))[0], expected, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(30, 52), (52, 30), (30, 30)])
def test_a_random_crop_is_a_square_of_the_resized_image_anywhere_along_it(height, width):
    image, valid = on_canvas(photo(height, width), 60, 64)
    operation = jax.jit(jax.vmap(geometry.random_crop(size=20, resize_shorter=24), (0, None, None)))
    crops, _ = operation(jax.random.split(jax.random.key(0), 200), image, valid)
    resized = pillow_resize(photo(height, width), height * 24 // 30, width * 24 // 30, "bicubic")
    windows = np.lib.stride_tricks.sliding_window_view(resized, (20, 20), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
    apart = np.abs(windows[None] - np.asarray(crops)[:, None, None]).max(axis=(3, 4, 5))
    assert apart.min(axis=(1, 2)).max() < 2e-3
    nearest = apart.reshape(200, -1).argmin(axis=1)
    assert len(np.unique(nearest)) > 0.7 * min(200, apart[0].size)  # every place is drawn


def test_a_center_crop_without_resizing_keeps_the_pixels_and_fills_up_with_zeros(key):
    image = photo(12, 9)
    out, _ = jax.jit(geometry.center_crop(size=8))(key, image, None)
    np.testing.assert_array_equal(out, image[2:10, 0:8])  # torchvision rounds 0.5 to even
    out, _ = jax.jit(geometry.center_crop(size=10))(key, *on_canvas(image[:7], 15, 14))
    expected = np.zeros((10, 10, 3), np.float32)
    expected[1:8, 0:9] = image[:7]  # torchvision puts the odd row or column at the end
    np.testing.assert_array_equal(out, expected)


def test_resize_takes_the_whole_photo_whatever_its_shape(key):
    image = photo(17, 31, channels=5)
    out, _ = jax.jit(geometry.resize(size=12))(key, *on_canvas(image, 20, 40))
    np.testing.assert_allclose(out, pillow_resize(image, 12, 12, "bicubic"), atol=1e-5)


def test_a_flip_mirrors_the_photo_and_leaves_it_at_the_left(key):
    image = photo(5, 7, channels=2)
    operation = geometry.flip(probability=1.0)
    np.testing.assert_array_equal(operation(key, image, None)[0], image[:, ::-1])
    out, size = operation(key, *on_canvas(image, 6, 11))
    np.testing.assert_array_equal(out[:5, :7], image[:, ::-1])
    assert size.tolist() == [5, 7]


def test_a_shift_moves_whole_pixels_uniformly_and_zeros_move_in(key):
    image = photo(6, 5, channels=1) + 0.1
    canvas, valid = on_canvas(image, 9, 8)
    operation = jax.jit(jax.vmap(geometry.shift(max_pixels=2), (0, None, None)))
    keys = jax.random.split(key, 1000)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    possible = np.stack([padded[y : y + 6, x : x + 5] for y in range(5) for x in range(5)])
    for args in ((image, None), (canvas, valid)):
        out = np.asarray(operation(keys, *args)[0])[:, :6, :5]
        equal = (out[:, None] == possible[None]).all(axis=(2, 3, 4))
        assert (equal.sum(axis=1) == 1).all()
        assert scipy.stats.chisquare(equal.sum(axis=0)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: geometry.random_resized_crop(size=0), "size is 0; expected a whole number of pixels"),
        (
            lambda: geometry.random_resized_crop(size=8, scale=(1.0, 0.2)),
            "scale is .1.0, 0.2.; expected two positive",
        ),
        (lambda: geometry.random_resized_crop(size=8, scale=(0.2, 2.0)), "at most the area of its photo"),
        (lambda: geometry.random_resized_crop(size=8, ratio=(0.0, 1.0)), "ratio is .0.0, 1.0."),
        (lambda: geometry.resize(size=8, interpolation="bicubik"), "Did you mean 'bicubic'"),
        (lambda: geometry.center_crop(size=224, resize_shorter=128), "Set resize_shorter to 224 or more"),
        (lambda: geometry.flip(probability=1.5), "probability is 1.5; expected a number from 0 to 1"),
        (lambda: geometry.shift(max_pixels=-1), "max_pixels is -1"),
    ],
)
def test_a_value_out_of_its_range_is_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()
