"""A file whose ranges become arrays without being read into memory as a whole."""

import math
import mmap
import os
import pathlib
import stat

import numpy as np

from vfm_jax.core.errors import UserError

# Below, a copy costs less than a map of its own, of which a process has 65,530.
MAPPED_BYTES = 1 << 17


class MappedFile:
    """Bytes of a file by position.

    Every array maps its own pages, so memory is given back with the array, and a file of any size is read in the
    memory of the arrays that are alive.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        try:
            self._descriptor: int | None = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise UserError(f"{path} cannot be opened: {error.strerror}.") from error
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise UserError(f"{path} is neither a file nor a folder of weights.")
        self.size = found.st_size

    def bytes(self, start: int, stop: int) -> bytes:
        """The bytes from `start` up to `stop`, or up to the end of the file."""
        pieces = []
        while start < stop and (piece := os.pread(self._open_descriptor(), stop - start, start)):
            pieces.append(piece)
            start += len(piece)
        return b"".join(pieces)

    def array(self, dtype: np.dtype, start: int, shape: tuple[int, ...]) -> np.ndarray:
        """A read-only array of the bytes from `start` on; the caller has checked that they are in the file."""
        size = math.prod(shape) * dtype.itemsize
        if size < MAPPED_BYTES:
            data = self.bytes(start, start + size)
            if len(data) < size:
                raise UserError(f"{self.path} has become shorter while it was read.")
            array = np.frombuffer(data, dtype)
        else:
            skipped = start % mmap.ALLOCATIONGRANULARITY
            pages = mmap.mmap(
                self._open_descriptor(),
                skipped + size,
                flags=mmap.MAP_PRIVATE | getattr(mmap, "MAP_POPULATE", 0),
                prot=mmap.PROT_READ,
                offset=start - skipped,
            )
            array = np.frombuffer(pages, dtype, offset=skipped)[: size // dtype.itemsize]
        if array.dtype == np.bool_ and (array.view(np.uint8) > 1).any():
            raise UserError(f"{self.path} is damaged: a boolean tensor holds numbers other than 0 and 1.")
        return np.require(array, requirements="A").reshape(shape)

    def close(self) -> None:
        """Closes the file; arrays made of it stay."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open_descriptor(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"{self.path} has been closed")
        return self._descriptor
