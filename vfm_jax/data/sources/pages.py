"""Single values of a column of bytes in a parquet file: of a row group, only the page that has the row is unpacked.

Arrow gives row groups and nothing smaller, and a shuffled epoch would unpack a thousand images to take one of them.
A page is a megabyte as most programs write it: of 5,000 photos of 18 kB in groups of 1,000 one costs 2.4 ms of a
core, its own decoding included, where groups cost 5.7 ms; in four threads 2.9 and 10.8 ms, with 0.2 and 0.9 GB.

Reference: Apache Parquet format (parquet.thrift; Encodings.md, "Plain", "Dictionary Encoding", "Run Length Encoding /
Bit-Packing Hybrid"); Thrift compact protocol.
"""

import bisect
import collections
import mmap
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vfm_jax.data.decode import MAX_BYTES
from vfm_jax.data.sources.varint import read_varint

_CODECS = {"UNCOMPRESSED": None, "SNAPPY": "snappy", "GZIP": "gzip", "BROTLI": "brotli", "ZSTD": "zstd"}
_ENCODINGS = {"PLAIN", "RLE", "BIT_PACKED", "PLAIN_DICTIONARY", "RLE_DICTIONARY"}  # the third of levels, not values
_DATA, _DICTIONARY, _DATA_2 = 0, 2, 3  # types of pages; what they say is in field 5, 7 and 8 of the header
_PLAIN, _PLAIN_DICTIONARY, _RLE, _RLE_DICTIONARY = 0, 2, 3, 8  # encodings
_DEPTH = 4  # of structs in a header
_MAX_WIDTH = 32  # bits of a level, or of a place in a dictionary


