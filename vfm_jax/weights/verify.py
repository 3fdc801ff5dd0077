"""Two sets of weights compared layer by layer on real images."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.weights.load import Pretrained, load_pretrained, make_model, read_weights


class Layer(NamedTuple):
    """How far two networks are apart in one layer.

    Attributes:
        name: "level 0" (the first block or stage), ..., "tokens", "pooled", "logits".
        difference: largest absolute difference.
        scale: largest absolute value in the first network.
        agrees: the difference is within the tolerance, everywhere.
    """

    name: str
    difference: float
    scale: float
    agrees: bool


def verify(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    images: Sequence[Any],
    *,
    rtol: float = 1e-3,
    atol: float = 1e-4,
    **given: Any,
) -> list[Layer]:
    """What every layer of two networks makes of the same images, compared.

    Args:
        first: weights; its preprocessing is used for both.
        second: weights of the same architecture.
        images: files, or what `Preprocess` takes.
        rtol: tolerance relative to the value in the first.
        atol: absolute tolerance.
        **given: for `load_pretrained`, of both.

    Raises:
        UserError: the two have different layers, or outputs of different shapes.
    """
    loaded = [_with_levels(path, given) for path in (first, second)]
    pixels = loaded[0].preprocessing(images)
    try:
        outputs = [_outputs(model, variables, pixels) for model, variables, *_ in loaded]
    except ValueError as error:
        size = " x ".join(map(str, pixels.shape[1:3]))
        raise UserError(
            f"{first} takes images of {size} pixels, and {second} does not take these. {error}"
        ) from error
    if list(outputs[0]) != list(outputs[1]):
        raise UserError(f"{first} gives {_listed(outputs[0])}; {second} gives {_listed(outputs[1])}: other layers.")
    rows = []
    for name, value in outputs[0].items():
        other = outputs[1][name]
        if value.shape != other.shape:
            raise UserError(f"{name} is {value.shape} in {first} and {other.shape} in {second}.")
        agrees = bool(np.isclose(other, value, rtol=rtol, atol=atol).all())
        rows.append(Layer(name, float(np.abs(value - other).max()), float(np.abs(value).max()), agrees))
    return rows


def _listed(outputs: dict[str, np.ndarray]) -> str:
    return ", ".join(outputs)


def _with_levels(path: str | os.PathLike[str], given: dict[str, Any]) -> Pretrained:
    weights = read_weights(path, **{k: v for k, v in given.items() if k in ("family", "heads")})
    weights.file.close()
    encoder = encoder_of(make_model(weights.bundle.networks))
    return load_pretrained(path, **given, levels=tuple(range(encoder.num_levels)))


def encoder_of(model: nn.Module) -> Any:
    """The image encoder of an assembly, or the image tower of a two-tower model."""
    return model.encoder if hasattr(model, "encoder") else model.image


def _outputs(model: nn.Module, variables: dict[str, Any], pixels: np.ndarray) -> dict[str, np.ndarray]:
    names: list[str] = []  # in the order of computation, which a jitted dict would lose

    def run(variables: Any, pixels: jax.Array) -> list[jax.Array]:
        features: Any = model.apply(variables, pixels, method="encode_image")
        named = {f"level {i}": level for i, level in enumerate(features.levels)}
        named |= {"tokens": features.tokens, "pooled": features.pooled}
        if {"head", "token_head"} & variables["params"].keys():
            named["logits"] = model.apply(variables, pixels, method="logits")
        names.extend(named)
        return list(named.values())

    made = jax.jit(run)(variables, pixels)
    return {name: np.asarray(value) for name, value in zip(names, made, strict=True)}
