"""The formats that are read, known by a file's first bytes and never by its name."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8

from vfm_jax.data import jpeg, pictures, plain, tiff
from vfm_jax.data.bad import BadSample
from vfm_jax.data.header import Header


class Format(NamedTuple):
    """How files of a format are read; all of it raises `BadSample`.

    Attributes:
        header: content and name -> what the file says of its picture. No pixel is decoded.
        pixels: content, that header and the name -> values as the header has them, to be turned by its orientation.
    """

    header: Callable[[bytes, str], Header]
    pixels: Callable[[bytes, Header, str], Shaped[np.ndarray, "h w c"]]


def _jpeg_header(content: bytes, name: str) -> Header:
    found = jpeg.jpeg_header(content, name)
    channels = 1 if found.components == 1 else 3
    return Header(found.height, found.width, channels, False, np.dtype(np.uint8), found.orientation, found)


def _jpeg_pixels(content: bytes, header: Header, name: str) -> UInt8[np.ndarray, "h w c"]:
    return jpeg.decode_jpeg(content, header.own, name)


FORMATS = {
    "JPEG": Format(_jpeg_header, _jpeg_pixels),
    "PNG": Format(pictures.png_header, pictures.decode_png),
    "WEBP": Format(pictures.webp_header, pictures.decode_webp),
    "TIFF": Format(tiff.tiff_header, tiff.decode_tiff),
    "GIF": Format(pictures.gif_header, pictures.decode_gif),
    "BMP": Format(pictures.bmp_header, pictures.decode_bmp),
    "PNM": Format(plain.netpbm_header, plain.decode_netpbm),
    "NPY": Format(plain.npy_header, plain.decode_npy),
}
# Not .npy: an array beside the images is as likely to hold their labels. A pattern finds it.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".pgm", ".ppm", ".pbm", ".pnm"),
)

_STARTS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # BigTIFF
    b"MM\0+": "TIFF",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"\x93NUMPY": "NPY",
}
_BMP_HEADERS = [bytes([size, 0]) for size in (12, 40, 52, 56, 64, 108, 124)]
_OTHERS = {  # images, of formats that are not read
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"8BPS": "Photoshop",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"qoif": "QOI",
    b"\0\0\1\0": "icon",
    b"SIMPLE  =": "FITS",
    b"%PDF": "PDF",
    b"#?RADIANCE": "Radiance HDR",
    b"PF\n": "PFM",
    b"Pf\n": "PFM",
    b"P7\n": "PAM",
}


def image_kind(start: bytes) -> str | None:
    """The format that the first 16 bytes of a file announce, a name in `FORMATS`, or None."""
    for magic, kind in _STARTS.items():
        if start.startswith(magic):
            return kind
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[:1] == b"P" and start[1:2] in b"123456" and start[2:3] in (b" ", b"\t", b"\n", b"\r", b"#"):
        return "PNM"
    # Two letters may begin a text too: the size of BMP's second header, of which there are seven, tells them apart.
    return "BMP" if start[:2] == b"BM" and start[14:16] in _BMP_HEADERS else None


def read_header(content: bytes, name: str = "an image") -> tuple[str, Header]:
    """The format's name and what the file says of its picture; some microseconds.

    Raises:
        BadSample: an empty file, no image, or a damaged beginning.
    """
    if not content:
        raise BadSample(name, "empty", "the file has no bytes")
    kind = image_kind(content[:16])
    if kind is None:
        raise _not_read(content, name)
    return kind, FORMATS[kind].header(content, name)


def _not_read(content: bytes, name: str) -> BadSample:
    known = f"expected one of {', '.join(FORMATS)}"
    other = next((kind for magic, kind in _OTHERS.items() if content.startswith(magic)), None)
    if content[4:8] == b"ftyp":
        other = {b"avif": "AVIF", b"avis": "AVIF"}.get(content[8:12], "HEIC or video")
    if other:
        return BadSample(name, "unsupported", f"a file of format {other}; {known}")
    start = content[:64].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        found = "a web page or XML"
    elif all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start):
        found = "text"
    else:
        found = "no image"
    return BadSample(name, "not_an_image", f"{found} by its first bytes; {known}")
