"""ArrayRecord files whose records are image files, or `tf.train.Example`s that hold them; without TensorFlow."""

import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import nearest
from vfm_jax.data.bad import BadSample
from vfm_jax.data.decode import File, Reading, image_kind
from vfm_jax.data.sources.labels import ClassNames, listed_names
from vfm_jax.data.sources.location import existing
from vfm_jax.data.sources.records import RecordSource, reads_images, rows_of_split, split_of_file
from vfm_jax.data.sources.varint import read_varint

_IMAGE_KEYS = ("image", "image/encoded", "image_raw", "image/image", "jpg", "png")
_LABEL_KEYS = ("label", "image/class/label", "class", "class_id")

Example = dict[str, list[Any]]


class ArrayRecordSource(RecordSource):
    """Records of ArrayRecord files, parsed when asked for."""

    def __init__(
        self,
        records: Any,
        names: Sequence[str],
        rows: np.ndarray,
        image_key: str | None,
        label_key: str | None,
        class_names: tuple[str, ...] | None,
        reading: Reading,
    ):
        """Takes a random access of bytes, the name of each, and which of them are the source's."""
        super().__init__(class_names, reading)
        self._records, self._names, self._rows = records, names, rows
        self._image_key, self._label_key = image_key, label_key

    def __len__(self) -> int:
        return len(self._rows)

    def _record(self, index: int) -> tuple[Callable[[], File], int]:
        name = self.name(index)
        content, label = bytes(self._records[int(self._rows[index])]), -1
        if self._image_key is not None:
            try:
                example = parse_example(content)
                content = example[self._image_key][0]
                if self.class_names is not None and self._label_key is not None:
                    label = self._class_id(example[self._label_key][0], name)
            except (ValueError, KeyError, IndexError) as error:
                raise BadSample(name, "corrupt", f"no tf.train.Example as the first one is ({error!r})") from error
        return lambda: content, label

    def _class_id(self, value: Any, name: str) -> int:
        assert self.class_names is not None
        if isinstance(value, bytes):
            text = value.decode(errors="replace")
            if text in self.class_names:
                return self.class_names.index(text)
        elif 0 <= int(value) < len(self.class_names):
            return int(value)
        raise BadSample(name, "corrupt", f"class {value!r}; expected one of the {len(self.class_names)} class_names")

    def name(self, index: int) -> str:
        return self._names[int(self._rows[index])]


@reads_images(canvas_size=256)
def array_records(
    path: str,
    *,
    reading: Reading,
    split: str | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
    class_names: ClassNames = None,
) -> ArrayRecordSource:
    """The images in ArrayRecord files, in the order of the files' names and their records.

    A record is the bytes of an image file, or a `tf.train.Example` with them in a field. What TFDS has prepared is
    better read by the source `tfds`, which knows its features.

    Args:
        path: a file, or a folder of them.
        reading: made of the keywords of `data.decode.reading`; the canvas has 256 pixels a side by default.
        split: a word of the files' names, or the folder they lie in; or a part, as "train[:90%]" or "all[90%:]".
        image_key: the Example's field of images; by default the first of the usual ones (image, image/encoded, ...).
        label_key: its field of classes, numbers or names; the same (label, image/class/label, ...).
        class_names: by id, or a text file of them, one a line; images have no classes without it.

    Raises:
        UserError: nothing there, files of another kind, no such field or split.
    """
    names = listed_names(class_names)
    files = array_record_files(existing(path, "config.data.path"))
    if not files:
        raise UserError(f"No ArrayRecord files in {path}: looked for names with .array_record, at any depth.")
    from array_record.python import array_record_data_source as library

    try:
        counts = [len(library.ArrayRecordDataSource([file])) for file in files]
        records = library.ArrayRecordDataSource(files)
        first = bytes(records[0]) if sum(counts) else b""
    except (RuntimeError, ValueError, OSError, IndexError) as error:
        raise UserError(f"Cannot read {path} as ArrayRecord: {str(error).splitlines()[0]}") from error
    if not first:
        raise UserError(f"{path} holds no records.")
    keys = _keys(first, path, image_key, label_key, names is not None)
    described = [f"{file}, record {row}" for file, count in zip(files, counts, strict=True) for row in range(count)]
    splits = [split_of_file(file, split) for file, count in zip(files, counts, strict=True) for _ in range(count)]
    rows = rows_of_split(split, described, splits, str(path))
    return ArrayRecordSource(records, described, rows, *keys, names, reading)


def array_record_files(root: pathlib.Path) -> list[str]:
    """The ArrayRecord files that a path stands for, sorted."""
    if root.is_file():
        return [str(root)]
    named = re.compile(r"\.array_?record(-\d+-of-\d+)?$")
    return sorted(str(file) for file in root.rglob("*") if named.search(file.name) and file.is_file())


def _keys(
    first: bytes, path: str, image_key: str | None, label_key: str | None, labelled: bool
) -> tuple[str | None, str | None]:
    """The fields of images and classes; None where records are images themselves."""
    if image_kind(first[:16]) is not None:
        if image_key or label_key or labelled:
            raise UserError(f"The records of {path} are image files, without fields or classes.")
        return None, None
    try:
        example = parse_example(first)
    except ValueError as error:
        raise UserError(
            f"The first record of {path} is neither an image file nor a tf.train.Example ({error})."
        ) from error
    image = image_key or next((key for key in _IMAGE_KEYS if key in example), None)
    label = label_key or next((key for key in _LABEL_KEYS if key in example), None)
    for field, key, needed in (("image_key", image, True), ("label_key", label, labelled)):
        if needed and key not in example:
            known = ", ".join(sorted(example)[:12]) or "none"
            near = nearest(key, example) if key else ""
            raise UserError(f"config.data.{field} is {key!r}; the fields of {path} are {known}.{near}")
    return image, label


def parse_example(content: bytes) -> Example:
    """The fields of a serialized `tf.train.Example`: lists of bytes, numbers or floats.

    Reference: tensorflow/core/example/{example,feature}.proto; protobuf's "Encoding".

    Raises:
        ValueError: it is none.
    """
    example: Example = {}
    for number, features in _fields(content):
        if number != 1 or not isinstance(features, bytes):
            raise ValueError(f"field {number} of an Example")
        for _, entry in _fields(features):
            parts = dict(_fields(_as_bytes(entry)))
            example[_as_bytes(parts.get(1, b"")).decode()] = _values(_as_bytes(parts.get(2, b"")))
    if not example:
        raise ValueError("it has no fields")
    return example


def _values(feature: bytes) -> list[Any]:
    values: list[Any] = []
    for kind, inside in _fields(feature):  # 1 bytes, 2 floats, 3 integers
        for _, value in _fields(_as_bytes(inside)):
            if isinstance(value, int):
                values.append(_signed(value))
            elif kind == 1:
                values.append(value)
            elif kind == 2:
                values += np.frombuffer(value, "<f4").tolist()
            else:
                place = 0
                while place < len(value):
                    number, place = read_varint(value, place)
                    values.append(_signed(number))
    return values


def _signed(number: int) -> int:
    return number if number < 2**63 else number - 2**64


def _as_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where a message is due")
    return value


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a protobuf message's fields: int of a varint, else bytes."""
    place = 0
    while place < len(content):
        tag, place = read_varint(content, place)
        kind = tag & 7
        if kind == 0:
            value, place = read_varint(content, place)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, place = read_varint(content, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if place + size > len(content):
            raise ValueError("it is cut off")
        yield tag >> 3, content[place : place + size]
        place += size
