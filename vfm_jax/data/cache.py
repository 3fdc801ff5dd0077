"""Decoded pictures kept in a file of records of one length, so that a second epoch reads them without decoding.

A record says of which file it was made, in which state and by which settings, and has a checksum. One that is
absent, half written, damaged, or of a file that has changed since is decoded and written anew. Nothing else says
which records are good, so that any number of threads and processes may read and write, and be killed at any moment.

Read and written by position, and not mapped into memory: on a full disk a map ends the process where a write only
fails.
"""

import functools
import hashlib
import importlib.metadata
import os
import pathlib
import sys
import threading
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.data.decode import File, Reading
from vfm_jax.data.timing import timed
from vfm_jax.data.wrapped import FileSource, WrappedSource

FORMAT = 1
SUFFIX = ".pictures"
_DECODERS = (
    "pillow",
    "simplejpeg",
    "opencv-python-headless",
    "tifffile",
    "imagecodecs",
)  # another may decode otherwise
_WRITTEN = 1 << 32  # of a checksum, so that what was never written is none
_STAMP, _HEAD = 16, 32  # bytes: checksum 8, stamp 16, size 8; then the image
_NAMED = 64  # records whose names tell one source's file from another's


class CachedSource(WrappedSource):
    """The records of a source of image files, from the cache where it has them. See `vfm_jax.data.sources.Source`."""

    def __init__(self, source: FileSource, path: str | os.PathLike[str], max_gigabytes: float):
        """Takes a source; nothing is written before the first record is read.

        Args:
            source: of image files.
            path: folder of the cache; several sources may share it.
            max_gigabytes: all files in it together, at most.

        Raises:
            UserError: the source has no image files on this machine, or its pictures would take more.
        """
        super().__init__(source, "cache", "Leave config.data.cache out.")
        if isinstance(max_gigabytes, bool) or not max_gigabytes > 0:
            raise UserError(f"config.data.cache.max_gigabytes is {max_gigabytes!r}; expected a number above 0.")
        if len(source) and _state(source.name(0)) is None:
            raise UserError(
                f"config.data.cache cannot tell when the pictures change: {source.name(0)} is no file of this "
                "machine. Copy the data to a local disk, or leave config.data.cache out."
            )
        self._record_bytes = _HEAD + int(np.prod(self.image_shape)) * np.dtype(self.image_dtype).itemsize
        self._max_bytes = max_gigabytes * 1e9
        self._file = pathlib.Path(path).expanduser().absolute() / f"{self._told_apart()}{SUFFIX}"
        self._handle: int | None = None
        self._opening = threading.Lock()
        self._failed = False
        _check_folder(self._file.parent)
        if (problem := self._too_large()) is not None:
            raise UserError(problem)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        def picture(reading: Reading, contents: Callable[[], File], name: str) -> dict[str, np.ndarray]:
            stamp = _stamp(reading, name)
            found = None if stamp is None else self._load(index, stamp, reading)
            if found is None:
                found = reading.read(contents(), name)
                # Read again after decoding: a file that was replaced meanwhile may be either of the two.
                if stamp is not None and stamp == _stamp(reading, name):
                    self._store(index, stamp, found)
            return found

        return self._source.read(index, picture)

    def _told_apart(self) -> str:
        rows = np.linspace(0, max(0, len(self) - 1), min(len(self), _NAMED)).astype(int)
        names = [os.path.abspath(self.name(int(row))) for row in rows]
        told = (FORMAT, len(self), self.image_shape, np.dtype(self.image_dtype).name, names)
        return hashlib.blake2b(repr(told).encode(errors="surrogateescape"), digest_size=12).hexdigest()

    def _too_large(self) -> str | None:
        needed = len(self) * self._record_bytes
        others = [file for file in self._file.parent.glob(f"*{SUFFIX}") if file != self._file]
        taken = sum(file.stat().st_size for file in others)
        if needed + taken <= self._max_bytes:
            return None
        beside = f", beside {taken / 1e9:.3g} GB of {len(others)} other files in {self._file.parent}" if taken else ""
        remedy = "Delete those that are no longer needed, raise it" if taken else "Raise it"
        shape = " x ".join(map(str, self.image_shape))
        return (
            f"config.data.cache: {len(self):,} pictures of {shape} take {needed / 1e9:.3g} GB{beside}, above "
            f"max_gigabytes={self._max_bytes / 1e9:.3g}. {remedy}, or lower config.data.canvas_size."
        )

    def _opened(self) -> int:
        """The file, of the full length from the start; what was never written takes no space on the disk."""
        with self._opening:
            if self._handle is None:
                if (problem := self._too_large()) is not None:
                    raise OSError(problem)
                self._file.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                try:
                    if os.fstat(handle).st_size < len(self) * self._record_bytes:
                        os.ftruncate(handle, len(self) * self._record_bytes)
                except OSError:
                    os.close(handle)
                    raise
                self._handle = handle
            return self._handle

    def _load(self, index: int, stamp: bytes, reading: Reading) -> dict[str, np.ndarray] | None:
        if self._failed:
            return None
        # In a source made of several, a canvas may be smaller than the largest.
        length = _HEAD + int(np.prod(reading.image_shape)) * np.dtype(reading.image_dtype).itemsize
        try:
            with timed("read"):
                record = os.pread(self._opened(), length, index * self._record_bytes)
        except OSError as error:
            self._go_on_without(error)
            return None
        if len(record) < length or record[8 : 8 + _STAMP] != stamp:
            return None
        if int.from_bytes(record[:8], "little") != _checksum(memoryview(record)[8:]):
            return None
        image = np.frombuffer(record, reading.image_dtype, offset=_HEAD).reshape(reading.image_shape)
        return {"image": image, "size": np.frombuffer(record, "<i4", 2, 8 + _STAMP).astype(np.int32)}

    def _store(self, index: int, stamp: bytes, made: dict[str, np.ndarray]) -> None:
        if self._failed:
            return
        image = np.ascontiguousarray(made["image"])
        content = b"".join((stamp, made["size"].astype("<i4").tobytes(), image.tobytes()))
        record = _checksum(content).to_bytes(8, "little") + content
        try:
            with timed("read"):
                written = os.pwrite(self._opened(), record, index * self._record_bytes)
            if written != len(record):
                raise OSError(f"{written} of {len(record)} bytes could be written")
        except OSError as error:
            self._go_on_without(error)

    def _go_on_without(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
            reason = error.strerror or error
            print(f"The run goes on without the cache {self._file}: {reason}", file=sys.stderr, flush=True)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_handle", "_opening")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _handle=None, _opening=threading.Lock())  # each process opens it for itself

    def __del__(self) -> None:
        if (handle := getattr(self, "_handle", None)) is not None:
            os.close(handle)


def cached(source: FileSource, *, path: str, max_gigabytes: float = 100.0) -> CachedSource:
    """The source with a cache of its decoded pictures; the keywords are the fields of `config.data.cache`.

    Pictures are kept as the pipeline gets them, on their canvases: those of ImageNet's training set take 252 GB at
    256 x 256. Whatever they are made of is part of them: a file that changes, other settings or another version of a
    decoder are read anew. A disk that is full ends the caching, and not the run.

    Args:
        source: of image files on this machine.
        path: folder of the cache, on a local disk; made where there is none. `~` is the home folder.
        max_gigabytes: all of its files together, at most.

    Raises:
        UserError: the source has no such files, or its pictures would take more.
    """
    return CachedSource(source, path, max_gigabytes)


def _check_folder(path: pathlib.Path) -> None:
    there = next(place for place in (path, *path.parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        found = "which may not be written" if there.is_dir() else "which is a file"
        raise UserError(f"config.data.cache.path is {str(path)!r}: there is {there}, {found}. Give another folder.")


def _checksum(content: bytes | memoryview) -> int:
    return _WRITTEN | zlib.crc32(content)


def _stamp(reading: Reading, name: str) -> bytes | None:
    """Of a picture: its file in its present state, and all that has a part in reading it. None without a file."""
    if (state := _state(name)) is None:
        return None
    told = repr((FORMAT, reading, os.path.abspath(name), state, _versions()))
    return hashlib.blake2b(told.encode(errors="surrogateescape"), digest_size=_STAMP).digest()


def _state(name: str) -> tuple[int, ...] | None:
    """Size and times of the file of a record that is called `FILE`, or `FILE, member`; None where there is none."""
    while True:
        try:
            found = os.stat(name)
        except (OSError, ValueError):
            name, comma, _ = name.rpartition(", ")
            if not comma:
                return None
        else:
            return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


@functools.cache
def _versions() -> tuple[str, ...]:
    installed = {dist.name.lower(): dist.version for dist in importlib.metadata.distributions()}
    return tuple(installed.get(package, "") for package in _DECODERS)
