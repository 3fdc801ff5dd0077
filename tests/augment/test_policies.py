"""Each change is Pillow's, and they are drawn as timm's rand-m9-mstd0.5-inc1 draws them."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image, ImageEnhance, ImageOps

from vfm_jax.augment import policies
from vfm_jax.augment.views import build_views
from vfm_jax.core.errors import UserError

FILL = (124, 116, 104)  # timm's mean colour in 8 bits
AFFINE = Image.Transform.AFFINE
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def photo(height=21, width=34, channels=3):
    """Smooth colours with some noise, neither from 0 nor to 255: 8 bits."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / (5 + c)) * np.cos(y / (3 + c)) for c in range(channels)], axis=-1)
    return np.clip(118 + 80 * waves + rng.normal(0, 12, waves.shape), 9, 241).astype(np.uint8)


def pillow_warp(name, image, s, interpolation):
    """The warp as timm calls Pillow for it, but in floating point (mode F), one channel at a time."""
    height, width = image.shape[:2]
    matrix = {
        "shear_x": (1, s, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, s, 1, 0),
        "translate_x": (1, 0, s * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, s * height),
    }
    channels = []
    for plane, fill in zip(np.moveaxis(image, -1, 0).astype(np.float32), FILL, strict=True):
        plane, how = Image.fromarray(plane), dict(resample=PILLOW[interpolation], fillcolor=fill)
        moved = (
            plane.rotate(s, **how) if name == "rotate" else plane.transform(plane.size, AFFINE, matrix[name], **how)
        )
        channels.append(np.asarray(moved))
    return np.clip(np.stack(channels, axis=-1), 0, 255)


def pillow(name, image, s):
    """The change as timm calls Pillow for it, in 8 bits."""
    image = Image.fromarray(image)
    add = [min(255, i + int(s)) if i < 128 else i for i in range(256)] * 3
    changed = {
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(s),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(s),
        "color": lambda: ImageEnhance.Color(image).enhance(s),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(s),
        "auto_contrast": lambda: ImageOps.autocontrast(image),
        "invert": lambda: ImageOps.invert(image),
        "solarize": lambda: ImageOps.solarize(image, int(s)),
        "solarize_add": lambda: image.point(add),
        "posterize": lambda: ImageOps.posterize(image, int(s)),
        "equalize": lambda: ImageOps.equalize(image),
    }
    return np.asarray(changed[name]()).astype(np.float32)


@pytest.fixture(scope="module")
def change():
    return {
        interpolation: jax.jit(lambda *args, how=interpolation: policies.change(*args, how))
        for interpolation in PILLOW
    }


def ours(change, name, image, s, interpolation="bilinear"):
    """In 8-bit units, not rounded."""
    kind = -1 if name is None else policies.CHANGES.index(name)
    fill = np.array(FILL, np.float32) / 255
    return 255 * np.asarray(change[interpolation](image, np.int32(kind), np.float32(s), fill))


WARPS = {
    "rotate": (27.3, -11.0),
    "shear_x": (0.271, -0.15),
    "shear_y": (0.271, -0.15),
    "translate_x": (0.407, -0.13),
    "translate_y": (0.407, -0.13),
}
# In 8-bit levels. Pillow cuts a mixture off to whole levels (1), and where it mixes with a grey or smoothed image
# that was rounded, half a level more counts |1 − factor| times. Tables and whole steps are exact but for float32.
STRENGTHS = {
    "brightness": ((0.19, 1.81), 1.001),
    "contrast": ((0.19, 1.81), 1.41),
    "color": ((0.19, 1.81), 1.41),
    "sharpness": ((0.19, 1.81), 1.41),
    "auto_contrast": ((0.0,), 1.001),
    "invert": ((0.0,), 1e-3),
    "solarize": ((26.0, 128.0), 1e-3),
    "solarize_add": ((99.0, 110.0), 1e-3),
    "posterize": ((1.0, 3.0), 1e-3),
    "equalize": ((0.0,), 1e-3),
}


def test_every_change_is_compared():
    assert set(policies.CHANGES) == WARPS.keys() | STRENGTHS.keys()


