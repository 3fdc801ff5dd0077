"""State dicts of nobody's family, by a table of the user's: foreign names to ours."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import nearest
from vfm_jax.weights.rules import Rule, Shapes

Table = Sequence[tuple[str, str]]  # (regular expression over their names, replacement in re.sub's words)
Targets = Mapping[tuple[str, str], tuple[int, ...]]  # (collection, leaf) -> shape

# What PyTorch calls the parts of a layer, and what they are here, by the leaves that the layer has.
_PARTS = {
    "weight": (("params", "kernel"), ("params", "scale"), ("params", "gamma")),
    "bias": (("params", "bias"),),
    "running_mean": (("batch_stats", "mean"),),
    "running_var": (("batch_stats", "var"),),
}


def renamed(names: Iterable[str], table: Table) -> dict[str, str]:
    """The names that the table changes, with what they become; every pair is applied in turn.

    Raises:
        UserError: a pattern that fits no tensor or is no regular expression.
    """
    names, changed = list(names), {}
    used = [False] * len(table)
    for name in names:
        new = name
        for i, (pattern, replacement) in enumerate(table):
            try:
                new, count = re.subn(pattern, replacement, new)
            except re.error as error:
                raise UserError(f"rename: {pattern!r} -> {replacement!r} cannot be used: {error}.") from error
            used[i] = used[i] or count > 0
        if new != name:
            changed[name] = new
    for (pattern, _), hit in zip(table, used, strict=True):
        if not hit:
            some = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
            raise UserError(f"rename: the pattern {pattern!r} fits no tensor of the file. It has {some}.")
    return changed


def rename_rules(shapes: Shapes, names: Mapping[str, str], targets: Targets) -> list[Rule]:
    """Rules for tensors of the file by their new names; each must become a leaf of the networks.

    A new name is a leaf ("encoder/class_token"), or a layer with PyTorch's part ("encoder/norm.weight"), whose layout
    is turned into ours: matrices and convolutions are transposed, heads split, the first rows of a position table
    given to the prefix tokens.

    Args:
        shapes: of the file.
        names: of the file -> new, from `renamed`.
        targets: every leaf of the networks.

    Raises:
        UserError: a name that is no leaf, two tensors for one leaf, or sizes that do not agree.
    """
    rules: dict[tuple[str, str], Rule] = {}
    for name, new in names.items():
        for rule in _rules_for(name, new, shapes[name], targets):
            key = (rule.collection, rule.leaf)
            if key in rules:
                raise UserError(f"rename: {rules[key].tensors[0]!r} and {name!r} both become {rule.leaf!r}.")
            rules[key] = rule
    return list(rules.values())


def _rules_for(name: str, new: str, shape: tuple[int, ...], targets: Targets) -> list[Rule]:
    collection, leaf = _target(name, new, targets)
    wanted = targets[collection, leaf]
    role = leaf.rsplit("/", 1)[0]
    if leaf.endswith("/positions") and len(wanted) == 3:
        return _position_rules(name, leaf, shape, wanted, targets.get(("params", f"{role}/prefix_positions")))
    if math.prod(shape) != math.prod(wanted) and len(shape) != 4:
        raise UserError(f"rename: {name!r} has shape {shape}; {leaf} of the network is {wanted}.")
    return [Rule(leaf, (name,), *_layout(shape, wanted), collection=collection)]


def _target(name: str, new: str, targets: Targets) -> tuple[str, str]:
    if ("params", new) in targets:
        return "params", new
    layer, _, part = new.rpartition(".")
    for collection, ours in _PARTS.get(part, ()):
        if (collection, f"{layer}/{ours}") in targets:
            return collection, f"{layer}/{ours}"
    leaves = [leaf for _, leaf in targets]
    raise UserError(f"rename: {name!r} becomes {new!r}, which is no leaf of the network.{nearest(new, leaves)}")


def _layout(shape: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[str, dict[str, int]]:
    """Pattern and sizes from PyTorch's layout of a tensor to ours."""
    if len(shape) == 4:
        return "o i h w -> h w i o", {}
    if len(shape) == 2 and len(wanted) >= 2:  # (outputs, inputs)
        inputs = 1
        while inputs < len(wanted) and math.prod(wanted[:inputs]) != shape[1]:
            inputs += 1
        ours = [f"a{i}" for i in range(len(wanted))]
        theirs = f"({' '.join(ours[inputs:])}) ({' '.join(ours[:inputs])})"
        return f"{theirs} -> {' '.join(ours)}", dict(zip(ours, wanted, strict=True))
    if shape == wanted:
        return "", {}
    ours = [f"a{i}" for i in range(len(wanted))]
    ones = " ".join("1" for length in shape if length == 1)
    return f"{ones} ({' '.join(ours)}) -> {' '.join(ours)}".strip(), dict(zip(ours, wanted, strict=True))


def _position_rules(
    name: str, leaf: str, shape: tuple[int, ...], wanted: tuple[int, ...], prefix: tuple[int, ...] | None
) -> list[Rule]:
    axes = "1 n d" if len(shape) == 3 else "n d"
    axis, k = len(shape) - 2, prefix[0] if prefix else 0
    rows, columns = wanted[:2]
    if shape[axis] != k + rows * columns:
        raise UserError(
            f"rename: {name!r} holds {shape[axis]} positions; the network has {k} for its first tokens and "
            f"{rows} x {columns} for patches. Set image_size and prefix_positions to those of the file."
        )
    part = (axis, k, None) if k else None
    table = Rule(leaf, (name,), axes.replace("n", "(h w)") + " -> h w d", {"h": rows, "w": columns}, part)
    if not k:
        return [table]
    own = leaf.replace("/positions", "/prefix_positions")
    return [table, Rule(own, (name,), f"{axes} -> n d", part=(axis, 0, k))]
