"""Members of a zip file, for formats that are one; the file's own directory is believed in nothing.

Python's `zipfile` is not used: it takes archives with bytes before or between their members, members that overlap,
and names that are there twice, and it trusts the directory where the members themselves say otherwise.
Format: PKWARE, .ZIP File Format Specification 6.3.10 (section numbers below are its).
"""

import pathlib
import stat
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from vfm_jax.core.errors import UserError
from vfm_jax.weights.files.mapped import MappedFile

STORED, DEFLATED = 0, 8
MAX_MEMBERS = 100_000
MAX_DIRECTORY = 50_000_000  # bytes

_END = struct.Struct("<4s4H2IH")  # 4.3.16
_END64 = struct.Struct("<4sQ2H2I4Q")  # 4.3.14
_LOCATOR64 = struct.Struct("<4sIQI")  # 4.3.15
_ENTRY = struct.Struct("<4s6H3I5H2I")  # 4.3.12
_LOCAL = struct.Struct("<4s5H3I2H")  # 4.3.7
_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13
_SIZES_FOLLOW = 1 << 3
_UTF8 = 1 << 11
_FULL16, _FULL32 = (1 << 16) - 1, (1 << 32) - 1


class Member(NamedTuple):
    """One file of the archive.

    Attributes:
        start: of its bytes, in the archive.
        packed: their number there.
        size: their number once unpacked.
        method: STORED or DEFLATED.
        crc: CRC-32 of the unpacked bytes.
    """

    start: int
    packed: int
    size: int
    method: int
    crc: int


def members(file: MappedFile) -> dict[str, Member]:
    """The files of the archive by name, in its order.

    Raises:
        UserError: the archive is truncated, or is made as no program that saves weights makes one.
    """
    count, directory, end = _directory(file)
    found: dict[str, Member] = {}
    spans = []
    data = file.bytes(directory, end)
    place = 0
    for _ in range(count):
        if place + _ENTRY.size > len(data):
            raise _damaged(file, "its directory ends early")
        entry = _ENTRY.unpack_from(data, place)
        if entry[0] != b"PK\x01\x02":
            raise _damaged(file, "its directory is damaged")
        name_length, extra_length, comment_length = entry[10:13]
        after = place + _ENTRY.size + name_length + extra_length + comment_length
        if after > len(data):
            raise _damaged(file, "its directory ends early")
        name_stop = place + _ENTRY.size + name_length
        raw_name, extra = data[place + _ENTRY.size : name_stop], data[name_stop : name_stop + extra_length]
        place = after
        name = _checked_name(file, raw_name, entry[3], found)
        member, start = _member(file, name, raw_name, entry, extra)
        spans.append((start, member.start + member.packed, name))
        if not name.endswith("/"):
            found[name] = member
    if place != len(data):
        raise _damaged(file, "its directory holds more than its members")
    before = 0
    for start, stop, name in sorted(spans):
        if start < before:
            raise _damaged(file, f"{name!r} overlaps another member")
        before = stop
    if before > directory:
        raise _damaged(file, "a member overlaps the directory")
    return found


def _directory(file: MappedFile) -> tuple[int, int, int]:
    """Number of members; start and end of the directory."""
    tail_start = max(0, file.size - _END.size - _FULL16)
    tail = file.bytes(tail_start, file.size)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise UserError(
            f"{file.path} is truncated: a zip archive of {file.size:,} bytes without its end. Download it again."
        )
    end = tail_start + at
    _, disk, first_disk, here, count, size, start, comment = _END.unpack_from(tail, at)
    if end + _END.size + comment != file.size:
        raise _damaged(file, "something follows the archive")
    stop = end
    located = file.bytes(max(0, end - _LOCATOR64.size), end)
    if located[:4] == b"PK\x06\x07" and len(located) == _LOCATOR64.size:  # torch writes one for small archives too
        stop = _LOCATOR64.unpack(located)[2]
        record = file.bytes(stop, stop + _END64.size) if stop < end else b""
        if len(record) < _END64.size or record[:4] != b"PK\x06\x06":
            raise _damaged(file, "its end does not say where the directory is")
        narrow = (here, count, size, start)
        _, _, _, _, disk, first_disk, here, count, size, start = _END64.unpack(record)
        pairs = zip(narrow, (here, count, size, start), strict=True)
        if any(value not in (wide, _FULL16, _FULL32) for value, wide in pairs):
            raise _damaged(file, "its two ends do not agree")
    if disk or first_disk or here != count:
        raise _damaged(file, "it is one part of several")
    if count > MAX_MEMBERS or size > MAX_DIRECTORY:
        raise _damaged(file, f"it claims {count:,} members in a directory of {size:,} bytes")
    if start + size != stop:
        raise _damaged(file, "its directory is not where its end says")
    return count, start, stop


