"""Image files to arrays, and arrays to the fixed canvas of a source.

Only an allow-list of formats is opened, the header's size is checked before any pixel is decoded, and whatever
cannot be read in full is an error that names the file.
"""

import dataclasses
import io
import math
import os
import pathlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import lookup
from vfm_jax.data.bad import BadSample

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_CHANNELS = 16
DTYPES = {"uint8": np.uint8, "uint16": np.uint16, "float32": np.float32}
MAX_PIXELS = 2**26  # 64 megapixels: 200 MB decoded; a few kilobytes of file can claim a hundred times that

File = bytes | str | os.PathLike[str]
"""The bytes of an image file, or its path."""

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def image_kind(start: bytes) -> str | None:
    """The format that the first 16 bytes of a file announce, "JPEG" or another of `FORMATS`, or None."""
    if start[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if start[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    return "BMP" if start[:2] == b"BM" else None


def decode(
    file: bytes | str | os.PathLike[str],
    *,
    name: str = "",
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
    value_range: tuple[float, float] | None = None,
    dtype: str = "uint8",
    min_size: int = 1,
) -> Shaped[np.ndarray, "h w c"]:
    """The picture in a file, upright.

    Gray becomes three equal channels (or colour one of luma, with `channels=1`), a palette its colours, CMYK RGB; 16
    bits are reduced to 8 by rounding; alpha is dropped, as torchvision's ImageFolder does; of an animation the first
    frame is taken.

    Args:
        file: its bytes or its path.
        name: what to call it in messages; the path by default.
        channels: 3 (RGB), 1 (gray), or another number, which the file must have.
        max_pixels: larger images are refused by their header.
        value_range: the values that become 0 and 1 (or 0 and the largest whole number of `dtype`).
        dtype: a name in `DTYPES`.
        min_size: pixels of the shorter side, at least.

    Raises:
        BadSample: the file cannot be read in full, or is not as asked; names file and reason.
    """
    name = name or (f"an image of {len(file)} bytes" if isinstance(file, bytes) else os.fspath(file))
    try:
        content = file if isinstance(file, bytes) else pathlib.Path(file).read_bytes()
    except FileNotFoundError as error:
        raise BadSample(name, "missing", "No such file.") from error
    except OSError as error:
        raise BadSample(name, "unreadable", f"{error.strerror or error}.") from error
    if not content:
        raise BadSample(name, "empty", "The file has no bytes.")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadSample(
                    name, "too_large", f"{width} x {height} pixels, above the limit of {max_pixels} pixels"
                )
            if min(width, height) < min_size:
                raise BadSample(name, "too_small", f"{width} x {height} pixels; expected {min_size} or more a side")
            image.load()
            return _to_uint8(_upright(image), channels)
    except BadSample:
        raise
    except Image.UnidentifiedImageError as error:
        raise BadSample(name, "not_an_image", f"no {', '.join(FORMATS)} image") from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, EOFError, ... on damaged files
        reason = "truncated" if "truncated" in str(error) else "corrupt"
        raise BadSample(name, reason, str(error) or type(error).__name__) from error


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a source reads image files: the keywords that all of them share, checked by `reading`.

    Attributes:
        canvas: height and width, in pixels.
        channels: of the picture, 1 to `MAX_CHANNELS`.
        dtype: a name in `DTYPES`.
        value_range: the values that become 0 and 1, or None.
        min_size: pixels of the shorter side, at least.
        max_pixels: height times width, at most.
    """

    canvas: tuple[int, int]
    channels: int = 3
    dtype: str = "uint8"
    value_range: tuple[float, float] | None = None
    min_size: int = 1
    max_pixels: int = MAX_PIXELS

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the canvas."""
        return (*self.canvas, self.channels)

    @property
    def image_dtype(self) -> type[np.generic]:
        """Of the canvas."""
        return DTYPES[self.dtype]

    def read(self, file: File, name: str = "") -> dict[str, np.ndarray]:
        """`image`, the picture on its canvas, and `size`, the height and width that it fills there.

        Raises:
            BadSample: as `decode`.
        """
        pixels = decode(
            file,
            name=name,
            channels=self.channels,
            max_pixels=self.max_pixels,
            value_range=self.value_range,
            dtype=self.dtype,
            min_size=self.min_size,
        )
        image, size = fit_canvas(pixels, self.canvas)
        return {"image": image, "size": size}


Picture = Callable[[Reading, Callable[[], File], str], dict[str, np.ndarray]]
"""`(reading, contents, name) -> {"image", "size"}`; `contents()` is the file. `on_canvas` is one, a crop another."""


def on_canvas(reading: Reading, contents: Callable[[], File], name: str) -> dict[str, np.ndarray]:
    """The picture of a file on its canvas: what a source gives where nobody asks for another."""
    return reading.read(contents(), name)


def reading(
    canvas_size: int | tuple[int, int],
    channels: int = 3,
    dtype: str = "uint8",
    value_range: tuple[float, float] | None = None,
    min_size: int = 1,
    max_pixels: int = MAX_PIXELS,
) -> Reading:
    """The keywords of a source as its user gave them, checked; `Reading` says what they mean.

    Raises:
        UserError: a value that cannot be; named as in `config.data`.
    """
    canvas = canvas_shape(canvas_size)
    if not _is_count(channels) or channels > MAX_CHANNELS:
        raise UserError(f"config.data.channels is {channels!r}; expected a whole number from 1 to {MAX_CHANNELS}.")
    lookup(DTYPES, dtype, "config.data.dtype")
    for field, value in {"min_size": min_size, "max_pixels": max_pixels}.items():
        if not _is_count(value):
            raise UserError(f"config.data.{field} is {value!r}; expected a whole number of pixels, one or more.")
    return Reading(canvas, channels, dtype, checked_range(value_range), min_size, max_pixels)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def checked_range(value_range: tuple[float, float] | None) -> tuple[float, float] | None:
    """`config.data.value_range` as two numbers.

    Raises:
        UserError: no two finite numbers, the smaller first.
    """
    if value_range is None:
        return None
    try:
        low, high = map(float, value_range)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(
            f"config.data.value_range is {value_range!r}; expected (low, high): the values of the images that become "
            "0 and 1, low below high."
        )
    return low, high


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - damaged EXIF raises many types, and says nothing about the pixels
        turn = None
    return image if turn is None else image.transpose(turn)


def _to_uint8(image: Image.Image, channels: int) -> np.ndarray:
    mode = "L" if channels == 1 else "RGB"
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow's own conversion would clip at 255
        image = Image.fromarray(((np.asarray(image, np.uint32) + 128) // 257).astype(np.uint8))
    pixels = np.array(image if image.mode == mode else image.convert(mode), np.uint8)
    return pixels.reshape(image.height, image.width, channels)


def fit_canvas(
    image: UInt8[np.ndarray, "h w c"], canvas: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "H W c"], np.ndarray]:
    """The image in the top left of a canvas (height, width), and the height and width it fills there (int32).

    What is larger than the canvas is scaled down to fit, keeping its aspect ratio, with an antialiased bicubic
    filter; what is smaller stays as it is. The rest of the canvas is zero.
    """
    height, width, channels = image.shape
    scale = min(1.0, canvas[0] / height, canvas[1] / width)
    if scale < 1:
        height, width = max(1, round(height * scale)), max(1, round(width * scale))
        image = _resize(image, height, width)
    if (height, width) == tuple(canvas):
        out = image
    else:
        out = np.zeros((*canvas, channels), np.uint8)
        out[:height, :width] = image
    return out, np.array([height, width], np.int32)


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[-1] == 3:
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    bands = [
        np.asarray(Image.fromarray(np.ascontiguousarray(band)).resize((width, height), Image.Resampling.BICUBIC))
        for band in np.moveaxis(image, -1, 0)
    ]
    return np.stack(bands, axis=-1)


def canvas_shape(canvas_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of a canvas given as one number or two, in pixels.

    Raises:
        UserError: not one or two positive whole numbers.
    """
    sizes = (canvas_size, canvas_size) if isinstance(canvas_size, int) else tuple(canvas_size)
    if len(sizes) != 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise UserError(f"canvas_size is {canvas_size!r}; expected pixels: one number, or (height, width).")
    return sizes
