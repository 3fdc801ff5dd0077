"""Records whose images are files, read when asked for: what most sources are once they have found their records."""

import abc
import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import nearest
from vfm_jax.data.decode import File, Picture, Reading, on_canvas, reading
from vfm_jax.data.sources.files import Paths, Shards
from vfm_jax.data.sources.labels import SPLIT_NAMES
from vfm_jax.data.sources.splits import ALL, parse_split, rows_of

Made = TypeVar("Made", bound="RecordSource")


def reads_images(canvas_size: int) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
    """Gives a function that takes `reading` the keywords of `data.decode.reading` in its place, for its user.

    They are checked before anything is looked for.

    Args:
        canvas_size: of the canvas by default, in pixels.
    """
    checked = functools.partial(reading, canvas_size=canvas_size)
    shared = inspect.signature(checked).parameters

    def decorate(make: Callable[..., Made]) -> Callable[..., Made]:
        @functools.wraps(make)
        def made(*args: Any, **fields: Any) -> Made:
            given = {name: fields.pop(name) for name in shared if name in fields}
            return make(*args, reading=checked(**given), **fields)

        own = inspect.signature(make)
        described: Any = made
        parameters = [p for name, p in own.parameters.items() if name != "reading"]
        described.__signature__ = own.replace(parameters=[*parameters, *shared.values()])
        return described

    return decorate


class RecordSource(abc.ABC):
    """Records with an image file each, wherever it lies. See `vfm_jax.data.sources.Source`.

    Attributes:
        problems: what was dropped or passed over, a line each.
    """

    problems: tuple[str, ...] = ()

    def __init__(self, class_names: tuple[str, ...] | None, reading: Reading):
        """Takes the classes by id, and how the files are read."""
        self.class_names = class_names
        self._reading = reading
        self.image_shape, self.image_dtype = reading.image_shape, reading.image_dtype

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """The record in the user's words."""

    @abc.abstractmethod
    def _record(self, index: int) -> tuple[Callable[[], File], int]:
        """What gives the record's file, for a picture that needs it, and the class id, -1 for none."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.read(index, on_canvas)

    def read(self, index: int, picture: Picture) -> dict[str, np.ndarray]:
        """The record, its picture made as the caller says."""
        contents, label = self._record(index)
        return {
            **picture(self._reading, contents, self.name(index)),
            "label": np.asarray(label, np.int32),
            "index": np.asarray(index, np.int32),
        }


class ImageFiles(RecordSource):
    """Named image files of a folder or of tar files, and class ids.

    Attributes:
        labels: class ids of all records, -1 without (int32).
        problems: what was dropped or passed over, a line each.
    """

    def __init__(
        self,
        files: Paths | Shards,
        names: Sequence[str],
        labels: np.ndarray | None,
        class_names: tuple[str, ...] | None,
        reading: Reading,
        problems: Sequence[str] = (),
    ):
        """Takes the names among `files` of the records, and their class ids."""
        super().__init__(None if labels is None else class_names, reading)
        self._files, self._names = files, list(names)
        self.labels = np.full(len(names), -1, np.int32) if labels is None else labels
        self.problems = (*files.problems, *problems)

    def __len__(self) -> int:
        return len(self._names)

    def _record(self, index: int) -> tuple[Callable[[], File], int]:
        return lambda: self._files.file(self._names[index]), self.labels[index]

    def name(self, index: int) -> str:
        return self._files.describe(self._names[index])


def has_size(picture: np.ndarray, annotated: tuple[int, int], canvas: tuple[int, int]) -> bool:
    """Whether a picture fills of its canvas what one of the annotated height and width would, to a pixel."""
    shrink = min(1.0, canvas[0] / annotated[0], canvas[1] / annotated[1])
    expected = np.maximum(1, np.round(np.array(annotated) * shrink))
    return bool(np.abs(expected - picture).max() <= 1)


def rows_of_split(
    split: str | None, names: Sequence[str], splits: Sequence[str | None] | None, described: str
) -> np.ndarray:
    """The records of a split, or of a part of it, ascending (int64).

    Args:
        split: as the user wrote it.
        names: of all records, which the parts are cut by.
        splits: the split of each, or None where there are none.
        described: where they are from, for messages.

    Raises:
        UserError: no such split, or no record in it; or there are several, and none is chosen.
    """
    part = parse_split(split)
    known = sorted({one for one in splits or () if one is not None})
    if split is None and len(known) > 1:
        raise UserError(
            f"{described} has the splits {', '.join(known[:8])}. Set config.data.split={known[0]!r}, or 'all' for "
            "everything."
        )
    rows = np.arange(len(names))
    if part.name != ALL:
        if part.name not in known:
            listed = ", ".join(map(repr, known[:8])) or "none"
            raise UserError(
                f"split is {part.name!r}, but {described} has {listed}.{nearest(part.name, known)} "
                "For everything use 'all', for parts of it 'all[:90%]' and 'all[90%:]'."
            )
        assert splits is not None
        rows = np.flatnonzero(np.array(splits, object) == part.name)
    if (part.start, part.stop) != (0, 100):
        rows = rows[rows_of(part, [names[row] for row in rows])]
    return rows


def split_of_file(path: str, split: str | None) -> str | None:
    """The split that is a word of a file's name, or its folder's whole name: that of `split` where it is one.

    "data/train-00000-of-00002.parquet", "val/0000.parquet" and "imagenet_train_007.tar" have one.
    """
    *_, folder, base = ("", *path.split("/"))
    words = [*re.split(r"[^a-zA-Z]+", base), folder]
    wanted = parse_split(split).name
    return next((word for word in words if word == wanted or word in SPLIT_NAMES), None)
