"""Where the members of a tar file lie: its headers, read once, and kept in a small file beside it.

Nothing is ever unpacked. Of a member only its name, first byte and size are taken; links, devices and names that lead
out of the archive are passed over.

Format of the headers: POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".
"""

import collections
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from vfm_jax.core.errors import UserError
from vfm_jax.data.sources.storage import Stat, cache_folder, is_url, read_range, shown, stat

MAX_MEMBERS = 2**24
_BLOCK = 512
_MAX_EXTENSION = 2**20  # bytes of a long name or a pax header; more of them is an attack on the memory
_MAX_LABEL = 64  # bytes of a .cls file, kept in the index
_WINDOW = {False: 2**12, True: 2**22}  # bytes read at once while looking for headers, of a disk and over a network
_VERSION = 1
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


class Member(NamedTuple):
    """A file in a tar: its name, first byte, bytes, and what it says where it is a KEY.cls."""

    name: str
    first: int
    size: int
    label: str | None = None


class TarIndex(NamedTuple):
    """The files in a tar, in their order, and what was passed over, in words."""

    members: list[Member]
    problems: tuple[str, ...]


class _Damaged(ValueError):
    """It is no tar, or not all of it is there."""


def index_of(tar: str) -> TarIndex:
    """The index of a tar file, from beside it (or the user's cache folder) where it was made before.

    Raises:
        UserError: it cannot be read, is compressed, no tar, cut off, or made to do harm.
    """
    found = stat(tar)
    places = _places(tar)
    for place in places:
        if (index := _load(place, found)) is not None:
            return index
    index = _scan(tar, found.size)
    content = json.dumps(
        {"version": _VERSION, **found._asdict(), "problems": index.problems, "members": index.members},
        separators=(",", ":"),
    )
    for place in places:
        if _store(place, content):
            break
    return index


def _places(tar: str) -> list[pathlib.Path]:
    """Where an index may lie: beside the tar, and in the user's cache folder."""
    address = shown(tar) if is_url(tar) else os.path.realpath(tar)
    digest = hashlib.blake2b(address.encode(errors="surrogateescape"), digest_size=16).hexdigest()
    cached = cache_folder("tars") / f"{digest}.index"
    return [cached] if is_url(tar) else [pathlib.Path(f"{tar}.index"), cached]


def _load(place: pathlib.Path, found: Stat) -> TarIndex | None:
    """The index in a file, unless there is none, it is damaged, or the tar has changed since."""
    try:
        content = json.loads(place.read_bytes())
        if [content[field] for field in ("version", "size", "stamp")] != [_VERSION, *found]:
            return None
        members = [Member(*member) for member in content["members"]]
        for name, first, size, label in members:
            inside = 0 < first <= first + size <= found.size
            if not (inside and isinstance(name, str) and isinstance(label, str | None)):
                return None
        return TarIndex(members, tuple(map(str, content["problems"])))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _store(place: pathlib.Path, content: str) -> bool:
    """Writes the whole index or nothing; whether it could be."""
    cached = place.parent == cache_folder("tars")
    beside = place.with_name(f"{place.name}.{os.getpid()}.part")
    try:
        if cached:
            place.parent.mkdir(parents=True, exist_ok=True)
        elif not place.parent.stat().st_mode & 0o222:  # root could, and a folder that nobody may write is left alone
            return False
        beside.write_text(content)
        os.replace(beside, place)
    except OSError:
        beside.unlink(missing_ok=True)
        return False
    return True


def _scan(tar: str, size: int) -> TarIndex:
    read = _windowed(tar, size)
    passed: collections.Counter[str] = collections.Counter()
    try:
        start = read_range(tar, 0, 8)  # a server that gives whole files only is found out here
        if not start:
            raise _Damaged("it is empty")
        for magic, program in _COMPRESSED.items():
            if start.startswith(magic):
                raise UserError(
                    f"{shown(tar)} is compressed, which leaves no random access. Make a plain tar of it once "
                    f"({program} FILE), or unpack it and give the folder."
                )
        members = []
        for member in _members(read, size, passed):
            members.append(member)
            if len(members) > MAX_MEMBERS:
                raise _Damaged(f"it has more than {MAX_MEMBERS} members")
    except (_Damaged, OSError) as error:
        raise UserError(f"Cannot read {shown(tar)} as a tar file: {error}.") from error
    problems = tuple(f"{shown(tar)}: {count} members passed over: {kind}" for kind, count in sorted(passed.items()))
    return TarIndex(members, problems)


