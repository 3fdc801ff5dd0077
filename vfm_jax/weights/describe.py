"""What can be said of weights without computing with them: the public ones by name, and a file's contents."""

import math
import os
from collections.abc import Mapping
from typing import Any

from vfm_jax.weights.account import Account
from vfm_jax.weights.hub import CHECKPOINTS
from vfm_jax.weights.load import Weights, abstract_leaves, make_model, read_weights
from vfm_jax.weights.origin import published_name
from vfm_jax.weights.save import export, unread


def checkpoint_table() -> list[dict[str, Any]]:
    """A row for every public checkpoint that has a name here."""
    rows = []
    for name, found in CHECKPOINTS.items():
        pixels = found.preprocessing
        rows.append(
            {
                "name": name,
                "family": found.family,
                "size": " x ".join(map(str, pixels.size)) if pixels else "",
                "figures": ", ".join(f"{what} {value:g}" for what, value in found.figures.items()),
                "licence": found.licence + (", gated" if found.gated else ""),
                "from": found.repository or found.url,
            }
        )
    return rows


def describe(path: str | os.PathLike[str], *, names: bool = False, **given: Any) -> tuple[list[dict[str, Any]], str]:
    """A row for every network of a file, with its sizes, and how the file would be read, leaf by leaf.

    Only headers are read.

    Args:
        path: as for `read_weights`.
        names: every leaf with the tensors it is made of, in place of counts.
        **given: for `read_weights`.

    Raises:
        UserError: see `read_weights`.
    """
    weights = read_weights(path, **given)
    with weights.file:
        account, leaves = planned(weights)
        rows = [
            {
                "network": role,
                "is": _in_words(spec),
                "parameters": _count(role, leaves),
                "leaves": _leaves(role, leaves),
            }
            for role, spec in weights.bundle.networks.items()
        ]
        lines = [str(account), f"  {_file_line(weights)}", f"  expects {_pixels_line(weights)}"]
        if names:
            lines += [f"  {leaf} <- {', '.join(rule.names)}" for (_, leaf), rule in weights.rules.items()]
            lines += [f"  unused {name} {weights.file.shapes[name]}" for name in account.unused]
    return rows, "\n".join(lines)


def planned(weights: Weights) -> tuple[Account, Mapping[tuple[str, str], Any]]:
    """The account that loading would give, and the shapes of the network's leaves."""
    leaves = abstract_leaves(make_model(weights.bundle.networks), weights.bundle)
    account = weights.account()
    account.loaded = [name for leaf in leaves if leaf in weights.rules for name in leaf[1:]]
    account.fresh = sorted(name for leaf in leaves if leaf not in weights.rules for name in leaf[1:])
    account.unused += [name for leaf, rule in weights.rules.items() if leaf not in leaves for name in rule.names]
    return account, leaves


def import_weights(path: str | os.PathLike[str], out: str | os.PathLike[str], **given: Any) -> Account:
    """Reads a file of any known family and writes a folder of ours, leaf by leaf in its dtype; gives the account.

    Raises:
        UserError: see `read_weights`, `save.unread` and `save.export`.
    """
    weights = read_weights(path, **given)
    with weights.file:
        account, _ = planned(weights)
        origin = {"source": published_name(path), "family": weights.family.name, "licence": weights.licence}
        bundle = weights.bundle._replace(options={**_plain(weights.bundle.options), **origin})
        export(out, "vfm", bundle, unread(weights), weights.preprocessing)
    return account


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that JSON can hold and a later export may want (class labels)."""
    return {k: v for k, v in options.items() if isinstance(v, str | int | float | dict | tuple | list | type(None))}


def _count(role: str, leaves: Mapping[tuple[str, str], Any]) -> str:
    total = sum(math.prod(leaf.shape) for (kind, name), leaf in leaves.items() if _of(role, kind, name))
    return f"{total:,}"


def _leaves(role: str, leaves: Mapping[tuple[str, str], Any]) -> int:
    return sum(_of(role, kind, name) for kind, name in leaves)


def _of(role: str, kind: str, name: str) -> bool:
    return kind == "params" and name.split("/")[0] == role


def _in_words(spec: Mapping[str, Any]) -> str:
    parts = [spec["name"], *(str(spec[field]) for field in ("variant",) if field in spec)]
    for field in ("width", "depth", "depths", "heads", "num_classes"):
        if spec.get(field) is not None:
            parts.append(f"{field} {spec[field]}")
    return ", ".join(parts)


def _file_line(weights: Weights) -> str:
    kinds: dict[str, int] = {}
    for dtype in weights.file.dtypes.values():
        kinds[str(dtype)] = kinds.get(str(dtype), 0) + 1
    tensors = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"{weights.file.format}, {weights.file.size_bytes / 1e6:,.1f} MB, tensors: {tensors}"


def _pixels_line(weights: Weights) -> str:
    size, mean, std, interpolation, ratio = weights.preprocessing
    numbers = ", ".join(
        f"{word} {tuple(round(v, 4) for v in values)}" for word, values in (("mean", mean), ("std", std))
    )
    return f"{size[0]} x {size[1]} pixels, {interpolation}, crop {ratio:g}, {numbers}"
