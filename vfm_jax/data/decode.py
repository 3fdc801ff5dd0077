"""Image files to arrays, and arrays to the fixed canvas of a source.

Only an allow-list of formats is opened (`data.formats`), what the header says is checked before any pixel is decoded,
and whatever cannot be read in full is a `BadSample` that names the file and says why.
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import lookup
from vfm_jax.data.bad import BadSample
from vfm_jax.data.formats import EXTENSIONS, FORMATS, image_kind, read_header
from vfm_jax.data.header import Header, upright, upright_size
from vfm_jax.data.jpeg import decode_jpeg, reductions
from vfm_jax.data.resize import resize
from vfm_jax.data.timing import timed

__all__ = [
    "DTYPES",
    "EXTENSIONS",
    "MAX_BYTES",
    "MAX_CHANNELS",
    "MAX_PIXELS",
    "File",
    "Picture",
    "Reading",
    "canvas_shape",
    "checked_range",
    "contents_of",
    "decode",
    "fit_canvas",
    "has_range",
    "image_kind",
    "on_canvas",
    "read_header",
    "reading",
    "with_dtype",
]

MAX_CHANNELS = 16
DTYPES = {"uint8": np.uint8, "uint16": np.uint16, "float32": np.float32}
MAX_PIXELS = 2**26  # 64 megapixels: 200 MB decoded; a few kilobytes of file can claim a hundred times that
MAX_BYTES = 2**30  # of a file, and of the decoded values: 64 megapixels of 4 floats

File = bytes | str | os.PathLike[str]
"""The bytes of an image file, or its path."""


def decode(
    file: bytes | str | os.PathLike[str],
    *,
    name: str = "",
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
    value_range: tuple[float, float] | None = None,
    dtype: str = "uint8",
    min_size: int = 1,
    reduced: int = 1,
) -> Shaped[np.ndarray, "h w c"]:
    """The picture in a file, upright.

    Gray becomes three equal channels (or colour one of luma, with `channels=1`), a palette its colours, CMYK and Lab
    RGB; alpha is dropped, as torchvision's ImageFolder does, unless `channels` (2 or 4) counts it; of an animation
    the first frame is taken, of a TIFF the first page.

    The range of the file's values becomes that of `dtype`, rounded: 0 to 255, to 65535, or to 1.0. It is the whole
    range of unsigned integers of 8 and 16 bits, and 0 to 1 for floats; floats beyond it, and other integers, have no
    meaning of their own and need `value_range`.

    Args:
        file: its bytes or its path.
        name: what to call it in messages; the path by default.
        channels: 3 (RGB), 1 (gray), or another number up to `MAX_CHANNELS`, which the file must have.
        max_pixels: larger images are refused by their header.
        value_range: the file's own values that become the ends of `dtype`'s range; what is beyond them is clipped.
        dtype: of the result, a name in `DTYPES`.
        min_size: pixels of the shorter side, at least.
        reduced: 1; of a JPEG, 2, 4 or 8 too: each side so many times smaller, as `jpeg.decode_jpeg` has it.

    Raises:
        BadSample: the file cannot be read in full, or is not as asked; names file and reason. NaN and infinity are
            refused too: which number they stand for is not ours to guess.
    """
    name = name or (f"an image of {len(file)} bytes" if isinstance(file, bytes) else os.fspath(file))
    content = file if isinstance(file, bytes) else contents_of(file, name)
    kind, header = read_header(content, name)
    _check(header, name, channels, max_pixels, min_size)
    if value_range is None and not has_range(header.dtype):
        raise _without_range(f"{header.dtype} values", name)
    try:
        with timed("decode"):
            if reduced == 1:
                pixels = FORMATS[kind].pixels(content, header, name)
            else:
                pixels = decode_jpeg(content, header.own, name, reduced)
    except BadSample:
        raise
    except Exception as error:  # the libraries raise OSError, SyntaxError, struct.error, EOFError, ... on damage
        message = (str(error) or type(error).__name__).splitlines()[0]
        reason = "truncated" if re.search("truncated|failed to read|end of file", message) else "corrupt"
        raise BadSample(name, reason, message) from error
    with timed("resize"):
        pixels = upright(_with_channels(pixels, header, channels), header.orientation)
        return np.ascontiguousarray(with_dtype(pixels, name, value_range, dtype))


def contents_of(file: str | os.PathLike[str], name: str) -> bytes:
    """The bytes of a file.

    Raises:
        BadSample: there is none, it is larger than `MAX_BYTES`, or the storage fails.
    """
    try:
        with timed("read"):
            # Four calls of the system; Python's open makes ten, which take as long as reading a small image's header.
            descriptor = os.open(file, os.O_RDONLY)
            try:
                size = os.fstat(descriptor).st_size
                if size > MAX_BYTES:
                    raise BadSample(name, "too_large", f"{size} bytes, above {MAX_BYTES}")
                content = os.read(descriptor, size)
                while len(content) < size and (more := os.read(descriptor, size - len(content))):
                    content += more  # network storage may give less than it is asked for
                return content
            finally:
                os.close(descriptor)
    except FileNotFoundError as error:
        raise BadSample(name, "missing", "no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise BadSample(name, "unreadable", getattr(error, "strerror", None) or str(error)) from error


def _check(header: Header, name: str, channels: int, max_pixels: int, min_size: int) -> None:
    """Refuses by the header what is too large or small, or has other channels."""
    height, width = header.height, header.width
    if height * width > max_pixels:
        raise BadSample(name, "too_large", f"{width} x {height} pixels, above {max_pixels} pixels")
    if height * width * header.channels * header.dtype.itemsize > MAX_BYTES:
        described = f"{header.channels} channels of {header.dtype}"
        raise BadSample(name, "too_large", f"{width} x {height} pixels, {described}, are above {MAX_BYTES} bytes")
    if min(height, width) < min_size:
        raise BadSample(name, "too_small", f"{width} x {height} pixels; expected {min_size} or more a side")
    colours = header.channels - header.has_alpha
    if channels not in ((1, 3, header.channels) if colours in (1, 3) else (header.channels,)):
        alpha = ", one of them alpha" if header.has_alpha else ""
        raise BadSample(name, "wrong_channels", f"{header.channels} channels{alpha}; expected {channels}")


def has_range(dtype: np.dtype[Any]) -> bool:
    """Values of this type have a range of their own: 0 to the largest, or 0 to 1 for floats."""
    return dtype.kind == "f" or dtype in (np.uint8, np.uint16)


def _without_range(found: str, name: str) -> BadSample:
    move = "say which become 0 and 1 with config.data.value_range=(LOW, HIGH)"
    return BadSample(name, "wrong_channels", f"{found}, whose range is not known; {move}")


def _with_channels(pixels: Shaped[np.ndarray, "h w c"], header: Header, channels: int) -> Shaped[np.ndarray, "h w n"]:
    """Gray, colour or all channels of a file, as asked; `_check` has seen that it can be."""
    if channels == header.channels:
        return pixels
    colours = pixels[..., : header.channels - header.has_alpha]
    if colours.shape[-1] == channels:
        return colours
    if channels == 3:
        return np.repeat(colours, 3, axis=-1)
    if colours.dtype == np.uint8:
        return np.array(Image.fromarray(np.ascontiguousarray(colours)).convert("L"))[..., None]
    luma = colours @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow's
    return (luma if colours.dtype.kind == "f" else np.round(luma)).astype(colours.dtype)[..., None]


def with_dtype(
    pixels: Shaped[np.ndarray, "h w c"], name: str, value_range: tuple[float, float] | None, dtype: str
) -> Shaped[np.ndarray, "h w c"]:
    """Values as `decode` gives them: from their own range, or `value_range`, to that of `dtype`.

    Raises:
        BadSample: values that are no numbers, or have no range of their own and were given none.
    """
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        bad = pixels.size - np.isfinite(pixels).sum()
        raise BadSample(name, "not_finite", f"{bad} of {pixels.size} values are NaN or infinite")
    wanted: Any = DTYPES[dtype]
    if value_range is None:
        if pixels.dtype.kind == "f":
            low, high = pixels.min(), pixels.max()
            if low < 0 or high > 1:
                raise _without_range(f"{pixels.dtype} values from {low:g} to {high:g}", name)
            value_range = (0.0, 1.0)
        elif pixels.dtype == wanted:
            return pixels
        elif wanted == np.uint8:
            return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
        elif wanted == np.uint16:
            return pixels * np.uint16(257)
        else:
            return pixels * np.float32(1 / np.iinfo(pixels.dtype).max)
    low, high = value_range
    share = np.clip((pixels.astype(np.float64) - low) / (high - low), 0, 1)
    return (share if wanted == np.float32 else np.round(share * np.iinfo(wanted).max)).astype(wanted)


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a source reads image files; made by `reading` of what its user says.

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

    def decode(self, file: File, name: str = "", reduced: int = 1) -> Shaped[np.ndarray, "h w c"]:
        """The picture in a file, upright, as `decode` gives it.

        Raises:
            BadSample: as `decode`.
        """
        return decode(
            file,
            name=name,
            channels=self.channels,
            max_pixels=self.max_pixels,
            value_range=self.value_range,
            dtype=self.dtype,
            min_size=self.min_size,
            reduced=reduced,
        )

    def read(self, file: File, name: str = "") -> dict[str, np.ndarray]:
        """`image`, the picture on its canvas, and `size`, the height and width that it fills there.

        Raises:
            BadSample: as `decode`.
        """
        content = file if isinstance(file, bytes) else contents_of(file, name)
        reduced = _reduction(content, name, self.canvas) if image_kind(content[:16]) == "JPEG" else None
        pixels = self.decode(content, name, reduced.times if reduced else 1)
        with timed("resize"):
            image, size = fit_canvas(pixels, self.canvas, reduced.sides if reduced else None)
        return {"image": image, "size": size}


class _Reduction(NamedTuple):
    """How many times smaller a JPEG is decoded, and its height and width then, the last pixels in part."""

    times: int
    sides: tuple[float, float]


def _reduction(content: bytes, name: str, canvas: tuple[int, int]) -> _Reduction | None:
    """What the canvas needs of a JPEG; None for all of it."""
    _, header = read_header(content, name)
    sides = upright_size(header)
    shrinks = min(side / filled for side, filled in zip(sides, fitted(*sides, canvas), strict=True))
    for times in reductions(shrinks):
        whole = all(side % times == 0 for side in sides)
        # Once it is turned, the pixels that are there in part may be the first.
        if whole or header.orientation == 1:
            return _Reduction(times, (sides[0] / times, sides[1] / times))
    return None


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
    """The keywords that every source of image files takes, checked.

    Args:
        canvas_size: pixels, one number or (height, width); what is larger is scaled down to fit, and with it all that
            is said of places in the image.
        channels: 3 (colour) or 1 (gray), to which each is converted; or another number, which every file must have.
        dtype: of the canvas: "uint8", "uint16" or "float32".
        value_range: the files' values that become the ends of that type's range; floats beyond 0 to 1 need it.
        min_size: pixels; an image with a shorter side is bad.
        max_pixels: an image with more is bad.

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


