"""What a pretraining method is: a value of pure functions, as optax made an optimizer one.

    loss = criterion(forward(batch))

`forward` runs the encoders, example by example; `criterion` runs heads, batch statistics and the loss on the
effective batch. The split is what makes gradient accumulation exact for losses that couple examples.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from vfm_jax.core.errors import UserError
from vfm_jax.core.keys import example_keys
from vfm_jax.core.types import Batch, Features, Measurements, Params

Extra = dict[str, Any]


class Variables(NamedTuple):
    """Everything a method learns or carries.

    Attributes:
        params: trained by gradient; one subtree per network ("encoder", "decoder", ...).
        extra: carried untrained. Under a network's name: its batch statistics. "teacher" and "teacher_statistics":
            those of networks that a teacher has in its own form, and is evaluated by; a momentum network that is a
            means alone (BYOL's) is called "target". Anything else (centre, queue) under a name of the method's.
    """

    params: Params
    extra: Extra

    @property
    def result(self) -> "Variables":
        """What the method is evaluated, adapted and exported by: the teacher's networks where it has one."""
        teacher, statistics = self.extra.get("teacher", {}), self.extra.get("teacher_statistics", {})
        return Variables({**self.params, **teacher}, {**self.extra, **statistics})


class Objective(NamedTuple):
    """A method.

    Attributes:
        init: (key, batch) -> Variables. The batch gives shapes; its values do not matter.
        forward: (params, extra, batch, key, step) -> (outputs, extra). Outputs have the example axis first, in every
            leaf. Randomness is drawn per example, from `key` and the batch's `epoch` and `index`.
        criterion: (params, extra, outputs, step) -> (loss, (extra, measurements)), on the whole effective batch.
            A loss of several terms measures each, weighted, as "loss/TERM": they sum to the loss.
        after_update: (params, extra, step) -> extra, once the parameters have moved (EMA teacher, queue).
        predict: what evaluators, pictures and export may ask for: name -> (variables, batch) -> Features or array.
        separable: the loss is a mean over examples, and nothing else couples them.
        embedding: outputs -> representations of the views of each example (b v d), for what is watched in training.
        after_load: (params, extra) -> extra, once parameters have come from a file or a stage before: a teacher is a
            copy of its student then, as after `init`. Of a stage before these are the parameters that it is evaluated
            by, its teacher's where it has one.
        constrain: params -> params, after every update, for those that must stay in a set (a temperature in a range).
        draw: (batch, key, step) -> batch, with what is drawn for the effective batch as a whole, before it is split
            into micro-batches (masks that its images share out among themselves). `forward` reads it there.
    """

    init: Callable[[jax.Array, Batch], Variables]
    forward: Callable[[Params, Extra, Batch, jax.Array, jax.Array], tuple[Any, Extra]]
    criterion: Callable[[Params, Extra, Any, jax.Array], tuple[jax.Array, tuple[Extra, Measurements]]]
    after_update: Callable[[Params, Extra, jax.Array], Extra]
    predict: Mapping[str, Callable[[Variables, Batch], Any]]
    separable: bool
    embedding: Callable[[Any], jax.Array]
    after_load: Callable[[Params, Extra], Extra] = lambda params, extra: extra
    constrain: Callable[[Params], Params] = lambda params: params
    draw: Callable[[Batch, jax.Array, jax.Array], Batch] = lambda batch, key, step: batch


def carry_nothing(params: Params, extra: Extra, step: jax.Array) -> Extra:
    """An `after_update` for methods that carry nothing."""
    del params, step
    return extra


def init_network(network: Any, key: jax.Array, *args: Any, **kwargs: Any) -> tuple[Any, Params, dict[str, Any]]:
    """Output, parameters and the other collections (batch statistics) of a fresh Linen network."""
    output, variables = network.init_with_output(key, *args, **kwargs)
    variables = dict(variables)
    return output, variables.pop("params", {}), variables


def apply_network(
    network: Any, params: Params, statistics: dict[str, Any], *args: Any, train: bool, **kwargs: Any
) -> tuple[Any, dict[str, Any]]:
    """Output of a Linen network, and its batch statistics: moved on in training, as they were otherwise."""
    variables = {"params": params, **statistics}
    if not train or not statistics:
        return network.apply(variables, *args, train=train, **kwargs), statistics
    output, moved = network.apply(variables, *args, train=True, mutable=list(statistics), **kwargs)
    return output, dict(moved)


def encoder_predictions(encoder: Any) -> dict[str, Callable[[Variables, Batch], Any]]:
    """What every method with an encoder offers: its features, and where they look."""

    def features(variables: Variables, batch: Batch) -> Any:
        params, extra = variables.result
        return apply_network(encoder, params["encoder"], extra.get("encoder", {}), batch["image"], train=False)[0]

    def attention(variables: Variables, batch: Batch) -> jax.Array:
        params, extra = variables.result
        collections = {"params": params["encoder"], **extra.get("encoder", {})}
        return encoder.apply(collections, batch["image"], method="attention")

    return {"features": features} | ({"attention": attention} if hasattr(encoder, "attention") else {})


def pictures(image: jax.Array, prediction: jax.Array, hidden: jax.Array) -> dict[str, jax.Array]:
    """What `predict["reconstruction"]` gives (b h w c): the images, those with what was hidden painted in, and where.

    Images are as normalised; `hidden` is boolean, and comes back as 1.0 where a pixel was hidden.
    """
    painted = jnp.where(hidden, prediction, image)
    return {"original": image, "reconstructed": painted, "hidden": hidden.astype(jnp.float32)}


def view_keys(batch: Batch, key: jax.Array, num_views: int) -> jax.Array:
    """One key per view (b · v, views of an example side by side), for drop path and the like."""
    keys = example_keys(key, batch["epoch"], batch["index"])
    each = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(keys, jnp.arange(num_views))
    return each.reshape(-1)


def encode_views(
    encoder: Any,
    params: Any,
    statistics: dict[str, Any],
    views: Any,
    keys: jax.Array | None,
    *,
    together: bool = True,
    **how: Any,
) -> tuple[Features, dict[str, Any]]:
    """Features of views (b v h w c) in training, and the batch statistics after it.

    Leaves of the result are (b · v) ..., views of an example side by side.

    Args:
        encoder: the network.
        params: of it.
        statistics: its other collections.
        views: of each example.
        keys: one per view (b · v), as `view_keys` makes them.
        together: batch norm sees all views as one batch. Otherwise one view after another goes through, each
            standardised by itself; without batch norm that would be the same, and is one pass.
        how: keywords of the encoder.
    """
    num_views = views.shape[1]
    if together or num_views == 1 or not statistics:
        images = rearrange(views, "b v h w c -> (b v) h w c")
        return apply_network(encoder, params, statistics, images, keys=keys, train=True, **how)
    seen = []
    for view in range(num_views):
        own = None if keys is None else keys[view::num_views]
        one, statistics = apply_network(encoder, params, statistics, views[:, view], keys=own, train=True, **how)
        seen.append(one)
    return jax.tree.map(lambda *leaves: rearrange(list(leaves), "v b ... -> (b v) ..."), *seen), statistics


def project_views(
    head: Any, params: Any, statistics: dict[str, Any], views: jax.Array, *, together: bool = True
) -> tuple[jax.Array, dict[str, Any]]:
    """What a head makes of the views (b v d) in training, (b v m), and its batch statistics after it.

    Args:
        head: the network; may hold batch norm.
        params: of it.
        statistics: its other collections.
        views: of each example.
        together: as for `encode_views`.
    """
    if together:
        # Example by example, as they lie on the devices: view by view each would have to gather all of them.
        flat = rearrange(views, "b v d -> (b v) d")
        made, statistics = apply_network(head, params, statistics, flat, train=True)
        return rearrange(made, "(b v) m -> b v m", v=views.shape[1]), statistics
    made = []
    for view in range(views.shape[1]):
        one, statistics = apply_network(head, params, statistics, views[:, view], train=True)
        made.append(one)
    return jnp.stack(made, axis=1), statistics


def views_of(batch: Batch, field: str, num_views: int | None, method: str) -> Any:
    """The views (b v h w c) of a field of the batch.

    Raises:
        UserError: there is no such field, or it has another number of views.
    """
    images = batch.get(field)
    if images is None:
        raise UserError(f"{method} reads the views {field!r}; the recipe makes none: set config.views.{field}.")
    if images.ndim != 5 or (num_views is not None and images.shape[1] != num_views):
        count = {None: "several views", 2: "two views"}.get(num_views, f"{num_views} views")
        raise UserError(
            f"{method} takes {count} of each image; config.views.{field} gives images of shape "
            f"{tuple(images.shape)}. Set num_views={num_views or 2} in config.views.{field}."
        )
    return images
