"""Images inside tables: parquet in Hugging Face's layout, and the Arrow files that `datasets` saves."""

import json
import os
import pathlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import nearest
from vfm_jax.data.bad import BadSample
from vfm_jax.data.decode import File, Reading
from vfm_jax.data.sources.columns import IMAGE_COLUMNS, LABEL_COLUMNS, chosen_column
from vfm_jax.data.sources.labels import ClassNames, class_ids
from vfm_jax.data.sources.location import existing
from vfm_jax.data.sources.pages import ColumnPages, Kept, column_of_bytes
from vfm_jax.data.sources.records import RecordSource, reads_images, rows_of_split, split_of_file

_KEPT_BYTES = 2**28  # of what was unpacked last, in each process: a second look at a page costs nothing
_ENDINGS = (".parquet", ".arrow")


class ParquetSource(RecordSource):
    """Rows of parquet or Arrow files.

    Of parquet only the page of a record is unpacked (`pages`), however large its row group is; where it is written in
    a way that is not read so (delta encodings, LZ4), the row group. Arrow files are mapped, and cost what one record
    does.
    """

    def __init__(
        self,
        files: Sequence[str],
        groups: Sequence[Sequence[int]],
        rows: np.ndarray,
        labels: np.ndarray,
        class_names: tuple[str, ...] | None,
        column: str,
        reading: Reading,
    ):
        """Takes the files, the number of rows in each of their groups, and which rows of all are the records."""
        super().__init__(class_names, reading)
        self._files, self._column, self._rows = list(files), column, rows
        self._starts = np.cumsum([0, *(size for sizes in groups for size in sizes)])
        self._first_rows = np.cumsum([0, *(sum(sizes) for sizes in groups)])
        self._groups = [(file, group) for file, sizes in enumerate(groups) for group in range(len(sizes))]
        self.labels = labels
        self._open: dict[int, _Opened] = {}  # each process opens the files for itself, when it reads them
        self._opening = threading.Lock()
        self._kept = Kept(_KEPT_BYTES)

    def __len__(self) -> int:
        return len(self._rows)

    def _record(self, index: int) -> tuple[Callable[[], File], int]:
        return lambda: self._contents(index), self.labels[index]

    def _contents(self, index: int) -> bytes | str:
        """The bytes of a record's image file, or its path."""
        try:
            content = self._value(index)
        except (OSError, ValueError) as error:  # as Arrow's exceptions are
            raise BadSample(self.name(index), "corrupt", str(error).splitlines()[0]) from error
        if content is None:
            raise BadSample(self.name(index), "empty", "the row has no image")
        return content

    def _value(self, index: int) -> bytes | str | None:
        file, group, row = self._place(index)
        value = self._opened(file).reader.value(group, row, self._column)
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is None and isinstance(value, dict) and value.get("path"):
            content = os.path.join(os.path.dirname(self._files[file]), value["path"])
        return content

    def name(self, index: int) -> str:
        """The row; behind the file it names, where it has no bytes: what is kept of it is as old as that file."""
        file, _, _ = self._place(index)
        place = f"{self._files[file]}, row {int(self._rows[index] - self._first_rows[file])}"
        try:
            named = self._value(index) if self._opened(file).lacks_bytes else None
        except (OSError, ValueError):  # told when it is read
            named = None
        return f"{named}, of {place}" if isinstance(named, str) else place

    def _place(self, index: int) -> tuple[int, int, int]:
        """File, group and row in it of a record."""
        number = int(np.searchsorted(self._starts, self._rows[index], side="right")) - 1
        return *self._groups[number], int(self._rows[index] - self._starts[number])

    def _opened(self, file: int) -> "_Opened":
        with self._opening:
            if file not in self._open:
                reader = _open(self._files[file], self._kept)
                self._open[file] = _Opened(reader, reader.lacks_bytes(self._column))
            return self._open[file]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_open", "_opening", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _open={}, _opening=threading.Lock(), _kept=Kept(_KEPT_BYTES))


