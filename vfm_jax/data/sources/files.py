"""Many files under names of their own: the files below a folder, or the members of tar files."""

import collections
import itertools
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.data.bad import BadSample
from vfm_jax.data.decode import EXTENSIONS, File
from vfm_jax.data.sources.location import existing
from vfm_jax.data.sources.storage import files_of, is_url, read_range, shown
from vfm_jax.data.sources.tar_index import index_of
from vfm_jax.data.timing import timed


class Paths:
    """Files by their paths from a folder, wherever they lie."""

    problems: tuple[str, ...] = ()

    def __init__(self, root: str):
        """Takes the folder that relative paths start from."""
        self._root = root

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            BadSample: they cannot be read.
        """
        try:
            with open(self.describe(name), "rb") as opened:
                return opened.read()
        except FileNotFoundError as error:
            raise BadSample(self.describe(name), "missing", "no such file") from error
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            raise BadSample(self.describe(name), "unreadable", str(error)) from error

    def file(self, name: str) -> File:
        """An image file for `data.decode`, which reads it by its path, within bounds."""
        return self.describe(name)

    def describe(self, name: str = "") -> str:
        return os.path.join(self._root, name) if name else self._root


class Folder(Paths):
    """The files below a folder, by their paths in it."""

    def __init__(self, root: str | os.PathLike[str]):
        """Takes the folder; hidden files and folders are passed over."""
        super().__init__(os.fspath(root))
        self.names: list[str] = []
        for place, folders, files in os.walk(root, followlinks=False):
            folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
            inside = os.path.relpath(place, root)
            self.names += [os.path.normpath(os.path.join(inside, n)) for n in sorted(files) if not n.startswith(".")]


class Shards:
    """The members of tar files, by their paths in them; of several tar files, after the name of each.

    Nothing is unpacked: a member is read where it lies, on a disk, in a bucket or over HTTP.

    Attributes:
        names: of the members, as they come.
        inside: what they are called in their tars.
        tars: path of the tar of each.
        labels: member -> what it says, for a small KEY.cls.
        problems: what was passed over.
    """

    def __init__(self, tars: Sequence[str]):
        """Reads the headers of all members, or the indices made of them before.

        Raises:
            UserError: a file that is no plain tar, or is cut off.
        """
        with ThreadPoolExecutor(16) as pool:
            indices = list(pool.map(index_of, tars))
        above = len(os.path.commonpath([os.path.dirname(path) for path in tars])) if len(tars) > 1 else 0
        self.names: list[str] = []
        self.inside: list[str] = []
        self.tars: list[str] = []
        self.labels: dict[str, str] = {}
        for path, index in zip(tars, indices, strict=True):
            before = f"{os.path.splitext(path[above:].lstrip('/'))[0]}/" if len(tars) > 1 else ""
            self.inside += [member.name for member in index.members]
            self.names += [f"{before}{member.name}" for member in index.members]
            self.tars += [path] * len(index.members)
            self.labels |= {f"{before}{m.name}": m.label for m in index.members if m.label is not None}
        self.problems = tuple(line for index in indices for line in index.problems)
        places = [(member.first, member.size) for index in indices for member in index.members]
        self._places = np.array(places, np.int64).reshape(-1, 2)
        self._described = shown(tars[0] if len(tars) == 1 else os.path.dirname(tars[0]))
        self._rows = {name: row for row, name in enumerate(self.names)}

    def read(self, name: str) -> bytes:
        """The bytes of a member.

        Raises:
            BadSample: they cannot be read.
        """
        row = self._rows[name]
        first, size = map(int, self._places[row])
        try:
            with timed("read"):
                content = read_range(self.tars[row], first, size)
        except FileNotFoundError as error:
            raise BadSample(self.describe(name), "missing", "the tar file is no longer there") from error
        except OSError as error:
            raise BadSample(self.describe(name), "unreadable", str(error)) from error
        if len(content) < size:
            raise BadSample(self.describe(name), "truncated", f"the tar ends after {len(content)} of {size} bytes")
        return content

    def file(self, name: str) -> File:
        """An image file for `data.decode`."""
        return self.read(name)

    def describe(self, name: str = "") -> str:
        if not name:
            return self._described
        return f"{shown(self.tars[self._rows[name]])}, {name}"


Files = Folder | Shards


def open_files(path: str) -> Files:
    """A folder, or tar files: one, a folder of them, a pattern or URL.

    Raises:
        UserError: nothing there, or a file of another kind.
    """
    if not is_url(path) and not any(mark in path for mark in "{*?["):
        found = existing(path, "config.data.path")
        if found.is_dir() and not list(found.glob("*.tar")):
            return Folder(found)
        if not found.is_dir() and not found.name.lower().endswith((".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2")):
            raise UserError(f"config.data.path is {path!r}, a file; expected a folder, or tar files (.tar).")
    return Shards(files_of(path, ".tar"))


def is_image(name: str) -> bool:
    """Whether a file is named as an image."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


class Finder:
    """Finds files as tables and annotations name them: by path, from the top or from beside the table, or by name."""

    def __init__(self, names: Iterable[str]):
        """Takes the files that there are."""
        self._known = set(names)
        self._by_base: dict[str, list[str]] = collections.defaultdict(list)
        for name in self._known:
            self._by_base[os.path.basename(name)].append(name)

    def find(self, name: str, folders: Sequence[str] = ("",)) -> str | None:
        """The file that is meant, or None.

        Args:
            name: as the table writes it.
            folders: where it may start from; the first that fits counts.

        Raises:
            UserError: several files have the name, and no path tells them apart.
        """
        name = name.replace("\\", "/")
        for folder in folders:
            place = os.path.normpath(os.path.join(folder, name))
            if place in self._known:
                return place
        same = self._by_base.get(os.path.basename(name), [])
        alike = {place: _parts_in_common(place, name) for place in same}  # the path may be of another machine
        best = [place for place, number in alike.items() if number == max(alike.values())]
        if len(best) > 1:
            named = ", ".join(sorted(best)[:3])
            raise UserError(f"{name!r} is named, and {named} are all called so. Give their paths.")
        return best[0] if best else None


def _parts_in_common(path: str, other: str) -> int:
    """How many parts of two paths are the same, from their ends on."""
    pairs = zip(reversed(path.split("/")), reversed(other.split("/")), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
