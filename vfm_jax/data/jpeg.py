"""JPEG: the size from the markers, the pixels by libjpeg-turbo, and damage is an error.

Pillow decodes a picture with a flipped bit without a word, half of it wrong; simplejpeg, on the same libjpeg-turbo,
gives the same pixels of a whole file and refuses a damaged one. It believes any header, though (60,000 x 60,000
pixels take minutes and 10 GB), so the header is read here first.
"""

import io
import re
from typing import NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, JpegImagePlugin

from vfm_jax.data.bad import BadSample
from vfm_jax.data.header import exif_orientation

_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15; the three others are tables
_LOSSY = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # baseline, extended, progressive; the last two coded arithmetically
_PROGRESSIVE = {0xC2, 0xCA}
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_COLOURS = {1: "GRAY", 3: "RGB", 4: "CMYK"}  # what simplejpeg is asked for, by components
_MAX_SCANS = 100  # a progressive file has about ten; each costs as much as decoding the picture


# Decoded smaller, a JPEG stays twice as large as asked for. The edges of a crop then move by a quarter of the
# result's pixel, at most: 1.7 of 255 from Pillow's crop on the mean of photos. Once as large, it would be 3.4.
_ROOM = 2


class JpegHeader(NamedTuple):
    """What the markers before the first scan say.

    Attributes:
        height: of the picture as stored, in pixels.
        width: the same.
        components: 1 (gray), 3 (colour) or 4 (CMYK).
        orientation: EXIF's, 1 (upright) to 8.
    """

    height: int
    width: int
    components: int
    orientation: int


def jpeg_header(content: bytes, name: str = "a JPEG") -> JpegHeader:
    """Reads the markers; some microseconds, and no pixel is touched.

    Raises:
        BadSample: no picture is described, or one of a kind that is not read; it is called `name`.
    """
    orientation, place = 1, 2
    while True:
        place = content.find(b"\xff", place)
        while 0 <= place < len(content) and content[place] == 0xFF:  # any number of them may stand before a marker
            place += 1
        if not 0 <= place < len(content):
            raise BadSample(name, "truncated", "the JPEG ends within its header")
        marker = content[place]
        place += 1
        if marker == 0 or marker in _ALONE:
            continue
        if marker in (0xD8, 0xD9, 0xDA):
            raise BadSample(name, "corrupt", "the JPEG's data begin before its size is told")
        length = int.from_bytes(content[place : place + 2], "big")
        segment = content[place + 2 : place + length]
        if len(segment) != length - 2:
            raise BadSample(name, "truncated", "the JPEG ends within its header")
        if marker in _FRAMES:
            return _frame(marker, segment, orientation, content, name)
        if marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            orientation = exif_orientation(segment[6:])
        place += length


def _frame(marker: int, segment: bytes, orientation: int, content: bytes, name: str) -> JpegHeader:
    if len(segment) < 6:
        raise BadSample(name, "corrupt", "the JPEG's frame header is too short")
    bits, components = segment[0], segment[5]
    height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
    if marker not in _LOSSY or bits != 8 or components not in _COLOURS:
        kind = f"SOF{marker - 0xC0}, {bits} bits, {components} components"
        raise BadSample(name, "unsupported", f"a JPEG of a kind that is not read ({kind}); 8 bits in 1, 3 or 4 are")
    if not height or not width:
        raise BadSample(name, "corrupt", f"the JPEG's header says {width} x {height} pixels")
    if marker in _PROGRESSIVE and (scans := content.count(b"\xff\xda")) > _MAX_SCANS:
        raise BadSample(name, "too_large", f"a JPEG of {scans} scans, above {_MAX_SCANS}; each costs a pass over it")
    return JpegHeader(height, width, components, orientation)


def decode_jpeg(
    content: bytes, header: JpegHeader | None = None, name: str = "a JPEG", reduced: int = 1
) -> UInt8[np.ndarray, "h w c"]:
    """All pixels as stored (not turned): gray (1 channel) or RGB; CMYK becomes RGB as Pillow's conversion has it.

    Args:
        content: the file.
        header: what `jpeg_header` gave; whoever limits sizes has it already.
        name: what to call it in messages.
        reduced: 1, 2, 4 or 8: how many times smaller each side is made, rounded up; the fewer cosines are then
            computed, and the pixels are the means of those left out.

    Raises:
        BadSample: it is cut off, or damaged anywhere.
    """
    header = header or jpeg_header(content, name)
    height, width = (0, 0) if reduced == 1 else (-(-side // reduced) for side in header[:2])  # at least; 0 is all
    try:
        pixels = simplejpeg.decode_jpeg(content, _COLOURS[header.components], min_height=height, min_width=width)
    except ValueError as error:
        return _other(content, str(error), name)
    if header.components < 4:
        return pixels
    # Adobe stores them inverted, and everybody else does as Adobe.
    inks = Image.frombytes("CMYK", pixels.shape[1::-1], (255 - pixels).tobytes())
    return np.array(inks.convert("RGB"))


def reductions(shrinks: float) -> list[int]:
    """How many times smaller a picture may be decoded that is then made `shrinks` times smaller; the most first."""
    return [times for times in (8, 4, 2) if shrinks >= _ROOM * times]


def _other(content: bytes, message: str, name: str) -> UInt8[np.ndarray, "h w c"]:
    """Pillow's pixels of the few sampling factors that simplejpeg has no name for; else the error, in a word."""
    if "subsampling level" in message:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(content)) as image:
            image.load()
            return np.array(image.convert("L" if image.mode == "L" else "RGB")).reshape(*image.size[::-1], -1)
    reason = "truncated" if re.search("premature end of jpeg file", message, re.IGNORECASE) else "corrupt"
    raise BadSample(name, reason, message)
