"""Image files to uint8 arrays, and arrays to the fixed canvas of a source.

Only an allow-list of formats is opened, the header's size is checked before any pixel is decoded, and whatever
cannot be read in full is an error that names the file.
"""

import io
import os

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vfm_jax.core.errors import TrainingError, UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 2**26  # 64 megapixels: 200 MB decoded; a few kilobytes of file can claim a hundred times that

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
    file: bytes | str | os.PathLike[str], *, name: str = "", channels: int = 3, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "h w c"]:
    """The picture in a file, upright.

    Gray becomes three equal channels (or colour one of luma, with `channels=1`), a palette its colours, CMYK RGB; 16
    bits are reduced to 8 by rounding; alpha is dropped, as torchvision's ImageFolder does; of an animation the first
    frame is taken.

    Args:
        file: its bytes or its path.
        name: what to call it in messages; the path by default.
        channels: 3 (RGB) or 1 (gray).
        max_pixels: larger images are refused by their header.

    Raises:
        TrainingError: the file cannot be read in full; names file and reason.
    """
    name = name or (f"an image of {len(file)} bytes" if isinstance(file, bytes) else os.fspath(file))
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ValueError(f"{width} x {height} pixels, above the limit of {max_pixels} pixels")
            image.load()
            return _to_uint8(_upright(image), channels)
    except Image.UnidentifiedImageError as error:
        raise TrainingError(f"Cannot read {name}: no {', '.join(FORMATS)} image.") from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, EOFError, ... on damaged files
        raise TrainingError(f"Cannot read {name}: {str(error) or type(error).__name__}.") from error


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
