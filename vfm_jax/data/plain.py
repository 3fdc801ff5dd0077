"""Values that lie in the file as they are: PBM, PGM, PPM and NPY."""

import io
import math
import re

import numpy as np
from jaxtyping import Shaped

from vfm_jax.data.bad import BadSample
from vfm_jax.data.header import Header

_KINDS = {b"P1": 1, b"P2": 1, b"P3": 3, b"P4": 1, b"P5": 1, b"P6": 3}  # channels; P1 to P3 are written in digits
_GAP = rb"(?:\s|#[^\n\r]*[\n\r])+"  # a comment ends with its line
_NUMBERS = {
    number: re.compile(rb"P[1-6]" + (_GAP + rb"(\d{1,9})") * number + rb"\s") for number in (2, 3)
}  # a bitmap has no largest value
_MAX_NPY_HEADER = 4096


def netpbm_header(content: bytes, name: str) -> Header:
    """Size and largest value.

    Raises:
        BadSample: it is cut off, or says nothing of the kind.
    """
    kind = content[:2]
    bitmap = kind in (b"P1", b"P4")
    found = _NUMBERS[2 if bitmap else 3].match(content[:_MAX_NPY_HEADER])
    if found is None:
        reason = "truncated" if len(content) < 16 else "corrupt"
        raise BadSample(name, reason, f"no width, height and largest value follow {kind.decode()!r}")
    width, height, top = (*map(int, found.groups()), 1)[:3]
    if not width or not height or not 1 <= top <= 65535:
        raise BadSample(name, "corrupt", f"the header says {width} x {height} pixels, largest value {top}")
    dtype = np.dtype(np.uint16 if top > 255 else np.uint8)
    return Header(height, width, _KINDS[kind], False, dtype, own=(kind, found.end(), top))


def decode_netpbm(content: bytes, header: Header, name: str) -> Shaped[np.ndarray, "h w c"]:
    """All values, scaled so that the largest that may be is the type's (255, or 65535), by rounding.

    Raises:
        BadSample: there are fewer, or larger ones.
    """
    kind, first, top = header.own
    shape = (header.height, header.width, header.channels)
    if kind == b"P4":
        rows = (header.width + 7) // 8
        packed = _values(content, np.dtype(np.uint8), first, header.height * rows, name).reshape(header.height, rows)
        values = np.unpackbits(packed, axis=1, count=header.width)
    elif kind in (b"P5", b"P6"):
        values = _values(content, np.dtype(">u2" if top > 255 else "u1"), first, math.prod(shape), name)
    else:
        values = _written(content[first:], digits=kind == b"P1", count=math.prod(shape), name=name)
    if values.max() > top:
        raise BadSample(name, "corrupt", f"a value of {values.max()}, above the {top} of the header")
    values = values.reshape(shape)
    if kind in (b"P1", b"P4"):
        values = 1 - values  # 1 is black
    full = np.iinfo(header.dtype).max
    if top != full:
        values = (values.astype(np.uint64) * full + top // 2) // top
    return values.astype(header.dtype)


def _values(content: bytes, dtype: np.dtype, first: int, count: int, name: str) -> np.ndarray:
    missing = first + count * dtype.itemsize - len(content)
    if missing > 0:
        raise BadSample(name, "truncated", f"{missing} bytes of its {count} values are missing")
    return np.frombuffer(content, dtype, count, first)


def _written(text: bytes, digits: bool, count: int, name: str) -> np.ndarray:
    text = re.sub(rb"#[^\n\r]*", b"", text)
    if re.search(rb"[^01\s]" if digits else rb"[^\d\s]|\d{6}", text):
        raise BadSample(name, "corrupt", "something is written among its values that is none")
    if digits:  # a bitmap's need no gaps between them
        values = np.frombuffer(b"".join(text.split()), np.uint8)[:count] - 48
    else:
        values = np.fromstring(text.decode(), np.int64, sep=" ")[:count]
    if len(values) < count:
        raise BadSample(name, "truncated", f"{len(values)} of its {count} values are there")
    return values


def npy_header(content: bytes, name: str) -> Header:
    """Shape and type of an array (h, w) or (h, w, c).

    Raises:
        BadSample: an array of another kind, or no numbers.
    """
    opened = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(opened)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran_order, dtype = read(opened, max_header_size=_MAX_NPY_HEADER)
    except Exception as error:  # a literal that is none raises many types
        reason = "truncated" if len(content) < 128 else "corrupt"
        raise BadSample(name, reason, f"its header is no NPY header ({type(error).__name__})") from error
    if dtype.hasobject or dtype.kind not in "uif" or len(shape) not in (2, 3) or not all(n > 0 for n in shape):
        raise BadSample(name, "unsupported", f"an array of {dtype} {shape}; expected numbers (h, w) or (h, w, c)")
    height, width, channels = (*shape, 1)[:3]
    own = (opened.tell(), dtype, shape, fortran_order)
    return Header(height, width, channels, False, dtype.newbyteorder("="), own=own)


def decode_npy(content: bytes, header: Header, name: str) -> Shaped[np.ndarray, "h w c"]:
    """All values.

    Raises:
        BadSample: there are fewer.
    """
    first, dtype, shape, fortran_order = header.own
    values = _values(content, dtype, first, math.prod(shape), name)
    array = values.reshape(shape, order="F" if fortran_order else "C").reshape(
        header.height, header.width, header.channels
    )
    return array.astype(header.dtype)