class Kept:
    """The most recently used of what is costly to make, as much of it as fits; safe between threads."""

    def __init__(self, max_bytes: int):
        """Takes how many bytes to hold, all in all."""
        self._max_bytes, self._bytes = max_bytes, 0
        self._held: collections.OrderedDict[Any, tuple[Any, int]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """What is held, or made now; something with `nbytes`."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key][0]
        made = make()  # by two threads at once, perhaps: better than that all wait for one
        with self._lock:
            if key not in self._held and made.nbytes <= self._max_bytes:
                self._held[key] = made, made.nbytes
                self._bytes += made.nbytes
            while self._bytes > self._max_bytes:
                _, (_, size) = self._held.popitem(last=False)
                self._bytes -= size
        return made


class _Page(NamedTuple):
    """Where a page lies, and how it is to be unpacked.

    Attributes:
        first: byte in the file.
        size: bytes there.
        unpacked: bytes once decompressed.
        kind: one of the three types.
        fields: what its header says of it, by Thrift's numbers.
    """

    first: int
    size: int
    unpacked: int
    kind: int
    fields: dict[int, Any]


class _Chunk(NamedTuple):
    """The pages of a column in one row group: the rows that they begin with, themselves, and their dictionary."""

    rows: list[int]
    pages: list[_Page]
    dictionary: _Page | None


class ColumnPages:
    """A column of bytes of a parquet file, read page by page; safe between threads."""

    def __init__(self, path: str, meta: Any, leaf: int, kept: Kept):
        """Takes a file, pyarrow's metadata of it, the number of the column, and what holds unpacked pages."""
        with open(path, "rb") as opened:
            self._content = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
        self._path, self._meta, self._leaf, self._kept = path, meta, leaf, kept
        self._max_level = meta.schema.column(leaf).max_definition_level
        self._chunks: dict[int, _Chunk] = {}

    def value(self, group: int, row: int) -> bytes | None:
        """The bytes in a row of a row group, None where there are none.

        Raises:
            ValueError, OSError: the file is damaged.
        """
        if group not in self._chunks:
            self._chunks[group] = self._walk(group)
        chunk = self._chunks[group]
        number = bisect.bisect_right(chunk.rows, row) - 1
        page = chunk.pages[number]
        levels, values = self._split(group, page)
        row -= chunk.rows[number]
        if self._max_level:
            there = _runs(levels, self._max_level.bit_length(), page.fields[1]) == self._max_level
            if not there[row]:
                return None
            row = int(there[:row].sum())
        encoding = page.fields[4 if page.kind == _DATA_2 else 2]
        if encoding == _PLAIN:
            return _plain(values, row)
        if encoding not in (_PLAIN_DICTIONARY, _RLE_DICTIONARY) or chunk.dictionary is None:
            raise ValueError(f"a page of encoding {encoding}")
        place = _runs(values[1:], int.from_bytes(values[:1], "little"), row + 1)[row]
        return _plain(self._unpacked(group, chunk.dictionary), int(place))

    def _walk(self, group: int) -> _Chunk:
        """Reads the headers of the pages, one after the other."""
        chunk = self._meta.row_group(group).column(self._leaf)
        place = chunk.data_page_offset
        if chunk.has_dictionary_page and chunk.dictionary_page_offset:
            place = min(place, chunk.dictionary_page_offset)
        if chunk.num_values != self._meta.row_group(group).num_rows:
            raise ValueError(f"{chunk.num_values} values in row group {group}, of other rows")
        found, dictionary, row = _Chunk([], [], None), None, 0
        while row < chunk.num_values:
            header, place = _read_struct(self._content, place)
            kind, unpacked, size = (header.get(field, -1) for field in (1, 2, 3))
            fields = header.get({_DATA: 5, _DICTIONARY: 7, _DATA_2: 8}.get(kind, 0), {})
            if not 0 <= size <= len(self._content) - place or not 0 <= unpacked <= MAX_BYTES:
                raise ValueError(f"a page of {size} bytes, {unpacked} unpacked, at byte {place}")
            page = _Page(place, size, unpacked, kind, fields)
            place += size
            if kind == _DICTIONARY:
                dictionary = page
            elif kind in (_DATA, _DATA_2):
                if not 0 < fields.get(1, 0) <= chunk.num_values - row:
                    raise ValueError(f"a page of {fields.get(1)} values at byte {page.first}")
                found.rows.append(row)
                found.pages.append(page)
                row += fields[1]
        return found._replace(dictionary=dictionary)

    def _split(self, group: int, page: _Page) -> tuple[memoryview, memoryview]:
        """The levels, which say where there is a value, and the values."""
        content = self._unpacked(group, page)
        if page.kind == _DATA_2:
            before = page.fields.get(6, 0)  # of repetition levels: none in such a column
            end = before + page.fields.get(5, 0)
            return content[before:end], content[end:]
        if not self._max_level:
            return content[:0], content
        if page.fields.get(3) != _RLE:
            raise ValueError(f"levels of encoding {page.fields.get(3)}")
        size = int.from_bytes(content[:4], "little")
        return content[4 : 4 + size], content[4 + size :]

    def _unpacked(self, group: int, page: _Page) -> memoryview:
        codec = _CODECS[self._meta.row_group(group).column(self._leaf).compression]
        content = self._content[page.first : page.first + page.size]
        plain = 0  # bytes of levels, which version 2 leaves as they are
        if page.kind == _DATA_2:
            plain = page.fields.get(5, 0) + page.fields.get(6, 0)
            codec = codec if page.fields.get(7, True) else None
        if codec is None:
            return content
        return self._kept.get((self._path, page.first), lambda: _decompressed(content, plain, page.unpacked, codec))


def column_of_bytes(meta: Any, column: str) -> int | None:
    """The number of the one column that holds the bytes of a field, itself or as its `bytes`.

    None where there is none, or it is written in a way that is not read here.
    """
    paths = [meta.schema.column(number).path for number in range(meta.num_columns)]
    found = [number for number, path in enumerate(paths) if path in (column, f"{column}.bytes")]
    if len(found) != 1:
        return None
    chunks = [meta.row_group(group).column(found[0]) for group in range(meta.num_row_groups)]
    leaf = meta.schema.column(found[0])
    known = leaf.physical_type == "BYTE_ARRAY" and leaf.max_repetition_level == 0
    written = all(chunk.compression in _CODECS and _ENCODINGS.issuperset(chunk.encodings) for chunk in chunks)
    return found[0] if known and written else None


def _decompressed(content: memoryview, plain: int, unpacked: int, codec: str) -> memoryview:
    import pyarrow as pa

    values = pa.decompress(content[plain:], decompressed_size=unpacked - plain, codec=codec)
    return memoryview(bytes(content[:plain]) + values.to_pybytes() if plain else values).cast("B")


def _plain(values: memoryview, number: int) -> bytes:
    """Value number `number` of those written one after the other, each behind its length."""
    first, end = 0, 0
    for _ in range(number + 1):
        first = end + 4
        end = first + int.from_bytes(values[end:first], "little")
        if end > len(values):
            raise ValueError("a value that reaches past its page")
    return bytes(values[first:end])


def _runs(content: memoryview, width: int, count: int) -> np.ndarray:
    """The first `count` numbers of `width` bits, written as runs of one number or packed by eights."""
    if width > _MAX_WIDTH:
        raise ValueError(f"numbers of {width} bits")
    parts, found, place = [], 0, 0
    while found < count:
        head, place = read_varint(content, place)
        number = head >> 1
        if head & 1:
            size = number * width
            bits = np.unpackbits(np.frombuffer(content[place : place + size], np.uint8), bitorder="little")
            if len(bits) < min(8 * number, count - found) * width:
                raise ValueError("it is cut off")
            number = min(8 * number, count - found)
            values = bits[: number * width].reshape(number, width) @ (1 << np.arange(width, dtype=np.int64))
        else:
            size = (width + 7) // 8
            number = min(number, count - found)
            values = np.full(number, int.from_bytes(content[place : place + size], "little"), np.int64)
        if not number:
            raise ValueError("an empty run")
        place += size
        parts.append(values)
        found += number
    return np.concatenate(parts)


def _read_struct(content: memoryview, place: int, depth: int = _DEPTH) -> tuple[dict[int, Any], int]:
    """The fields of a Thrift struct by their numbers, as the compact protocol writes it, and the place behind it."""
    fields: dict[int, Any] = {}
    field = 0
    while True:
        if place >= len(content) or not depth:
            raise ValueError("no header of a page")
        head = content[place]
        place += 1
        if not head:
            return fields, place
        if head >> 4:
            field += head >> 4
        else:
            number, place = read_varint(content, place)
            field = _signed(number)
        kind = head & 15
        value: Any
        if kind in (1, 2):
            value = kind == 1
        elif kind in (4, 5, 6):
            number, place = read_varint(content, place)
            value = _signed(number)
        elif kind == 8:
            size, place = read_varint(content, place)
            value, place = None, place + size  # statistics, which are of no use here
        elif kind == 12:
            value, place = _read_struct(content, place, depth - 1)
        else:
            raise ValueError("no header of a page")
        fields[field] = value


def _signed(number: int) -> int:
    return (number >> 1) ^ -(number & 1)
