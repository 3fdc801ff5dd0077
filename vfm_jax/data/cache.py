"""Decoded pictures kept in a file of records of one length, so that a second epoch reads them without decoding.

A record says of which file it was made, in which state and by which settings. One of a file that has changed since
is decoded and written anew, as is one that was damaged; `data.record_file` says how that is known.
"""

import functools
import hashlib
import importlib.metadata
import os
from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike

from vfm_jax.core.errors import UserError
from vfm_jax.data.decode import File, Reading
from vfm_jax.data.record_file import STAMP_BYTES, RecordFile, check_place
from vfm_jax.data.timing import timed
from vfm_jax.data.wrapped import FileSource, WrappedSource

FORMAT = 2
SUFFIX = ".pictures"
_DECODERS = (
    "pillow",
    "simplejpeg",
    "opencv-python-headless",
    "tifffile",
    "imagecodecs",
)  # another may decode otherwise
_SIZE_BYTES = 8  # of a record's content: height and width of the picture; then the image
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
        folder, self._max_bytes = check_place(path, max_gigabytes, "config.data.cache")
        if len(source) and _state(source.name(0)) is None:
            raise UserError(
                f"config.data.cache cannot tell when the pictures change: {source.name(0)} is no file of this "
                "machine. Copy the data to a local disk, or leave config.data.cache out."
            )
        self._file = RecordFile(
            folder / f"{self._told_apart()}{SUFFIX}",
            len(source),
            _content_bytes(self.image_shape, self.image_dtype),
            self._too_large,
        )
        if (problem := self._too_large()) is not None:
            raise UserError(problem)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        def picture(reading: Reading, contents: Callable[[], File], name: str) -> dict[str, np.ndarray]:
            stamp = stamp_of(reading, name)
            found = None if stamp is None else self._load(index, stamp, reading)
            if found is None:
                found = reading.read(contents(), name)
                # Read again after decoding: a file that was replaced meanwhile may be either of the two.
                if stamp is not None and stamp == stamp_of(reading, name):
                    self._store(index, stamp, found)
            return found

        return self._source.read(index, picture)

    def _told_apart(self) -> str:
        rows = np.linspace(0, max(0, len(self) - 1), min(len(self), _NAMED)).astype(int)
        names = [os.path.abspath(self.name(int(row))) for row in rows]
        told = (FORMAT, len(self), self.image_shape, np.dtype(self.image_dtype).name, names)
        return hashlib.blake2b(repr(told).encode(errors="surrogateescape"), digest_size=12).hexdigest()

    def _too_large(self) -> str | None:
        needed, path = self._file.num_bytes, self._file.path
        others = [file for file in path.parent.glob(f"*{SUFFIX}") if file != path]
        taken = sum(file.stat().st_size for file in others)
        if needed + taken <= self._max_bytes:
            return None
        beside = f", beside {taken / 1e9:.3g} GB of {len(others)} other files in {path.parent}" if taken else ""
        remedy = "Delete those that are no longer needed, raise it" if taken else "Raise it"
        shape = " x ".join(map(str, self.image_shape))
        return (
            f"config.data.cache: {len(self):,} pictures of {shape} take {needed / 1e9:.3g} GB{beside}, above "
            f"max_gigabytes={self._max_bytes / 1e9:.3g}. {remedy}, or lower config.data.canvas_size."
        )

    def _load(self, index: int, stamp: bytes, reading: Reading) -> dict[str, np.ndarray] | None:
        # In a source made of several, a canvas may be smaller than the largest.
        length = _content_bytes(reading.image_shape, reading.image_dtype)
        with timed("read"):
            content = self._file.load(index, stamp, length)
        if content is None:
            return None
        image = np.frombuffer(content, reading.image_dtype, offset=_SIZE_BYTES).reshape(reading.image_shape)
        return {"image": image, "size": np.frombuffer(content, "<i4", 2).astype(np.int32)}

    def _store(self, index: int, stamp: bytes, made: dict[str, np.ndarray]) -> None:
        image = np.ascontiguousarray(made["image"])
        with timed("read"):
            self._file.store(index, stamp, (made["size"].astype("<i4").tobytes(), image.tobytes()))


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


def _content_bytes(image_shape: tuple[int, int, int], image_dtype: DTypeLike) -> int:
    return _SIZE_BYTES + int(np.prod(image_shape)) * np.dtype(image_dtype).itemsize


def stamp_of(reading: Reading, name: str) -> bytes | None:
    """Of a picture: its file in its present state, and all that has a part in reading it. None without a file."""
    if (state := _state(name)) is None:
        return None
    told = repr((FORMAT, reading, os.path.abspath(name), state, _versions()))
    return hashlib.blake2b(told.encode(errors="surrogateescape"), digest_size=STAMP_BYTES).digest()


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