def fitted(height: float, width: float, canvas: tuple[int, int]) -> tuple[int, int]:
    """Height and width that a picture of these fills of a canvas: scaled down to fit, if it is larger."""
    scale = min(1.0, canvas[0] / height, canvas[1] / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def fit_canvas(
    image: Shaped[np.ndarray, "h w c"], canvas: tuple[int, int], sides: tuple[float, float] | None = None
) -> tuple[Shaped[np.ndarray, "H W c"], np.ndarray]:
    """The image in the top left of a canvas (height, width), and the height and width it fills there (int32).

    What is larger than the canvas is scaled down to fit, keeping its aspect ratio: bicubic and antialiased
    (`resize`). What is smaller stays as it is. The rest of the canvas is zero.

    Args:
        image: uint8, uint16 or float32, of any number of channels.
        canvas: height and width.
        sides: as `resize` has them.
    """
    height, width = fitted(*(sides or image.shape[:2]), canvas)
    if (height, width) != image.shape[:2]:
        image = resize(image, height, width, sides=sides, bicubic=True)
    if (height, width) == tuple(canvas):
        out = image
    else:
        out = np.zeros((*canvas, image.shape[2]), image.dtype)
        out[:height, :width] = image
    return out, np.array([height, width], np.int32)


def canvas_shape(canvas_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of a canvas given as one number or two, in pixels.

    Raises:
        UserError: not one or two positive whole numbers.
    """
    sizes = (canvas_size, canvas_size) if isinstance(canvas_size, int) else tuple(canvas_size)
    if len(sizes) != 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise UserError(f"canvas_size is {canvas_size!r}; expected pixels: one number, or (height, width).")
    return sizes
