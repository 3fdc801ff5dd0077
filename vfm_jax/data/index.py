"""What is in a source, record by record: content, look, size, class, values, or why a record cannot be read.

One pass over the records, in threads. It is kept in the user's cache folder, so that the next one reads only the
records whose file changed; a source without files behind it is read anew each time.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Int, UInt8

from vfm_jax.core.errors import TrainingError
from vfm_jax.data.bad import REASONS, BadSample
from vfm_jax.data.decode import read_header
from vfm_jax.data.order import EvaluationOrder
from vfm_jax.data.sources import Source
from vfm_jax.data.statistics import MOMENTS, Moments, moments, no_moments

THUMB = (8, 9)  # height and width: 8 x 8 differences between neighbours
_FORMAT = 1  # of the file; another number is another file
_CHUNK = 256  # records handed to the threads at a time: what Ctrl-C waits for
_SAVE_SECONDS = 60.0
_PASSING = ("missing", "unreadable")  # may be otherwise the next time, whatever the file's date says
_DAMAGE = (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)
_TURNED = 5  # EXIF orientations from this one on exchange height and width


@dataclasses.dataclass(frozen=True)
class Index:
    """Of n records, or of `limit` evenly spaced ones.

    Attributes:
        rows: their places in the source.
        digest: hash of shape, type and pixels of the picture as the source gives it: two files of the same pixels
            are alike, whatever their names and formats.
        thumb: the picture in gray, 9 x 8 pixels.
        size: height and width on the canvas.
        file_size: height and width in the file, where the record is a file by itself; else zeros.
        label: class ids, -1 for none.
        reason: 0 for a good record, else 1 + its place in `data.bad.REASONS`.
        details: position among the rows -> what was found, for the bad ones.
        moments: of the values, for each channel.
        num_read: records that were read for it; the others are from the cache.
    """

    rows: Int[np.ndarray, " n"]
    digest: UInt8[np.ndarray, "n 16"]
    thumb: UInt8[np.ndarray, "n 8 9"]
    size: Int[np.ndarray, "n 2"]
    file_size: Int[np.ndarray, "n 2"]
    label: Int[np.ndarray, " n"]
    reason: Int[np.ndarray, " n"]
    details: Mapping[int, str]
    moments: Moments
    num_read: int

    @property
    def good(self) -> Bool[np.ndarray, " n"]:
        """Which records can be read."""
        return self.reason == 0


class _Record(NamedTuple):
    """What reading one record gives; fields of `Index`."""

    digest: bytes
    thumb: UInt8[np.ndarray, "8 9"]
    size: tuple[int, int]
    file_size: tuple[int, int]
    label: int
    reason: int
    detail: str
    moments: Moments


class _Columns:
    """An index in the making: arrays of n rows, filled one by one; a million records take 0.3 GB."""

    def __init__(self, num_rows: int, channels: int):
        self.filled = np.zeros(num_rows, np.bool_)
        self.details: dict[int, str] = {}
        self.arrays = {
            "digest": np.zeros((num_rows, 16), np.uint8),
            "thumb": np.zeros((num_rows, *THUMB), np.uint8),
            "size": np.zeros((num_rows, 2), np.int32),
            "file_size": np.zeros((num_rows, 2), np.int32),
            "label": np.zeros(num_rows, np.int32),
            "reason": np.zeros(num_rows, np.int8),
        } | {f"moments_{name}": np.zeros((num_rows, channels), kind) for name, kind in MOMENTS.items()}

    def put(self, i: int, record: _Record) -> None:
        self.filled[i] = True
        for name in ("thumb", "size", "file_size", "label", "reason"):
            self.arrays[name][i] = getattr(record, name)
        self.arrays["digest"][i] = np.frombuffer(record.digest, np.uint8)
        for name, value in record.moments._asdict().items():
            self.arrays[f"moments_{name}"][i] = value
        if record.reason:
            self.details[i] = record.detail

    def take(self, here: np.ndarray, other: "_Columns", there: np.ndarray) -> None:
        """Copies the rows `there` of another index to the rows `here`."""
        self.filled[here] = True
        for name, values in self.arrays.items():
            values[here] = other.arrays[name][there]
        self.details |= {
            int(i): other.details[int(j)] for i, j in zip(here, there, strict=True) if int(j) in other.details
        }

    def finish(self, rows: np.ndarray, num_read: int) -> Index:
        columns = {name: values for name, values in self.arrays.items() if not name.startswith("moments_")}
        measured = Moments(**{name: self.arrays[f"moments_{name}"] for name in MOMENTS})
        return Index(rows=rows, details=self.details, moments=measured, num_read=num_read, **columns)


def make_index(
    source: Source,
    described: Mapping[str, Any],
    *,
    limit: int | None = None,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = print,
) -> Index:
    """Reads the records of a source, those that an earlier call read and whose files did not change excepted.

    Stopped by Ctrl-C, it keeps what it has read.

    Args:
        source: what to read.
        described: its name in `SOURCES` and its keywords: another description is another index.
        limit: at most so many records, evenly spaced.
        threads: that read; as many as there are cores by default.
        on_progress: takes the number of records done, and of all.
        say: takes a line about the cache where something is wrong with it.
    """
    order = EvaluationOrder(len(source), limit)
    rows = order.rows(0, len(order))[0]
    cache = _Cache(source, described, say)
    keys = cache.keys([source.name(int(row)) for row in rows])
    columns = _Columns(len(rows), source.image_shape[2])
    cache.load(keys, columns)
    missing = np.flatnonzero(~columns.filled)
    done, saved_at = len(rows) - len(missing), time.monotonic()
    on_progress(done, len(rows))
    try:
        with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
            for start in range(0, len(missing), _CHUNK):
                chunk = missing[start : start + _CHUNK]
                for i, record in zip(chunk, pool.map(lambda i: _read(source, int(rows[i])), chunk), strict=True):
                    columns.put(int(i), record)
                    done += 1
                    on_progress(done, len(rows))
                if time.monotonic() - saved_at > _SAVE_SECONDS:
                    cache.save(keys, columns)
                    saved_at = time.monotonic()
    finally:
        if len(missing):
            cache.save(keys, columns)
    index = columns.finish(rows, len(missing))
    labels = getattr(source, "labels", None)  # a list of classes may have changed where the pictures did not
    return index if labels is None else dataclasses.replace(index, label=np.asarray(labels, np.int32)[rows])


def _read(source: Source, row: int) -> _Record:
    name = source.name(row)
    try:
        example = source[row]
    except TrainingError as error:
        reason, detail = (error.reason, error.detail) if isinstance(error, BadSample) else ("unreadable", str(error))
        blank = np.zeros(THUMB, np.uint8)
        nothing = no_moments(source.image_shape[2])
        return _Record(bytes(16), blank, (0, 0), (0, 0), -1, 1 + REASONS.index(reason), detail, nothing)
    height, width = (int(side) for side in example["size"])
    picture = np.ascontiguousarray(example["image"][:height, :width])
    label = int(example["label"]) if np.ndim(example["label"]) == 0 else -1
    content = hashlib.blake2b(f"{picture.dtype.name} {picture.shape} ".encode(), digest_size=16)
    content.update(picture.data)
    sizes = (height, width), _size_in_file(name)
    return _Record(content.digest(), _thumb(picture), *sizes, label, 0, "", moments(picture))


def _thumb(picture: np.ndarray) -> UInt8[np.ndarray, "8 9"]:
    """Gray and tiny: the mean of the first three channels, each of its pixels the mean of those it stands for."""
    small = cv2.resize(picture[..., :3], THUMB[::-1], interpolation=cv2.INTER_AREA).reshape(*THUMB, -1)
    scale = 255 / np.iinfo(picture.dtype).max if np.issubdtype(picture.dtype, np.integer) else 255
    gray = np.nan_to_num(small.astype(np.float64).mean(axis=-1) * scale)
    return np.clip(np.round(gray), 0, 255).astype(np.uint8)


def _size_in_file(name: str) -> tuple[int, int]:
    """Height and width that the header of an image file says, upright; zeros where there is no such file."""
    if not os.path.isfile(name):
        return 0, 0
    try:
        _, header = read_header(pathlib.Path(name).read_bytes(), name)
    except (OSError, BadSample):  # not an image by itself
        return 0, 0
    turned = header.orientation >= _TURNED
    return (header.width, header.height) if turned else (header.height, header.width)


class _Cache:
    """The records of a source by the state of their files, in one file."""

    def __init__(self, source: Source, described: Mapping[str, Any], say: Callable[[str], None]):
        self._say = say
        self._channels = source.image_shape[2]
        base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        told = _located(described)
        read_as = (source.image_shape, np.dtype(getattr(source, "image_dtype", np.uint8)).name, source.class_names)
        try:
            text = json.dumps([_FORMAT, told, read_as], sort_keys=True)
        except TypeError:  # arrays in memory: nothing on a disk to tell them by
            self.file = None
        else:
            self.file = (
                base / "vfm_jax" / "index" / f"{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.npz"
            )

    def keys(self, names: Sequence[str]) -> list[bytes | None]:
        """The name of each record with the state of the file that it lies in, hashed; None where there is no file."""
        states: dict[str, str | None] = {}
        return [None if self.file is None else _key(name, states) for name in names]

    def load(self, keys: Sequence[bytes | None], columns: _Columns) -> None:
        """Fills in the records that are there; a file that cannot be read in full counts as none, and is said."""
        if self.file is None or not self.file.exists():
            return
        try:
            with open(self.file, "rb") as opened, np.load(opened, allow_pickle=False) as members:
                stored = {name: members[name] for name in members.files}
            places = {key.tobytes(): i for i, key in enumerate(stored["key"])}
            kept = _Columns(len(places), self._channels)
            kept.arrays = {name: stored[name] for name in kept.arrays}
            kept.details = {int(i): str(text) for i, text in json.loads(stored["details"].tobytes()).items()}
            found = [(i, places[key]) for i, key in enumerate(keys) if key in places]
            here, there = np.array(found, np.int64).reshape(-1, 2).T
            columns.take(here, kept, there)
        except _DAMAGE as error:
            columns.filled[:] = False
            columns.details.clear()
            self._say(f"The index in {self.file} is damaged ({error or type(error).__name__}); it is made anew.")

    def save(self, keys: Sequence[bytes | None], columns: _Columns) -> None:
        """Writes beside the file and renames, so that no reader ever sees a part."""
        passing = np.isin(columns.arrays["reason"], [1 + REASONS.index(reason) for reason in _PASSING])
        known = np.array([key is not None for key in keys], np.bool_)
        rows = np.flatnonzero(columns.filled & known & ~passing)
        if self.file is None or not len(rows):
            return
        stored: dict[str, Any] = {name: values[rows] for name, values in columns.arrays.items()}
        stored["key"] = np.frombuffer(b"".join(keys[i] or b"" for i in rows), np.uint8).reshape(-1, 16)
        details = {place: columns.details[int(i)] for place, i in enumerate(rows) if int(i) in columns.details}
        stored["details"] = np.frombuffer(json.dumps(details).encode(), np.uint8)
        temporary = None
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.file.parent, suffix=".tmp", delete=False) as opened:
                temporary = pathlib.Path(opened.name)
                np.savez(opened, **stored)
            temporary.replace(self.file)
        except OSError as error:
            self._say(f"The index is not kept for the next time: cannot write {self.file} ({error.strerror}).")
            if temporary is not None:
                with contextlib.suppress(OSError):
                    temporary.unlink()


def _located(value: Any) -> Any:
    """A path of the description as the whole path of what is there now, with its state where it is a file."""
    if isinstance(value, Mapping):
        return {name: _located(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_located(item) for item in value]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not value or not os.path.exists(os.path.expanduser(value)):
        return value
    whole = os.path.abspath(os.path.expanduser(value))
    return [whole, _state(whole)] if os.path.isfile(whole) else whole


def _state(path: str) -> str | None:
    """Size and times of a file; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}" if os.path.isfile(path) else None


def _key(name: str, states: dict[str, str | None]) -> bytes | None:
    """Of a record called `FILE`, or `FILE, member` or row; `states` remembers those of archives."""
    state, inside = _state(name), name
    while state is None and ", " in inside:
        inside = inside.rpartition(", ")[0]
        if inside not in states:
            states[inside] = _state(inside)
        state = states[inside]
    if state is None:
        return None
    whole = f"{os.path.abspath(name)}\0{state}".encode(errors="surrogateescape")
    return hashlib.blake2b(whole, digest_size=16).digest()
