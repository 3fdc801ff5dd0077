"""Which source reads what lies at a path."""

import collections
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

from vfm_jax.core.errors import UserError
from vfm_jax.data.bad import BadSample
from vfm_jax.data.decode import read_header
from vfm_jax.data.sources.array_records import array_record_files
from vfm_jax.data.sources.columns import IMAGE_COLUMNS, LABEL_COLUMNS, TABLES, read_columns
from vfm_jax.data.sources.files import Folder, Shards, is_image
from vfm_jax.data.sources.labels import SPLIT_NAMES
from vfm_jax.data.sources.location import existing
from vfm_jax.data.sources.pairs import TEXT_COLUMNS
from vfm_jax.data.sources.records import split_of_file
from vfm_jax.data.sources.storage import files_of, is_url

Spec = dict[str, Any]

_PATTERN = "*?[{"
_ARCHIVES = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst", ".zip")
_HEADERS = 8  # images whose headers are looked at


def detect(path: str | os.PathLike[str]) -> Spec:
    """The source that reads what lies at a path, as a recipe's `data` has it: `dict(name="folder", path=...)`.

    Beside name and path it holds what is needed to read it at all: the first split where there are several ("train"
    where it is one of them), channels and type of images that are no ordinary pictures.

    Args:
        path: a file, a folder, or tar files by pattern or URL.

    Raises:
        UserError: nothing there, or nothing that a source reads.
    """
    text = os.fspath(path)
    if is_url(text) or any(mark in os.path.basename(text) for mark in _PATTERN):
        return _of_tars(text)
    place = existing(text, "PATH")
    spec = _of_folder(place) if place.is_dir() else _of_file(place)
    if spec is None:
        raise UserError(
            f"Nothing in {place} is known as images: no image files, tar shards, .npz, .npy, parquet or tables, and "
            "no layout of COCO, Pascal VOC or segmentation."
        )
    return spec


def _of_file(file: pathlib.Path) -> Spec | None:
    name, path = file.name.lower(), str(file)
    if name.endswith(_ARCHIVES):
        raise UserError(f"{file} is compressed, which leaves no random access: unpack it, and give the folder.")
    if name.endswith(".tar"):
        return _of_tars(path)
    if name.endswith(".npz"):
        return _of_npz(file)
    if name.endswith(".npy"):
        return dict(name="arrays", path=path)
    if ".array_record" in name:
        return dict(name="array_records", path=path)
    if name.endswith(".arrow") or (name.endswith(".parquet") and _has_images(file)):
        return dict(name="parquet", path=path)
    if name.endswith(".json"):
        return _of_json(file.read_bytes(), path)
    if name.endswith(TABLES):
        return _of_table(file)
    if is_image(name):
        raise UserError(f"{file} is one image; give the folder that it lies in.")
    return None


def _of_npz(file: pathlib.Path) -> Spec:
    try:
        with zipfile.ZipFile(file) as opened:
            names = [name.removesuffix(".npy") for name in opened.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"Cannot read the arrays in {file}: {error}") from error
    splits = [name.removesuffix("_images") for name in names if name.endswith("_images")]
    return dict(name="arrays", path=str(file)) | _first_split(splits)


