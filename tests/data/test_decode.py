"""Image files to arrays."""

import io
import struct
import sys
import tarfile
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from vfm_jax.core.errors import TrainingError, UserError
from vfm_jax.data import decode as decoding
from vfm_jax.data.bad import BadSample
from vfm_jax.data.decode import FORMATS, canvas_shape, decode, fit_canvas, image_kind, read_header, reading
from vfm_jax.data.jpeg import decode_jpeg, jpeg_header


def _tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def _npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def _png16(image):
    """OpenCV's, for Pillow writes 16 bits of gray alone."""
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[image.shape[2]]
    return cv2.imencode(".png", image[..., order])[1].tobytes()


def _wide(image):
    """8 bits as 16, with lower bits of their own."""
    return image.astype(np.uint16) * 256 + np.arange(image.size, dtype=np.uint16).reshape(image.shape) % 251


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


def test_damaged_exif_does_not_lose_the_picture(picture, encoded):
    image = picture(5, 7)
    data = encoded(image, "PNG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\x01\x12")
    np.testing.assert_array_equal(decode(data), image)


@pytest.fixture
def kinds(picture, encoded):
    """What -> the bytes of a file, and all of its values as stored; pictures of every kind that is read."""
    image = picture(24, 37)
    alpha = np.concatenate([image, image[..., :1] // 2], axis=-1)
    gray, wide = image[..., :1], _wide(image)
    bands = np.concatenate([image, image[:, ::-1]], axis=-1)
    inks = Image.frombytes("CMYK", (37, 24), alpha.tobytes())
    palette = Image.fromarray(image).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    colours = np.asarray(palette.convert("RGB"))
    bits = (gray > 127).astype(np.uint8)
    packed = np.packbits(1 - bits[..., 0], axis=1).tobytes()
    lab = Image.fromarray(image).convert("LAB")
    digits = " ".join(map(str, image.ravel())).encode()
    others = [Image.fromarray(255 - image)]
    return {
        "PNG": (encoded(image, "PNG"), image),
        "gray PNG": (encoded(gray[..., 0], "PNG"), gray),
        "PNG with alpha": (encoded(alpha, "PNG"), alpha),
        "PNG with gray and alpha": (encoded(Image.fromarray(alpha[..., 2:]), "PNG"), alpha[..., 2:]),
        "PNG of 1 bit": (encoded(Image.fromarray(bits[..., 0] * 255).convert("1"), "PNG"), bits * 255),
        "PNG with a palette": (encoded(palette, "PNG"), colours),
        "PNG of 16 bits, gray": (_png16(wide[..., :1]), wide[..., :1]),
        "PNG of 16 bits": (_png16(wide), wide),
        "PNG of 16 bits with alpha": (_png16(_wide(alpha)), _wide(alpha)),
        "WebP": (encoded(image, "WEBP", lossless=True), image),
        "WebP with alpha": (encoded(alpha, "WEBP", lossless=True, exact=True), alpha),
        "animated WebP": (encoded(image, "WEBP", lossless=True, save_all=True, append_images=others), image),
        "GIF": (encoded(palette, "GIF"), colours),
        "animated GIF": (encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(180)]), colours),
        "BMP": (encoded(image, "BMP"), image),
        "gray BMP": (encoded(gray[..., 0], "BMP"), gray.repeat(3, -1)),
        "TIFF": (encoded(image, "TIFF"), image),
        "TIFF, LZW": (encoded(image, "TIFF", compression="tiff_lzw"), image),
        "TIFF of pages": (encoded(image, "TIFF", save_all=True, append_images=others), image),
        "TIFF, gray": (encoded(gray[..., 0], "TIFF"), gray),
        "TIFF of 1 bit": (encoded(Image.fromarray(bits[..., 0] * 255).convert("1"), "TIFF"), bits * 255),
        "TIFF with alpha": (encoded(alpha, "TIFF"), alpha),
        "TIFF with a palette": (encoded(palette, "TIFF"), colours),
        "CMYK TIFF": (encoded(inks, "TIFF"), np.asarray(inks.convert("RGB"))),
        "Lab TIFF": (encoded(lab, "TIFF"), np.asarray(lab.convert("RGB"))),
        "tiled TIFF": (_tiff(image, photometric="rgb", tile=(16, 16), compression="zlib"), image),
        "TIFF of planes": (_tiff(np.moveaxis(image, -1, 0), photometric="rgb", planarconfig="separate"), image),
        "BigTIFF": (_tiff(image, photometric="rgb", bigtiff=True, byteorder=">"), image),
        "TIFF of 16 bits": (_tiff(wide, photometric="rgb", compression="zlib", predictor=True), wide),
        "TIFF of 16 bits, gray": (_tiff(wide[..., 0], photometric="minisblack"), wide[..., :1]),
        "TIFF of 16 bits, white is 0": (_tiff(wide[..., 0], photometric="miniswhite"), 65535 - wide[..., :1]),
        "TIFF of bands": (_tiff(bands, photometric="minisblack", planarconfig="contig"), bands),
        "TIFF of bands one by one": (
            _tiff(np.moveaxis(bands, -1, 0), photometric="minisblack", planarconfig="separate", compression="lzw"),
            bands,
        ),
        "TIFF of floats": (_tiff((image / 255).astype(np.float32), photometric="rgb"), (image / 255).astype("f4")),
        "PGM": (b"P5\n# made by hand\n37 24\n255\n" + gray.tobytes(), gray),
        "PPM": (b"P6 37 24 255\n" + image.tobytes(), image),
        "PGM of 16 bits": (b"P5 37 24 65535\n" + wide[..., :1].astype(">u2").tobytes(), wide[..., :1]),
        "PPM in digits": (b"P3\n37 24\n255\n" + digits + b"\n", image),
        "PBM": (b"P4 37 24\n" + packed, bits * 255),
        "PBM in digits": (b"P1 37 24\n" + "".join(map(str, 1 - bits.ravel())).encode(), bits * 255),
        "NPY": (_npy(image), image),
        "NPY of bands": (_npy(np.asfortranarray(_wide(bands).astype(">u2"))), _wide(bands)),
        "NPY of floats": (_npy((image[..., 0] / 255).astype(np.float32)), (gray / 255).astype(np.float32)),
    }


