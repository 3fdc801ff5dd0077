"""What the families of convolutional encoders share: rules of their layers, config files of HF and timm."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.weights.family import Config
from vfm_jax.weights.rules import Buffer, Bundle, Rule, Shapes
from vfm_jax.weights.vit_hf import pair

COUNTER = "num_batches_tracked"


def conv_rules(leaf: str, module: str, *, bias: bool = False) -> list[Rule]:
    """A convolution; theirs is (outputs, inputs, rows, columns)."""
    rules = [Rule(f"{leaf}/kernel", (f"{module}.weight",), "o i h w -> h w i o")]
    return [*rules, Rule(f"{leaf}/bias", (f"{module}.bias",))] if bias else rules


def batch_norm_rules(leaf: str, module: str) -> list[Rule]:
    """A batch norm with its running averages."""
    return [
        Rule(f"{leaf}/norm/scale", (f"{module}.weight",)),
        Rule(f"{leaf}/norm/bias", (f"{module}.bias",)),
        Rule(f"{leaf}/norm/mean", (f"{module}.running_mean",), collection="batch_stats"),
        Rule(f"{leaf}/norm/var", (f"{module}.running_var",), collection="batch_stats"),
    ]


def counters(bundle: Bundle, rules: Sequence[Rule]) -> list[Buffer]:
    """PyTorch's count of the batches that each batch norm has seen, which nothing reads."""
    if not bundle.options.get("counters", True):
        return []
    means = [rule.names[0] for rule in rules if rule.leaf.endswith("/norm/mean")]
    return [Buffer(name.removesuffix("running_mean") + COUNTER, np.zeros((), np.int64)) for name in means]


def counter_options(shapes: Shapes) -> dict[str, Any]:
    """For `Bundle.options`: files of PyTorch before 0.4.1 have no counters."""
    return {} if any(name.endswith(COUNTER) for name in shapes) else {"counters": False}


def refuse(condition: bool, program: str, words: str) -> None:
    """Raises UserError where `program` cannot hold what the network is."""
    if condition:
        raise UserError(f"{program} has no word for {words}; this network cannot be exported there.")


def hf_config(bundle: Bundle, model_type: str, architecture: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of `transformers`.

    Args:
        bundle: with a "head" or without.
        model_type: theirs.
        architecture: of the class without what its task adds: "ResNet".
        fields: of this architecture.
    """
    head, options = bundle.networks.get("head"), dict(bundle.options)
    task = "ForImageClassification" if head else "Model"
    labels = {key: options[key] for key in ("id2label", "label2id") if key in options}
    if head and not labels:
        names = {str(i): f"LABEL_{i}" for i in range(head["num_classes"])}
        labels = {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}
    rows, columns = bundle.image_size
    stages = [f"stage{i + 1}" for i in range(len(fields["depths"]))]
    return {
        "architectures": [architecture + task],
        "model_type": model_type,
        "num_channels": bundle.channels,
        "image_size": rows if rows == columns else [rows, columns],
        **fields,
        **labels,
        "stage_names": ["stem", *stages],
        "out_features": stages[-1:],
        "out_indices": [len(stages)],
    }


def hf_options(config: Mapping[str, Any], shapes: Shapes, base: str) -> dict[str, Any]:
    """For `Bundle.options`: labels, and whether the names bear `base` ("resnet.")."""
    labels = {key: config[key] for key in ("id2label", "label2id") if key in config}
    return labels | {"prefix": base if any(name.startswith(base) for name in shapes) else ""}


def hf_prefix(bundle: Bundle, base: str) -> str:
    """As in the file it came from; otherwise with a head the base's name, without one none."""
    return bundle.options.get("prefix", base if "head" in bundle.networks else "")


def hf_image_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width that the file is for; 224 where it does not say."""
    return pair(config.get("image_size", 224))


def timm_arguments(config: Config | None) -> Mapping[str, Any]:
    """`model_args`, which hub files mostly lack."""
    return (config or {}).get("model_args") or {}


def timm_name(config: Config | None) -> str:
    """The architecture without its tag; "" where nothing says it."""
    return str((config or {}).get("architecture", "")).partition(".")[0]


def timm_image_size(config: Config | None, given: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width that the file is for; 224 where it does not say."""
    size = (
        given.get("image_size") or ((config or {}).get("pretrained_cfg") or {}).get("input_size", (3, 224, 224))[1:]
    )
    return pair(size)


def timm_options(config: Config | None, known: str) -> dict[str, Any]:
    """For `Bundle.options`: what the config says beside the sizes, and its architecture if `known` (a pattern)."""
    options = {"pretrained_cfg": dict(config["pretrained_cfg"])} if config and config.get("pretrained_cfg") else {}
    return options | ({"architecture": timm_name(config)} if re.fullmatch(known, timm_name(config)) else {})


def timm_config(bundle: Bundle, architecture: str, num_features: int, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of timm, for `timm.create_model("local-dir:FOLDER")`.

    Args:
        bundle: with a "head" or without.
        architecture: one that timm knows; the bundle's own goes before.
        num_features: width of the pooled vector.
        arguments: of the architecture, that replace what its name says.
    """
    classes = bundle.networks["head"]["num_classes"] if "head" in bundle.networks else 0
    size = {"input_size": [bundle.channels, *bundle.image_size], "num_classes": classes}
    return {
        "architecture": bundle.options.get("architecture", architecture),
        "num_classes": classes,
        "num_features": num_features,
        "global_pool": "avg",
        "model_args": {"num_classes": classes, "in_chans": bundle.channels, **arguments},
        "pretrained_cfg": dict(bundle.options.get("pretrained_cfg", {})) | size,
    }


def foreign_of(config: Config | None) -> bool:
    """Whether a file can be other than of `transformers`."""
    return config is None or "model_type" not in config
