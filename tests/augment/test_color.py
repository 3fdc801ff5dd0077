"""Colours change as torchvision's formulas, Pillow, colorsys and SciPy say."""

import colorsys
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from PIL import Image, ImageEnhance, ImageOps

from vfm_jax.augment import color
from vfm_jax.core.errors import UserError

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
STRONG = dict(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)  # SimCLR's at strength 1


def photo(height=7, width=9, channels=3, seed=0):
    return np.random.default_rng(seed).random((height, width, channels), np.float32)


def on_canvas(image, height, width):
    canvas = photo(height, width, image.shape[2], seed=9)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas, np.array(image.shape[:2], np.int32)


def blend(image, target, factor):
    return np.clip(factor * image + (1 - factor) * target, 0, 1)


def grey(image):
    return (image @ LUMA)[..., None] if image.shape[-1] == 3 else image.mean(axis=-1, keepdims=True)


def turn_hue(image, turns):
    pixels = [colorsys.rgb_to_hsv(*map(float, rgb)) for rgb in image.reshape(-1, 3)]
    return np.array([colorsys.hsv_to_rgb((h + turns) % 1, s, v) for h, s, v in pixels]).reshape(image.shape)


CHANGES = {  # torchvision's functional adjust_*, in numpy
    "brightness": lambda image, f: blend(image, 0, f),
    "contrast": lambda image, f: blend(image, grey(image).mean(), f),
    "saturation": lambda image, f: blend(image, grey(image), f),
    "hue": turn_hue,
}


@pytest.mark.parametrize("factor", [0.0, 0.35, 1.0, 1.8])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_blend_is_torchvisions_formula_and_pillows_within_its_rounding(kind, factor):
    eight_bit = (photo() * 255).astype(np.uint8)
    image = eight_bit.astype(np.float32) / 255
    out = color.blend(image, None, jnp.int32(kind), jnp.float32(factor))
    formula = list(CHANGES.values())[kind](image, factor)
    np.testing.assert_allclose(out, formula, atol=1e-6)

    enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[kind]
    pillow = np.asarray(enhance(Image.fromarray(eight_bit)).enhance(factor))
    # Pillow rounds the grey to a level (times |1 - f|, at most 1 here) and cuts off the result's fraction
    np.testing.assert_allclose(np.asarray(out) * 255, pillow, atol=2.0)


@pytest.mark.parametrize("turns", [-0.5, -0.2, 0.07, 0.5])
def test_hue_is_turned_as_by_colorsys(turns):
    image = photo()
    image[0, :4] = [[0, 0, 0], [1, 1, 1], [0.3, 0.3, 0.3], [0.8, 0.8, 0.1]]  # no hue; two largest channels
    np.testing.assert_allclose(color.rotate_hue(image, jnp.float32(turns)), turn_hue(image, turns), atol=2e-6)


def test_hue_turned_by_nothing_is_the_image():
    image = np.concatenate([photo(), np.eye(3, dtype=np.float32)[None, [0, 1, 2] * 3]])
    np.testing.assert_allclose(color.rotate_hue(image, jnp.float32(0)), image, atol=5e-7)


@pytest.fixture(scope="module")
def jittered():
    """400 jitters of one image, with all four changes and with each alone (which shows its factor)."""
    image, keys = photo(4, 5) * 0.1 + 0.4, jax.random.split(jax.random.key(3), 400)

    def run(**strengths):
        operation = color.color_jitter(**strengths, probability=1.0)
        return np.asarray(jax.jit(jax.vmap(lambda k: operation(k, image, None)[0]))(keys))

    flat = {name: run(**{name: STRONG[name]}) for name in ("brightness", "contrast", "saturation")}
    targets = {"brightness": 0 * image, "contrast": grey(image).mean() + 0 * image, "saturation": grey(image)}
    factors = {}
    for name, out in flat.items():  # least squares of f in out = f x + (1 - f) target: nothing was clipped
        x = image - targets[name]
        factors[name] = np.sum((out - targets[name]) * x, axis=(1, 2, 3)) / np.sum(x * x)
    turned = run(hue=STRONG["hue"])
    before = colorsys.rgb_to_hsv(*map(float, image[0, 0]))[0]
    after = np.array([colorsys.rgb_to_hsv(*map(float, rgb))[0] for rgb in turned[:, 0, 0]])
    factors["hue"] = (after - before + 0.5) % 1 - 0.5
    return image, factors, run(**STRONG), run(**STRONG, random_order=False)


def test_factors_are_uniform_in_torchvisions_ranges(jittered):
    _, factors, _, _ = jittered
    for name, low, length in (("brightness", 0.2, 1.6), ("contrast", 0.2, 1.6), ("saturation", 0.2, 1.6)):
        assert scipy.stats.kstest(factors[name], "uniform", (low, length)).pvalue > 1e-3, name
    assert scipy.stats.kstest(factors["hue"], "uniform", (-0.2, 0.4)).pvalue > 1e-3


def in_order(image, factors, i, names):
    for name in names:
        image = CHANGES[name](image, factors[name][i])
    return image


def test_the_four_changes_are_made_one_after_another_in_each_of_the_24_orders(jittered):
    """Their results differ, so the order shows; orders that come to the same (1e-3) share their count."""
    image, factors, out, _ = jittered
    orders = list(itertools.permutations(CHANGES))
    share = np.zeros(len(orders))
    for i in range(len(out)):
        errors = np.array([np.abs(in_order(image, factors, i, names) - out[i]).max() for names in orders])
        assert errors.min() < 2e-5
        share += (errors < 1e-4) / np.sum(errors < 1e-4)
    assert scipy.stats.chisquare(share, np.full(24, len(out) / 24)).pvalue > 1e-3


