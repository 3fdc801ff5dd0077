"""A folder of image files: one subfolder a class, or simply images, to any depth."""

import collections
import os
import pathlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import nearest
from vfm_jax.data.decode import EXTENSIONS, Picture, Reading, canvas_shape, image_kind, on_canvas
from vfm_jax.data.sources.location import existing
from vfm_jax.data.sources.splits import ALL, Split, parse_split, rows_of

_SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test", "testing")


class FolderSource:
    """Image files, decoded when asked for. See `vfm_jax.data.sources.Source`."""

    def __init__(
        self,
        root: pathlib.Path,
        files: list[str],
        labels: np.ndarray,
        class_names: tuple[str, ...] | None,
        image_shape: tuple[int, int, int],
    ):
        """Takes file names relative to `root`, and their class ids."""
        self._root = root
        self._files = files
        self._labels = labels
        self.class_names = class_names
        self.image_shape = image_shape

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.read(index, on_canvas)

    def read(self, index: int, picture: Picture) -> dict[str, np.ndarray]:
        """The record, its picture made as the caller says."""
        name = self.name(index)
        return {
            **picture(Reading(self.image_shape[:2], self.image_shape[2]), lambda: name, name),
            "label": np.asarray(self._labels[index]),
            "index": np.asarray(index, np.int32),
        }

    def name(self, index: int) -> str:
        return os.path.join(self._root, self._files[index])


def folder(
    path: str,
    *,
    split: str | None = None,
    labels: str | None = "subfolders",
    canvas_size: int | tuple[int, int] = 256,
    channels: int = 3,
) -> FolderSource:
    """The images below a folder, in the order of their paths.

    With `labels="subfolders"` the first folder on the way to an image is its class; class ids follow the sorted
    names. A folder with no subfolders is unlabelled. Hidden files and folders are passed over; links are followed,
    each folder once.

    Args:
        path: the folder. `~` is the home folder.
        split: name of a subfolder to take, such as "train" (or of the folder itself); a part of it as in
            "train[:90%]"; "all[:90%]" where there are no such subfolders. Everything by default.
        labels: "subfolders", or None for images without classes.
        canvas_size: pixels, one number or (height, width); larger images are scaled down to fit.
        channels: 3 (colour) or 1 (gray).

    Raises:
        UserError: nothing there, no image, or files that are named as images and are none.
    """
    canvas = canvas_shape(canvas_size)
    if channels not in (1, 3):
        raise UserError(f"config.data.channels is {channels!r}; image files are read as 3 (colour) or 1 (gray).")
    if labels not in ("subfolders", None):
        raise UserError(f'config.data.labels is {labels!r}; expected "subfolders", or None for no classes.')
    part = parse_split(split)
    root = _split_folder(existing(path, "config.data.path"), part, split, labels)
    files, others = images_below(root)
    if not files:
        raise UserError(_nothing_found(root, others))
    _check_first_bytes(root, files)
    ids, class_names = _classes(root, files) if labels else (np.full(len(files), -1, np.int32), None)
    if (part.start, part.stop) != (0, 100):
        rows = rows_of(part, files)
        files, ids = [files[row] for row in rows], ids[rows]
    return FolderSource(root, files, ids, class_names, (*canvas, channels))


def _split_folder(root: pathlib.Path, part: Split, split: str | None, labels: str | None) -> pathlib.Path:
    """The folder that holds the named split."""
    if not root.is_dir():
        raise UserError(
            f"config.data.path is {str(root)!r}, which is a file; the source 'folder' reads a folder of images. "
            "For .npz and .npy files use the source 'arrays'."
        )
    subfolders = _subfolders(root)
    if part.name == ALL:
        found = [name for name in subfolders if name.lower() in _SPLIT_NAMES]
        if labels and found and found == subfolders:
            raise UserError(
                f"{root} is divided into {', '.join(found)}, which would be taken for classes. "
                f"Set config.data.split={found[0]!r}, or config.data.labels=None to use all images without classes."
            )
        return root
    if (root / part.name).is_dir():
        return root / part.name
    if root.name == part.name:
        return root
    shown = ", ".join(subfolders[:5]) + (", ..." if len(subfolders) > 5 else "")
    raise UserError(
        f"split is {split!r}, but {root} has no subfolder {part.name!r}; it has {shown or 'none'}."
        f"{nearest(part.name, subfolders)} For a folder without splits use 'all', 'all[:90%]' and 'all[90%:]'."
    )


