"""Image files to arrays."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vfm_jax.core.errors import TrainingError, UserError
from vfm_jax.data.bad import BadSample
from vfm_jax.data.decode import canvas_shape, decode, fit_canvas, image_kind


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_give_back_the_pixels(kind, picture, encoded):
    image = picture(5, 7)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(image, kind, **options)
    np.testing.assert_array_equal(decode(data), image)
    assert image_kind(data[:16]) == kind


def test_a_jpeg_is_close_to_its_pixels(picture, encoded):
    image = picture(40, 56)
    data = encoded(image, "JPEG", quality=95)
    assert image_kind(data[:16]) == "JPEG"
    assert np.abs(decode(data).astype(int) - image).mean() < 3


def test_a_path_and_its_bytes_give_the_same(write_image, tmp_path):
    file = write_image(tmp_path / "name with é.png", 5, 7)
    np.testing.assert_array_equal(decode(file), decode(file.read_bytes()))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, picture, encoded):
    image = picture(5, 7)
    turned = {
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.transpose(1, 0, 2),
        6: np.rot90(image, 1),
        7: image[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(image, -1),
    }[orientation]  # as a camera held that way stores it
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode(encoded(np.ascontiguousarray(turned), "PNG", exif=exif)), image)


def test_gray_becomes_three_equal_channels_or_one(picture, encoded):
    gray = picture(5, 7)[..., 0]
    data = encoded(gray, "PNG")
    np.testing.assert_array_equal(decode(data), np.stack([gray] * 3, axis=-1))
    np.testing.assert_array_equal(decode(data, channels=1), gray[..., None])


def test_sixteen_bits_are_rounded_to_eight(encoded):
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    expected = np.round(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(decode(encoded(values, "PNG"), channels=1)[..., 0], expected)


def test_alpha_is_dropped_and_a_palette_becomes_its_colours(picture, encoded):
    image = picture(5, 7)
    alpha = np.concatenate([image, np.full((5, 7, 1), 9, np.uint8)], axis=-1)
    np.testing.assert_array_equal(decode(encoded(alpha, "PNG")), image)
    palette = Image.fromarray(image).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    np.testing.assert_array_equal(decode(encoded(palette, "PNG", transparency=3)), np.asarray(palette.convert("RGB")))


def test_colour_becomes_luma(picture, encoded):
    image = picture(5, 7)
    luma = image @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode(encoded(image, "PNG"), channels=1)[..., 0] - luma).max() <= 1


@pytest.mark.parametrize("kept", [0, 10, 20, 300])
def test_a_cut_file_is_an_error_that_names_it(kept, picture, encoded):
    data = encoded(picture(40, 56), "JPEG")[:kept]
    with pytest.raises(TrainingError, match=r"Cannot read cat\.jpg: "):
        decode(data, name="cat.jpg")


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(TrainingError, match=r"Cannot read .*gone\.jpg: no such file"):
        decode(tmp_path / "gone.jpg")


def test_a_format_outside_the_list_is_refused(picture, encoded):
    with pytest.raises(BadSample, match="format JPEG 2000; expected one of JPEG, PNG, ") as error:
        decode(encoded(picture(5, 7), "JPEG2000"))
    assert error.value.reason == "unsupported"


def test_a_bomb_is_refused_by_its_header():
    """A PNG of 90 bytes that claims 9,000 x 9,000 pixels; nothing of it is decoded."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(TrainingError, match="9000 x 9000 pixels, above 67108864"):
        decode(data, name="bomb.png")


def test_damaged_exif_does_not_lose_the_picture(picture, encoded):
    image = picture(5, 7)
    data = encoded(image, "PNG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\x01\x12")
    np.testing.assert_array_equal(decode(data), image)


def test_a_small_image_lies_in_the_top_left_of_the_canvas(picture):
    image = picture(3, 5)
    canvas, size = fit_canvas(image, (4, 7))
    np.testing.assert_array_equal(size, [3, 5])
    assert size.dtype == np.int32
    np.testing.assert_array_equal(canvas[:3, :5], image)
    assert canvas.shape == (4, 7, 3)
    assert not canvas[3:].any()
    assert not canvas[:, 5:].any()


@pytest.mark.parametrize(
    ("sides", "canvas", "expected"),
    [
        ((20, 30), (10, 10), [7, 10]),
        ((30, 20), (10, 12), [10, 7]),
        ((10, 12), (10, 12), [10, 12]),
        ((480, 5), (64, 64), [64, 1]),
        ((7, 640), (64, 32), [1, 32]),
    ],
)
def test_a_large_image_is_scaled_to_fit_and_keeps_its_aspect(sides, canvas, expected, picture):
    image, size = fit_canvas(picture(*sides), canvas)
    assert image.shape == (*canvas, 3)
    np.testing.assert_array_equal(size, expected)


def test_scaling_down_is_antialiased():
    """Stripes one pixel wide average out; taking every fourth pixel would give black or white."""
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))[..., None].repeat(3, axis=-1)
    image, size = fit_canvas(stripes, (16, 16))
    np.testing.assert_array_equal(size, [16, 16])
    assert np.abs(image[:, 2:-2].astype(int) - 127).max() < 12


def test_bands_are_scaled_alike_whatever_their_number(picture):
    image = picture(20, 30)
    five = np.concatenate([image, image[..., :2]], axis=-1)
    small, _ = fit_canvas(five, (10, 10))
    np.testing.assert_array_equal(small[..., :3], fit_canvas(image, (10, 10))[0])
    np.testing.assert_array_equal(small[..., 3:], small[..., :2])


@pytest.mark.parametrize("wrong", [0, -4, (3,), (3, 4, 5), (3, 0), (2.5, 3)])
def test_a_canvas_of_no_size_is_refused(wrong):
    with pytest.raises(UserError, match="canvas_size is"):
        canvas_shape(wrong)
    assert canvas_shape(5) == (5, 5)
    assert canvas_shape((5, 6)) == (5, 6)
