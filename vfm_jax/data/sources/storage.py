"""Files by path or URL: what lies there, and bytes from the middle of a file, from disk, a bucket or HTTP."""

import functools
import glob
import os
import pathlib
import re
import time
from typing import Any, NamedTuple

from vfm_jax.core.errors import UserError
from vfm_jax.data.sources.location import existing

_TRIES = 3  # of a read over the network
_MAX_BRACES = 2**17  # files that one pattern may stand for


class Stat(NamedTuple):
    """Bytes of a file, and a word that changes when it is written anew."""

    size: int
    stamp: str


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether it is `gs://...`, `s3://...`, `https://...`, `memory://...`, and not a path on this machine."""
    return re.match(r"[a-z][a-z0-9+.-]*://", os.fspath(path)) is not None


def shown(path: str) -> str:
    """A path or URL for messages: without the user, password or signature that a URL may carry."""
    return re.sub(r"^([a-z][a-z0-9+.-]*://)[^/@]*@", r"\1", re.sub(r"\?.*", "", path)) if is_url(path) else path


def files_of(pattern: str, suffix: str) -> list[str]:
    """The files that a path stands for: itself, `{000..099}` and `{a,b}` written out, a glob, a folder's `*suffix`.

    Raises:
        UserError: nothing is there.
    """
    names = _braces(os.path.expanduser(pattern) if not is_url(pattern) else pattern)
    found = [file for name in names for file in _matching(name, suffix)]
    if not found:
        raise UserError(
            f"config.data.path is {shown(pattern)!r}; no {suffix} file is there. Expected a file, a folder of them, "
            f"or a pattern such as 'shards/{{000..099}}{suffix}' or 'shards/*{suffix}'."
        )
    return found


def _matching(name: str, suffix: str) -> list[str]:
    if is_url(name):
        system, inside = _system(name)
        scheme = name.partition("://")[0]
        try:
            if not re.search(r"[*?\[]", inside) or scheme.startswith("http"):
                if name.endswith(suffix) or scheme.startswith("http") or not system.isdir(inside):
                    return [name]
                inside = f"{inside.rstrip('/')}/*{suffix}"
            return sorted(system.unstrip_protocol(path) for path in system.glob(inside))
        except Exception as error:  # every storage has exceptions of its own
            raise UserError(f"Cannot list {shown(name)}: {_reason(error)}") from error
    if re.search(r"[*?\[]", name) and not os.path.exists(name):
        return sorted(glob.glob(name, recursive=True))
    path = existing(name, "config.data.path")
    return sorted(str(file) for file in path.glob(f"*{suffix}")) if path.is_dir() else [str(path)]


def _braces(pattern: str) -> list[str]:
    """`{a,b}` and `{08..11}` written out; the first brace first."""
    out = [pattern]
    while found := re.search(r"\{([^{}]*)\}", out[0]):
        inside = found[1]
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
        if numbers:
            first, last = int(numbers[1]), int(numbers[2])
            if abs(last - first) >= _MAX_BRACES:
                raise UserError(f"The pattern {shown(pattern)!r} stands for more than {_MAX_BRACES} files.")
            choices = [str(number).zfill(len(numbers[1])) for number in range(first, last + 1)]
        else:
            choices = inside.split(",")
        out = [one.replace(found[0], choice, 1) for one in out for choice in choices]
        if not 0 < len(out) <= _MAX_BRACES:
            raise UserError(f"The pattern {shown(pattern)!r} stands for {len(out)} files; at most {_MAX_BRACES}.")
    return out


def stat(path: str) -> Stat:
    """Size and stamp of a file.

    Raises:
        UserError: it is not there, or may not be read.
    """
    if not is_url(path):
        try:
            found = os.stat(path)
        except OSError as error:
            raise UserError(f"Cannot read {path}: {error.strerror}.") from error
        return Stat(found.st_size, str(found.st_mtime_ns))
    system, inside = _system(path)
    try:
        info = system.info(inside)
    except Exception as error:  # as above
        raise UserError(f"Cannot read {shown(path)}: {_reason(error)}") from error
    if info.get("size") is None:
        raise UserError(f"Cannot read {shown(path)} at random: the server does not say how long it is.")
    tags = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
    return Stat(int(info["size"]), str(next((info[tag] for tag in tags if info.get(tag)), "")))


def read_range(path: str, first: int, size: int) -> bytes:
    """`size` bytes from byte `first` on; fewer where the file ends before.

    Raises:
        OSError: the storage fails, or has no random access.
    """
    if not is_url(path):
        with open(path, "rb", buffering=0) as opened:
            opened.seek(first)
            return opened.read(size) or b""
    if size == 0:
        return b""
    system, inside = _system(path)
    for tried in range(1, _TRIES + 1):
        try:
            content = system.cat_file(inside, start=first, end=first + size)
            break
        except FileNotFoundError:
            raise
        except Exception as error:  # every storage has exceptions of its own
            if tried == _TRIES:
                raise OSError(_reason(error)) from error
            time.sleep(0.2 * 2**tried)
    if len(content) > size:
        raise OSError("the server gives whole files only, without random access; copy the file to a disk")
    return content


def _reason(error: Exception) -> str:
    """The first line of an error, without the secrets of a URL in it."""
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {re.sub(r'[?][^ ]*', '', line)[:200]}"


def _system(path: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it; one for each process and kind of storage."""
    scheme = path.partition("://")[0]
    system = _file_system(scheme, os.getpid())
    return system, system._strip_protocol(path)


@functools.cache
def _file_system(scheme: str, pid: int) -> Any:
    del pid  # connections do not outlive a fork
    try:
        import fsspec

        return fsspec.filesystem(scheme)
    except ImportError as error:
        raise UserError(
            f"Reading {scheme}:// needs packages that are not installed ({error}).\n"
            "Install them with: pip install 'vfm-jax[cloud]'"
        ) from error
    except ValueError as error:
        raise UserError(f"{scheme}:// is not known as a storage ({error}). Try gs://, s3:// or https://.") from error


def cache_folder(kind: str) -> pathlib.Path:
    """The user's folder for what can be made again, of one kind; not made here."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(root) / "vfm_jax" / kind