def _subfolders(root: pathlib.Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def images_below(root: pathlib.Path) -> tuple[list[str], collections.Counter[str]]:
    """Image files below `root`, relative to it and sorted, and the number of other files by extension.

    Linked folders wait until all real ones are read, and no folder is read twice: a link back up ends there, and a
    file keeps its real path where it has one.
    """
    files: list[str] = []
    others: collections.Counter[str] = collections.Counter()
    seen: set[tuple[int, int]] = set()
    real, linked = collections.deque([""]), collections.deque()
    while real or linked:
        inside = real.popleft() if real else linked.popleft()
        place = os.path.join(root, inside)
        stat = os.stat(place)
        if (stat.st_dev, stat.st_ino) in seen:
            continue
        seen.add((stat.st_dev, stat.st_ino))
        with os.scandir(place) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                name = os.path.join(inside, entry.name)
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    (linked if entry.is_symlink() else real).append(name)
                elif entry.is_file():  # not so for a broken link
                    extension = os.path.splitext(entry.name)[1].lower()
                    if extension in EXTENSIONS:
                        files.append(name)
                    else:
                        others[extension or "no extension"] += 1
    return sorted(files), others


def _nothing_found(root: pathlib.Path, others: collections.Counter[str]) -> str:
    kinds = ", ".join(f"{count} {extension}" for extension, count in others.most_common(4))
    found = f"{others.total()} other files ({kinds})" if others else "no files at all"
    return (
        f"No images in {root}: looked in it and below for {', '.join(EXTENSIONS)}, and found {found}.\n"
        "Point config.data.path at a folder of images, or convert them to one of these formats."
    )


def _check_first_bytes(root: pathlib.Path, files: list[str]) -> None:
    """Refuses files that are named as images and do not begin as one; 16 bytes of each are read."""

    def is_image(name: str) -> bool:
        try:
            handle = os.open(os.path.join(root, name), os.O_RDONLY)
        except OSError:
            return False
        try:
            return image_kind(os.read(handle, 16)) is not None
        finally:
            os.close(handle)

    with ThreadPoolExecutor(16) as pool:  # on a network disk the waiting is all of it
        bad = [name for name, good in zip(files, pool.map(is_image, files), strict=True) if not good]
    if bad:
        number = f"{len(bad)} of {len(files)} image files" if len(bad) > 1 else "One image file"
        shown = "".join(f"\n  {name}{_looks_like(os.path.join(root, name))}" for name in bad[:3])
        more = f"and {len(bad) - 3} more. " if len(bad) > 3 else ""
        raise UserError(f"{number} in {root} cannot be read as one:{shown}\n{more}Remove, rename or replace them.")


def _looks_like(file: str) -> str:
    try:
        with open(file, "rb") as opened:
            start = opened.read(16)
    except OSError as error:
        return f" ({error.strerror})"
    if not start:
        return " (empty)"
    return " (text)" if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start) else " (another format)"


def _classes(root: pathlib.Path, files: Iterable[str]) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Class ids (int32), and names sorted; -1 and None where there are no subfolders.

    In a split's folder the names are those of all splits together, so that an id means the same class in each, even
    where a class has no image in one of them.
    """
    first = [pathlib.PurePath(name).parts[0] if os.path.dirname(name) else "" for name in files]
    names = sorted(set(first) - {""})
    loose = first.count("")
    if names and loose:
        raise UserError(
            f"{loose} images lie in {root} itself, beside its class folders {', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''}. Move them into one, or set config.data.labels=None for no classes."
        )
    if not names:
        return np.full(loose, -1, np.int32), None
    if root.name.lower() in _SPLIT_NAMES:
        siblings = [name for name in _subfolders(root.parent) if name.lower() in _SPLIT_NAMES]
        names = sorted(set(names).union(*(_subfolders(root.parent / name) for name in siblings)))
    ids = {name: i for i, name in enumerate(names)}
    return np.array([ids[name] for name in first], np.int32), tuple(names)
