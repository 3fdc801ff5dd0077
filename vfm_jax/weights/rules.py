"""How a leaf of ours is made of other people's tensors, as data: one rule serves both directions.

A rule's pattern is einops', theirs on the left and ours on the right, so turning it round writes their tensors from
our leaf, and nothing is lost on the way: a file read and written again is equal in every bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from einops import rearrange

Shapes = Mapping[str, tuple[int, ...]]


class TensorReader(Protocol):
    """Named tensors that are read one by one."""

    @property
    def shapes(self) -> Shapes:
        """By name, in the order of the file."""
        ...

    def read(self, name: str) -> np.ndarray:
        """The tensor in the dtype of the file; possibly a view of the mapped file, not to be written to."""
        ...


class Rule(NamedTuple):
    """One leaf of ours, and the foreign tensors it is made of.

    Attributes:
        leaf: our name, "role/..." ("encoder/transformer/block_0/attention/qkv/kernel").
        tensors: foreign names. Several are stacked: the first axis of the pattern's left side counts them. None
            stands for one that the foreign file leaves out because it is zero (the bias of the keys).
        pattern: einops, theirs -> ours; "" for the same layout.
        sizes: lengths of axes that the pattern cannot know (heads, the rows of a grid).
        part: (axis, start, stop) of the tensor that this leaf takes; stop None for the rest. The other parts belong
            to other rules.
        collection: of the Flax variables: "params" or "batch_stats".
    """

    leaf: str
    tensors: tuple[str | None, ...]
    pattern: str = ""
    sizes: Mapping[str, int] = {}
    part: tuple[int, int, int | None] | None = None
    collection: str = "params"

    @property
    def names(self) -> list[str]:
        """The foreign tensors that are in the file."""
        return [name for name in self.tensors if name is not None]


class Buffer(NamedTuple):
    """A foreign tensor that holds nothing learned (a counter, an index table): known, not loaded, written as `value`.

    Attributes:
        tensor: its foreign name.
        value: what an export writes.
        checked: an import refuses a file in which it has another value: the model would compute something else.
    """

    tensor: str
    value: np.ndarray
    checked: bool = False


class Bundle(NamedTuple):
    """What a file holds, in our words: enough to build the networks and to write the file again.

    Attributes:
        networks: role -> network as in a recipe: {"encoder": {"name": "vit", ...}, "head": {...}}.
        image_size: height and width in pixels of the images that the position tables are for.
        channels: of those images.
        options: what the foreign config repeats and no network knows (class labels, vocabulary), by its own names.
    """

    networks: Mapping[str, Mapping[str, Any]]
    image_size: tuple[int, int]
    channels: int = 3
    options: Mapping[str, Any] = {}


def read_leaf(rule: Rule, source: TensorReader) -> np.ndarray:
    """The leaf that `rule` makes of the tensors of `source`, in their dtype.

    Raises:
        ValueError: a tensor does not have the axes of the pattern.
    """
    pieces = [None if name is None else _part(source.read(name), rule.part) for name in rule.tensors]
    present = next(piece for piece in pieces if piece is not None)
    filled = [np.zeros_like(present) if piece is None else piece for piece in pieces]
    given = filled if len(filled) > 1 else filled[0]
    if not rule.pattern:
        return present
    try:
        return np.asarray(rearrange(given, rule.pattern, **rule.sizes))
    except Exception as error:
        found = ", ".join(f"{name} {tuple(source.shapes[name])}" for name in rule.names)
        raise ValueError(
            f"{rule.leaf} cannot be made of {found}: expected axes {rule.pattern.split('->')[0].strip()!r}"
            + (f" with {dict(rule.sizes)}" if rule.sizes else "")
        ) from error


def _part(tensor: np.ndarray, part: tuple[int, int, int | None] | None) -> np.ndarray:
    if part is None:
        return tensor
    axis, start, stop = part
    return tensor[(slice(None),) * axis + (slice(start, stop),)]


def foreign_tensors(
    rules: Sequence[Rule], leaves: Mapping[tuple[str, str], np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """Foreign tensors made of our leaves, one at a time, in the order of the rules.

    Args:
        rules: of the family; the parts of a tensor are joined.
        leaves: (collection, leaf name) -> array.
    """
    for name, array in _written(rules, leaves, np.concatenate):
        yield name, np.asarray(array, order="C")


def foreign_shapes(rules: Sequence[Rule], shapes: Mapping[tuple[str, str], Any]) -> dict[str, Any]:
    """Shapes and dtypes (`jax.ShapeDtypeStruct`) of those tensors, without making any."""
    import jax  # here: a hostile file is refused before JAX is imported
    import jax.numpy as jnp

    return jax.eval_shape(lambda leaves: dict(_written(rules, leaves, jnp.concatenate)), dict(shapes))


def _written(rules: Sequence[Rule], leaves: Mapping[tuple[str, str], Any], join: Any) -> Iterator[tuple[str, Any]]:
    last = {name: i for i, rule in enumerate(rules) for name in rule.names}
    waiting: dict[str, list[tuple[tuple[int, int, int | None], Any]]] = {}
    for i, rule in enumerate(rules):
        for name, piece in _pieces(rule, leaves[rule.collection, rule.leaf]):
            if rule.part is None:
                yield name, piece
                continue
            waiting.setdefault(name, []).append((rule.part, piece))
            if last[name] == i:
                parts = sorted(waiting.pop(name), key=lambda item: item[0][1])
                yield name, join([piece for _, piece in parts], axis=parts[0][0][0])


def _pieces(rule: Rule, leaf: Any) -> Iterator[tuple[str, Any]]:
    theirs = leaf
    if rule.pattern:
        left, right = (side.strip() for side in rule.pattern.split("->"))
        theirs = rearrange(leaf, f"{right} -> {left}", **rule.sizes)
    for name, piece in zip(rule.tensors, theirs if len(rule.tensors) > 1 else (theirs,), strict=True):
        if name is not None:
            yield name, piece
