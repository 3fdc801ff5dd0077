"""Small pictures, and the files they are in."""

import io

import numpy as np
import pytest
from PIL import Image


def _picture(height, width, seed=0):
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    phase = np.random.RandomState(seed).uniform(0, 6, 3)
    bands = [127 + 120 * np.sin(y / 7 + p) * np.cos(x / 9 + 2 * p) for p in phase]
    return np.stack(bands, axis=-1).astype(np.uint8)


@pytest.fixture
def picture():
    """(height, width, seed) -> a smooth colour picture, uint8 h w c."""
    return _picture


@pytest.fixture
def encoded():
    """(picture, format) -> the bytes of a file."""

    def encode(image, kind, **options):
        file = io.BytesIO()
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
        return file.getvalue()

    return encode


@pytest.fixture
def write_image():
    """(path, height, width, seed) -> the path, with a picture in it; the format follows the name."""

    def write(file, height=6, width=9, seed=0):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_picture(height, width, seed)).save(file)
        return file

    return write