def _has_images(file: pathlib.Path) -> bool:
    """Whether a parquet file holds images themselves, and not their paths."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"Cannot read {file}: {str(error).splitlines()[0]}") from error
    return any(pa.types.is_struct(field.type) or pa.types.is_binary(field.type) for field in schema)


def _of_table(file: pathlib.Path) -> Spec | None:
    """A table of images: of captions, of pairs with label maps, or of classes."""
    try:
        columns = read_columns(file)
    except UserError:
        if file.suffix.lower() == ".txt":  # text of another kind
            return None
        raise
    lowered = {name.lower() for name in columns}
    first = next(iter(columns.values()), ())
    second = list(columns.values())[1] if len(columns) > 1 else ()
    if second and is_image(str(second[0])) and first and is_image(str(first[0])):
        return dict(name="segmentation", path=str(file))
    if lowered & set(TEXT_COLUMNS) and not lowered & set(LABEL_COLUMNS):
        return dict(name="pairs", path=str(file))
    if not lowered & set(IMAGE_COLUMNS):
        return None
    splits = next((columns[name] for name in columns if name.lower() == "split"), ())
    return dict(name="table", path=str(file)) | _first_split(sorted({str(one) for one in splits}))


def _of_json(content: bytes, path: str) -> Spec | None:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"Cannot read {path}: {error}") from error
    annotations = found.get("annotations") if isinstance(found, Mapping) else None
    first = annotations[0] if isinstance(annotations, list) and annotations else {}
    if not isinstance(first, Mapping):
        return None
    if "caption" in first:
        return dict(name="pairs", path=path)
    return dict(name="coco", path=path) if "bbox" in first else None


def _of_folder(root: pathlib.Path) -> Spec | None:
    path = str(root)
    if (root / "features.json").is_file() and (root / "dataset_info.json").is_file():
        return _of_tfds(root)
    if list(root.glob("*.tar")):
        return _of_tars(path)
    files = Folder(root)
    found = _in_files(files, path)
    if found is not None:
        return found
    by_ending: dict[str, list[str]] = collections.defaultdict(list)
    for name in files.names:
        by_ending[os.path.splitext(name)[1].lower()].append(name)
    for ending in (".parquet", ".arrow"):
        if by_ending[ending] and (ending == ".arrow" or _has_images(root / by_ending[ending][0])):
            words = [word for name in by_ending[ending] for word in _split_words(name)]
            return dict(name="parquet", path=path) | _first_split(sorted(set(words)))
    records = array_record_files(root)
    if records:
        words = {word for name in records for word in _split_words(name)}
        return dict(name="array_records", path=path) | _first_split(sorted(words))
    single = [name for ending in (".npz", ".npy", *TABLES, ".tar") for name in by_ending[ending]]
    specs = [spec for name in single[:4] if (spec := _of_file(root / name)) is not None]
    if len(single) <= 4 and len(specs) == 1:
        return specs[0]
    archives = [name for name in files.names if name.lower().endswith(_ARCHIVES)]
    if archives:
        raise UserError(f"{root} holds {archives[0]}, which leaves no random access: unpack it, and give the folder.")
    if specs:
        raise UserError(f"{root} holds several data sets: {', '.join(single[:6])}. Give one of them.")
    return None


def _of_tfds(root: pathlib.Path) -> Spec:
    """A data set that TFDS prepared: DATA_DIR/NAME/[CONFIG/]VERSION."""
    info = json.loads((root / "dataset_info.json").read_text())
    parts = [part for part in (info.get("name"), info.get("configName") or info.get("config_name")) if part]
    above = root.parents[len(parts)] if len(root.parents) > len(parts) else root.parent
    splits = [split.get("name") for split in info.get("splits", []) if split.get("name")]
    dataset = f"{'/'.join(parts)}:{info.get('version', root.name)}"
    return dict(name="tfds", dataset=dataset, data_dir=str(above)) | _first_split(splits)


def _of_tars(path: str) -> Spec:
    files = Shards(files_of(path, ".tar"))
    found = _in_files(files, path)
    if found is None:
        raise UserError(f"No images in {path}: its members are {', '.join(files.names[:4]) or 'none'}.")
    return found


def _in_files(files: Folder | Shards, path: str) -> Spec | None:
    """What a folder or the members of tars are laid out as; None where there are no images in them."""
    names = files.names
    images = [name for name in names if is_image(name)]
    if not images:
        return None
    split = dict(split="train") if any("train" in _split_words(name) for name in images) else {}
    bases = [os.path.basename(name).lower() for name in names]
    if any(os.path.basename(os.path.dirname(name)) == "Annotations" and name.endswith(".xml") for name in names):
        lists = [os.path.basename(n)[:-4] for n in names if os.path.dirname(n).endswith("ImageSets/Main")]
        return dict(name="voc", path=path) | _first_split([name for name in lists if "_" not in name])
    instances = [b for b in bases if b.endswith(".json") and ("instances" in b or b == "_annotations.coco.json")]
    if instances:
        return dict(name="coco", path=path) | (split if len(instances) > 1 else {})
    if _has_texts(names, images, bases):
        return dict(name="pairs", path=path)
    folders = {part.lower() for name in images for part in name.split("/")[:-1]}
    if _has_label_maps(folders):
        return dict(name="segmentation", path=path) | _first_split(_splits_of(images))
    if isinstance(files, Shards):
        kind = _kind_of_images(files, images)
        return dict(name="tars", path=path) | kind | _first_split(_splits_of([*images, *dict.fromkeys(files.tars)]))
    table = _only_table(files, path)
    if table is not None:
        return table
    tops = {name.split("/")[0] for name in images if "/" in name}
    own = _first_split(sorted(tops)) if tops and all(top.lower() in SPLIT_NAMES for top in tops) else {}
    loose = tops and any("/" not in name for name in images)
    return (
        dict(name="folder", path=path) | own | (dict(labels=None) if loose else {}) | _kind_of_images(files, images)
    )


def _split_words(name: str) -> list[str]:
    found = split_of_file(name, None)
    return [found] if found else []


def _splits_of(names: Sequence[str]) -> list[str]:
    """Splits that folders of the paths, or words of tars' names, speak of."""
    words = {part for name in names for part in name.split("/")[:-1] if part.lower() in SPLIT_NAMES}
    words |= {word for name in names if name.endswith(".tar") for word in _split_words(name)}
    return sorted(words)


