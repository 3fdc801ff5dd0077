"""A folder of image files: one subfolder a class, or simply images, to any depth."""

import collections
import os
import pathlib
import re
from collections.abc import Iterable

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import nearest
from vfm_jax.data.bad import BadSample
from vfm_jax.data.decode import EXTENSIONS, Reading
from vfm_jax.data.sources.files import Paths
from vfm_jax.data.sources.labels import SPLIT_NAMES
from vfm_jax.data.sources.location import existing
from vfm_jax.data.sources.records import ImageFiles, reads_images
from vfm_jax.data.sources.splits import ALL, Split, parse_split, rows_of

_TRIED = 32  # files of which one must be readable


@reads_images(canvas_size=256)
def folder(
    path: str,
    *,
    reading: Reading,
    split: str | None = None,
    labels: str | None = "subfolders",
    pattern: str | None = None,
) -> ImageFiles:
    """The images below a folder, in the order of their paths.

    With `labels="subfolders"` the first folder on the way to an image is its class; class ids follow the sorted
    names. A folder with no subfolders is unlabelled. Hidden files and folders are passed over; links are followed,
    each folder once.

    Args:
        path: the folder. `~` is the home folder.
        reading: made of the keywords of `data.decode.reading`; the canvas has 256 pixels a side by default.
        split: name of a subfolder to take, such as "train" (or of the folder itself); a part of it as in
            "train[:90%]"; "all[:90%]" where there are no such subfolders. Everything by default.
        labels: "subfolders", or None for images without classes.
        pattern: which files are images, "**/*.tif" for instance: `*` is anything in a name, `**/` any folders, and a
            pattern without a folder is of names at any depth. By default the usual endings of images.

    Raises:
        UserError: nothing there, no image, or none of those tried can be read. A file that cannot be, among others
            that can, raises `BadSample` when it is its turn.
    """
    if labels not in ("subfolders", None):
        raise UserError(f'config.data.labels is {labels!r}; expected "subfolders", or None for no classes.')
    part = parse_split(split)
    root = _split_folder(existing(path, "config.data.path"), part, split, labels)
    files, others = images_below(root, pattern)
    if not files:
        raise UserError(_nothing_found(root, others, pattern))
    ids, class_names = _classes(root, files) if labels else (None, None)
    if (part.start, part.stop) != (0, 100):
        rows = rows_of(part, files)
        files, ids = [files[row] for row in rows], None if ids is None else ids[rows]
    source = ImageFiles(Paths(str(root)), files, ids, class_names, reading)
    _check_some_can_be_read(source, root)
    return source


def _split_folder(root: pathlib.Path, part: Split, split: str | None, labels: str | None) -> pathlib.Path:
    """The folder that holds the named split."""
    if not root.is_dir():
        raise UserError(
            f"config.data.path is {str(root)!r}, which is a file; the source 'folder' reads a folder of images. "
            "For .npz and .npy files use the source 'arrays'."
        )
    subfolders = _subfolders(root)
    if part.name == ALL:
        found = [name for name in subfolders if name.lower() in SPLIT_NAMES]
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


def images_below(root: pathlib.Path, pattern: str | None = None) -> tuple[list[str], collections.Counter[str]]:
    """Image files below `root`, relative to it and sorted, and the number of other files by extension.

    Images are known by their extension, or by the pattern.

    Linked folders wait until all real ones are read, and no folder is read twice: a link back up ends there, and a
    file keeps its real path where it has one.
    """
    matches = None if pattern is None else _matcher(pattern)
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
                    if extension in EXTENSIONS if matches is None else matches.fullmatch(name.replace(os.sep, "/")):
                        files.append(name)
                    else:
                        others[extension or "no extension"] += 1
    return sorted(files), others


def _matcher(pattern: str) -> re.Pattern[str]:
    """The paths that a pattern means, as `folder` describes it.

    Raises:
        UserError: it means none.
    """
    meanings = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", pattern if "/" in pattern else f"**/{pattern}")
    for i, part in enumerate(parts):
        choice = i % 2 and part.startswith("[")  # [abc], [!abc]
        parts[i] = part.replace("[!", "[^", 1) if choice else meanings.get(part, re.escape(part))
    try:
        return re.compile("".join(parts))
    except re.error as error:
        raise UserError(f"config.data.pattern is {pattern!r}, which is no pattern of paths ({error}).") from error


def _nothing_found(root: pathlib.Path, others: collections.Counter[str], pattern: str | None) -> str:
    kinds = ", ".join(f"{count} {extension}" for extension, count in others.most_common(4))
    found = f"{others.total()} other files ({kinds})" if others else "no files at all"
    wanted = ", ".join(EXTENSIONS) if pattern is None else f"files like {pattern!r}"
    return (
        f"No images in {root}: looked in it and below for {wanted}, and found {found}.\n"
        "Point config.data.path at a folder of images, or convert them to one of these formats."
    )


def _check_some_can_be_read(source: ImageFiles, root: pathlib.Path) -> None:
    """Refuses a folder of which no file is what was asked for; as a rule one is read, and that is enough."""
    bad: list[BadSample] = []
    for index in np.unique(np.linspace(0, len(source) - 1, min(len(source), _TRIED)).astype(int)):
        try:
            source[index]
            return
        except BadSample as error:
            bad.append(error)
    tried = "The only image" if len(source) == 1 else f"None of the {len(bad)} images tried, of {len(source)}"
    shown = "".join(f"\n  {os.path.relpath(one.name, root)}: {one.detail} ({one.reason})" for one in bad[:3])
    raise UserError(f"{tried} in {root}, can be read:{shown}\nReplace them, or set config.data to what they are.")


def _classes(root: pathlib.Path, files: Iterable[str]) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Class ids (int32), and names sorted; None where there are no subfolders.

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
        return None, None
    if root.name.lower() in SPLIT_NAMES:
        siblings = [name for name in _subfolders(root.parent) if name.lower() in SPLIT_NAMES]
        names = sorted(set(names).union(*(_subfolders(root.parent / name) for name in siblings)))
    ids = {name: i for i, name in enumerate(names)}
    return np.array([ids[name] for name in first], np.int32), tuple(names)
