"""Trees of named leaves: a leaf's name is its path, joined by slashes ("encoder/block_0/mlp/up/kernel").

Masks and groups are chosen by regular expressions over these names, and every leaf must be matched, so that a
renamed parameter is an error and never a silent change of recipe.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vfm_jax.core.errors import UserError


def path_name(path: Sequence[Any]) -> str:
    """The slash-joined name of a key path as `jax.tree_util` gives it."""
    return "/".join(str(getattr(e, "key", getattr(e, "name", getattr(e, "idx", e)))) for e in path)


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaf by name, in tree order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Maps `function(name, leaf, *leaves_of_rest)` over the leaves."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(path_name(path), *leaves), tree, *rest)


def first_match(name: str, patterns: Iterable[str]) -> int | None:
    """Index of the first pattern that is found in `name` (`re.search`), or None."""
    return next((i for i, pattern in enumerate(patterns) if re.search(pattern, name)), None)


def label_by_rules(tree: Any, patterns: Sequence[str], where: str) -> Any:
    """A tree of ints: for each leaf the index of the first pattern that matches its name.

    Raises:
        UserError: some leaf is matched by no pattern; the message names up to five.
    """
    lost = [name for name in named_leaves(tree) if first_match(name, patterns) is None]
    if lost:
        shown = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        raise UserError(f'{where}: no pattern matches {shown}. End the list with a rule for the rest: ".*".')
    return map_named(lambda name, _: first_match(name, patterns), tree)


def check_used(patterns: Sequence[str], names: Iterable[str], where: str) -> None:
    """Refuses a pattern that matches no name: it would be silently without effect.

    Raises:
        UserError: naming the pattern and some of the names there are.
    """
    names = list(names)
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            shown = ", ".join(names[:5])
            raise UserError(f"{where}: the pattern {pattern!r} matches no leaf. Leaves are named like {shown}.")


def count_parameters(tree: Any) -> int:
    """Number of scalars in the tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def split_flowing(tree: Any) -> tuple[list[jax.Array], list[jax.Array], Callable[..., Any]]:
    """Leaves a gradient can flow through, the others (indices, masks), and how to put them together again."""
    leaves, structure = jax.tree.flatten(tree)
    flows = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def rebuild(flowing: list[jax.Array], rest: list[jax.Array]) -> Any:
        sources = iter(flowing), iter(rest)
        return jax.tree.unflatten(structure, [next(sources[0 if flow else 1]) for flow in flows])

    return (
        [leaf for leaf, flow in zip(leaves, flows, strict=True) if flow],
        [leaf for leaf, flow in zip(leaves, flows, strict=True) if not flow],
        rebuild,
    )


def flatten_dict(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one dict with dotted keys; other values are kept as they are."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten_dict(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
