"""What the beginning of an image file says of the picture, and turning the picture upright."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

_ORIENTATION = 0x0112


class Header(NamedTuple):
    """A picture as its file describes it, before any pixel is decoded.

    Attributes:
        height: as stored, in pixels.
        width: the same.
        channels: of the pixels that the format's decoder gives: a palette is 3, CMYK too.
        has_alpha: the last channel is alpha.
        dtype: of the values.
        orientation: EXIF's, 1 (upright) to 8, where the decoder leaves turning to its caller.
        own: what the format's decoder wants to know besides.
    """

    height: int
    width: int
    channels: int
    has_alpha: bool
    dtype: np.dtype[Any]
    orientation: int = 1
    own: Any = None


def exif_orientation(exif: bytes) -> int:
    """Tag 274 of the first directory of an EXIF block (a small TIFF); 1 where there is none, or it is damaged."""
    if exif[:2] not in (b"II", b"MM"):
        return 1

    def number(first: int, size: int) -> int:
        return int.from_bytes(exif[first : first + size], "little" if exif[:2] == b"II" else "big")

    directory = number(4, 4)
    for entry in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
        if entry + 12 > len(exif):
            return 1
        if number(entry, 2) == _ORIENTATION:
            return number(entry + 8, 2)
    return 1


def upright_size(header: Header) -> tuple[int, int]:
    """Height and width of the picture once it is turned."""
    turned = 5 <= header.orientation <= 8
    return (header.width, header.height) if turned else (header.height, header.width)


def upright(pixels: Shaped[np.ndarray, "h w c"], orientation: int) -> Shaped[np.ndarray, "h w c"]:
    """The picture turned as EXIF's orientation asks; numbers that are none of 2 to 8 turn nothing."""
    if not 2 <= orientation <= 8:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::rows, ::columns]
