"""Images are made what the weights expect: as the folder says, or as the family usually has it."""

import numpy as np
import pytest
from PIL import Image

from vfm_jax.core.errors import TrainingError, UserError
from vfm_jax.weights.family import HALF, IMAGENET, Family, Preprocessing
from vfm_jax.weights.preprocessing import Preprocess, preprocessing_of
from vfm_jax.weights.rules import Bundle

FAMILY = Family("hf/x", lambda *_: True, lambda *_: None, lambda _: (), mean_std=HALF)
RANDOM = np.random.default_rng(0)


def of(config=None, preprocessor=None, size=(32, 48), channels=3):
    return preprocessing_of(FAMILY, Bundle({}, size, channels), config, preprocessor)


def test_where_nothing_is_said_the_family_speaks():
    assert of() == Preprocessing((32, 48), *HALF, "bicubic", 1.0)


def test_timms_config_is_read():
    cfg = dict(mean=[0.1, 0.2, 0.3], std=[1, 2, 3], interpolation="bilinear", crop_pct=0.9)
    assert of({"pretrained_cfg": cfg}) == Preprocessing((32, 48), (0.1, 0.2, 0.3), (1, 2, 3), "bilinear", 0.9)


@pytest.mark.parametrize(
    ("fields", "ratio"),
    [
        (dict(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, do_center_crop=True), 0.8),
        (dict(size={"shortest_edge": 256}, crop_size=224, do_center_crop=True), 0.875),
        (dict(size=40, crop_size=32, do_center_crop=True), 0.8),
        (dict(size={"shortest_edge": 40}, do_center_crop=False), 1.0),
        (dict(size={"height": 32, "width": 32}), 1.0),
        (dict(size={"shortest_edge": 224}, crop_pct=0.875), 0.875),
        (dict(size={"shortest_edge": 384}, crop_pct=0.875), 1.0),
    ],
)
def test_the_crop_of_transformers_is_read(fields, ratio):
    mean, std = IMAGENET
    found = of(None, dict(image_mean=list(mean), image_std=list(std), resample=2, **fields))
    assert found == Preprocessing((32, 48), mean, std, "bilinear", ratio)


def test_ours_is_read_by_name_whatever_the_order():
    settings = Preprocessing((3, 5), *IMAGENET, "lanczos", 0.7)
    own = {k: list(v) if isinstance(v, tuple) else v for k, v in reversed(settings._asdict().items())}
    assert of({"preprocessing": own}) == settings


def test_other_channels_take_the_mean_of_the_colours():
    found = of(dict(pretrained_cfg=dict(mean=[0.1, 0.2, 0.6], std=[1, 2, 3])), channels=4)
    np.testing.assert_allclose(found.mean, [0.3] * 4)
    np.testing.assert_allclose(found.std, [2] * 4)


def test_pixels_are_scaled_shifted_and_divided():
    image = RANDOM.integers(0, 256, (5, 7, 3), np.uint8)
    found = Preprocess(Preprocessing((5, 7), *IMAGENET))(image)
    assert found.shape == (1, 5, 7, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], (image / 255 - IMAGENET[0]) / IMAGENET[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(60, 90, 3), (90, 60, 3), (20, 31, 3), (48, 64, 3)])
def test_the_shorter_side_is_resized_and_the_centre_cut(shape):
    image = Image.fromarray(RANDOM.integers(0, 256, shape, np.uint8))
    found = Preprocess(Preprocessing((24, 24), (0.0,) * 3, (1.0,) * 3, "bilinear", 0.75))(image)[0]
    scale = 32 / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - 24) // 2, (height - 24) // 2
    expected = np.asarray(resized.crop((left, top, left + 24, top + 24)))
    np.testing.assert_array_equal(np.round(found * 255), expected)


def test_files_pillow_images_and_arrays_give_the_same(tmp_path):
    image = RANDOM.integers(0, 256, (9, 8, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    make = Preprocess(Preprocessing((4, 6), *IMAGENET))
    found = make([image, Image.fromarray(image), tmp_path / "a.png", str(tmp_path / "a.png")])
    assert found.shape == (4, 4, 6, 3)
    assert (found == found[:1]).all()
    np.testing.assert_array_equal(make(np.stack([image, image])), found[:2])


def test_gray_and_colour_meet():
    gray = RANDOM.integers(0, 256, (6, 6), np.uint8)
    colour = Preprocess(Preprocessing((6, 6), (0.5,) * 3, (0.5,) * 3))
    np.testing.assert_array_equal(colour(gray), colour(np.repeat(gray[..., None], 3, axis=2)))
    assert Preprocess(Preprocessing((6, 6), (0.5,), (0.5,)))(Image.fromarray(gray)).shape == (1, 6, 6, 1)


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3), np.float32), np.zeros((2, 2), np.int64), 3, None])
def test_what_is_no_image_is_refused(image):
    with pytest.raises(UserError, match="uint8"):
        Preprocess(Preprocessing((4, 4), *IMAGENET))([image])


def test_other_channels_than_the_weights_are_refused():
    with pytest.raises(UserError, match=r"4 channels; these weights take 3"):
        Preprocess(Preprocessing((4, 4), *IMAGENET))(np.zeros((4, 4, 4), np.uint8))


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    with pytest.raises(TrainingError, match=r"bad\.png"):
        Preprocess(Preprocessing((4, 4), *IMAGENET))(tmp_path / "bad.png")
