"""Where weights are from, in words that may be published: a name without places on this machine, and the licence."""

import os
import pathlib
import re

from vfm_jax.weights.files import WeightsFile
from vfm_jax.weights.hub import CHECKPOINTS

_CARD_BYTES = 65536  # the head of a README.md that is looked at
_LICENCE = re.compile(r"^licen[sc]e:\s*['\"]?([\w .+-]+?)['\"]?\s*$", re.MULTILINE)


def licence_of(source: str, file: WeightsFile) -> str:
    """The licence: that of a checkpoint with a name here, or what the folder says of itself; "" for neither.

    A folder speaks by "license" in its config.json (timm's in its pretrained_cfg, ours among the options), or at the
    head of its README.md.
    """
    if source in CHECKPOINTS:
        return CHECKPOINTS[source].licence
    config = file.config or {}
    inside = (config.get("options") or {}).get("licence") or (config.get("pretrained_cfg") or {}).get("license")
    said = config.get("license") or inside
    return said if isinstance(said, str) else _of_card(file.path)


def _of_card(path: pathlib.Path) -> str:
    card = (path if path.is_dir() else path.parent) / "README.md"
    try:
        with open(card, "rb") as file:
            text = file.read(_CARD_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    head = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    found = _LICENCE.search(head[1]) if head else None
    return found[1] if found else ""


def published_name(source: str | os.PathLike[str]) -> str:
    """What the weights are called elsewhere: a name of the table or of the hub as it is, of a path its last part."""
    name = os.fspath(source)
    return name if name in CHECKPOINTS or name.startswith("hf:") else pathlib.PurePath(name).name
