"""What a pretraining method is: a value of pure functions, as optax made an optimizer one.

    loss = criterion(forward(batch))

`forward` runs the encoders, example by example; `criterion` runs heads, batch statistics and the loss on the
effective batch. The split is what makes gradient accumulation exact for losses that couple examples.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from vfm_jax.core.types import Batch, Measurements, Params

Extra = dict[str, Any]


class Variables(NamedTuple):
    """Everything a method learns or carries.

    Attributes:
        params: trained by gradient; one subtree per network ("encoder", "decoder", ...).
        extra: carried untrained: teacher, centre, queue, batch statistics.
    """

    params: Params
    extra: Extra


class Objective(NamedTuple):
    """A method.

    Attributes:
        init: (key, batch) -> Variables. The batch gives shapes; its values do not matter.
        forward: (params, extra, batch, key, step) -> (outputs, extra). Outputs have the example axis first, in every
            leaf. Randomness is drawn per example, from `key` and the batch's `epoch` and `index`.
        criterion: (params, extra, outputs, step) -> (loss, (extra, measurements)), on the whole effective batch.
        after_update: (params, extra, step) -> extra, once the parameters have moved (EMA teacher, queue).
        predict: what evaluators, pictures and export may ask for: name -> (variables, batch) -> Features or array.
        separable: the loss is a mean over examples, and nothing else couples them.
    """

    init: Callable[[jax.Array, Batch], Variables]
    forward: Callable[[Params, Extra, Batch, jax.Array, jax.Array], tuple[Any, Extra]]
    criterion: Callable[[Params, Extra, Any, jax.Array], tuple[jax.Array, tuple[Extra, Measurements]]]
    after_update: Callable[[Params, Extra, jax.Array], Extra]
    predict: Mapping[str, Callable[[Variables, Batch], Any]]
    separable: bool


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
        statistics = variables.extra.get("encoder", {})
        return apply_network(encoder, variables.params["encoder"], statistics, batch["image"], train=False)[0]

    def attention(variables: Variables, batch: Batch) -> jax.Array:
        collections = {"params": variables.params["encoder"], **variables.extra.get("encoder", {})}
        return encoder.apply(collections, batch["image"], method="attention")

    return {"features": features} | ({"attention": attention} if hasattr(encoder, "attention") else {})
