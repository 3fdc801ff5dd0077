"""A file of records of one length that any number of threads and processes read and write, and may be killed at.

Each record has a stamp, which says what it was made of, and a checksum. One that is absent, half written, damaged or
of another stamp counts as not there, and nothing else says which records are good. Whatever the disk does ends the
keeping of records, and never the run.

Read and written by position, and not mapped into memory: on a full disk a map ends the process where a write only
fails.
"""

import os
import pathlib
import sys
import threading
import zlib
from collections.abc import Callable, Iterable
from typing import Any

from vfm_jax.core.errors import UserError

STAMP_BYTES = 16
HEAD_BYTES = 8 + STAMP_BYTES  # checksum and stamp; the content follows
_WRITTEN = 1 << 32  # of a checksum, so that what was never written is none


class RecordFile:
    """See the head of this file. It can be pickled; each process opens the file for itself.

    Attributes:
        path: of the file; nothing is made before the first record is asked for.
        num_bytes: of the whole file. What was never written takes no space on the disk.
    """

    def __init__(self, path: pathlib.Path, num_records: int, content_bytes: int, room: Callable[[], str | None]):
        """Takes the layout.

        Args:
            path: of the file.
            num_records: that it has places for.
            content_bytes: of the longest content.
            room: called before the file is opened; why there is no room for it, or None.
        """
        self.path = path
        self._record_bytes = HEAD_BYTES + content_bytes
        self.num_bytes = num_records * self._record_bytes
        self._room = room
        self._handle: int | None = None
        self._opening = threading.Lock()
        self._failed = False

    def load(self, number: int, stamp: bytes, content_bytes: int) -> memoryview | None:
        """The content of a record, of so many bytes, if it was made of what the stamp says."""
        if self._failed:
            return None
        length = HEAD_BYTES + content_bytes
        try:
            record = os.pread(self._opened(), length, number * self._record_bytes)
        except OSError as error:
            self._go_on_without(error)
            return None
        if len(record) < length or record[8:HEAD_BYTES] != stamp:
            return None
        if int.from_bytes(record[:8], "little") != _checksum(memoryview(record)[8:]):
            return None
        return memoryview(record)[HEAD_BYTES:]

    def store(self, number: int, stamp: bytes, content: Iterable[bytes]) -> None:
        """Writes a record, its content in parts."""
        if self._failed:
            return
        body = b"".join((stamp, *content))
        record = _checksum(body).to_bytes(8, "little") + body
        try:
            written = os.pwrite(self._opened(), record, number * self._record_bytes)
            if written != len(record):
                raise OSError(f"{written} of {len(record)} bytes could be written")
        except OSError as error:
            self._go_on_without(error)

    def _opened(self) -> int:
        """The file, of the full length from the start."""
        with self._opening:
            if self._handle is None:
                if (problem := self._room()) is not None:
                    raise OSError(problem)
                self.path.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                try:
                    if os.fstat(handle).st_size < self.num_bytes:
                        os.ftruncate(handle, self.num_bytes)
                except OSError:
                    os.close(handle)
                    raise
                self._handle = handle
            return self._handle

    def _go_on_without(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
            reason = error.strerror or error
            print(f"The run goes on without the cache {self.path}: {reason}", file=sys.stderr, flush=True)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_handle", "_opening")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _handle=None, _opening=threading.Lock())

    def __del__(self) -> None:
        if (handle := getattr(self, "_handle", None)) is not None:
            os.close(handle)


def check_place(path: str | os.PathLike[str], max_gigabytes: float, where: str) -> tuple[pathlib.Path, float]:
    """The folder of a cache, whole, and the bytes that it may take.

    Args:
        path: of the folder; `~` is the home folder. It need not be there.
        max_gigabytes: of all files in it.
        where: the config dict that says so, for the message.

    Raises:
        UserError: it could not be written, or there may be nothing in it.
    """
    if isinstance(max_gigabytes, bool) or not max_gigabytes > 0:
        raise UserError(f"{where}.max_gigabytes is {max_gigabytes!r}; expected a number above 0.")
    folder = pathlib.Path(path).expanduser().absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        found = "which may not be written" if there.is_dir() else "which is a file"
        raise UserError(f"{where}.path is {str(folder)!r}: there is {there}, {found}. Give another folder.")
    return folder, max_gigabytes * 1e9


def _checksum(content: bytes | memoryview) -> int:
    return _WRITTEN | zlib.crc32(content)
