"""PNG, WebP, GIF and BMP: sizes by the header, pixels by Pillow; of an animation the first frame.

A plain PNG is decoded by OpenCV, at a third of Pillow's time where it is small: Pillow parses and copies in Python.
"""

import io
import struct
import zlib
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, PngImagePlugin, WebPImagePlugin

from vfm_jax.data.bad import BadSample
from vfm_jax.data.header import Header, upright

_BYTE, _TWO_BYTES = np.dtype(np.uint8), np.dtype(np.uint16)
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's, by channels
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type
_PNG_SAMPLES = _PNG_CHANNELS | {3: 1}  # of a pixel as it is stored: a palette's colours lie elsewhere
# First row and column of each pass of an interlaced PNG, and how many rows and columns apart the others lie.
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
_UNPACKED_AT_ONCE = 2**20
# What a plain PNG is made of. Others may turn the picture, move it, make it transparent, or unpack to any size.
_PLAIN_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"bKGD", b"cHRM", b"gAMA", b"pHYs", b"sBIT", b"sRGB", b"tIME"}
_GRAY, _COLOUR = 0, 2  # colour types
_EXIF_ORIENTATION = 0x0112


def _number(content: bytes, first: int, size: int) -> int:
    if first + size > len(content):
        raise IndexError  # `_told` says so
    return int.from_bytes(content[first : first + size], "little")


def _sized(height: int, width: int, channels: int, has_alpha: bool, name: str) -> Header:
    if not height or not width:
        raise BadSample(name, "corrupt", f"the header says {width} x {height} pixels")
    return Header(height, width, channels, has_alpha, _BYTE)


# ---------------------------------------------------------------------------------------------------------------- PNG


def png_header(content: bytes, name: str) -> Header:
    """Size and type by the first chunk; transparency by whether a chunk before the pixels tells of it.

    Raises:
        BadSample: none of it is there.
    """
    try:
        width, height, bits, colours = struct.unpack_from(">IIBB", content, 16)
    except struct.error as error:
        raise BadSample(name, "truncated", "the PNG ends within its header") from error
    if content[12:16] != b"IHDR" or not height or not width or colours not in _PNG_CHANNELS:
        raise BadSample(name, "corrupt", f"the PNG's header says {width} x {height} pixels, colour type {colours}")
    channels = _PNG_CHANNELS[colours]
    has_alpha = colours in (4, 6)
    if not has_alpha and any(kind == b"tRNS" for kind, _, _ in _chunks(content, until=b"IDAT")):
        channels, has_alpha = channels + 1, True
    is_plain = bits == 8 and colours in (_GRAY, _COLOUR)
    return Header(height, width, channels, has_alpha, _TWO_BYTES if bits == 16 else _BYTE, own=is_plain)