class _Parquet:
    def __init__(self, path: str, kept: Kept):
        from pyarrow import parquet

        with parquet.ParquetFile(path) as opened:
            self._meta, self.schema = opened.metadata, opened.schema_arrow
        self.groups = [self._meta.row_group(group).num_rows for group in range(self._meta.num_row_groups)]
        self._path, self._kept = path, kept
        self._pages: dict[str, ColumnPages | None] = {}

    def value(self, group: int, row: int, column: str) -> Any:
        """The bytes of a row, or what Arrow makes of it."""
        if column not in self._pages:
            leaf = column_of_bytes(self._meta, column)
            self._pages[column] = None if leaf is None else ColumnPages(self._path, self._meta, leaf, self._kept)
        pages = self._pages[column]
        value = None if pages is None else pages.value(group, row)
        if value is not None:
            return value
        # Nothing there, or not to be read by pages; a struct without bytes may have a path.
        return self._kept.get((self._path, group, column), lambda: self._group(group, column))[row].as_py()

    def lacks_bytes(self, column: str) -> bool:
        """Whether a row may have no bytes, of a column of {bytes, path}."""
        if not _has_paths(self.schema, column):
            return False
        if (leaf := column_of_bytes(self._meta, column)) is None:  # it is not known
            return True
        chunks = [self._meta.row_group(group).column(leaf) for group in range(len(self.groups))]
        counts = [chunk.statistics.null_count if chunk.is_stats_set else None for chunk in chunks]
        return any(count != 0 for count in counts)

    def _group(self, group: int, column: str) -> Any:
        from pyarrow import parquet

        # A reader of its own, as they are not safe between threads. These read records, not columns; and a dotted
        # name would be a field of a struct.
        with parquet.ParquetFile(self._path, memory_map=True) as opened:
            return opened.read_row_group(group, columns=[column], use_threads=False).column(column)

    def column(self, name: str) -> list[Any]:
        from pyarrow import parquet

        with parquet.ParquetFile(self._path) as opened:
            return opened.read(columns=[name]).column(name).to_pylist()


class _Arrow:
    """What `datasets` writes: a stream of batches, or a file of them."""

    def __init__(self, path: str):
        import pyarrow as pa

        mapped = pa.memory_map(path)
        is_file = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        self._table = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(mapped).read_all()
        self.schema = self._table.schema
        self.groups = [self._table.num_rows]

    def value(self, group: int, row: int, column: str) -> Any:
        """A row, as Arrow has it."""
        del group
        return self._table.column(column)[row].as_py()

    def lacks_bytes(self, column: str) -> bool:
        """Whether a row has no bytes, of a column of {bytes, path}."""
        return _has_paths(self.schema, column) and any(
            chunk.field("bytes").null_count > 0 for chunk in self._table.column(column).chunks
        )

    def column(self, name: str) -> list[Any]:
        return self._table.column(name).to_pylist()


class _Opened(NamedTuple):
    """A file, and whether a row of it may have no bytes: asked once, as every record's name depends on it."""

    reader: _Parquet | _Arrow
    lacks_bytes: bool


def _open(path: str, kept: Kept) -> _Parquet | _Arrow:
    return _Parquet(path, kept) if path.lower().endswith(".parquet") else _Arrow(path)


@reads_images(canvas_size=256)
def parquet(
    path: str,
    *,
    reading: Reading,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: ClassNames = None,
) -> ParquetSource:
    """Images whose bytes lie in parquet or Arrow files, in the order of the files' names and their rows.

    Read without the library `datasets`: what it saves with `save_to_disk`, what it keeps in its cache, and what the
    Hugging Face hub holds. The column of images has their bytes, or {bytes, path}; classes are named where the
    schema's metadata do (ClassLabel).

    Args:
        path: a file, a folder of them (at any depth), or one of `save_to_disk`.
        reading: made of the keywords of `data.decode.reading`; the canvas has 256 pixels a side by default.
        split: a word of the files' names ("train-00000-of-00002.parquet"), or the folder they lie in; or a part, as
            "train[:90%]" or "all[90%:]".
        image_column: column of the images; by default the schema's first of images.
        label_column: column of the classes, ids or names; by default the schema's first of classes, or the first of
            the usual names (label, class, ...); "" for no classes.
        class_names: by id, or a text file of them, one a line; by default the schema's, the names found, or "0", ...

    Raises:
        UserError: nothing there, a damaged file, no such column or split, or a column that holds no images.
    """
    import pyarrow as pa

    root = existing(path, "config.data.path")
    files = _files(root)
    splits = [split_of_file(file, split) for file in files]
    try:
        opened = [_open(file, Kept(0)) for file in files]
        columns = _columns(opened, files, image_column, label_column)
        described = f"{root}, column {columns.label}"
        values = None if columns.label is None else [one.column(columns.label) for one in opened]
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"Cannot read {root}: {str(error).splitlines()[0]}") from error
    groups = [one.groups for one in opened]
    counts = [sum(sizes) for sizes in groups]
    row_splits = [one for one, count in zip(splits, counts, strict=True) for _ in range(count)]
    row_names = [f"{os.path.basename(file)}/{row}" for file, n in zip(files, counts, strict=True) for row in range(n)]
    rows = rows_of_split(split, row_names, row_splits, str(root))
    labels, names = np.full(len(row_names), -1, np.int32), None
    if values is not None:
        flat = [value for one in values for value in one]
        there = np.flatnonzero([value is not None and value != -1 for value in flat])  # a hub's test split has -1
        lacking = len(rows) - len(np.intersect1d(rows, there))
        if 0 < lacking < len(rows):
            raise UserError(f"{lacking} of {len(rows)} rows have no class in {described}; give every image one.")
        labels[there], names = class_ids([flat[row] for row in there], described, class_names or columns.names)
        if lacking:
            names = None
    return ParquetSource(files, groups, rows, labels[rows], names, columns.image, reading)


