"""Tar shards as webdataset writes them: KEY.jpg, and KEY.cls or KEY.json beside it; or tars of class folders."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import nearest
from vfm_jax.data.decode import EXTENSIONS, Reading
from vfm_jax.data.sources.columns import LABEL_COLUMNS
from vfm_jax.data.sources.files import Shards, is_image
from vfm_jax.data.sources.labels import ClassNames, class_ids, folder_classes
from vfm_jax.data.sources.records import ImageFiles, reads_images, rows_of_split, split_of_file
from vfm_jax.data.sources.storage import files_of

_READERS = 32  # of small members at a time: over a network the waiting is all of it
_MAX_TEXT = 4096  # bytes of a class's name


@reads_images(canvas_size=256)
def tars(
    path: str,
    *,
    reading: Reading,
    split: str | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
    class_names: ClassNames = None,
) -> ImageFiles:
    """The images in tar files, read where they lie, in the order they are stored.

    The headers are read once, and kept in a file TAR.index beside each tar (in the user's cache folder where that
    cannot be written, and for URLs). A key is what stands before the first dot of a name; its class is found in
    KEY.cls, else in a field of KEY.json, else it is the folder that the image lies in. `gs://`, `s3://`, `http(s)://`
    and the other storages of fsspec are read by ranges, without a copy; they need the extra `cloud`.

    Args:
        path: a tar file, a folder of them, `{000..099}` or a glob, or a URL of these.
        reading: made of the keywords of `data.decode.reading`; the canvas has 256 pixels a side by default.
        split: a name that stands in the shards' names ("x-train-000.tar"), or a folder in them; or a part, as
            "train[:90%]" or "all[90%:]". Everything by default.
        image_key: extension of the images, where a key has several ("jpg").
        label_key: "cls", "txt" or another extension of a file that holds the class, or a field of KEY.json; "" for no
            classes. By default the first that is there.
        class_names: by id, or a text file of them, one a line; by default the names found, or "0", "1", ...

    Raises:
        UserError: nothing there, no tar file, no image, labels that are none, or no such split.
    """
    files = Shards(files_of(path, ".tar"))
    places = {name: place for place, name in enumerate(files.names)}
    samples = _samples(files, image_key)
    images = [image for image, _ in samples]
    inside = [files.inside[places[image]] for image in images]
    folder_splits, folders = folder_classes(inside)
    values = _label_values(files, samples, folders, label_key)
    labels, names = (None, None) if values is None else class_ids(values, files.describe(), class_names)
    splits = [
        split_of_file(files.tars[places[image]], split) or folder_split
        for image, folder_split in zip(images, folder_splits, strict=True)
    ]
    rows = rows_of_split(split, images, splits, files.describe())
    return ImageFiles(files, [images[row] for row in rows], None if labels is None else labels[rows], names, reading)


Sample = tuple[str, Mapping[str, str]]  # the image's member, and the members of its key by extension


def _samples(files: Shards, image_key: str | None) -> list[Sample]:
    keys: dict[str, dict[str, str]] = {}
    for name in files.names:
        folder, base = os.path.split(name)
        key, _, extension = base.partition(".")
        keys.setdefault(f"{folder}/{key}", {})[extension] = name
    samples: list[Sample] = []
    for key, members in keys.items():
        plain = [e for e in members if (e == image_key if image_key else f".{e.lower()}" in EXTENSIONS)]
        if len(plain) > 1 and len(plain) < len(members):
            raise UserError(
                f"{key.lstrip('/')} in {files.describe()} has several images: {', '.join(plain)}. "
                f"Choose one: config.data.image_key={plain[0]!r}."
            )
        if len(plain) == 1:
            samples.append((members[plain[0]], members))
        elif not image_key:  # files that happen to begin alike, and names with more dots in them
            samples += [(name, {}) for name in members.values() if is_image(name)]
    if not samples:
        extensions = sorted({extension for members in keys.values() for extension in members})
        raise UserError(
            f"No images in {files.describe()}: looked for {image_key or ', '.join(EXTENSIONS)}, and found "
            f"{', '.join(extensions[:8]) or 'nothing'}."
        )
    return samples


def _label_values(
    files: Shards, samples: Sequence[Sample], folders: Sequence[str | None], label_key: str | None
) -> list[Any] | None:
    """What each sample says of its class, or None where there are no classes."""
    if label_key == "":
        return None
    extensions = {extension for _, members in samples for extension in members}
    if label_key is None:
        if "cls" in extensions:
            label_key = "cls"
        elif "json" in extensions:
            fields = _json_fields(files, next(members["json"] for _, members in samples if "json" in members))
            label_key = next((name for name in LABEL_COLUMNS if name in fields), None)
        if label_key is None:
            loose = folders.count(None)
            if 0 < loose < len(folders):
                raise UserError(
                    f"{loose} of {len(folders)} images in {files.describe()} lie in no class folder, and others do. "
                    "Set config.data.label_key='' for no classes."
                )
            return None if loose else list(folders)
    if label_key in extensions:
        values = [files.labels.get(members.get(label_key, "")) for _, members in samples]
        if not any(values):
            values = _each(files, [members.get(label_key) for _, members in samples], _text)
        return values
    if "json" not in extensions:
        near = nearest(label_key, extensions)
        raise UserError(
            f"config.data.label_key is {label_key!r}, but {files.describe()} has {', '.join(sorted(extensions)[:8])}."
            f"{near}"
        )
    contents = _each(files, [members.get("json") for _, members in samples], _json_fields)
    if not any(label_key in fields for fields in contents if fields):
        known = [name for fields in contents if fields for name in fields][:8]
        raise UserError(
            f"config.data.label_key is {label_key!r}, but the .json files in {files.describe()} have "
            f"{', '.join(known) or 'no fields'}.{nearest(label_key, known)}"
        )
    return [fields.get(label_key) if fields else None for fields in contents]


def _each(files: Shards, names: Sequence[str | None], read: Callable[[Shards, str], Any]) -> list[Any]:
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda name: None if name is None else read(files, name), names))


def _text(files: Shards, name: str) -> str:
    return files.read(name)[:_MAX_TEXT].decode(errors="replace").strip()


def _json_fields(files: Shards, name: str) -> Mapping[str, Any]:
    try:
        fields = json.loads(files.read(name))
    except (ValueError, RecursionError) as error:
        raise UserError(f"Cannot read {files.describe(name)}: {error}.") from error
    return fields if isinstance(fields, dict) else {}
