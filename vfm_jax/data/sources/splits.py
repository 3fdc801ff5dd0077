"""Named parts of a data set, written alike for every source: "train", "train[:90%]", "all[90%:]".

The percentages cut a fixed random order (records ranked by a hash of their names), so that a source sorted by class
gives every part every class, parts that share a boundary share no record, and a file added later moves few others.
TFDS reads the same words by itself, and cuts in stored order.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from vfm_jax.core.errors import UserError

ALL = "all"  # the name of everything, as TFDS has it


class Split(NamedTuple):
    """A name, and the part of it from `start` to `stop`, in percent."""

    name: str
    start: float
    stop: float


def parse_split(text: str | None) -> Split:
    """Reads "name" or "name[a%:b%]"; None is "all".

    Raises:
        UserError: written in no such way, or an empty part.
    """
    number = r"(?:(\d+(?:\.\d+)?)%)?"
    found = re.fullmatch(rf"([\w.-]+)(?:\[{number}:{number}\])?", ALL if text is None else str(text))
    start, stop = (float(found[2] or 0), float(found[3] or 100)) if found else (0.0, 0.0)
    if found is None or not 0 <= start < stop <= 100:
        raise UserError(f"split is {text!r}; expected a name, or a part of it such as 'train[:90%]' or 'all[90%:]'.")
    return Split(found[1], start, stop)


def rows_of(split: Split, names: Iterable[str]) -> np.ndarray:
    """The records of `names` that belong to the part, ascending (int64).

    Raises:
        UserError: the part is so small that no record falls into it.
    """
    # blake2b: any hash would do that is the same on every machine and in every version of Python.
    ranks = [hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest() for name in names]
    order = sorted(range(len(ranks)), key=ranks.__getitem__)
    first, last = (round(len(order) * percent / 100) for percent in (split.start, split.stop))
    if first == last:
        part = f"{split.name}[{split.start:g}%:{split.stop:g}%]"
        raise UserError(f"split {part!r} of {len(order)} images holds none. Choose a larger part.")
    return np.array(sorted(order[first:last]), np.int64)