def test_every_kind_of_file_gives_the_values_stored(kinds):
    for what, (data, values) in kinds.items():
        read = decode(data, name=what, channels=values.shape[2], dtype=values.dtype.name)
        np.testing.assert_array_equal(read, values, err_msg=what)
        assert read.flags.c_contiguous, what


def test_the_header_tells_what_the_pixels_are(kinds):
    for what, (data, values) in kinds.items():
        _, header = read_header(data, what)
        assert (header.height, header.width, header.channels) == values.shape, what
        assert header.dtype == values.dtype, what


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subsampling": 0},
        {"subsampling": 1},
        {"progressive": True},
        {"optimize": True},
        {"restart_marker_rows": 1},
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_has_pillows_pixels(mode, options, picture, encoded):
    image = Image.fromarray(picture(45, 38)).convert(mode)
    data = encoded(image, "JPEG", **options)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(decode(data), expected)
    header = jpeg_header(data)
    assert (header.height, header.width, header.components) == (45, 38, len(mode))
    assert decode_jpeg(data).shape == (45, 38, 1 if mode == "L" else 3)


def test_sampling_factors_without_a_name_are_read_all_the_same():
    """24 x 8 pixels, one luma sample for each and one of colour for three; by hand, for no library here writes it."""
    tables = io.BytesIO()
    Image.new("RGB", (8, 8), (128, 128, 128)).save(tables, "JPEG", subsampling=0)
    data = tables.getvalue()
    frame = data.index(b"\xff\xc0")
    data = data[: frame + 5] + struct.pack(">HH", 8, 24) + b"\x03\x01\x31\x00\x02\x11\x01" + data[frame + 16 :]
    scan = data.index(b"\xff\xda")
    assert data[frame + 16 : frame + 18] == b"\x03\x11"
    # Every block is flat: a difference of 0 and the end of the block, 00 1010 in luma's codes and 00 00 in colour's.
    bits = "001010" * 3 + "0000" * 2
    entropy = int(bits.ljust(32, "1"), 2).to_bytes(4, "big")
    np.testing.assert_array_equal(decode(data[: scan + 14] + entropy + b"\xff\xd9"), np.full((8, 24, 3), 128))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF of 16 bits"])
