"""Our own folder of weights: leaves under our names in safetensors, and the networks in config.json."""

from collections.abc import Mapping
from typing import Any

from vfm_jax.weights.family import Config, Family
from vfm_jax.weights.rules import Bundle, Rule, Shapes

FORMAT = "vfm_jax"


def _matches(config: Config | None, shapes: Shapes) -> bool:
    del shapes
    return config is not None and config.get("model_type") == FORMAT


def _read(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    del given
    config = config or {}
    networks = {role: _tuples(spec) for role, spec in config["networks"].items()}
    options = {**config.get("options", {}), "leaves": tuple(shapes)}
    return Bundle(networks, tuple(config["image_size"]), config["channels"], options)


def _tuples(value: Any) -> Any:
    """JSON has lists where a recipe has tuples."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _rules(bundle: Bundle) -> list[Rule]:
    rules = []
    for name in bundle.options["leaves"]:
        collection, _, leaf = name.partition("/")
        rules.append(Rule(leaf, (name,), collection=collection))
    return rules


def _config(bundle: Bundle) -> dict[str, Any]:
    options = {k: v for k, v in bundle.options.items() if k != "leaves"}
    return {
        "model_type": FORMAT,
        "networks": {role: dict(spec) for role, spec in bundle.networks.items()},
        "image_size": list(bundle.image_size),
        "channels": bundle.channels,
        "options": options,
    }


FAMILIES = (Family(FORMAT, _matches, _read, _rules, config=_config),)