def _checked_name(file: MappedFile, raw: bytes, flags: int, found: dict[str, Member]) -> str:
    try:
        name = raw.decode("utf-8" if flags & _UTF8 else "cp437")
    except UnicodeDecodeError:
        raise _damaged(file, "a member's name is no text") from None
    parts = pathlib.PurePosixPath(name).parts
    if not name or name.startswith(("/", "~")) or ".." in parts or any(c in name for c in "\\:\0"):
        raise _damaged(file, f"it holds a member called {name[:100]!r}, which points outside of it")
    if name in found:
        raise _damaged(file, f"it holds {name[:100]!r} twice")
    return name


def _member(file: MappedFile, name: str, raw: bytes, entry: tuple, extra: bytes) -> tuple[Member, int]:
    """The member, and where its own header starts; the two must agree."""
    _, _, _, flags, method, _, _, crc, packed, size, *_, attributes, start = entry
    wide = _wide_sizes(extra)
    # In this order, each only where the narrow field is full (4.5.3).
    size, packed, start = (next(wide, -1) if value == _FULL32 else value for value in (size, packed, start))
    if flags & _ENCRYPTED:
        raise _damaged(file, f"{name!r} is encrypted")
    mode = attributes >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _damaged(file, f"{name!r} is a link or a device")
    if method not in (STORED, DEFLATED):
        raise _damaged(file, f"{name!r} is compressed in a way (method {method}) that is not read here")
    local = file.bytes(start, start + _LOCAL.size) if start >= 0 else b""
    if len(local) < _LOCAL.size or local[:4] != b"PK\x03\x04":
        raise _damaged(file, f"{name!r} is not where the directory says")
    _, _, local_flags, local_method, _, _, local_crc, local_packed, local_size, n, m = _LOCAL.unpack(local)
    rest = file.bytes(start + _LOCAL.size, start + _LOCAL.size + n + m)
    wide = _wide_sizes(rest[n:])
    local_size, local_packed = (next(wide, -1) if v == _FULL32 else v for v in (local_size, local_packed))
    told = [(local_crc, crc), (local_packed, packed), (local_size, size)]
    if local_flags & _SIZES_FOLLOW:
        told = [(own, other) for own, other in told if own]
    same = rest[:n] == raw and local_method == method and not (local_flags ^ flags) & _ENCRYPTED
    if not same or any(own != other for own, other in told):
        raise _damaged(file, f"{name!r} and the directory do not agree")
    data = start + _LOCAL.size + n + m
    if packed < 0 or size < 0 or data + packed > file.size or (method == STORED and packed != size):
        raise _damaged(file, f"{name!r} claims {packed:,} bytes that are not there")
    return Member(data, packed, size, method, crc), start


def _wide_sizes(extra: bytes) -> Iterator[int]:
    """The 64-bit numbers of a header, for the fields that are full."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            field = extra[4 : 4 + length]
            return iter(struct.unpack_from(f"<{len(field) // 8}Q", field))
        extra = extra[4 + length :]
    return iter(())


def unpacked(file: MappedFile, name: str, member: Member, *, first: int | None = None) -> bytearray:
    """The bytes of a member, or its `first` ones; never more than it claims.

    Raises:
        UserError: they are not those that were packed.
    """
    size = member.size if first is None else min(first, member.size)
    if member.method == STORED:
        data = bytearray(file.bytes(member.start, member.start + size))
    else:
        data = bytearray(size)
        _inflate(file, name, member, data)
    if len(data) < size or (size == member.size and zlib.crc32(data) != member.crc):
        raise UserError(f"{file.path} is damaged: {name!r} does not have its checksum. Download it again.")
    return data


def _inflate(file: MappedFile, name: str, member: Member, into: bytearray) -> None:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    filled, place, pending = 0, member.start, b""
    stop = member.start + member.packed
    try:
        while filled < len(into):
            if not pending:
                pending = file.bytes(place, min(place + (1 << 20), stop))
                place += len(pending)
            piece = stream.decompress(pending, min(1 << 22, len(into) - filled))
            if not piece and (stream.eof or (not stream.unconsumed_tail and place >= stop)):
                break
            into[filled : filled + len(piece)] = piece
            filled += len(piece)
            pending = stream.unconsumed_tail
    except zlib.error as error:
        raise UserError(
            f"{file.path} is damaged: {name!r} cannot be unpacked ({error}). Download it again."
        ) from None
    if filled < len(into):
        raise UserError(f"{file.path} is damaged: {name!r} ends early. Download it again.")


def _damaged(file: MappedFile, what: str) -> UserError:
    return UserError(f"{file.path} is no archive of weights: {what}. Download it again, or from its first source.")
