"""Named image files with classes, read when asked for: what most sources are once they have found their records."""

import re
from collections.abc import Sequence

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import nearest
from vfm_jax.data.decode import Picture, Reading, on_canvas
from vfm_jax.data.sources.files import Paths, Shards
from vfm_jax.data.sources.labels import SPLIT_NAMES
from vfm_jax.data.sources.splits import ALL, parse_split, rows_of


class ImageFiles:
    """Images in files of any kind, and class ids. See `vfm_jax.data.sources.Source`.

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
        self._files, self._names, self._reading = files, list(names), reading
        self.labels = np.full(len(names), -1, np.int32) if labels is None else labels
        self.class_names = None if labels is None else class_names
        self.image_shape, self.image_dtype = reading.image_shape, reading.image_dtype
        self.problems = (*files.problems, *problems)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.read(index, on_canvas)

    def read(self, index: int, picture: Picture) -> dict[str, np.ndarray]:
        """The record, its picture made as the caller says."""
        return {
            **picture(self._reading, lambda: self._files.read(self._names[index]), self.name(index)),
            "label": np.asarray(self.labels[index]),
            "index": np.asarray(index, np.int32),
        }

    def name(self, index: int) -> str:
        return self._files.describe(self._names[index])


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
