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
KEPT = ("label", "index", "epoch", "valid")  # fields of a batch that are no images


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    """Puts the place in the config before the message of an operation, which does not know it."""
    try:
        yield
    except UserError as error:
        if where in str(error):
            raise
        raise UserError(f"{where}: {error}") from error


def _view(where: str, ops: Sequence[Mapping[str, Any]], num_views: int | None = None) -> View:
    """All operations on one image in turn; `num_views` times with other random numbers, stacked, or once.

    Raises:
        UserError: the list of operations or the number of views cannot be used.
    """
    if isinstance(ops, str | Mapping) or not isinstance(ops, Sequence):
        raise UserError(
            f'{where}.ops is {ops!r}; expected a tuple of dicts, (dict(name="flip"), ...), in their order.'
        )
    if num_views is not None and (isinstance(num_views, bool) or not isinstance(num_views, int) or num_views < 1):
        raise UserError(f"{where}.num_views is {num_views!r}; expected a whole number, at least 1.")
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

    def once(key: Key[Array, ""], image: Float[Array, "h w c"], size: Size) -> Float[Array, "y x c"]:
        for i, (place, operation) in enumerate(operations):
            with _naming(place):
                image, size = operation(jax.random.fold_in(key, i), image, size)
        return image

    def view(key: Key[Array, ""], image: Float[Array, "h w c"], size: Size) -> Float[Array, "..."]:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_views or 1))  # v
        if num_views is None:
            return once(keys[0], image, size)
        return jax.vmap(once, (0, None, None))(keys, image, size)

    return view


def build_views(spec: Mapping[str, Mapping[str, Any]]) -> Views:
    """The function `(key, batch) -> batch` that turns the host's images into the views a recipe asks for.

    It reads `image` (b h w c, uint8; or uint16, or float32 in [0, 1]), `size` (b 2: height and width of the photo in
    the top-left part of that canvas; absent: the photo fills it) and `index`, `epoch` (b; absent: epoch 0). It gives
    each field of `spec` as float32, b h w c or b v h w c, keeps the other fields, and drops the canvas and its size.
    `jax.eval_shape` of it tells the shapes beforehand.

    An example's random numbers follow from `key`, its epoch, its index, the field, the number of the view and the
    place of the operation in its list, and from nothing else: not from its place in the batch or the devices.

    Args:
        spec: field -> dict(ops=(dict(name=..., ...), ...)), operations of `VIEW_OPS` in their order; with
            num_views=v as many views are drawn and stacked on an axis after the batch.

    Raises:
        UserError: an unknown name or a value out of its range; and at the first trace, images whose number of
            channels an operation cannot use.
    """
    if not spec:
        raise UserError("config.views is empty. Name the field to make: config.views = dict(image=dict(ops=())).")
    views: dict[str, View] = {}
    for field, fields in spec.items():
        where = f"config.views.{field}"
        if field in KEPT:
            raise UserError(f"{where} would replace the batch's own {field!r}. Call the view image, global or local.")
        check_fields(_view, fields, where, given=("where",))
        views[field] = _view(where, **fields)

    def apply(key: Key[Array, ""], batch: Batch) -> dict[str, Any]:
        images = as_float(batch["image"])  # once, however many views are cut from it
        epoch = batch.get("epoch", jnp.zeros_like(batch["index"]))
        keys = example_keys(key, epoch, batch["index"])
        kept = {name: value for name, value in batch.items() if name not in ("image", "size")}
        made = {
            field: jax.vmap(lambda key, *image, view=view, field=field: view(stream(key, field), *image))(
                keys, images, batch.get("size")
            )
            for field, view in views.items()
        }
        return kept | made

    return apply