def _first_split(splits: Sequence[str]) -> Spec:
    """The split to begin with; nothing where there are none."""
    return dict(split="train" if "train" in splits else splits[0]) if splits else {}


def _has_texts(names: Sequence[str], images: Sequence[str], bases: Sequence[str]) -> bool:
    """A table of captions, or a text beside most images and no class."""
    if any("caption" in base and base.endswith((".json", *TABLES)) for base in bases):
        return True
    if any(base.endswith(".cls") for base in bases):
        return False
    stems = {os.path.splitext(name)[0] for name in names if name.endswith(".txt")}
    return 2 * sum(os.path.splitext(name)[0] in stems for name in images) > len(images)


def _has_label_maps(folders: set[str]) -> bool:
    """Whether folders of label maps stand beside folders of images that go with them."""
    pairs = (("images", ("labels", "masks", "annotations", "annots", "gt")), ("jpegimages", ("segmentationclass",)),
             ("leftimg8bit", ("gtfine",)))  # fmt: skip
    if any(image in folders and folders & set(maps) for image, maps in pairs):
        return True
    return any(f"{folder}{ending}" in folders for folder in folders for ending in ("annot", "_labels", "_masks"))


def _only_table(files: Folder, path: str) -> Spec | None:
    """The table of classes beside images, if there is one such at the top."""
    tables = [name for name in files.names if "/" not in name and name.lower().endswith((".csv", ".tsv", ".jsonl"))]
    specs = []
    for name in tables:
        try:
            specs.append(_of_table(pathlib.Path(path) / name))
        except UserError:
            continue  # a table of another kind, which need not be readable
    found = [spec for spec in specs if spec is not None]
    return found[0] if len(found) == 1 else None


def _kind_of_images(files: Folder | Shards, images: Sequence[str]) -> Spec:
    """`channels` and `dtype`, where the first readable image is no ordinary picture."""
    for name in images[:: max(1, len(images) // _HEADERS)]:
        try:
            _, header = read_header(files.read(name), name)
        except BadSample:
            continue
        kind: Spec = {}
        colours = header.channels - header.has_alpha
        if colours not in (1, 3):
            kind["channels"] = header.channels
        if header.dtype.kind == "f":
            kind |= dict(dtype="float32") | ({"channels": 1} if colours == 1 else {})
        return kind
    return {}