def test_exif_orientation_is_applied(kind, orientation, picture, encoded):
    image = picture(16, 24)
    turned = np.ascontiguousarray(
        {
            1: image,
            2: image[:, ::-1],
            3: image[::-1, ::-1],
            4: image[::-1],
            5: image.transpose(1, 0, 2),
            6: np.rot90(image, 1),
            7: image[::-1, ::-1].transpose(1, 0, 2),
            8: np.rot90(image, -1),
        }[orientation]  # as a camera held that way stores it
    )
    if kind == "TIFF of 16 bits":
        tag = (274, "H", 1, orientation, True)
        data = _tiff(turned.astype(np.uint16) * 257, photometric="rgb", extratags=[tag])
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
        data = encoded(turned, kind, exif=exif, **options)
    assert np.abs(decode(data).astype(int) - image).max() <= (4 if kind == "JPEG" else 0)


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        (1, 3, lambda v: v.repeat(3, -1)),
        (2, 1, lambda v: v[..., :1]),
        (2, 2, lambda v: v),
        (2, 3, lambda v: v[..., :1].repeat(3, -1)),
        (2, 4, None),
        (3, 4, None),
        (3, 2, None),
        (4, 3, lambda v: v[..., :3]),
        (4, 4, lambda v: v),
        (4, 6, None),
    ],
)
def test_colours_are_converted_and_alpha_is_dropped_unless_counted(stored, asked, expected, picture, encoded):
    values = np.concatenate([picture(5, 7), picture(5, 7, 1)], axis=-1)[..., :stored]
    data = encoded(values[..., 0] if stored == 1 else Image.fromarray(values), "PNG")
    if expected is None:
        with pytest.raises(BadSample, match=f"{stored} channels.*; expected {asked}") as error:
            decode(data, channels=asked)
        assert error.value.reason == "wrong_channels"
    else:
        np.testing.assert_array_equal(decode(data, channels=asked), expected(values))


def test_bands_are_never_converted(picture):
    bands = np.concatenate([picture(5, 7), picture(5, 7, 1)], axis=-1)
    for asked in (1, 3, 4, 5, 7):
        with pytest.raises(BadSample, match=f"6 channels; expected {asked}"):
            decode(_tiff(bands, photometric="minisblack", planarconfig="contig"), channels=asked)