def _chunks(content: bytes, until: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, first byte and end of the data of each chunk, up to and with the first of kind `until`."""
    place, kind = 8, b""
    while kind != until and place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        yield kind, place + 8, place + 8 + length
        place += length + 12


def decode_png(content: bytes, header: Header, name: str) -> Shaped[np.ndarray, "h w c"]:
    """All pixels, upright.

    Raises:
        BadSample: cut off, rows are missing, or a checksum is wrong: Pillow minds neither of the last two.
    """
    view, is_plain, packed = memoryview(content), header.own, []
    for kind, first, end in _chunks(content, until=b"IEND"):
        is_plain &= kind in _PLAIN_CHUNKS
        if kind == b"IDAT":
            packed.append(view[first:end])
        if end + 4 > len(content):
            raise BadSample(name, "truncated", f"the PNG ends within its chunk {kind!r}")
        if zlib.crc32(view[first - 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            raise BadSample(name, "corrupt", f"the checksum of the PNG's chunk {kind!r} is wrong")
    if is_plain and (plain := _plain(content, header)) is not None:
        return plain
    _check_rows(content, packed, name)
    with PngImagePlugin.PngImageFile(io.BytesIO(content)) as image:
        pixels, orientation = _pixels(image, header, name)
    if header.dtype == _TWO_BYTES and pixels.dtype != _TWO_BYTES:
        # Of 16 bits in several channels Pillow gives the upper 8: it has seen that all is there, OpenCV reads them.
        pixels = _sixteen_bits(content, header)
    return upright(pixels, orientation)


def _check_rows(content: bytes, packed: Sequence[memoryview], name: str) -> None:
    """Whether the pixels' chunks unpack to all rows: where some are missing, Pillow leaves them black."""
    width, height, bits, colours, _, _, interlaced = struct.unpack_from(">IIBBBBB", content, 16)
    needed = 0
    for first_row, first_column, row_step, column_step in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        rows, columns = -(-(height - first_row) // row_step), -(-(width - first_column) // column_step)
        if rows > 0 and columns > 0:
            needed += rows * (1 + (columns * bits * _PNG_SAMPLES[colours] + 7) // 8)  # a filter's number, and pixels
    found, unpacker = 0, zlib.decompressobj()
    try:
        for chunk in packed:
            rest: bytes | memoryview = chunk
            while rest and found < needed:
                found += len(unpacker.decompress(rest, _UNPACKED_AT_ONCE))
                rest = unpacker.unconsumed_tail
        while found < needed and (more := unpacker.decompress(b"", _UNPACKED_AT_ONCE)):
            found += len(more)
    except zlib.error as error:
        raise BadSample(name, "corrupt", f"the PNG's pixels cannot be unpacked ({error})") from error
    if found < needed:
        raise BadSample(name, "truncated", f"the PNG's pixels take {needed} bytes, and {found} are there")


def _plain(content: bytes, header: Header) -> UInt8[np.ndarray, "h w c"] | None:
    """Gray or colour of 8 bits; None where OpenCV refuses it, which it does without a reason: Pillow has one."""
    read = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if read is None:
        return None
    assert read.dtype == np.uint8
    if header.channels == 3:
        read = cv2.cvtColor(read, cv2.COLOR_BGR2RGB)
    return read.reshape(header.height, header.width, header.channels)


def _sixteen_bits(content: bytes, header: Header) -> Shaped[np.ndarray, "h w c"]:
    read = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert read is not None
    assert read.dtype == np.uint16
    read = read.reshape(header.height, header.width, -1)
    order = {1: [0], 2: [0, 3], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[header.channels]  # of blue, green, red, alpha
    return np.ascontiguousarray(read[..., order])


# --------------------------------------------------------------------------------------------------- WebP, GIF, BMP


def webp_header(content: bytes, name: str) -> Header:
    """Size of the canvas, by the first chunk.

    Raises:
        BadSample: it is cut off, or there is no such chunk.
    """
    try:
        if _number(content, 4, 4) + 8 > len(content):
            raise IndexError
        kind = content[12:16]
        if kind == b"VP8X":  # with transparency, animation, EXIF
            has_alpha = bool(content[20] & 0x10)
            width, height = _number(content, 24, 3) + 1, _number(content, 27, 3) + 1
        elif kind == b"VP8L":
            packed = _number(content, 21, 4)
            has_alpha = bool(packed >> 28 & 1)
            width, height = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
        elif kind == b"VP8 ":
            has_alpha = False
            width, height = _number(content, 26, 2) & 0x3FFF, _number(content, 28, 2) & 0x3FFF
        else:
            raise BadSample(name, "corrupt", f"the WebP begins with a chunk {kind!r}")
    except IndexError as error:
        raise BadSample(name, "truncated", "the WebP ends before its data do") from error
    return _sized(height, width, 4 if has_alpha else 3, has_alpha, name)


def decode_webp(content: bytes, header: Header, name: str) -> Shaped[np.ndarray, "h w c"]:
    """The picture or the first frame, upright."""
    with WebPImagePlugin.WebPImageFile(io.BytesIO(content)) as image:
        return upright(*_pixels(image, header, name))


def gif_header(content: bytes, name: str) -> Header:
    """Size of the screen.

    Raises:
        BadSample: it is cut off.
    """
    if len(content) < 13:
        raise BadSample(name, "truncated", "the GIF ends within its header")
    return _sized(_number(content, 8, 2), _number(content, 6, 2), 3, False, name)


def decode_gif(content: bytes, header: Header, name: str) -> Shaped[np.ndarray, "h w c"]:
    """The first frame."""
    with GifImagePlugin.GifImageFile(io.BytesIO(content)) as image:
        return _pixels(image, header, name)[0]


def bmp_header(content: bytes, name: str) -> Header:
    """Size of the picture.

    Raises:
        BadSample: it is cut off.
    """
    if len(content) < 26:
        raise BadSample(name, "truncated", "the BMP ends within its header")
    if _number(content, 14, 4) == 12:  # OS/2's
        width, height = _number(content, 18, 2), _number(content, 20, 2)
    else:
        width, height = struct.unpack_from("<ii", content, 18)
    return _sized(abs(height), max(0, width), 3, False, name)  # a negative height tells that the top comes first


def decode_bmp(content: bytes, header: Header, name: str) -> Shaped[np.ndarray, "h w c"]:
    """All pixels, gray ones as three equal channels."""
    with BmpImagePlugin.BmpImageFile(io.BytesIO(content)) as image:
        return _pixels(image, header, name)[0]


def _pixels(image: ImageFile.ImageFile, header: Header, name: str) -> tuple[Shaped[np.ndarray, "h w c"], int]:
    """Pillow's pixels with the header's channels, as stored, and their orientation."""
    if image.size != (header.width, header.height):
        found = f"{image.width} x {image.height}"
        raise BadSample(name, "corrupt", f"the header says {header.width} x {header.height} pixels, the data {found}")
    image.load()
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - damaged EXIF raises many types, and says nothing about the pixels
        orientation = 1
    if image.mode.startswith("I"):  # 16-bit gray
        return np.asarray(image).astype(np.uint16)[..., None], orientation
    plain: Image.Image = image
    if not header.has_alpha:
        plain.info.pop("transparency", None)  # Pillow warns of what converting loses
    mode = _MODES[header.channels]
    pixels = np.array(plain if plain.mode == mode else plain.convert(mode), np.uint8)
    return pixels.reshape(header.height, header.width, header.channels), orientation
