"""NumPy's archives of arrays, as big_vision saves its parameters.

`numpy.load` is not used: it unpacks whatever a member claims to hold. Here a member's own header is held against its
size first, and arrays of Python objects are refused by their header.
"""

import io
import math
from functools import partial

import numpy as np
from numpy.lib import format as npy

from vfm_jax.core.errors import UserError
from vfm_jax.weights.files.archive import STORED, Member, members, unpacked
from vfm_jax.weights.files.interface import BFLOAT16, MAX_DIMENSIONS, Contents, Tensor
from vfm_jax.weights.files.mapped import MappedFile

# Deflate reaches 1,000 on zeros; weights reach 1.1 in float32, and 3 with masks and counters beside them.
MAX_RATIO = 20
_MAX_HEADER = 10_000  # bytes, numpy's own limit
_PREFIXES = ("opt/target/", "params/")


def read_npz(file: MappedFile) -> Contents:
    """The arrays of the archive, without the prefix "params/" or "opt/target/" where it is there.

    Raises:
        UserError: a member is no array of numbers, or claims more than the archive can hold.
    """
    found = members(file)
    total = sum(member.size for member in found.values())
    if total > MAX_RATIO * file.size:
        raise UserError(
            f"{file.path} is refused: {file.size:,} bytes that unpack to {total:,}, over {MAX_RATIO} times as much."
        )
    tensors, notes = {}, []
    for name, member in found.items():
        if not name.endswith(".npy"):
            raise UserError(f"{file.path} is no archive of arrays: {name[:100]!r} is no .npy.")
        tensor = _array(file, name, member)
        if tensor.dtype.kind in "US":
            notes.append(f"{name.removesuffix('.npy')!r} holds words and was left out")
        else:
            tensors[name.removesuffix(".npy")] = tensor
    return _without_prefix(file, tensors, notes)


def _without_prefix(file: MappedFile, tensors: dict[str, Tensor], notes: list[str]) -> Contents:
    prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in tensors)), "")
    renamed = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        raise UserError(f"{file.path} holds names with and without {prefix!r}. Keep one kind.")
    if prefix:
        notes = [*notes, f"names are without their prefix {prefix!r}"]
    return Contents(renamed, note="; ".join(notes))


def _array(file: MappedFile, name: str, member: Member) -> Tensor:
    stream = io.BytesIO(unpacked(file, name, member, first=_MAX_HEADER + 12))
    try:
        version = npy.read_magic(stream)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, fortran, dtype = read_header(stream, max_header_size=_MAX_HEADER)
    except Exception as error:  # noqa: BLE001  (numpy parses a Python literal, and says what is wrong with it in many ways)
        raise UserError(f"{file.path} is damaged: {name!r} is no array ({str(error)[:150]}).") from None
    if dtype == np.dtype("V2"):
        dtype = BFLOAT16  # numpy has no name for it
    if dtype.hasobject or (dtype.kind not in "fiubUS" and dtype != BFLOAT16):
        raise UserError(f"{file.path} is refused: {name!r} holds {dtype}, not numbers. Nothing of it was run.")
    if dtype.byteorder == ">":
        raise UserError(f"{file.path}: {name!r} was written on a big-endian machine, which is not read here.")
    if len(shape) > MAX_DIMENSIONS or any(type(n) is not int or not 0 <= n < 1 << 62 for n in shape):
        raise UserError(f"{file.path} is damaged: {name!r} has the shape {str(shape)[:100]}.")
    start = stream.tell()
    if start + math.prod(shape) * dtype.itemsize != member.size:
        raise UserError(
            f"{file.path} is damaged: {name!r} {shape} {dtype} does not have its size. Download it again."
        )
    return Tensor(shape, dtype, partial(_load, file, name, member, start, shape, fortran, dtype))


def _load(
    file: MappedFile, name: str, member: Member, start: int, shape: tuple[int, ...], fortran: bool, dtype: np.dtype
) -> np.ndarray:
    stored_shape = shape[::-1] if fortran else shape
    if member.method == STORED:
        array = file.array(dtype, member.start + start, stored_shape)
    else:
        array = np.frombuffer(unpacked(file, name, member), dtype, offset=start).reshape(stored_shape)
        array.flags.writeable = False
    return array.T if fortran else array
