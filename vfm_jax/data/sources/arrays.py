"""Images that lie in arrays: .npz (MedMNIST's layout included), .npy mapped from disk, or numpy arrays in memory."""

import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import nearest
from vfm_jax.data.bad import BadSample
from vfm_jax.data.decode import MAX_CHANNELS, checked_range, has_range, with_dtype
from vfm_jax.data.sources.location import existing
from vfm_jax.data.sources.splits import ALL, Split, parse_split, rows_of

_MAX_CLASSES = 2**20  # a label above it is taken for a mistake, not for a class
_LOOKED_AT = 64  # images whose values are looked at before anything runs
_MAX_RATIO, _RATIO_FROM = 200, 2**26  # of bytes unpacked to bytes in the .npz; for arrays from so many bytes on


class ArraySource:
    """Rows of an array of images (N, h, w) or (N, h, w, c). See `vfm_jax.data.sources.Source`.

    uint8 and uint16 stay what they are; everything else becomes float32 from 0 to 1.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | None,
        *,
        described: str,
        class_names: tuple[str, ...] | None = None,
        rows: np.ndarray | None = None,
        value_range: tuple[float, float] | None = None,
    ):
        """Checks what is a user's to get wrong.

        Args:
            images: kept as they are; a memory map stays one, in other processes too.
            labels: class ids, (N,) or (N, 1).
            described: where the images are from, for messages.
            class_names: by class id; "0", "1", ... by default.
            rows: the rows that are the source's records; all by default.
            value_range: the values that become 0 and 1; floats beyond them, and other integers, need it.

        Raises:
            UserError: another type or shape of images, values without a range, or labels that do not go with them.
        """
        self._value_range = checked_range(value_range)
        self._images = _checked_images(images, described, self._value_range)
        self._labels = _checked_labels(labels, len(images), described)
        self._described = described
        self._rows = np.arange(len(images)) if rows is None else rows
        if class_names is None and self._labels is not None:
            class_names = tuple(str(label) for label in range(int(self._labels.max()) + 1))
        self.class_names = class_names
        self.image_shape = (*self._images.shape[1:3], self._images.shape[3] if self._images.ndim == 4 else 1)
        as_stored = self._value_range is None and self._images.dtype.kind == "u"
        self.image_dtype = self._images.dtype if as_stored else np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def labels(self) -> np.ndarray:
        """Class ids of all records, -1 without (int32)."""
        found = np.full(len(self._rows), -1) if self._labels is None else self._labels[self._rows]
        return found.astype(np.int32)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: values[0] for name, values in self.__getitems__(np.array([index])).items()}

    def __getitems__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        rows = self._rows[indices]
        labels = np.full(len(rows), -1) if self._labels is None else self._labels[rows]
        return {
            "image": self._values(rows, indices).reshape(len(rows), *self.image_shape),
            "size": np.tile(np.array(self.image_shape[:2], np.int32), (len(rows), 1)),
            "label": labels.astype(np.int32),
            "index": np.asarray(indices, np.int32),
        }

    def _values(self, rows: np.ndarray, indices: np.ndarray) -> np.ndarray:
        images = np.asarray(self._images[rows])
        if images.dtype == self.image_dtype and images.dtype.kind == "u":
            return images
        try:
            return with_dtype(images, "", self._value_range, "float32")
        except BadSample:  # of one of them; the first is named
            for index, image in zip(indices, images, strict=True):
                with_dtype(image, self.name(int(index)), self._value_range, "float32")
            raise

    def name(self, index: int) -> str:
        return f"{self._described}, row {self._rows[index]}"

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would travel to every worker process as a copy of the whole file: send its path instead.
        state = dict(self.__dict__)
        if isinstance(self._images, np.memmap):
            state["_images"] = pathlib.Path(str(self._images.filename))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["_images"], pathlib.Path):
            state["_images"] = np.load(state["_images"], mmap_mode="r", allow_pickle=False)
        self.__dict__.update(state)


def arrays(
    path: str | None = None,
    *,
    split: str | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
    images: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    class_names: tuple[str, ...] | None = None,
    value_range: tuple[float, float] | None = None,
) -> ArraySource:
    """Images from one .npz or .npy file, or from `images` and `labels` in memory.

    In a .npz the arrays `{split}_images` and `{split}_labels` (MedMNIST) or `images` and `labels` are found by
    themselves. A .npy is mapped, not read: it may be larger than the memory.

    Args:
        path: the file.
        split: "train", "val", "test", ... where the file has them; a part as in "train[:90%]" or "all[90%:]".
        image_key: name of the images' array in a .npz.
        label_key: name of the labels' array in a .npz; of the labels' file, beside the images', for a .npy.
        images: (N, h, w) or (N, h, w, c), uint8, uint16 or floats, in place of a path.
        labels: class ids (N,) or (N, 1).
        class_names: by class id.
        value_range: the values that become 0 and 1; floats beyond 0 to 1 need it. By default unsigned integers of 8
            and 16 bits keep their type, and floats are from 0 to 1 already.

    Raises:
        UserError: nothing there, no such array, or arrays that are no images and class ids.
    """
    part = parse_split(split)
    if path is not None and images is None:
        file = existing(path, "config.data.path")
        images, labels, described, found_names = _load(file, part, split, image_key, label_key)
        class_names = class_names or found_names
    elif path is None and images is not None:
        described = "images in memory"
    else:
        raise UserError(
            "config.data: the source 'arrays' needs a path (.npz or .npy), or images in memory; give one."
        )
    rows = None if (part.start, part.stop) == (0, 100) else rows_of(part, map(str, range(len(images))))
    return ArraySource(
        images, labels, described=described, class_names=class_names, rows=rows, value_range=value_range
    )


def _load(
    file: pathlib.Path, part: Split, split: str | None, image_key: str | None, label_key: str | None
) -> tuple[np.ndarray, np.ndarray | None, str, tuple[str, ...] | None]:
    """Images, labels or None, their description, and class names where all splits together tell their number."""
    try:
        if file.suffix == ".npy":
            if part.name != ALL:
                raise UserError(f"split is {split!r}, but {file} is one array without splits. Try 'all[:90%]'.")
            images = np.load(file, mmap_mode="r", allow_pickle=False)
            labels = None
            if label_key is not None:
                labels = np.load(existing(file.parent / label_key, "label_key"), allow_pickle=False)
            return images, labels, str(file), None
        if file.suffix != ".npz":
            raise UserError(f"config.data.path is {str(file)!r}; the source 'arrays' reads .npz and .npy files.")
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as members:
            image_key, label_key = _keys(file, members.files, part, split, image_key, label_key)
            _check_ratio(file, members.zip)
            labels = None if label_key is None else members[label_key]
            return members[image_key], labels, f"{file}, array {image_key}", _class_names(members, label_key)
    except UserError:
        raise
    except (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"Cannot read the arrays in {file}: {reason}") from error


def _keys(
    file: pathlib.Path, names: list[str], part: Split, split: str | None, image_key: str | None, label_key: str | None
) -> tuple[str, str | None]:
    """Names of the arrays of images and labels."""
    prefix = "" if part.name == ALL else f"{part.name}_"
    wanted = image_key or f"{prefix}images"
    if wanted not in names:
        splits = [name.removesuffix("_images") for name in names if name.endswith("_images")]
        if image_key is None and splits:
            known = ", ".join(repr(name) for name in splits)
            raise UserError(f"split is {split!r}, but {file} has {known}.{nearest(part.name, splits)}")
        listed = ", ".join(names[:8]) or "no array"
        field = "image_key" if image_key else "config.data.image_key"
        raise UserError(f"{file} has no array {wanted!r}. It holds: {listed}. Set {field} to the images' name.")
    if label_key is not None and label_key not in names:
        raise UserError(f"{file} has no array label_key={label_key!r}. It holds: {', '.join(names[:8])}.")
    guess = f"{prefix}labels"
    return wanted, label_key or (guess if guess in names else None)


def _class_names(members: Mapping[str, np.ndarray], label_key: str | None) -> tuple[str, ...] | None:
    """Numbers up to the largest label of any split, so that each split has the same classes."""
    if label_key is None or not label_key.endswith("_labels"):
        return None
    labels = [members[name] for name in members if name.endswith("_labels")]
    tops = [int(one.max()) for one in labels if one.size and np.issubdtype(one.dtype, np.integer)]
    return tuple(str(label) for label in range(max(tops) + 1)) if tops and max(tops) < _MAX_CLASSES else None


def _check_ratio(file: pathlib.Path, archive: zipfile.ZipFile | None) -> None:
    for member in archive.infolist() if archive else ():
        if member.file_size > max(_RATIO_FROM, _MAX_RATIO * member.compress_size):
            raise UserError(
                f"{file}, array {member.filename}: {member.compress_size} bytes would become {member.file_size}. "
                "Save it with np.savez, uncompressed, if that is right."
            )


def _checked_images(images: np.ndarray, described: str, value_range: tuple[float, float] | None) -> np.ndarray:
    found = f"{described}: found {images.dtype} {images.shape}"
    expected = f"expected numbers (N, h, w) or (N, h, w, c) with 1 to {MAX_CHANNELS} channels"
    if images.dtype.kind not in "uif" or images.ndim not in (3, 4) or not all(images.shape):
        raise UserError(f"{found}; {expected}.")
    if images.ndim == 4 and not images.shape[3] <= MAX_CHANNELS:
        move = " Channels come last: np.moveaxis(images, 1, -1)." if images.shape[1] <= MAX_CHANNELS else ""
        raise UserError(f"{found}; {expected}.{move}")
    if value_range is None and (images.dtype.kind != "u" or not has_range(images.dtype)):
        some = images[np.unique(np.linspace(0, len(images) - 1, min(len(images), _LOOKED_AT)).astype(int))]
        finite = some[np.isfinite(some)]
        low, high = (finite.min(), finite.max()) if finite.size else (0, 0)
        if not has_range(images.dtype) or low < 0 or high > 1:
            raise UserError(
                f"{found}, values from {low:g} to {high:g}. Say which become 0 and 1 with "
                f"config.data.value_range=({low:g}, {high:g})."
            )
    return images


def _checked_labels(labels: np.ndarray | None, num_images: int, described: str) -> np.ndarray | None:
    if labels is None:
        return None
    labels = np.asarray(labels)
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1 or len(flat) != num_images or not np.issubdtype(flat.dtype, np.integer):
        found = f"{labels.dtype} {labels.shape}"
        raise UserError(f"{described}: labels are {found}; expected whole numbers ({num_images},), one an image.")
    if flat.min() < 0 or flat.max() >= _MAX_CLASSES:
        raise UserError(f"{described}: labels run from {flat.min()} to {flat.max()}; expected class ids from 0.")
    return flat
