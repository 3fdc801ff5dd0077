"""Class ids from what data sets write for a class: numbers, or names."""

import collections
import itertools
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import nearest
from vfm_jax.data.sources.location import existing

MAX_CLASSES = 2**20  # a number above it is taken for a mistake, not for a class

ClassNames = str | Sequence[str] | None


def listed_names(class_names: ClassNames) -> tuple[str, ...] | None:
    """Class names by id: as they are, or the lines of a text file.

    Raises:
        UserError: no such file, or a name twice.
    """
    if class_names is None:
        return None
    if isinstance(class_names, str):
        text = existing(class_names, "config.data.class_names").read_text(encoding="utf-8")
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
    else:
        names = tuple(map(str, class_names))
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"config.data.class_names has {twice[0]!r} twice; expected one name for each class id.")
    return names


def class_ids(
    values: Iterable[Any], described: str, class_names: ClassNames = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class ids (int32), and names by id.

    Whole numbers are ids; anything else are names, whose ids follow `class_names`, or their own sorted order. Give
    the values of all splits at once, so that an id means the same class in each.

    Args:
        values: one for each record: int, or str.
        described: where they are from, for messages.
        class_names: by id, or a text file of them; by default the names found, or "0", "1", ...

    Raises:
        UserError: a value is missing, no class, or none of `class_names`.
    """
    values = list(values)
    known = listed_names(class_names)
    lacking = sum(value is None or value == "" or value != value for value in values)
    if lacking:
        raise UserError(f"{lacking} of {len(values)} labels in {described} are missing; give every image one.")
    ids = [_as_id(value) for value in values]
    if None not in ids and not (known and set(map(str, values)) <= set(known)):
        found = np.array(ids, np.int64)
        top = MAX_CLASSES if known is None else len(known)
        if found.size and not 0 <= found.min() <= found.max() < top:
            raise UserError(
                f"Labels in {described} run from {found.min()} to {found.max()}; expected class ids from 0 up, "
                f"below {top}."
            )
        names = known or tuple(str(label) for label in range(int(found.max(initial=-1)) + 1))
        return found.astype(np.int32), names
    texts = [str(value) for value in values]
    names = known or tuple(sorted(set(texts)))
    if len(names) > MAX_CLASSES or (known is None and len(names) == len(texts) > 1000):
        raise UserError(
            f"Labels in {described} are {len(names)} names for {len(texts)} images, such as {texts[0][:40]!r}; "
            "expected classes."
        )
    places = {name: place for place, name in enumerate(names)}
    unknown = [text for text in texts if text not in places]
    if unknown:
        near = nearest(unknown[0], names)
        raise UserError(f"{unknown[0]!r} in {described} is none of config.data.class_names.{near}")
    return np.array([places[text] for text in texts], np.int32), names


def _as_id(value: Any) -> int | None:
    """The whole number that it is or writes; None for anything else."""
    if isinstance(value, numbers.Real):
        return int(value) if float(value).is_integer() else None
    try:
        return int(value) if isinstance(value, str) and value.strip().lstrip("-").isdecimal() else None
    except ValueError:
        return None


SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test", "testing")


def folder_classes(names: Sequence[str]) -> tuple[list[str | None], list[str | None]]:
    """The split and the class of each file by the folders in its path, None where it has none.

    Folders that all files share at the top mean nothing; then a folder named as a split is one; the next is the
    class.
    """
    parts = [name.split("/")[:-1] for name in names]
    shared = sum(1 for _ in itertools.takewhile(lambda same: len(set(same)) == 1, zip(*parts, strict=False)))
    while shared and parts[0][shared - 1].lower() in SPLIT_NAMES:
        shared -= 1
    parts = [one[shared:] for one in parts]
    splits = [one[0] if one and one[0].lower() in SPLIT_NAMES else None for one in parts]
    rest = [one if split is None else one[1:] for one, split in zip(parts, splits, strict=True)]
    classes = [one[0] if one else None for one in rest]
    return splits, classes