def _windowed(tar: str, size: int) -> Callable[[int, int], bytes]:
    """Reads ranges of the tar, a window of it at a time."""
    step = _WINDOW[is_url(tar)]
    begin, window = 0, b""

    def read(first: int, count: int) -> bytes:
        nonlocal begin, window
        if first + count > size:
            raise _Damaged(f"it is cut off at byte {first}")
        if not begin <= first <= first + count <= begin + len(window):
            begin, window = first, read_range(tar, first, min(max(count, step), size - first))
            if len(window) < count:
                raise _Damaged(f"it is shorter than the {size} bytes that it should have")
        return window[first - begin : first - begin + count]

    return read


_FOLDER = b"5"
_KINDS = {b"1": "links", b"2": "links", b"3": "devices", b"4": "devices", b"6": "pipes"}
_WITHOUT_DATA = {_FOLDER, *_KINDS}


def _members(read: Callable[[int, int], bytes], size: int, passed: collections.Counter[str]) -> Iterator[Member]:
    """The regular files; what is passed over is counted by kind."""
    position = 0
    defaults: dict[bytes, bytes] = {}  # of pax's global headers
    extended: dict[bytes, bytes] = {}  # of the next member
    while position < size:
        if position + _BLOCK > size:
            raise _Damaged(f"it is cut off at byte {position}")
        header = read(position, _BLOCK)
        if not any(header):
            return  # the end; what follows is padding
        if _number(header[148:156]) != 256 + sum(header[:148]) + sum(header[156:]):
            raise _Damaged(f"there is no header at byte {position}")
        kind, length, first = header[156:157], _number(header[124:136]), position + _BLOCK
        if kind in b"xgXLK":
            if length > _MAX_EXTENSION:
                raise _Damaged(f"a header of {length} bytes at byte {position}")
            content = read(first, length)
            if kind == b"L":
                extended[b"path"] = content.rstrip(b"\0")
            elif kind != b"K":
                (defaults if kind == b"g" else extended).update(_pax_records(content))
            position = first + _blocks(length)
            continue
        fields = defaults | extended
        extended = {}
        if b"size" in fields:
            length = _decimal(fields[b"size"])
        sparse = kind == b"S" or any(field.startswith(b"GNU.sparse.") for field in fields)
        if kind == b"S":
            more = header[482]
            while more:  # the map of a sparse file goes on in further blocks
                more = read(first, _BLOCK)[504]
                first += _BLOCK
        position = first + (0 if kind in _WITHOUT_DATA else _blocks(length))
        name = _name(header, fields)
        if kind not in _WITHOUT_DATA and first + length > size:
            raise _Damaged(f"{name!r} is cut off")
        if kind not in (b"0", b"\0", b"7") or sparse:
            if kind != _FOLDER:
                passed[_KINDS.get(kind, "sparse files" if sparse else "unknown kinds")] += 1
            continue
        if name.endswith("/"):  # how the oldest tars mark a folder
            continue
        parts = name.split("/")
        if name.startswith(("/", "\\")) or ".." in parts or "\0" in name:
            passed["names that lead out of the archive"] += 1
        elif not any(part.startswith(".") and part != "." for part in parts):  # hidden ones, as in a folder
            label = None
            if name.endswith(".cls") and length <= _MAX_LABEL:
                label = read(first, length).decode(errors="replace").strip()
            yield Member(os.path.normpath(name), first, length, label)


def _number(field: bytes) -> int:
    """Octal digits, or GNU's base 256 for large numbers."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):  # a sign too: a negative size would lead back to the same header for ever
        raise _Damaged(f"{field!r} is no number")
    return int(digits or b"0", 8)


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise _Damaged(f"{digits[:20]!r} is no number")
    return int(digits)


def _name(header: bytes, fields: dict[bytes, bytes]) -> str:
    if b"path" in fields:
        name = fields[b"path"]
    else:
        name = header[:100].partition(b"\0")[0]
        prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
        name = prefix + b"/" + name if prefix else name
    return name.decode(errors="surrogateescape")


def _pax_records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """`LENGTH KEY=VALUE` and a line's end, one after the other."""
    position = 0
    while position < len(content) and content[position]:
        space = content.find(b" ", position, position + 8)
        digits = content[position:space]
        length = _decimal(digits) if space > 0 else 0
        if space < 0 or not space - position < length <= len(content) - position:
            raise _Damaged("a pax header is malformed")
        end = position + length
        key, _, value = content[space + 1 : end - 1].partition(b"=")
        yield key, value
        position = end


def _blocks(length: int) -> int:
    return -(-length // _BLOCK) * _BLOCK
