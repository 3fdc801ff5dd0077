"""The views of a batch: for each field a list of operations on the images that the host sent."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vfm_jax.augment import ON_NORMALIZED, VIEW_OPS
from vfm_jax.augment.operation import Operation, Size, as_float
from vfm_jax.core.errors import UserError
from vfm_jax.core.keys import example_keys, stream
from vfm_jax.core.tables import build, check_fields
from vfm_jax.core.types import Batch

Views = Callable[[Key[Array, ""], Batch], dict[str, Any]]
View = Callable[[Key[Array, ""], Float[Array, "h w c"], Size], Float[Array, "..."]]
KEPT = ("label", "index", "epoch", "valid", "text", "texts", "num_texts")  # fields of a batch that are no images


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    """Puts the place in the config before the message of an operation, which does not know it."""
    try:
        yield
    except UserError as error:
        if where in str(error):
            raise
        raise UserError(f"{where}: {error}") from error


def _operations(where: str, ops: Sequence[Mapping[str, Any]]) -> list[tuple[str, Operation]]:
    """The operations, each with its place in the config.

    Raises:
        UserError: one is unknown, has a value out of its range, or stands on the wrong side of normalize.
    """
    if isinstance(ops, str | Mapping) or not isinstance(ops, Sequence):
        raise UserError(
            f'{where}.ops is {ops!r}; expected a tuple of dicts, (dict(name="flip"), ...), in their order.'
        )
    operations: list[tuple[str, Operation]] = []
    for i, op in enumerate(ops):
        place = f"{where}.ops[{i}]"
        with _naming(place):
            operation = build(VIEW_OPS, op, place)
        normalized = any("normalize" in done for done, _ in operations)
        if normalized and op["name"] not in ON_NORMALIZED:
            raise UserError(
                f"{place} comes after normalize, whose result is not in [0, 1]. Move normalize behind it."
            )
        if not normalized and op["name"] in ON_NORMALIZED:
            raise UserError(
                f"{place} writes values of mean zero, and comes before normalize. Move normalize before it."
            )
        operations.append((f"{place} ({op['name']})", operation))
    return operations


def _part(
    where: str, ops: Sequence[Mapping[str, Any]], num_views: int | None = None, same_draws_as: str | None = None
) -> tuple[View, int | None]:
    """All operations on one image in turn, and how many views are drawn by them; None for one without an axis.

    Raises:
        UserError: the list of operations or the number of views cannot be used.
    """
    del same_draws_as  # the field's, not the part's
    if num_views is not None and (isinstance(num_views, bool) or not isinstance(num_views, int) or num_views < 1):
        raise UserError(f"{where}.num_views is {num_views!r}; expected a whole number, at least 1.")
    operations = _operations(where, ops)

    def once(key: Key[Array, ""], image: Float[Array, "h w c"], size: Size) -> Float[Array, "y x c"]:
        for i, (place, operation) in enumerate(operations):
            with _naming(place):
                image, size = operation(jax.random.fold_in(key, i), image, size)
        return image

    return once, num_views


def _view(where: str, spec: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> View:
    """The views of one field: of one list of operations, or of several after one another."""
    if isinstance(spec, Mapping):
        once, count = _part(where, **_checked(where, spec))
        if count is None:
            return lambda key, image, size: once(jax.random.fold_in(key, 0), image, size)
        parts = [(once, count)]
    else:
        parts = []
        for i, fields in enumerate(spec):
            once, count = _part(f"{where}[{i}]", **_checked(f"{where}[{i}]", fields))
            parts.append((once, count or 1))

    def view(key: Key[Array, ""], image: Float[Array, "h w c"], size: Size) -> Float[Array, "v y x c"]:
        drawn, made = 0, []
        for once, count in parts:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, drawn + jnp.arange(count))  # v
            made.append(jax.vmap(once, (0, None, None))(keys, image, size))
            drawn += count
        if len({one.shape[1:] for one in made}) > 1:
            shapes = ", ".join(str(one.shape[1:]) for one in made)
            raise UserError(f"{where}: views of one field have one size; found {shapes}. Make a field of each size.")
        return jnp.concatenate(made) if len(made) > 1 else made[0]

    return view


def _checked(where: str, fields: Any) -> Mapping[str, Any]:
    if not isinstance(fields, Mapping):
        raise UserError(f"{where} is {fields!r}; expected a dict, dict(ops=(...)), or a tuple of such dicts.")
    check_fields(_part, fields, where, given=("where",))
    return fields


def listed(views: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Every dict of operations in a spec of views, in order."""
    return [
        part
        for fields in views.values()
        for part in ([fields] if isinstance(fields, Mapping) else fields)
        if isinstance(part, Mapping)
    ]


def build_views(spec: Mapping[str, Any]) -> Views:
    """The function `(key, batch) -> batch` that turns the host's images into the views a recipe asks for.

    It reads `image` (b h w c, uint8; or uint16, or float32 in [0, 1]), `size` (b 2: height and width of the photo in
    the top-left part of that canvas; absent: the photo fills it) and `index`, `epoch` (b; absent: epoch 0). It gives
    each field of `spec` as float32, b h w c or b v h w c, keeps the other fields, and drops the canvas and its size.
    `jax.eval_shape` of it tells the shapes beforehand.

    An example's random numbers follow from `key`, its epoch, its index, the field, the number of the view and the
    place of the operation in its list, and from nothing else: not from its place in the batch or the devices.

    Args:
        spec: field -> dict(ops=(dict(name=..., ...), ...)), operations of `VIEW_OPS` in their order; with
            num_views=v as many views are drawn and stacked on an axis after the batch. A tuple of such dicts draws
            the views of each after one another on that axis (BYOL's two, which differ). `same_draws_as="global"`
            gives the field the random numbers of another, in which the same operations stand at the same places:
            the same crops at another size.

    Raises:
        UserError: an unknown name or a value out of its range; and at the first trace, images whose number of
            channels an operation cannot use.
    """
    if not spec:
        raise UserError("config.views is empty. Name the field to make: config.views = dict(image=dict(ops=())).")
    views: dict[str, tuple[str, View]] = {}
    for field, fields in spec.items():
        where = f"config.views.{field}"
        if field in KEPT:
            raise UserError(f"{where} would replace the batch's own {field!r}. Call the view image, global or local.")
        draws = fields.get("same_draws_as") if isinstance(fields, Mapping) else None
        if draws is not None and draws not in spec:
            raise UserError(f"{where}.same_draws_as is {draws!r}; the views are {', '.join(spec)}.")
        views[field] = (draws or field, _view(where, fields))

    def apply(key: Key[Array, ""], batch: Batch) -> dict[str, Any]:
        images = as_float(batch["image"])  # once, however many views are cut from it
        epoch = batch.get("epoch", jnp.zeros_like(batch["index"]))
        keys = example_keys(key, epoch, batch["index"])
        kept = {name: value for name, value in batch.items() if name not in ("image", "size")}
        made = {
            field: jax.vmap(lambda key, *image, view=view, draws=draws: view(stream(key, draws), *image))(
                keys, images, batch.get("size")
            )
            for field, (draws, view) in views.items()
        }
        return kept | made

    return apply