@pytest.mark.parametrize("interpolation", sorted(PILLOW))
@pytest.mark.parametrize("name", WARPS)
def test_a_warp_is_pillows(change, name, interpolation):
    image = photo()
    for s in WARPS[name]:
        expected = pillow_warp(name, image, s, interpolation)
        out = ours(change, name, image / np.float32(255), s, interpolation)
        np.testing.assert_allclose(out, expected, atol=0.01, rtol=0)  # float32 places, times steps of 100 levels
        assert np.abs(expected - image).max() > 20


@pytest.mark.parametrize("name", STRENGTHS)
def test_a_change_of_values_is_pillows(change, name):
    image = photo()
    values, tolerance = STRENGTHS[name]
    for s in values:
        expected = pillow(name, image, s)
        np.testing.assert_allclose(ours(change, name, image / np.float32(255), s), expected, atol=tolerance, rtol=0)
        assert np.abs(expected - image).max() > 10


def test_posterizing_to_no_bits_is_black(change):
    assert (ours(change, "posterize", photo() / np.float32(255), 0.0) == 0).all()


@pytest.mark.parametrize("interpolation", sorted(PILLOW))
def test_no_change_gives_the_image_bit_for_bit(change, interpolation):
    image = np.random.default_rng(0).random((21, 34, 3), np.float32)
    np.testing.assert_array_equal(
        change[interpolation](image, np.int32(-1), np.float32(7), np.zeros(3, np.float32)), image
    )


@pytest.mark.parametrize("name", ["auto_contrast", "equalize"])
def test_a_channel_of_one_value_stays(change, name):
    image = photo()
    image[..., 1] = 77
    expected = pillow(name, image, 0.0)
    np.testing.assert_allclose(ours(change, name, image / np.float32(255), 0.0), expected, atol=1.01, rtol=0)
    assert (expected[..., 1] == 77).all()


def test_equalizing_few_values_is_pillows(change):
    """Where the step is one pixel, the table runs beyond 255 and is cut off; where it is none, nothing changes."""
    for shape in ((21, 34, 3), (15, 19, 3)):
        image = np.random.default_rng(1).choice(np.array([3, 90, 91, 200], np.uint8), shape, p=[0.2, 0.2, 0.2, 0.4])
        expected = pillow("equalize", image, 0.0)
        np.testing.assert_allclose(ours(change, "equalize", image / np.float32(255), 0.0), expected, atol=1e-3)


def timm_draw(rng, increasing):
    """One AugmentOp of timm, in plain Python: the name and what its function is told."""
    name = rng.choice(policies.CHANGES)
    if rng.random() > 0.5:
        return None, 0.0
    level = max(0.0, min(rng.gauss(9, 0.5), 10.0))
    sign = -1 if rng.random() > 0.5 else 1
    if name in ("brightness", "contrast", "color", "sharpness"):
        if increasing:
            return name, max(0.1, 1.0 + sign * (level / 10) * 0.9)
        return name, (level / 10) * 1.8 + 0.1
    threshold, bits = int(level / 10 * 256), int(level / 10 * 4)
    return name, {
        "rotate": sign * level / 10 * 30,
        "shear_x": sign * level / 10 * 0.3,
        "shear_y": sign * level / 10 * 0.3,
        "translate_x": sign * level / 10 * 0.45,
        "translate_y": sign * level / 10 * 0.45,
        "solarize": 256 - threshold if increasing else threshold,
        "solarize_add": int(level / 10 * 110),
        "posterize": 4 - bits if increasing else bits,
    }.get(name, 0.0)


