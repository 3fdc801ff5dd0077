"""Which source reads what lies at a path."""

import os
from typing import Any

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.data.sources.location import existing


def detect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The source that reads what lies at `path`, as a recipe's `data` has it: its name and keywords.

    Raises:
        UserError: nothing there, or nothing that a source reads.
    """
    place = existing(path, "PATH")
    if place.suffix == ".npz":
        with np.load(place, allow_pickle=False) as members:
            parts = {"split": "train"} if "train_images" in members.files else {}
        return {"name": "arrays", "path": os.fspath(path), **parts}
    if place.suffix == ".npy":
        return {"name": "arrays", "path": os.fspath(path)}
    if place.is_dir():
        parts = {"split": "train"} if (place / "train").is_dir() else {}
        return {"name": "folder", "path": os.fspath(path), **parts}
    raise UserError(f"{os.fspath(path)!r} is no folder, .npz or .npy file: say with a recipe's data how it is read.")
