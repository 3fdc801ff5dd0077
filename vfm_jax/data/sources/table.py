"""A table of image files: CSV, TSV, JSON lines or parquet, with a column of paths and, if wanted, one of classes."""

import os
from collections.abc import Sequence

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.data.decode import Reading
from vfm_jax.data.sources.columns import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    SPLIT_COLUMNS,
    chosen_column,
    needed_column,
    read_columns,
)
from vfm_jax.data.sources.files import Paths
from vfm_jax.data.sources.labels import ClassNames, class_ids
from vfm_jax.data.sources.location import existing
from vfm_jax.data.sources.records import ImageFiles, reads_images, rows_of_split

_LOOKED_AT = 500  # files whose being there is checked at once, evenly spaced


@reads_images(canvas_size=256)
def table(
    path: str,
    *,
    reading: Reading,
    root: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    split: str | None = None,
    split_column: str | None = None,
    class_names: ClassNames = None,
) -> ImageFiles:
    """The images that a table names, in the order of its rows.

    Args:
        path: the table: .csv, .tsv or .txt (any usual delimiter; without a header its columns are image and label),
            .jsonl, .parquet.
        reading: made of the keywords of `data.decode.reading`; the canvas has 256 pixels a side by default.
        root: the folder that the paths start from; the table's own by default.
        image_column: column of the paths; by default the first of the usual ones (image, file, path, ...).
        label_column: column of the classes, ids or names; by default the first of the usual ones (label, class, ...),
            "" for no classes.
        split: rows whose split column says so; a part of them, as "train[:90%]"; "all[90%:]" without such a column.
        split_column: by default the first of the usual ones (split, subset, ...).
        class_names: by id, or a text file of them, one a line; by default the names found, or "0", "1", ...

    Raises:
        UserError: no such table, column, class or split, or images that are not where it says.
    """
    file = existing(path, "config.data.path")
    columns = read_columns(file)
    header = list(columns)
    column = needed_column(header, image_column, IMAGE_COLUMNS, "image_column")
    images = [str(name).strip().replace("\\", "/") for name in columns[column]]
    if not images or not all(images):
        raise UserError(f"{file}: {sum(not name for name in images)} of {len(images)} rows name no image file.")
    label = None if label_column == "" else chosen_column(header, label_column, LABEL_COLUMNS, "label_column")
    labels, names = (
        (None, None) if label is None else class_ids(columns[label], f"{file}, column {label}", class_names)
    )
    found = chosen_column(header, split_column, SPLIT_COLUMNS, "split_column")
    splits = None if found is None else [None if one is None else str(one) for one in columns[found]]
    rows = rows_of_split(split, images, splits, str(file))
    files = Paths(str(existing(root, "config.data.root") if root is not None else file.parent))
    images = [images[row] for row in rows]
    _check_there(files, images)
    return ImageFiles(files, images, None if labels is None else labels[rows], names, reading)


def _check_there(files: Paths, images: Sequence[str]) -> None:
    """Refuses paths that lead nowhere; a few that do are bad records, and no reason to stop."""
    places = np.linspace(0, len(images) - 1, min(len(images), _LOOKED_AT)).astype(int)
    looked_at = [images[place] for place in np.unique(places)]
    missing = [name for name in looked_at if not os.path.isfile(files.describe(name))]
    if 2 * len(missing) > len(looked_at):
        raise UserError(
            f"{len(missing)} of {len(looked_at)} images looked at are not there, such as "
            f"{files.describe(missing[0])}. "
            "Say where the paths of the table start with config.data.root=FOLDER."
        )
