"""Views follow from an example's index and epoch alone, and mistakes in their recipe are named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.augment.views import build_views
from vfm_jax.core.errors import UserError
from vfm_jax.core.sharding import batch_sharding, make_mesh

SIMCLR = (  # Chen et al. 2020, Appendix A, at strength 1, small
    dict(name="random_resized_crop", size=20, interpolation="bicubic"),
    dict(name="flip"),
    dict(name="color_jitter", brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2),
    dict(name="grayscale", probability=0.2),
    dict(name="gaussian_blur", probability=0.5),
)
NORMALIZE = dict(name="normalize", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def make_batch(b=8, height=24, width=30, channels=3):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (b, height, width, channels), np.uint8),
        "size": np.stack([rng.integers(12, height + 1, b), rng.integers(12, width + 1, b)], axis=1).astype(np.int32),
        "label": np.arange(b, dtype=np.int32) % 3,
        "index": rng.permutation(1000)[:b].astype(np.int32),
        "epoch": np.full(b, 2, np.int32),
        "valid": np.ones(b, bool),
    }


@pytest.fixture(scope="module")
def simclr():
    return jax.jit(build_views({"image": {"ops": SIMCLR, "num_views": 2}}))


def test_simclr_makes_two_views_in_range_and_keeps_the_other_fields(simclr, key):
    batch = make_batch()
    out = simclr(key, batch)
    assert out["image"].shape == (8, 2, 20, 20, 3)
    assert out["image"].dtype == jnp.float32
    assert out["image"].min() >= 0
    assert out["image"].max() <= 1
    assert set(out) == set(batch) - {"size"}
    for name in ("label", "index", "epoch", "valid"):
        np.testing.assert_array_equal(out[name], batch[name])


def test_views_of_an_image_differ(simclr, key):
    """From one another, between epochs, between steps' keys and between examples of the same image."""
    batch = make_batch()
    batch["image"], batch["size"] = (np.repeat(batch[name][:1], 8, axis=0) for name in ("image", "size"))
    views = np.asarray(simclr(key, batch)["image"])
    others = [
        views[:, ::-1],
        np.roll(views, 1, axis=0),
        np.asarray(simclr(key, batch | {"epoch": batch["epoch"] + 1})["image"]),
        np.asarray(simclr(jax.random.key(1), batch)["image"]),
    ]
    for other in others:
        assert (np.abs(views - other).max(axis=(2, 3, 4)) > 0.05).all()


def test_an_example_has_its_views_wherever_it_stands_in_whichever_batch(simclr, key):
    batch = make_batch()
    views = np.asarray(simclr(key, batch)["image"])
    order = np.array([5, 2, 7, 0, 1, 6, 3, 4])
    np.testing.assert_array_equal(simclr(key, {k: v[order] for k, v in batch.items()})["image"], views[order])
    # another batch size is another program, which may add in another order
    some = simclr(key, {k: v[3:6] for k, v in batch.items()})["image"]
    np.testing.assert_allclose(some, views[3:6], atol=2e-6)


@pytest.mark.usefixtures("compiled_as_by_users")
def test_eight_devices_make_the_views_that_one_makes(simclr, key):
    batch, mesh = make_batch(), make_mesh(data=4, fsdp=2)
    sharded = simclr(key, jax.device_put(batch, batch_sharding(mesh)))["image"]
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_allclose(sharded, simclr(key, batch)["image"], atol=2e-6)


def test_shapes_are_known_beforehand():
    """Global and local crops of one canvas, which is gone afterwards."""
    views = build_views(
        {
            "global": {"ops": (*SIMCLR, NORMALIZE), "num_views": 2},
            "local": {"ops": (dict(name="random_resized_crop", size=9, scale=(0.05, 0.4)),), "num_views": 5},
            "whole": {"ops": (dict(name="center_crop", size=14, resize_shorter=16), NORMALIZE)},
        }
    )
    shapes = jax.eval_shape(views, jax.random.key(0), make_batch(b=3))
    assert shapes["global"].shape == (3, 2, 20, 20, 3)
    assert shapes["local"].shape == (3, 5, 9, 9, 3)
    assert shapes["whole"].shape == (3, 14, 14, 3)
    assert {shapes[name].dtype for name in ("global", "local", "whole")} == {jnp.dtype("float32")}
    assert not {"image", "size"} & set(shapes)


