"""The safetensors format: a JSON header of names, dtypes, shapes and positions, then the bytes.

Format: https://huggingface.co/docs/safetensors. Only the header is parsed; a tensor is a view of the file.
"""

import collections
import contextlib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.weights.files.interface import BFLOAT16, MAX_DIMENSIONS, Contents, Tensor
from vfm_jax.weights.files.mapped import MappedFile

MAX_HEADER = 100_000_000  # bytes; the format's own limit
MAX_NAME = 4096
ALIGNMENT = 64  # of the first tensor that we write, so that arrays of the mapped file can be used in place

DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Spec(NamedTuple):
    """Shape and dtype of a tensor that is to be written."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_safetensors(file: MappedFile) -> Contents:
    """The tensors of the file.

    Raises:
        UserError: the header is not as the format wants it, or does not describe every byte of the file exactly once.
    """
    header, data = _header(file)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(word, str) for word in metadata.values()):
        raise _damaged(file, "its metadata are not words")
    described = [_entry(file, name, entry) for name, entry in header.items()]
    end = 0
    for name, _, start, stop in sorted(described, key=lambda item: item[2:]):
        if start != end:
            what = "overlaps the tensor before it" if start < end else f"leaves {start - end} bytes before it unused"
            raise _damaged(file, f"{name!r} {what}")
        end = stop
    if file.size != data + end:
        if file.size < data + end:
            raise UserError(
                f"{file.path} is truncated: its header describes {data + end:,} bytes, and {file.size:,} are there. "
                "Download it again."
            )
        raise _damaged(file, f"{file.size - data - end} bytes follow its last tensor")
    return Contents(
        {
            name: Tensor(spec.shape, spec.dtype, partial(file.array, spec.dtype, data + start, spec.shape))
            for name, spec, start, _ in described
        },
        metadata,
    )


def _header(file: MappedFile) -> tuple[dict[str, Any], int]:
    """The header, and where the bytes of the tensors begin."""
    length = int.from_bytes(file.bytes(0, 8), "little")
    if length > MAX_HEADER:
        raise _damaged(file, f"its header claims {length:,} bytes; {MAX_HEADER:,} are the limit")
    if 8 + length > file.size:
        raise UserError(
            f"{file.path} is truncated: its header alone takes {8 + length:,} bytes, and {file.size:,} are there. "
            "Download it again."
        )
    try:
        header = json.loads(
            file.bytes(8, 8 + length).decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_refuse
        )
    except RecursionError:
        raise _damaged(file, "its header is nested too deeply") from None
    except ValueError as error:
        raise _damaged(file, f"its header is no JSON of the format ({str(error)[:200]})") from None
    if not isinstance(header, dict):
        raise _damaged(file, "its header is no table of tensors")
    return header, 8 + length


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = collections.Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{twice[:100]!r} is there twice")
    return found


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _entry(file: MappedFile, name: str, entry: Any) -> tuple[str, Spec, int, int]:
    shown = repr(name[:100])
    if len(name) > MAX_NAME:
        raise _damaged(file, f"the name {shown}... has {len(name):,} letters")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(file, f"{shown} is not described by dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise UserError(
            f"{file.path} holds {shown} as {str(code)[:40]!r}, which is not read here. "
            f"Known: {', '.join(DTYPES)}. Take the float32, float16 or bfloat16 file of the same weights."
        )
    if not _whole_numbers(shape) or len(shape) > MAX_DIMENSIONS:
        raise _damaged(file, f"{shown} has no shape")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(file, f"{shown} has no place in the file")
    spec = Spec(tuple(shape), DTYPES[code])
    if spec.size != offsets[1] - offsets[0]:
        raise _damaged(file, f"{shown} {spec.shape} {code} takes {spec.size} bytes, not {offsets[1] - offsets[0]}")
    return name, spec, *offsets


def _whole_numbers(values: Any) -> bool:
    """Whether `values` is a list of integers that fit 63 bits and are not negative."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _damaged(file: MappedFile, what: str) -> UserError:
    return UserError(
        f"{file.path} is no valid safetensors file: {what}. Download it again, or from its first source."
    )


def save_safetensors(
    path: pathlib.Path,
    specs: Mapping[str, Spec],
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes one file, tensor by tensor: under a temporary name, made durable, then renamed.

    Args:
        path: of the file; one that is there is replaced at the end, and kept if anything fails.
        specs: every tensor, known beforehand.
        tensors: the same ones in any order; each is let go of before the next is asked for.
        metadata: words. transformers wants {"format": "pt"}, which stands there when nothing is given.

    Raises:
        ValueError: `tensors` are not those of `specs`.
    """
    header, places = _written_header(specs, {"format": "pt"} if metadata is None else metadata)
    missing = set(specs)
    with _replacing(path) as file:
        file.write(header)
        for name, array in tensors:
            if name not in missing:
                raise ValueError(f"{name!r} is not announced, or came twice")
            if (array.shape, array.dtype) != specs[name]:
                raise ValueError(f"{name!r} is {array.dtype}{array.shape}, announced was {specs[name]}")
            missing.remove(name)
            file.seek(places[name])
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        if missing:
            raise ValueError(f"{len(missing)} tensors did not come, {min(missing)!r} among them")


def _written_header(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """The header, and the position in the file of each tensor."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    places = {}
    for name in sorted(specs, key=lambda name: -specs[name].dtype.itemsize):  # every tensor aligned to its items
        spec = specs[name]
        if spec.dtype not in NAMES:
            raise ValueError(f"{name!r}: {spec.dtype} has no name in safetensors")
        header[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [end, end + spec.size]}
        places[name] = end
        end += spec.size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    data = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: data + place for name, place in places.items()}


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[Any]:
    """A file that takes the place of `path` once it is whole and on the disk; a failure leaves nothing of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save_shards(
    folder: pathlib.Path,
    specs: Mapping[str, Spec],
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    stem: str = "model",
    max_shard_bytes: int = 5_000_000_000,
    metadata: Mapping[str, str] | None = None,
) -> list[pathlib.Path]:
    """Writes STEM.safetensors, or shards of it with the index that transformers reads.

    Args:
        folder: must exist.
        specs: every tensor, in the order in which it will come.
        tensors: in that order.
        stem: of the file names.
        max_shard_bytes: of the tensors of a file; a larger tensor has one of its own.
        metadata: words, as for `save_safetensors`.

    Returns:
        The files with tensors; the index, STEM.safetensors.index.json, is not among them.
    """
    shards: list[dict[str, Spec]] = [{}]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.size > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = spec
        size += spec.size
    if len(shards) == 1:
        whole = folder / f"{stem}.safetensors"
        save_safetensors(whole, specs, tensors, metadata=metadata)
        return [whole]
    coming = iter(tensors)
    paths = []
    for i, shard in enumerate(shards):
        paths.append(folder / f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors")
        save_safetensors(paths[-1], shard, (next(coming) for _ in shard), metadata=metadata)
    index = {
        "metadata": {"total_size": sum(spec.size for spec in specs.values())},
        "weight_map": {name: path.name for path, shard in zip(paths, shards, strict=True) for name in shard},
    }
    with _replacing(folder / f"{stem}.safetensors.index.json") as file:
        file.write(json.dumps(index, indent=2).encode())
    return paths
