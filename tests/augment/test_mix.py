"""Batches are mixed as timm's Mixup mixes them in mode "batch"."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vfm_jax.augment import mixup_cutmix
from vfm_jax.augment.mix import draw_cut
from vfm_jax.core.errors import UserError

CLASSES = 5


def make_batch(b=8, height=13, width=10, channels=3):
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(b, height, width, channels)).astype(np.float32),
        "label": rng.permutation(np.arange(b, dtype=np.int32) % CLASSES),
        "index": np.arange(b, dtype=np.int32) + 100,
    }


def smoothed(label, smoothing):
    """timm's one_hot: two values."""
    off = smoothing / CLASSES
    return np.where(np.arange(CLASSES)[None, :] == label[:, None], 1 - smoothing + off, off).astype(np.float32)


def test_mixup_adds_the_flipped_batch(key):
    mix = jax.jit(mixup_cutmix(num_classes=CLASSES, cutmix=0.0, label_smoothing=0.1))
    batch = make_batch()
    image, flipped = batch["image"], batch["image"][::-1]
    target = smoothed(batch["label"], 0.1)
    shares = []
    for k in jax.random.split(key, 5):
        out = mix(k, batch)
        kept = float(np.sum((out["image"] - flipped) * (image - flipped)) / np.sum((image - flipped) ** 2))
        np.testing.assert_allclose(out["image"], kept * image + (1 - kept) * flipped, atol=1e-5)
        np.testing.assert_allclose(out["target"], kept * target + (1 - kept) * target[::-1], atol=1e-5)
        np.testing.assert_array_equal(out["label"], batch["label"])
        np.testing.assert_array_equal(out["index"], batch["index"])
        shares.append(kept)
    assert out["target"].shape == (8, CLASSES)
    assert out["target"].dtype == out["image"].dtype == np.float32
    assert len(set(shares)) == 5


def test_cutmix_puts_in_a_rectangle_and_weighs_by_its_real_area(key):
    mix = jax.jit(mixup_cutmix(num_classes=CLASSES, mixup=0.0, label_smoothing=0.0))
    batch = make_batch()
    target = smoothed(batch["label"], 0.0)
    sizes = set()
    for k in jax.random.split(key, 12):
        out = {name: np.asarray(field) for name, field in mix(k, batch).items()}
        taken = (out["image"] != batch["image"]).any(axis=(0, 3))  # the same pixels in every example
        expected = np.where(taken[None, :, :, None], batch["image"][::-1], batch["image"])
        np.testing.assert_array_equal(out["image"], expected)
        kept = 1 - taken.mean()
        np.testing.assert_allclose(out["target"], kept * target + (1 - kept) * target[::-1], atol=1e-6)
        sizes.add(int(taken.sum()))
    assert len(sizes) > 5


def timm_cut(rng, height, width, kept):
    """rand_bbox of timm, margin 0: top, bottom, left, right."""
    side = np.sqrt(1 - kept)
    cut_h, cut_w = int(height * side), int(width * side)
    y, x = rng.integers(0, height), rng.integers(0, width)
    return (
        np.clip(y - cut_h // 2, 0, height),
        np.clip(y + cut_h // 2, 0, height),
        np.clip(x - cut_w // 2, 0, width),
        np.clip(x + cut_w // 2, 0, width),
    )


@pytest.mark.parametrize("kept", [0.3, 0.8])
def test_rectangles_are_distributed_as_timms(key, kept):
    height, width, number = 24, 37, 4000
    draw = jax.jit(jax.vmap(lambda k: draw_cut(k, height, width, jnp.float32(kept))))
    taken = np.asarray(draw(jax.random.split(key, number)))
    rng = np.random.default_rng(0)
    reference = np.array([timm_cut(rng, height, width, kept) for _ in range(number)])
    rows, columns = taken.any(axis=2), taken.any(axis=1)
    np.testing.assert_array_equal(taken, rows[:, :, None] & columns[:, None, :])
    ours = [rows.argmax(axis=1), rows.sum(axis=1), columns.argmax(axis=1), columns.sum(axis=1)]
    top, bottom, left, right = reference.T
    for a, b in zip(ours, [top, bottom - top, left, right - left], strict=True):
        assert scipy.stats.ks_2samp(a, b).pvalue > 1e-3
        assert set(a) == set(b)


def test_shares_are_beta_and_mixup_and_cutmix_alternate(key):
    """One image of ones and one of zeros: mixup leaves one grey, CutMix two values; half of the batches are mixed."""
    number, probability, switch = 4000, 0.5, 0.3
    mix = mixup_cutmix(
        num_classes=2, mixup=0.8, probability=probability, switch_probability=switch, label_smoothing=0.0
    )
    ones = jnp.stack([jnp.ones((64, 64, 1), jnp.float32), jnp.zeros((64, 64, 1), jnp.float32)])
    batch = {"image": ones, "label": jnp.arange(2, dtype=jnp.int32)}

    def summary(k):
        out = mix(k, batch)
        image = out["image"][0]
        return jnp.stack([jnp.min(image), jnp.max(image), jnp.mean(image), out["target"][0, 0]])

    low, high, mean, target = np.asarray(
        jax.jit(lambda keys: jax.lax.map(summary, keys))(jax.random.split(key, number))
    ).T
    np.testing.assert_allclose(mean, target, atol=1e-4)
    mixed_up = (low == high) & (high > 0) & (high < 1)
    cut = high > low
    tolerance = 4 * 0.5 / number**0.5
    assert abs(mixed_up.mean() - probability * (1 - switch)) < tolerance
    assert 0.9 * probability * switch < cut.mean() < probability * switch + tolerance  # some cuts are of no pixel
    assert scipy.stats.kstest(target[mixed_up], "beta", args=(0.8, 0.8)).pvalue > 1e-3


def test_the_batch_is_mixed_alike_on_any_number_of_devices(key):
    mix = jax.jit(mixup_cutmix(num_classes=CLASSES))
    batch = make_batch()
    mesh = Mesh(np.array(jax.devices()), ("data",))
    spread = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    assert len(mesh.devices) == 8
    for k in jax.random.split(key, 3):
        one, many = mix(k, batch), mix(k, spread)
        for name, field in one.items():
            np.testing.assert_allclose(many[name], field, atol=1e-6)


def test_a_batch_that_is_not_mixed_gets_its_own_targets(key):
    batch = make_batch()
    out = jax.jit(mixup_cutmix(num_classes=CLASSES, probability=0.0))(key, batch)
    np.testing.assert_array_equal(out["image"], batch["image"])
    np.testing.assert_allclose(out["target"], smoothed(batch["label"], 0.1), atol=1e-6)


def test_several_views_are_refused(key):
    batch = {"image": jnp.zeros((3, 2, 7, 5, 3), jnp.float32), "label": jnp.zeros(3, jnp.int32)}
    with pytest.raises(UserError, match=r"one view of each image.*\(3, 2, 7, 5, 3\)"):
        mixup_cutmix(num_classes=CLASSES)(key, batch)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(num_classes=0), "num_classes is 0"),
        (dict(num_classes=3, mixup=-0.1), "mixup is -0.1"),
        (dict(num_classes=3, mixup=0, cutmix=0), "nothing would be mixed"),
        (dict(num_classes=3, probability=2), "probability is 2"),
        (dict(num_classes=3, label_smoothing=-1), "label_smoothing is -1"),
    ],
)
def test_a_value_out_of_range_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        mixup_cutmix(**fields)
