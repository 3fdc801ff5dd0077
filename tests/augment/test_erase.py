"""Rectangles are erased where, as often and as large as timm's RandomErasing erases them."""

import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vfm_jax.augment import erase
from vfm_jax.augment.views import build_views
from vfm_jax.core.errors import UserError

NORMALIZE = dict(name="normalize", mean=0.5, std=0.25)


def timm_box(rng, height, width, area, ratio):
    """RandomErasing._erase of timm, count 1, in plain Python: top, left, height, width; None where nothing fits."""
    for _ in range(10):
        pixels = rng.uniform(*area) * height * width
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        h, w = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if w < width and h < height:
            return rng.randint(0, height - h), rng.randint(0, width - w), h, w
    return None


@pytest.mark.parametrize(
    ("size", "area", "ratio"),
    [
        ((224, 224), (0.02, 1 / 3), (0.3, 1 / 0.3)),
        ((160, 90), (0.1, 0.5), (0.3, 3.3)),
        ((30, 150), (0.6, 1.0), (0.3, 3.3)),  # often none of ten fits
    ],
)
def test_rectangles_are_distributed_as_timms(key, size, area, ratio):
    number = 6000
    draw = jax.jit(jax.vmap(lambda k: erase.draw_box(k, jnp.array(size, jnp.int32), area, ratio)))
    origin, shape, fits = (np.asarray(a) for a in draw(jax.random.split(key, number)))
    rng = random.Random(0)
    drawn = [timm_box(rng, *size, area, ratio) for _ in range(number)]
    reference = np.array([box for box in drawn if box is not None])
    ours = np.concatenate([origin, shape], axis=1)[fits]

    assert abs(len(ours) - len(reference)) / number < 0.04  # 4 standard errors of a difference
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= size).all()
    quantities = {
        "area": lambda c: c[:, 2] * c[:, 3],
        "ratio": lambda c: np.log(c[:, 2] / c[:, 3]),
        "top in what is free": lambda c: (c[:, 0] + 0.5) / (size[0] - c[:, 2] + 1),
        "left in what is free": lambda c: (c[:, 1] + 0.5) / (size[1] - c[:, 3] + 1),
    }
    for name, quantity in quantities.items():
        assert scipy.stats.ks_2samp(quantity(ours), quantity(reference)).pvalue > 1e-3, name


@pytest.mark.parametrize("mode", ["pixel", "constant"])
def test_one_rectangle_is_erased_at_the_probability(key, mode):
    number, height, width = 400, 19, 23
    image = np.random.default_rng(0).random((height, width, 3), np.float32) + 7  # unlike noise
    operation = erase.random_erasing(probability=0.25, mode=mode)
    out = np.asarray(
        jax.jit(jax.vmap(lambda k: operation(k, jnp.asarray(image), None)[0]))(jax.random.split(key, number))
    )
    changed = (out != image).all(axis=3)
    np.testing.assert_array_equal(changed, (out != image).any(axis=3))
    happened = changed.any(axis=(1, 2))
    assert abs(happened.mean() - 0.25) < 0.09  # 4 standard errors
    for mask in changed[happened]:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert mask.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    written = out[changed]
    if mode == "constant":
        assert (written == 0).all()
    else:
        assert scipy.stats.kstest(written.ravel(), "norm").pvalue > 1e-3
        assert len(np.unique(written)) > 0.99 * written.size


def test_the_padding_of_a_canvas_is_left_alone(key):
    operation = erase.random_erasing(probability=1.0, mode="constant", area=(0.3, 0.6))
    size = jnp.array([9, 7], jnp.int32)
    erased = jax.jit(jax.vmap(lambda k: operation(k, jnp.ones((20, 24, 1), jnp.float32), size)[0]))
    gone = np.asarray(erased(jax.random.split(key, 50)))[..., 0] == 0
    assert not gone[:, 9:].any()
    assert not gone[:, :, 7:].any()
    share = gone.sum(axis=(1, 2)) / 63
    assert share.min() > 0.2
    assert share.max() < 0.7


def test_it_stands_after_normalize(key):
    erasing = dict(name="random_erasing", probability=1.0, mode="constant")
    batch = {"image": np.full((3, 12, 13, 3), 255, np.uint8), "index": np.arange(3, dtype=np.int32)}
    out = np.asarray(jax.jit(build_views({"image": {"ops": (NORMALIZE, erasing)}}))(key, batch)["image"])
    assert set(np.unique(out.round(5))) == {0.0, 2.0}
    with pytest.raises(UserError, match=r"ops\[0\].*comes before normalize"):
        build_views({"image": {"ops": (erasing, NORMALIZE)}})
    with pytest.raises(UserError, match=r"ops\[2\] comes after normalize"):
        build_views({"image": {"ops": (NORMALIZE, erasing, dict(name="flip"))}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(probability=1.5), "probability is 1.5"),
        (dict(mode="noise"), "mode is 'noise'; expected one of: pixel, constant"),
        (dict(area=(0.5, 1.2)), "at most the area of its image"),
        (dict(ratio=(3.3, 0.3)), "ratio is"),
    ],
)
def test_a_value_out_of_range_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        erase.random_erasing(**fields)
