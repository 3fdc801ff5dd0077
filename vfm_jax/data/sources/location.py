"""Paths that a user typed."""

import os
import pathlib

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import nearest


def existing(path: str | os.PathLike[str], where: str) -> pathlib.Path:
    """`path` with `~` expanded.

    Raises:
        UserError: an empty path; or nothing is there, and the message shows how far the path exists, and the nearest
            name there.
    """
    if not os.fspath(path):
        raise UserError(f"{where} is empty: say where the data are, with --{where}=PATH.")
    wanted = pathlib.Path(path).expanduser()
    if wanted.exists():
        return wanted
    missing = wanted.absolute()
    while not missing.parent.exists():
        missing = missing.parent
    parent = missing.parent
    try:
        hint = nearest(missing.name, os.listdir(parent))
    except OSError:
        hint = ""
    raise UserError(
        f"{where} is {os.fspath(path)!r}, but {str(parent)!r} holds nothing named {missing.name!r}.{hint}"
    )