def test_one_view_is_the_first_of_many(key):
    batch, ops = make_batch(b=3), SIMCLR[:2]
    one, many = (
        jax.jit(build_views({"image": {"ops": ops, "num_views": v}}))(key, batch)["image"] for v in (None, 3)
    )
    np.testing.assert_allclose(one, many[:, 0], atol=1e-6)


def test_fields_have_random_numbers_of_their_own(key):
    views = jax.jit(build_views({"online": {"ops": SIMCLR[:1]}, "target": {"ops": SIMCLR[:1]}}))
    out = views(key, make_batch(b=2))
    assert np.abs(out["online"] - out["target"]).max() > 0.05


@pytest.mark.parametrize("with_size", [True, False])
def test_digits_that_fill_their_canvas_need_no_crop(key, with_size):
    batch = make_batch(b=4, height=14, width=14, channels=1) | {"size": np.full((4, 2), 14, np.int32)}
    if not with_size:
        del batch["size"], batch["epoch"]
    ops = (dict(name="shift", max_pixels=2), dict(name="normalize", mean=0.1, std=0.3))
    out = jax.jit(build_views({"image": {"ops": ops}}))(key, batch)["image"]
    assert out.shape == (4, 14, 14, 1)
    middle = np.asarray(out)[:, 4:10, 4:10, 0] * 0.3 + 0.1
    pixels = batch["image"][..., 0] / 255
    for b in range(4):
        moved = [pixels[b, y : y + 6, x : x + 6] for y in range(2, 7) for x in range(2, 7)]
        assert min(np.abs(middle[b] - m).max() for m in moved) < 1e-6


def test_no_operations_give_the_image_in_0_to_1(key):
    batch = make_batch(b=2)
    out = build_views({"image": {"ops": ()}})(key, batch)
    np.testing.assert_allclose(out["image"], batch["image"] / 255, atol=1e-7)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "config.views is empty"),
        ({"label": {"ops": ()}}, "config.views.label would replace"),
        ({"image": {"num_views": 2}}, "config.views.image lacks ops"),
        (
            {"image": {"ops": (), "numviews": 2}},
            r"Unknown field config.views.image.numviews. Did you mean 'num_views'",
        ),
        ({"image": {"ops": (), "num_views": 0}}, r"config.views.image.num_views is 0; expected a whole number"),
        ({"image": {"ops": dict(name="flip")}}, r"config.views.image.ops is .*; expected a tuple of dicts"),
        ({"image": {"ops": (dict(name="flipp"),)}}, r"'flipp' in config.views.image.ops\[0\].*Did you mean 'flip'"),
        ({"image": {"ops": (dict(name="flip", p=1),)}}, r"Unknown field config.views.image.ops\[0\].p"),
        (
            {"image": {"ops": (dict(name="flip"), dict(name="shift", max_pixels=0.5))}},
            r"config.views.image.ops\[1\]: max_pixels is 0.5",
        ),
        ({"image": {"ops": (NORMALIZE, dict(name="solarize"))}}, r"ops\[1\] comes after normalize.*Move normalize"),
    ],
)
def test_a_mistake_in_the_recipe_is_named_with_its_place(spec, message):
    with pytest.raises(UserError, match=message) as caught:
        build_views(spec)
    assert str(caught.value).count("\n") < 5


def test_images_an_operation_cannot_use_are_named_when_shapes_are_asked_for():
    views = build_views({"image": {"ops": (dict(name="flip"), dict(name="grayscale"))}})
    with pytest.raises(
        UserError, match=r"config.views.image.ops\[1\] \(grayscale\): .* these images have 5 channels"
    ):
        jax.eval_shape(views, jax.random.key(0), make_batch(channels=5))