def test_a_palettes_transparency_is_a_channel_when_asked_for(picture, encoded):
    palette = Image.fromarray(picture(5, 7)).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    for transparency in (2, bytes([9, 99, 199, 255])):
        data = encoded(palette, "PNG", transparency=transparency)
        with Image.open(io.BytesIO(data)) as opened:
            expected = np.asarray(opened.convert("RGBA"))
        np.testing.assert_array_equal(decode(data, channels=4), expected)
        np.testing.assert_array_equal(decode(data), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_types_own_range_becomes_the_range_of_the_result(dtype):
    top = {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]
    for values in (np.array([[0, 128, 255]], np.uint8), np.array([[0, 129, 40000, 65535]], np.uint16)):
        share = values / np.iinfo(values.dtype).max * top
        read = decode(_npy(values), channels=1, dtype=dtype)[..., 0]
        assert read.dtype == dtype
        np.testing.assert_allclose(read, share if dtype == "float32" else np.round(share), rtol=1e-6)


@pytest.mark.parametrize("stored", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_a_value_range_is_mapped_and_clipped(stored):
    values = np.array([[0, 10, 60, 110, 120]], stored)
    read = decode(_npy(values), channels=1, dtype="float32", value_range=(10, 110))[..., 0]
    np.testing.assert_allclose(read, [[0, 0, 0.5, 1, 1]])
    read = decode(_npy(values), channels=1, value_range=(10, 110))[..., 0]
    np.testing.assert_array_equal(read, [[0, 0, 128, 255, 255]])


def test_values_without_a_meaning_ask_for_their_range():
    for values in (np.array([[-1.0, 88.0]]), np.array([[0, 7]], np.int32), np.array([[0, 7]], np.int8)):
        with pytest.raises(BadSample, match=r"config\.data\.value_range=\(LOW, HIGH\)") as error:
            decode(_npy(values), channels=1)
        assert error.value.reason == "wrong_channels"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(value):
    for kwargs in ({}, {"value_range": (0, 9)}):
        with pytest.raises(BadSample, match="1 of 4 values are NaN or infinite") as error:
            decode(_npy(np.array([[0, 1], [value, 0]], np.float32)), channels=1, **kwargs)
        assert error.value.reason == "not_finite"


def test_small_pictures_are_refused_when_told_so(picture, encoded):
    data = encoded(picture(20, 9), "PNG")
    assert decode(data, min_size=9).shape == (20, 9, 3)
    with pytest.raises(BadSample, match="9 x 20 pixels; expected 10") as error:
        decode(data, min_size=10)
    assert error.value.reason == "too_small"


def _png_claim(height, width, bits=8):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(bytes(2**20))) + chunk(b"IEND", b"")


def _claims():
    """Files that say they hold far more than they do, or than they may."""
    tags = [(256, 60000), (257, 60000), (258, 8), (259, 8), (262, 1), (273, 8), (277, 1), (278, 60000), (279, 4)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    tiff = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    tiles = [*tags[:-4], (322, 2**30), (323, 2**30), (324, 8), (325, 4)]
    tiles = [(tag, {256: 64, 257: 64}.get(tag, value)) for tag, value in tiles]
    tiled = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tiles)
    npy = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s,), }"

    def array(shape):
        header = (npy % shape).ljust(117) + b"\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header

    jpeg = io.BytesIO()
    Image.new("RGB", (64, 64)).save(jpeg, "JPEG", progressive=True)
    jpeg = jpeg.getvalue()
    frame, scan = jpeg.index(b"\xff\xc2"), jpeg.index(b"\xff\xda")
    webp = b"VP8X" + struct.pack("<II", 10, 0) + (16383).to_bytes(3, "little") * 2
    return {
        "PNG": _png_claim(16000, 16000),
        "PNG of 16 bits": _png_claim(2**31 - 1, 2**31 - 1, 16),
        "JPEG": jpeg[: frame + 5] + struct.pack(">HH", 60000, 60000) + jpeg[frame + 9 :],
        "JPEG of scans": jpeg[:scan] + jpeg[scan:-2] * 3000 + jpeg[-2:],
        "WebP": b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp,
        "GIF": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";",
        "BMP": b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, 60000, -60000, 1, 24, 0) + bytes(20),
        "TIFF": tiff,
        "TIFF of tiles": b"II*\0" + struct.pack("<IH", 8, len(tiles)) + tiled + bytes(4),
        "PGM": b"P5 60000 60000 255\n",
        "NPY": array(b"60000, 60000"),
        "NPY of bands": array(b"8000, 8000, 5"),
    }


def test_what_claims_too_much_is_refused_by_its_header(monkeypatch):
    """No decoder is asked, and nothing is set aside for the pixels."""

    def never(*args):
        raise AssertionError("a pixel was asked for")

    for kind, known in FORMATS.items():
        monkeypatch.setitem(FORMATS, kind, known._replace(pixels=never))
    for what, data in _claims().items():
        tracemalloc.start()
        with pytest.raises(BadSample) as error:
            decode(data, name=what)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert error.value.reason == "too_large", what
        assert peak < 2**20, what