def _files(root: pathlib.Path) -> list[str]:
    if root.is_file():
        if root.suffix.lower() not in _ENDINGS:
            raise UserError(
                f"config.data.path is {str(root)!r}; expected {' or '.join(_ENDINGS)}, or a folder of them."
            )
        return [str(root)]
    found = sorted(str(file) for file in root.rglob("*") if file.suffix.lower() in _ENDINGS and not _is_cache(file))
    if not found:
        raise UserError(f"No {' or '.join(_ENDINGS)} files in {root}, at any depth.")
    return found


def _is_cache(file: pathlib.Path) -> bool:
    """What `map` and `filter` of `datasets` leave beside its own files; hidden ones too."""
    return file.name.startswith(("cache-", "."))


class _Chosen(NamedTuple):
    image: str
    label: str | None
    names: tuple[str, ...] | None


def _columns(
    opened: Sequence[_Parquet | _Arrow], files: Sequence[str], image: str | None, label: str | None
) -> _Chosen:
    """The columns meant, the same in all files, and the class names that the schema has."""
    schema = opened[0].schema
    features = _features(schema)
    images = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    images += [name for name in _binary(schema) if name not in images]
    usual = chosen_column(images, None, IMAGE_COLUMNS, "image_column")
    chosen = image or usual or next(iter(images), None)
    if chosen not in images:
        wanted = f"no column of images {image!r}" if image else "no column of images (bytes, or {bytes, path})"
        listed = ", ".join(f"{field.name} ({field.type})" for field in schema)[:300]
        near = nearest(image, images) if image else ""
        raise UserError(f"{files[0]} has {wanted}; its columns are {listed}.{near} For a table of paths use 'table'.")
    classes = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    if label == "":
        label = None
    elif label is not None or not classes:
        label = chosen_column([field.name for field in schema], label, LABEL_COLUMNS, "label_column")
    else:
        label = classes[0]
    wanted = [name for name in (chosen, label) if name is not None]
    for file, one in zip(files, opened, strict=True):
        missing = [name for name in wanted if name not in one.schema.names]
        if missing:
            raise UserError(
                f"{file} has no column {missing[0]!r}, which {files[0]} has. Give the files of one data set."
            )
    names = features.get(label, {}).get("names") if label else None
    return _Chosen(chosen, label, tuple(map(str, names)) if names else None)


def _features(schema: Any) -> Mapping[str, Mapping[str, Any]]:
    """What `datasets` notes of each column."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (TypeError, KeyError, ValueError, AttributeError):
        return {}


def _has_paths(schema: Any, column: str) -> bool:
    """Whether a column is of structs with a path."""
    import pyarrow as pa

    kind = schema.field(column).type
    return pa.types.is_struct(kind) and kind.get_field_index("path") >= 0


def _binary(schema: Any) -> list[str]:
    """Columns that may hold files: of bytes, or of structs that have them."""
    import pyarrow as pa

    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            place = kind.get_field_index("bytes")
            return place >= 0 and holds_bytes(kind.field(place).type)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    return [field.name for field in schema if holds_bytes(field.type)]
