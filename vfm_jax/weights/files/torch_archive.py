"""Files of `torch.save`: the zip archive (torch 1.6 and later, TorchScript too) and the stream of pickles before it.

Neither torch nor a pickle's code is run (`pickled.py`). A tensor is a view of the file.
"""

import io
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.weights.files.archive import STORED, Member, members, unpacked
from vfm_jax.weights.files.interface import Contents, Tensor
from vfm_jax.weights.files.mapped import MappedFile
from vfm_jax.weights.files.pickled import (
    MAX_PICKLE,
    Refused,
    Storage,
    StridedTensor,
    flattened,
    interpret,
    storage_dtype,
)

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little") + b"."
_LEGACY_PROTOCOL = 1001
# Views of views and transposes share bytes; what is read in the end is about what the file holds.
_MAX_TOTAL = 1.1
_ADVICE = (
    "Nothing of it was run. If you trust it, load it where torch is and save its tensors alone: "
    'safetensors.torch.save_file(model.state_dict(), "weights.safetensors").'
)


def read_torch_archive(file: MappedFile) -> Contents:
    """The tensors of a zip archive of `torch.save` or `torch.jit.save`.

    Raises:
        UserError: the archive is damaged, its pickle wants more than tensors, or a tensor does not fit its storage.
    """
    found = members(file)
    tops = [name.removesuffix("data.pkl") for name in found if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(tops) != 1:
        raise UserError(
            f"{file.path} is a zip archive, but not one of torch.save (it has no data.pkl). Unpack it first."
        )
    top = tops[0]
    inside = {name.removeprefix(top): member for name, member in found.items() if name.startswith(top)}
    for name, member in inside.items():
        if member.method != STORED and (name == "data.pkl" or name.startswith("data/")):
            raise UserError(f"{file.path} has been compressed by something else than torch. Take the original file.")
    _check_byte_order(file, inside)
    if inside["data.pkl"].size > MAX_PICKLE:
        raise UserError(f"{file.path} is no file of weights: its data.pkl has {inside['data.pkl'].size:,} bytes.")

    def storage(identity: tuple) -> Storage:
        kind, key, _, size = identity[:4]
        dtype = storage_dtype(kind)
        member = inside.get(f"data/{key}") if isinstance(key, str) else None
        if member is None or type(size) is not int:
            raise Refused("a tensor's numbers are not in it")
        if not 0 <= size * (dtype.itemsize if dtype else 1) <= member.size:
            raise Refused(f"a tensor claims {size:,} numbers, its storage has {member.size:,} bytes")
        return Storage(key, dtype, size, 0, member.size)

    scripted = "constants.pkl" in inside
    stream = io.BytesIO(unpacked(file, "data.pkl", inside["data.pkl"]))
    tensors = _tensors(file, lambda: flattened(interpret(stream, storage, scripted=scripted), limit=stream.tell()))
    return _contents(file, tensors, {key: member.start for key, member in _storages(inside).items()})


def _storages(inside: Mapping[str, Member]) -> dict[str, Member]:
    return {name.removeprefix("data/"): member for name, member in inside.items() if name.startswith("data/")}


def _check_byte_order(file: MappedFile, inside: Mapping[str, Member]) -> None:
    if "byteorder" in inside:
        order = bytes(unpacked(file, "byteorder", inside["byteorder"], first=16))
        if order != b"little":
            raise _big_endian(file)


def _big_endian(file: MappedFile) -> UserError:
    return UserError(
        f"{file.path} was written on a big-endian machine, which is not read here. Save it on another one."
    )


def read_torch_stream(file: MappedFile) -> Contents:
    """The tensors of a file as `torch.save` wrote it before torch 1.6.

    Four pickles (a magic number, the version, the machine, the object), one with the names of the storages, then
    their bytes, each after its number of items.

    Raises:
        UserError: as `read_torch_archive`.
    """
    stream = io.BytesIO(file.bytes(0, min(file.size, MAX_PICKLE)))
    storages: dict[str, Storage] = {}

    def none(identity: tuple) -> Storage:
        raise Refused("a tensor stands outside of the object")

    def storage(identity: tuple) -> Storage:
        kind, key, _, size, *view = identity
        dtype = storage_dtype(kind)
        if not isinstance(key, str) or type(size) is not int or not 0 <= size < 1 << 62:
            raise Refused("a tensor has no storage")
        if size * (dtype.itemsize if dtype else 1) > file.size:
            raise Refused(f"a tensor claims {size:,} numbers, and the file has {file.size:,} bytes")
        if storages.setdefault(key, Storage(key, dtype, size, 0, size))[1:3] != (dtype, size):
            raise Refused(f"the storage {key[:40]!r} has two sizes or types")
        start, length = 0, size
        if view and view[0] is not None:
            _, start, length = view[0] if isinstance(view[0], tuple) and len(view[0]) == 3 else (None, -1, -1)
            if type(start) is not int or type(length) is not int or not 0 <= start <= start + length <= size:
                raise Refused("a storage is a view of what is not there")
        return Storage(key, dtype, length, start, size)

    def parse() -> tuple[dict[str, StridedTensor], list[str]]:
        if interpret(stream, none) != LEGACY_MAGIC or interpret(stream, none) != _LEGACY_PROTOCOL:
            raise Refused("it is of an unknown version")
        machine = interpret(stream, none)
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise _big_endian(file)
        found = flattened(interpret(stream, storage), limit=stream.tell())
        keys = interpret(stream, none)
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
            raise Refused("its list of storages is not that of its tensors")
        return found, keys

    tensors, keys = _tensors(file, parse)
    starts = {}
    place = stream.tell()
    for key in keys:
        dtype, size = storages[key].dtype, storages[key].size
        if int.from_bytes(file.bytes(place, place + 8), "little", signed=True) != size:
            raise UserError(f"{file.path} is damaged: a storage does not have the size that the tensors say.")
        starts[key] = place + 8
        place += 8 + size * (dtype.itemsize if dtype else 1)
        if place > file.size:
            raise UserError(
                f"{file.path} is truncated: it ends at {file.size:,} bytes, within a tensor. Download it again."
            )
    if place != file.size:
        raise UserError(f"{file.path} is damaged: {file.size - place:,} bytes follow its last tensor.")
    return _contents(file, tensors, starts)


def _tensors(file: MappedFile, parse: Any) -> Any:
    try:
        return parse()
    except Refused as refused:
        raise UserError(f"{file.path} is refused: {refused}. {_ADVICE}") from None


def _contents(file: MappedFile, tensors: Mapping[str, StridedTensor], starts: Mapping[str, int]) -> Contents:
    distinct = {(t.storage.key, t.storage.start, *t[1:]): t.size for t in tensors.values()}
    if sum(distinct.values()) > _MAX_TOTAL * file.size:
        raise UserError(
            f"{file.path} is refused: its tensors would take {sum(distinct.values()):,} bytes, more than it has."
        )
    if not tensors:
        raise UserError(f"{file.path} holds no tensors.")
    loads = {name: partial(_load, file, tensor, starts[tensor.storage.key]) for name, tensor in tensors.items()}
    return Contents({name: Tensor(t.shape, t.dtype, loads[name]) for name, t in tensors.items()})


def _load(file: MappedFile, tensor: StridedTensor, start: int) -> np.ndarray:
    itemsize = tensor.dtype.itemsize
    first = tensor.storage.start * (tensor.storage.dtype.itemsize if tensor.storage.dtype else 1)
    numbers = file.array(tensor.dtype, start + first + tensor.offset * itemsize, (tensor.reach,))
    strides = [stride * itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides, writeable=False)