def test_the_limit_of_pixels_can_be_moved(picture, encoded):
    data = encoded(picture(20, 30), "PNG")
    assert decode(data, max_pixels=600).shape == (20, 30, 3)
    with pytest.raises(BadSample, match="30 x 20 pixels, above 599 pixels"):
        decode(data, max_pixels=599)


def test_a_file_of_too_many_bytes_is_not_read(monkeypatch, write_image, tmp_path):
    file = write_image(tmp_path / "a.png", 20, 30)
    monkeypatch.setattr("vfm_jax.data.decode.MAX_BYTES", file.stat().st_size - 1)
    with pytest.raises(BadSample, match="bytes, above") as error:
        decode(file)
    assert error.value.reason == "too_large"


@pytest.mark.parametrize(
    ("content", "reason", "words"),
    [
        (b"", "empty", "no bytes"),
        (b"<!DOCTYPE html><title>404</title>", "not_an_image", "a web page"),
        (b"key,value\n1,2\n", "not_an_image", "text by its first bytes"),
        (b"\0" * 40, "not_an_image", "no image by its first bytes"),
        (b"PK\x03\x04" + bytes(30), "not_an_image", "no image"),
        (b"BMW drives a long way, says the text.", "not_an_image", "text"),
        (b"\0\0\0\x1cftypavif" + bytes(30), "unsupported", "AVIF"),
        (b"8BPS" + bytes(30), "unsupported", "Photoshop"),
        (b"P5 4 4 255\n123", "truncated", "13 bytes of its 16 values are missing"),
        (b"P5 four 4 255\n123", "corrupt", "no width"),
        (b"P2 2 1 9\n7 x\n", "corrupt", "that is none"),
        (b"P2 2 1 9\n7 12\n", "corrupt", "a value of 12, above the 9"),
        (b"P2 2 1 9\n7\n", "truncated", "1 of its 2 values"),
        (_npy(np.array([{}], object), allow_pickle=True), "unsupported", "object"),
        (_npy(np.zeros((2, 3, 4, 5))), "unsupported", "(2, 3, 4, 5)"),
        (_npy(np.zeros((4, 5)))[:-1], "truncated", "1 bytes of its 20 values"),
        (_npy(np.zeros((4, 5)))[:20], "truncated", "header"),
    ],
)
def test_the_reason_is_told(content, reason, words):
    with pytest.raises(BadSample) as error:
        decode(content, name="x")
    assert error.value.reason == reason
    assert words in error.value.detail
    assert "\n" not in str(error.value)


def test_a_folder_in_place_of_a_file_is_unreadable(tmp_path):
    with pytest.raises(BadSample, match="Is a directory") as error:
        decode(tmp_path)
    assert error.value.reason == "unreadable"


def test_a_damaged_jpeg_is_refused_though_pillow_decodes_it(encoded):
    random = np.random.RandomState(0)
    data = bytearray(encoded(random.randint(256, size=(99, 99, 3)).astype(np.uint8), "JPEG"))
    for place in random.randint(1000, len(data) - 2, size=60):
        data[place] = random.randint(255)
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
    with pytest.raises(BadSample) as error:
        decode(bytes(data))
    assert error.value.reason == "corrupt"


def test_every_byte_of_a_png_is_checked(picture, encoded):
    data = encoded(picture(20, 30), "PNG")
    good = decode(data)
    for place in range(8, len(data) - 12, 7):
        damaged = bytearray(data)
        damaged[place] ^= 1
        with pytest.raises(BadSample):
            decode(bytes(damaged))
    np.testing.assert_array_equal(decode(data[:-12]), good)  # without its last chunk, which says nothing


def test_a_plain_png_is_decoded_in_full_or_refused(picture):
    """Its checksums are right throughout: what is wrong is inside the compressed rows."""
    image = picture(20, 30)
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    packed = zlib.compress(rows)
    np.testing.assert_array_equal(decode(_plain_png(20, 30, packed[:50], packed[50:])), image)
    for data in (b"", packed[:-100], packed[:-1] + bytes([packed[-1] ^ 1]), zlib.compress(b"\7" + rows[1:])):
        with pytest.raises(BadSample):
            decode(_plain_png(20, 30, data))