def test_without_random_order_hue_comes_last(jittered):
    image, factors, _, out = jittered
    for i in range(20):
        np.testing.assert_allclose(out[i], in_order(image, factors, i, CHANGES), atol=2e-5)


def test_contrast_knows_the_mean_of_the_photo_alone(key):
    image = photo()
    operation = color.color_jitter(contrast=0.9, probability=1.0)
    out, size = operation(key, *on_canvas(image, 12, 16))
    np.testing.assert_allclose(out[:7, :9], operation(key, image, None)[0], atol=1e-6)
    assert size.tolist() == [7, 9]


def test_an_image_left_alone_is_left_exactly(key):
    image = photo()
    np.testing.assert_array_equal(color.color_jitter(**STRONG, probability=0.0)(key, image, None)[0], image)
    np.testing.assert_array_equal(color.color_jitter(probability=1.0)(key, image, None)[0], image)


def test_grayscale_is_pillows_within_its_rounding(key):
    eight_bit = (photo() * 255).astype(np.uint8)
    out, _ = color.grayscale(probability=1.0)(key, eight_bit.astype(np.float32) / 255, None)
    pillow = np.asarray(Image.fromarray(eight_bit).convert("L"))
    np.testing.assert_allclose(out * 255, np.broadcast_to(pillow[..., None], (7, 9, 3)), atol=0.51)


def scipy_blur(image, sigma, kernel_size):
    distance = np.arange(kernel_size) - kernel_size // 2
    taps = np.exp(-0.5 * (distance / sigma) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        image = scipy.ndimage.correlate1d(image, taps, axis=axis, mode="mirror")
    return image


@pytest.mark.parametrize(("sigma", "kernel_size"), [(0.1, 3), (0.8, 5), (2.0, 13)])
def test_a_blur_is_torchvisions_truncated_mirrored_gaussian(key, sigma, kernel_size):
    image = photo(7, 9, channels=4)
    operation = jax.jit(color.gaussian_blur(sigma=(sigma, sigma), probability=1.0, kernel_size=kernel_size))
    expected = scipy_blur(image, sigma, kernel_size)  # 13 taps: as far as 7 pixels can be mirrored once
    np.testing.assert_allclose(operation(key, image, None)[0], expected, atol=2e-6)
    out, _ = operation(key, *on_canvas(image, 10, 15))
    np.testing.assert_allclose(out[:7, :9], expected, atol=2e-6)


@pytest.mark.parametrize(("height", "kernel_size"), [(28, 3), (64, 7), (224, 23)])
def test_the_blur_of_simclr_has_a_tenth_of_the_height(key, height, kernel_size):
    image = photo(height, 30, channels=1)
    by_ratio = jax.jit(color.gaussian_blur(sigma=(2.0, 2.0), probability=1.0))(key, image, None)[0]
    np.testing.assert_allclose(by_ratio, scipy_blur(image, 2.0, kernel_size), atol=2e-6)


def test_solarize_is_pillows(key):
    eight_bit = np.arange(256, dtype=np.uint8).reshape(8, 32, 1)
    out, _ = color.solarize(probability=1.0)(key, eight_bit.astype(np.float32) * np.float32(1 / 255), None)
    np.testing.assert_allclose(out[..., 0] * 255, ImageOps.solarize(Image.fromarray(eight_bit[..., 0])), atol=1e-3)


def test_normalize_takes_a_value_for_each_channel_or_one_for_all(key):
    image = photo(channels=2)
    out, _ = color.normalize(mean=(0.4, 0.7), std=(0.2, 0.5))(key, image, None)
    np.testing.assert_allclose(out, (image - [0.4, 0.7]) / [0.2, 0.5], atol=1e-6)
    out, _ = color.normalize(mean=0.4, std=0.2)(key, image, None)
    np.testing.assert_allclose(out, (image - 0.4) / 0.2, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_what_needs_no_colour_takes_any_number_of_channels(key, channels):
    image = photo(channels=channels)
    out, _ = color.color_jitter(brightness=0.4, contrast=0.4, probability=1.0)(key, image, None)
    assert out.shape == image.shape
    assert np.abs(out - image).max() > 1e-3


@pytest.mark.parametrize(
    "operation", [color.grayscale(), color.color_jitter(hue=0.1), color.color_jitter(saturation=0.1)]
)
def test_what_needs_colour_refuses_other_channels(key, operation):
    with pytest.raises(UserError, match="red, green and blue only, and these images have 5 channels"):
        operation(key, photo(channels=5), None)


def test_normalize_refuses_another_number_of_channels(key):
    operation = color.normalize(mean=(0.5, 0.5, 0.5), std=0.2)
    with pytest.raises(UserError, match="mean has 3 values, and these images have 1 channels"):
        operation(key, photo(channels=1), None)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: color.color_jitter(brightness=-0.1), "brightness is -0.1; expected zero or more"),
        (lambda: color.color_jitter(hue=0.6), "hue is 0.6; expected a share of the circle"),
        (lambda: color.color_jitter(probability=80), "probability is 80"),
        (lambda: color.gaussian_blur(kernel_size=4), "kernel_size is 4; expected an odd number"),
        (lambda: color.gaussian_blur(sigma=(0.0, 1.0)), "sigma is .0.0, 1.0."),
        (lambda: color.solarize(threshold=128), "threshold is 128; expected a number from 0 to 1"),
        (lambda: color.normalize(mean=0.5, std=(0.2, 0.0)), "std is .0.2, 0.0.; expected numbers above zero"),
    ],
)
def test_a_value_out_of_its_range_is_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()