@pytest.mark.parametrize("increasing", [True, False])
def test_changes_and_strengths_are_drawn_as_timms(key, increasing):
    number = 30_000
    draw = jax.jit(jax.vmap(lambda k: policies.draw_change(k, 9.0, 0.5, increasing)))
    kinds, strengths = (np.asarray(a) for a in draw(jax.random.split(key, number)))
    rng = random.Random(0)
    reference = [timm_draw(rng, increasing) for _ in range(number)]

    shares = np.bincount(kinds + 1, minlength=16) / number
    np.testing.assert_allclose(shares, [0.5] + [0.5 / 15] * 15, atol=0.012)  # 4 standard errors of the first
    np.testing.assert_allclose(shares[1:], 0.5 / 15, atol=0.0042)  # of the others
    for kind, name in enumerate(policies.CHANGES):
        a, b = strengths[kinds == kind], np.array([s for n, s in reference if n == name])
        values = np.unique(b)
        if name in ("posterize", "solarize_add", "solarize", "auto_contrast", "invert", "equalize"):
            assert np.isin(a, np.arange(257)).all()
            for value in values if len(values) < 4 else ():
                assert abs((a == value).mean() - (b == value).mean()) < 0.06
        if len(values) > 4:
            assert scipy.stats.ks_2samp(a, b).pvalue > 1e-4, name


def test_each_image_has_its_own_changes_whatever_the_batch(key):
    ops = (dict(name="rand_augment", fill=(0.485, 0.456, 0.406)), dict(name="normalize", mean=0.5, std=0.25))
    views = jax.jit(build_views({"image": {"ops": ops}}))
    batch = {"image": np.stack([photo(17, 13)] * 12), "index": np.arange(12, dtype=np.int32)}
    out = np.asarray(views(key, batch)["image"])
    again = np.asarray(views(key, {name: field[::-1] for name, field in batch.items()})["image"])[::-1]
    np.testing.assert_array_equal(out, again)
    assert len({image.tobytes() for image in out}) >= 6  # two changes, each left out half of the time
    assert out.min() >= -2
    assert out.max() <= 2


def test_images_of_other_channels_are_changed_too(key):
    operation = policies.rand_augment(num_ops=3, fill=0.5)
    image = photo(12, 11, channels=5) / np.float32(255)
    out = jax.jit(jax.vmap(lambda k: operation(k, jnp.asarray(image), None)[0]))(jax.random.split(key, 6))
    assert out.shape == (6, 12, 11, 5)
    assert np.isfinite(out).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(magnitude=11), "magnitude is 11"),
        (dict(magnitude_std=-1.0), "magnitude_std is -1.0"),
        (dict(num_ops=0), "num_ops is 0"),
        (dict(fill=124), "fill is 124"),
        (dict(interpolation="cubic"), "'cubic'.*bicubic"),
    ],
)
def test_a_value_out_of_range_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        policies.rand_augment(**fields)


def test_images_it_cannot_use_are_refused(key):
    image = jnp.zeros((7, 5, 2), jnp.float32)
    with pytest.raises(UserError, match="Put a crop or a resize before it"):
        policies.rand_augment()(key, image, jnp.array([5, 4], jnp.int32))
    with pytest.raises(UserError, match="fill has 3 values, and these images have 2 channels"):
        policies.rand_augment(fill=(0.1, 0.2, 0.3))(key, image, None)


def test_values_are_counted_alike_by_either_form():
    values = np.random.default_rng(0).integers(0, 256, (17, 23, 3)).astype(np.int32)
    expected = np.stack([np.bincount(plane.ravel(), minlength=256) for plane in np.moveaxis(values, -1, 0)])
    for count in (policies.count_by_adding, policies.count_by_product, policies.count_values):
        np.testing.assert_array_equal(jax.jit(count)(values), expected)


def test_three_augment_draws_each_of_its_three_as_often():
    image = jax.random.uniform(jax.random.key(0), (8, 8, 3), jnp.float32)
    keys = jax.random.split(jax.random.key(1), 600)
    made = jax.jit(jax.vmap(lambda key: policies.three_augment()(key, image, None)[0]))(keys)
    made, image = np.asarray(made), np.asarray(image)
    gray = np.ptp(made, axis=-1).max(axis=(1, 2)) < 1e-5
    solarized = np.abs(made - np.where(image >= 0.5, 1 - image, image)).max(axis=(1, 2, 3)) < 1e-5
    blurred = ~gray & ~solarized
    assert all(abs(float(kind.mean()) - 1 / 3) < 0.06 for kind in (gray, solarized, blurred))
    means = made[blurred].mean(axis=(1, 2))  # which a blur keeps, but for the edges
    assert np.abs(means - image.mean(axis=(0, 1))).max() < 0.15
