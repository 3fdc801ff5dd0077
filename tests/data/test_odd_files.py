"""The files of ../shared/data/odd_files: each gets the verdict that its manifest implies."""

import json
import re
import tarfile

import numpy as np
import pytest
from PIL import Image, ImageOps

from vfm_jax.data.bad import BadSample
from vfm_jax.data.decode import decode


@pytest.fixture(scope="module")
def odd_files(shared, tmp_path_factory):
    """Name -> path and the manifest's words."""
    place = tmp_path_factory.mktemp("odd")
    with tarfile.open(shared / "data/odd_files/odd_files.tar") as archive:
        archive.extractall(place, filter="data")
    (manifest,) = place.rglob("manifest.json")
    told = json.loads(manifest.read_text(encoding="utf-8"))
    return {name: (manifest.parent / name, words) for name, words in told.items()}


def _expected_reason(content, told):
    """Of a file that the manifest calls broken; None of one that it does not."""
    if not content:
        return "empty"
    if told["decodes"]:
        return "corrupt" if "damaged" in told["what"] else None  # Pillow decodes damaged JPEG without a word
    if told["format"] is None and not content.startswith(b"\xff\xd8\xff"):
        return "not_an_image"
    return "corrupt" if "damaged" in told["what"] else "truncated"


def _by_pillow(file):
    with Image.open(file) as image:
        image.seek(0)
        if image.mode.startswith("I"):  # Pillow's own conversion clips at 255
            return np.round(np.asarray(image) / 257).astype(np.uint8)[..., None].repeat(3, -1)
        if image.mode == "F":  # in 0..1, which Pillow's own conversion does not scale
            return np.round(255 * np.asarray(image)).astype(np.uint8)[..., None].repeat(3, -1)
        if image.mode == "P":
            image = image.convert("RGBA")
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def test_every_file_gets_its_verdict_and_pillows_pixels(odd_files):
    assert odd_files
    for name, (file, told) in odd_files.items():
        reason = _expected_reason(file.read_bytes(), told)
        if reason is None:
            np.testing.assert_array_equal(decode(file), _by_pillow(file), err_msg=name)
        else:
            with pytest.raises(BadSample) as error:
                decode(file)
            assert error.value.reason == reason, name
            assert str(file) in str(error.value)
            assert "\n" not in str(error.value)


def test_turned_files_show_the_picture_of_their_reference(odd_files):
    """Compressed anew after turning: alike, not equal. A wrong turn differs by more than 40."""
    compared = 0
    for name, (file, told) in odd_files.items():
        if same := re.search(r"same picture as (\S+)", told["what"]):
            reference = decode(odd_files[same[1]][0]).astype(int)
            assert np.abs(decode(file) - reference).mean() < 3, name
            compared += 1
    assert compared


def test_sixteen_bits_are_kept_when_asked_for(odd_files):
    for name, (file, told) in odd_files.items():
        if same := re.search(r"equals (\w+) \* 257", told["what"]):
            eight = decode(odd_files[f"{same[1]}.png"][0], channels=1)
            np.testing.assert_array_equal(decode(file, channels=1, dtype="uint16"), eight * np.uint16(257), name)
            np.testing.assert_array_equal(decode(file, channels=1), eight, name)


def test_rasters_of_many_bands_and_of_floats(shared):
    landsat = shared / "data/geospatial/L7_ETMs.tif"
    image = decode(landsat, channels=6)
    assert image.dtype == np.uint8
    assert image.shape == (352, 349, 6)
    with pytest.raises(BadSample, match="6 channels; expected 3") as error:
        decode(landsat)
    assert error.value.reason == "wrong_channels"
    elevation = shared / "data/geospatial/olinda_dem_utm25s.tif"
    with pytest.raises(BadSample, match=r"from -1 to 88, .*value_range=\(LOW, HIGH\)"):
        decode(elevation, channels=1, dtype="float32")
    metres = decode(elevation, channels=1, dtype="float32", value_range=(-1, 88)) * 89 - 1
    np.testing.assert_allclose([metres.min(), metres.max()], [-1, 88], atol=1e-4)
    assert metres.shape == (111, 111, 1)
