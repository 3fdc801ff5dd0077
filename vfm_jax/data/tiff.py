"""TIFF: pictures as Pillow reads them, and measurements (many bands, 16 bits, floats) by tifffile.

Of a file with several pages the first is read.
"""

import io
import logging
import struct
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped
from PIL import TiffImagePlugin

from vfm_jax.data.bad import BadSample
from vfm_jax.data.header import Header

_SIDES = ("height", "width")
_TAGS = {
    256: "width",
    257: "height",
    258: "bits",
    259: "compression",
    262: "photometric",
    274: "orientation",
    277: "samples",
    322: "tile_width",
    323: "tile_height",
    338: "extra",
    339: "sample_format",
}
_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # field types that sizes and kinds are written in
_MAX_ENTRIES = 4096
_MAX_TILE = 2**24  # pixels of a tile
_MAX_VALUES = 64  # of a tag that has one for each sample
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_COLOUR_SAMPLES = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3, _LAB: 3}
_DTYPES = {1: "uint", 2: "int", 3: "float"}  # by sample format
# None, LZW, deflate (twice), PackBits, LZMA, Zstandard: codecs whose data cannot claim a size of their own.
_COMPRESSIONS = (1, 5, 8, 32946, 32773, 34925, 50000)
_PICTURE_COMPRESSIONS = (*_COMPRESSIONS, 2, 3, 4, 6, 7)  # and those of fax, and JPEG, whose size libtiff compares


class Tiff(NamedTuple):
    """What reading a TIFF depends on, besides its header.

    Attributes:
        is_picture: of 8 bits or fewer, and of colours: read by Pillow, which turns it upright.
        compression: the tag's number.
        tile: height and width of a tile, zeros where there are none.
        white_is_zero: the values run from white to black.
    """

    is_picture: bool
    compression: int
    tile: tuple[int, int]
    white_is_zero: bool


def tiff_header(content: bytes, name: str = "a TIFF") -> Header:
    """Reads the first directory.

    Raises:
        BadSample: there is none, or it describes no picture of a kind that is read; it is called `name`.
    """
    try:
        tags = _first_directory(content)
    except struct.error as error:
        raise BadSample(name, "truncated", "the TIFF's directory lies beyond the end of the file") from error
    height, width = (tags.get(side, (0,))[0] for side in _SIDES)
    if not height or not width:
        raise BadSample(name, "corrupt", f"the TIFF's directory says {width} x {height} pixels")
    samples = tags.get("samples", (1,))[0]
    bits, formats = set(tags.get("bits", (1,))), set(tags.get("sample_format", (1,)))
    photometric = tags.get("photometric", (_BLACK_IS_ZERO,))[0]
    if len(bits) != 1 or len(formats) != 1 or not samples:
        raise BadSample(name, "unsupported", f"a TIFF of {samples} samples of differing types")
    (bits,), (sample_format,) = bits, formats
    colours = _COLOUR_SAMPLES.get(photometric)
    extra = tags.get("extra", ())
    # One more sample beside red, green and blue is no colour, whatever it is; beside gray it is alpha if it says so.
    gray = photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
    alone = photometric == _RGB or (gray and extra[:1] in ((1,), (2,)))
    has_alpha = alone and samples == _COLOUR_SAMPLES[photometric] + 1
    is_picture = bits in (1, 2, 4, 8) and sample_format == 1 and (samples == colours or has_alpha)
    is_picture &= not (tags["is_big"] and bits == 8 and (gray or photometric == _RGB))  # of which Pillow warns
    if is_picture:
        channels, dtype = (1 if gray else 3) + has_alpha, np.dtype(np.uint8)
    else:
        kind = _DTYPES.get(sample_format)
        if kind is None or bits not in (8, 16, 32, 64) or (kind == "float" and bits == 8):
            raise BadSample(name, "unsupported", f"a TIFF of {bits} bits, sample format {sample_format}")
        channels, dtype = samples, np.dtype(f"{kind}{bits}")
    tile = (tags.get("tile_height", (0,))[0], tags.get("tile_width", (0,))[0])
    own = Tiff(is_picture, tags.get("compression", (1,))[0], tile, photometric == _WHITE_IS_ZERO)
    if tile[0] * tile[1] > max(_MAX_TILE, 4 * height * width):
        raise BadSample(name, "too_large", f"a TIFF of {width} x {height} pixels in tiles of {tile[1]} x {tile[0]}")
    orientation = 1 if is_picture else tags.get("orientation", (1,))[0]
    return Header(height, width, channels, has_alpha, dtype, orientation, own)


def _first_directory(content: bytes) -> dict[str, tuple[int, ...]]:
    """The values of `_TAGS`; of classic TIFF and BigTIFF, in either byte order."""
    order = "<" if content[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", content, 2)[0] == 43
    start, count, offset = "QQQ" if big else "IHI"
    (place,) = struct.unpack_from(order + start, content, 8 if big else 4)
    (entries,) = struct.unpack_from(order + count, content, place)
    place += struct.calcsize(order + count)
    inline = struct.calcsize(offset)
    found: dict[str, tuple[int, ...]] = {"is_big": (1,) if big else ()}
    for entry in range(min(entries, _MAX_ENTRIES)):
        first = place + entry * (4 + 2 * inline)
        tag, kind, number = struct.unpack_from(f"{order}HH{offset}", content, first)
        if tag in _TAGS and kind in _TYPES and number:
            layout = f"{order}{min(number, _MAX_VALUES)}{_TYPES[kind]}"
            values = first + 4 + inline
            if number * struct.calcsize(_TYPES[kind]) > inline:
                (values,) = struct.unpack_from(order + offset, content, values)
            found[_TAGS[tag]] = struct.unpack_from(layout, content, values)
    return found


def decode_tiff(content: bytes, header: Header, name: str = "a TIFF") -> Shaped[np.ndarray, "h w c"]:
    """The first page, of the header's channels and type; pictures upright, measurements as stored.

    Raises:
        BadSample: it is cut off, damaged, or compressed in a way that is not read; or the extra `tiff` is missing.
    """
    own: Tiff = header.own
    if own.compression not in (_PICTURE_COMPRESSIONS if own.is_picture else _COMPRESSIONS):
        raise BadSample(name, "unsupported", f"a TIFF of {header.dtype} with compression {own.compression}")
    if own.is_picture:
        with TiffImagePlugin.TiffImageFile(io.BytesIO(content)) as image:
            image.load()
            mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[header.channels]
            pixels = np.array(image if image.mode == mode else image.convert(mode))
            return pixels.reshape(image.height, image.width, header.channels)
    with _tifffile(name).TiffFile(io.BytesIO(content)) as opened:
        page = opened.pages.first
        pixels = page.asarray(maxworkers=1)  # the loader's threads read other files meanwhile
        if page.axes.startswith("S"):  # bands one after the other
            pixels = np.moveaxis(pixels, 0, -1)
    if own.white_is_zero and header.dtype.kind == "u":
        pixels = np.iinfo(header.dtype).max - pixels
    return pixels.reshape(header.height, header.width, header.channels)


def _tifffile(name: str) -> Any:
    try:
        import imagecodecs  # noqa: F401 - of tifffile, for LZW, deflate, ...
        import tifffile
    except ImportError as error:
        found = f"a TIFF of many bands, 16 bits or floats, which needs packages that are not here ({error})"
        raise BadSample(name, "unsupported", f'{found}: pip install "vfm-jax[tiff]"') from error
    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it says of a damaged file, `decode` says
    return tifffile
