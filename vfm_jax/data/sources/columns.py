"""Tables of text: CSV, TSV and its kin, JSON lines, parquet; and which of their columns is meant."""

import csv
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import nearest
from vfm_jax.data.sources.files import is_image

IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "filepath", "path", "image_path", "image_name", "img")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "class_id", "label_id", "cls")
SPLIT_COLUMNS = ("split", "subset", "set", "partition", "fold")
TABLES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".parquet")

Columns = Mapping[str, Sequence[Any]]


def delimiter_of(line: str, delimiters: str = "\t|,;") -> str:
    """The first of the delimiters that the line has; the comma where it has none."""
    return next((delimiter for delimiter in delimiters if delimiter in line), ",")


def rows_of_text(text: str, delimiters: str = "\t|,;") -> Any:
    """Iterates the rows of a table, split at whichever delimiter its first line has."""
    delimiter = delimiter_of(text.partition("\n")[0], delimiters)
    # Quotes are letters like any other in tables whose delimiter no text contains.
    quoting = csv.QUOTE_NONE if delimiter in "\t| " else csv.QUOTE_MINIMAL
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)


def read_columns(file: pathlib.Path) -> Columns:
    """A table by its columns, as its extension says. CSV without a header is `image` and, beside it, `label`.

    Raises:
        UserError: no such table.
    """
    kind = file.suffix.lower()
    if kind not in TABLES:
        raise UserError(f"config.data.path is {str(file)!r}; expected a table: {', '.join(TABLES)}.")
    try:
        if kind == ".parquet":
            return _read_parquet(file)
        text = file.read_text(encoding="utf-8-sig")
        return _read_json_lines(text) if kind in (".jsonl", ".ndjson") else _read_csv(text)
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError, _Malformed) as error:
        raise UserError(f"Cannot read the table {file}: {error}.") from error


class _Malformed(ValueError):
    pass


def _read_csv(text: str) -> Columns:
    rows = [row for row in rows_of_text(text, "\t|,; ") if row]
    if not rows:
        raise _Malformed("it is empty")
    header = [column.strip() for column in rows[0]]
    if is_image(header[0]):
        if len(header) > 2:
            raise _Malformed(f"it has {len(header)} columns and no line of their names at the top")
        header = ["image", "label"][: len(header)]
    else:
        del rows[0]
    if len(set(header)) < len(header):
        raise _Malformed(f"two columns have one name ({', '.join(header[:8])})")
    wrong = next((i for i, row in enumerate(rows) if len(row) != len(header)), None)
    if wrong is not None:
        raise _Malformed(f"row {wrong + 1} has {len(rows[wrong])} values; expected {len(header)}")
    return {name: [row[place].strip() for row in rows] for place, name in enumerate(header)}


def _read_json_lines(text: str) -> Columns:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (json.JSONDecodeError, RecursionError) as error:
                raise _Malformed(f"line {number} is no JSON ({error})") from error
            if not isinstance(rows[-1], dict):
                raise _Malformed(f"line {number} is no JSON object")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _read_parquet(file: pathlib.Path) -> Columns:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        kinds = pa.types
        wanted = [f.name for f in table.schema_arrow if not (kinds.is_nested(f.type) or kinds.is_binary(f.type))]
        return table.read(columns=wanted).to_pydict()
    except pa.ArrowException as error:
        raise _Malformed(str(error)) from error


def chosen_column(names: Sequence[str], given: str | None, usual: Sequence[str], field: str) -> str | None:
    """The column that is meant: the one given, or the first of the usual ones, whatever the case; or None.

    Raises:
        UserError: the one given is not there.
    """
    if given is not None:
        if given not in names:
            known = ", ".join(names[:8])
            raise UserError(f"config.data.{field} is {given!r}; the columns are {known}.{nearest(given, names)}")
        return given
    lowered = {name.lower(): name for name in reversed(names)}
    return next((lowered[name] for name in usual if name in lowered), None)


def needed_column(names: Sequence[str], given: str | None, usual: Sequence[str], field: str) -> str:
    """As `chosen_column`, and one there must be."""
    found = chosen_column(names, given, usual, field)
    if found is None:
        raise UserError(
            f"The table's columns are {', '.join(names[:8]) or 'none'}; say which one holds the "
            f"{field.partition('_')[0]}s: config.data.{field}=NAME."
        )
    return found