@pytest.mark.parametrize("chunk", ["tEXt", "eXIf"])
def test_a_png_with_more_chunks_has_the_same_pixels(picture, chunk):
    """OpenCV decodes plain files, Pillow all others: the pixels are the same, and Pillow's are turned."""
    image = picture(20, 30)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in image))
    exif = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHHI", 274, 3, 1, 3, 0, 0)  # half a turn
    content = {"tEXt": b"Comment\0x", "eXIf": exif}[chunk]
    expected = image[::-1, ::-1] if chunk == "eXIf" else image
    np.testing.assert_array_equal(decode(_plain_png(20, 30, packed, before=[(chunk.encode(), content)])), expected)


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize(
    ("bits", "colours", "samples"), [(1, 0, 1), (4, 3, 1), (8, 3, 1), (8, 4, 2), (8, 6, 4), (16, 2, 3)]
)
def test_a_png_that_lacks_a_byte_of_its_last_row_is_refused(bits, colours, samples, interlaced):
    """OpenCV's libpng, which refuses it too, is what the size is compared with."""
    height, width = 11, 5
    passes = [(range(height), range(width))]
    if interlaced:
        starts = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
        passes = [(range(top, height, down), range(left, width, right)) for top, left, down, right in starts]
    rows = [len(columns) for some, columns in passes for _ in some if columns]
    size = sum(1 + -(-columns * bits * samples // 8) for columns in rows)
    palette = [(b"PLTE", bytes(3 * 2**bits))] if colours == 3 else []

    def png(unpacked):
        header = (bits, colours, 0, 0, interlaced)
        return _plain_png(height, width, zlib.compress(bytes(unpacked)), before=palette, header=header)

    assert cv2.imdecode(np.frombuffer(png(size), np.uint8), cv2.IMREAD_UNCHANGED) is not None
    assert cv2.imdecode(np.frombuffer(png(size - 1), np.uint8), cv2.IMREAD_UNCHANGED) is None
    assert decode(png(size)).shape == (height, width, 3)
    for missing in (1, size // 2, size):
        with pytest.raises(BadSample) as error:
            decode(png(size - missing))
        assert error.value.reason == "truncated"


def _plain_png(height, width, *data, before=(), header=(8, 2, 0, 0, 0)):
    """RGB of 8 bits: its compressed rows in chunks of their own, after other chunks (kind, content)."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, *header)),
        *before,
        *((b"IDAT", part) for part in data),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def test_the_missing_extra_is_named(monkeypatch, picture):
    data = _tiff(_wide(picture(5, 7)), photometric="rgb")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(BadSample, match=r'pip install "vfm-jax\[tiff\]"') as error:
        decode(data)
    assert error.value.reason == "unsupported"


def test_a_compression_that_is_not_read_is_named(picture):
    image = picture(16, 16)
    for values, compression, number in ((_wide(image), "jpeg2000", 34712), (image, "webp", 50001)):
        with pytest.raises(BadSample, match=f"compression {number}") as error:
            decode(_tiff(values, photometric="rgb", compression=compression))
        assert error.value.reason == "unsupported"


def test_files_damaged_at_random_are_arrays_or_bad_samples(kinds, encoded, picture):
    """300 cuts and flipped bytes of each kind's turn; anything else than these two outcomes fails the test."""
    files = {what: (data, values.shape[2]) for what, (data, values) in kinds.items()}
    files |= {f"JPEG {k}": (encoded(picture(40, 50), "JPEG", **k), 3) for k in ({}, {"progressive": True})}
    random, bad = np.random.RandomState(0), 0
    for case in range(300):
        what, (data, channels) = list(files.items())[case % len(files)]
        damaged = bytearray(data)
        if case % 3 == 0:
            del damaged[random.randint(len(data)) :]
        else:
            end = len(data) if case % 3 == 1 else min(len(data), 200)  # there the headers are
            for place in random.randint(end, size=random.choice([1, 3, 20])):
                damaged[place] = random.randint(256)
        try:
            assert decode(bytes(damaged), name=what, channels=channels).shape[2] == channels
        except BadSample:
            bad += 1
    assert 100 < bad < 290


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


@pytest.mark.parametrize("wrong", [0, -4, (3,), (3, 4, 5), (3, 0), (2.5, 3)])
def test_a_canvas_of_no_size_is_refused(wrong):
    with pytest.raises(UserError, match="canvas_size is"):
        canvas_shape(wrong)
    assert canvas_shape(5) == (5, 5)
    assert canvas_shape((5, 6)) == (5, 6)


def test_photos_differ_from_pillows_bicubic_by_less_than_its_bilinear(shared):
    """Mean absolute difference in levels of 255, of photos shrunk to fit 256 pixels; it is 0.8 to 0.9."""
    ours, bilinear = [], []
    with tarfile.open(shared / "data/imagenet_samples/imagenet-samples-000000.tar") as archive:
        photos = [member for member in archive if member.name.endswith(".jpg")][:8]
        for member in photos:
            image = decode(archive.extractfile(member).read())
            small, (height, width) = fit_canvas(image, (256, 256))
            by_pillow = [
                np.asarray(Image.fromarray(image).resize((width, height), method)).astype(int)
                for method in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)
            ]
            ours.append(np.abs(small[:height, :width] - by_pillow[0]).mean())
            bilinear.append(np.abs(by_pillow[1] - by_pillow[0]).mean())
    assert np.mean(ours) < 1
    assert np.mean(ours) < 0.8 * np.mean(bilinear)
    assert np.max(ours) < np.max(bilinear)


@pytest.mark.parametrize(
    ("sides", "orientation", "reduced"),
    [
        ((300, 401), 1, 1),
        ((403, 530), 1, 2),
        ((801, 1002), 1, 4),
        ((1610, 1803), 1, 8),
        ((2400, 1208), 1, 8),
        ((800, 1008), 6, 4),
        ((801, 1002), 6, 1),  # whose first pixels would be there in part
        ((806, 1002), 3, 2),
    ],
)
def test_a_large_jpeg_is_decoded_no_larger_than_its_canvas_needs(monkeypatch, encoded, sides, orientation, reduced):
    """And is as near to Pillow's bicubic as the whole picture, to half a level of 255."""
    details = [2 + 20 * side // max(sides) for side in sides]  # of five of the canvas's pixels
    coarse = np.random.default_rng(0).integers(0, 256, (*details, 3), np.uint8)
    image = Image.fromarray(coarse).resize(sides[::-1], Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content, asked = encoded(np.asarray(image), "JPEG", quality=95, exif=exif), []
    decode_jpeg = decoding.decode_jpeg
    monkeypatch.setattr(decoding, "decode_jpeg", lambda *a: asked.append(a[-1]) or decode_jpeg(*a))
    read = reading(101).read(content)
    assert asked == [reduced] * (reduced > 1)
    whole, filled = fit_canvas(decode(content), (101, 101))
    np.testing.assert_array_equal(read["size"], filled)
    height, width = map(int, filled)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    expected = np.asarray(upright.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32)
    ours, of_whole = (np.abs(one[:height, :width] - expected).mean() for one in (read["image"], whole))
    assert ours < of_whole + 0.5 < 2
    assert not read["image"][height:].any()
    assert not read["image"][:, width:].any()


@pytest.mark.parametrize("channels", [1, 3, 6])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_reading_gives_what_it_says(channels, dtype):
    how = reading((8, 9), channels, dtype)
    values = np.random.RandomState(0).randint(0, 65536, (20, 10, channels)).astype(np.uint16)
    read = how.read(_npy(values))
    assert read["image"].shape == how.image_shape == (8, 9, channels)
    assert read["image"].dtype == how.image_dtype == np.dtype(dtype)
    np.testing.assert_array_equal(read["size"], [8, 4])
