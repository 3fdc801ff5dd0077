"""VGG files of timm and torchvision."""

import itertools
from collections.abc import Mapping
from typing import Any

from vfm_jax.core.errors import UserError
from vfm_jax.models.vgg import DEPTHS, VGG
from vfm_jax.weights.convolutions import (
    batch_norm_rules,
    conv_rules,
    counter_options,
    counters,
    foreign_of,
    refuse,
    timm_arguments,
    timm_config,
    timm_image_size,
    timm_options,
)
from vfm_jax.weights.family import Config, Family
from vfm_jax.weights.rules import Buffer, Bundle, Rule, Shapes
from vfm_jax.weights.vit import dense_rules, head_rules, linear_head
from vfm_jax.weights.vit_hf import num_classes_of

# first hidden layer, second, classifier
_TORCHVISION = ("classifier.0", "classifier.3", "classifier.6")
_TIMM = ("pre_logits.fc1", "pre_logits.fc2", "head.fc")


def _vgg(bundle: Bundle) -> VGG:
    return VGG(**{key: value for key, value in bundle.networks["encoder"].items() if key != "name"})


def _places(depths: tuple[int, ...], batch_norm: bool) -> list[list[int]]:
    """Numbers of the convolutions in `features`, by stage: conv, (norm,) activation, ..., pool."""
    place, stages = 0, []
    for depth in depths:
        step = 3 if batch_norm else 2
        stages.append([place + step * j for j in range(depth)])
        place += step * depth + 1
    return stages


def _depths(convolutions: list[int], step: int) -> tuple[int, ...]:
    """Convolutions of each stage, from their numbers: a pool between two takes one more."""
    depths = [1]
    for before, after in itertools.pairwise(convolutions):
        if after - before == step:
            depths[-1] += 1
        else:
            depths.append(1)
    return tuple(depths)


def _matches(config: Config | None, shapes: Shapes) -> bool:
    return foreign_of(config) and {"features.0.weight", "features.0.bias"} <= set(shapes) and (
        shapes["features.0.weight"][2:] == (3, 3)
    )  # fmt: skip


def _read(config: Config | None, shapes: Shapes, given: Mapping[str, Any], modules: tuple[str, str, str]) -> Bundle:
    kernels = {
        int(name.split(".")[1]): shape
        for name, shape in shapes.items()
        if name.startswith("features.") and len(shape) == 4
    }
    batch_norm = "features.1.running_mean" in shapes
    depths = _depths(sorted(kernels), 3 if batch_norm else 2)
    places = _places(depths, batch_norm)
    if sorted(kernels) != [place for stage in places for place in stage] or any(
        k[2:] != (3, 3) for k in kernels.values()
    ):
        raise UserError("features holds other layers than VGG's (3 x 3 convolutions, one pool behind each stage).")
    widths = tuple(kernels[stage[0]][0] for stage in places)
    if any(kernels[place][0] != width for stage, width in zip(places, widths, strict=True) for place in stage):
        raise UserError("The convolutions of a stage have different widths, which a VGG here cannot have.")
    variant = next((name for name, row in DEPTHS.items() if row == depths), None)
    encoder: dict[str, Any] = {"name": "vgg", "variant": variant} if variant else {"name": "vgg", "depths": depths}
    if variant is None or VGG(variant).sizes[1] != widths:
        encoder["widths"] = widths
    hidden = [num_classes_of(shapes, module) for module in modules[:2]]
    if hidden[0] != hidden[1]:
        raise UserError(f"The two hidden layers are {hidden[0]} and {hidden[1]} wide; a VGG here has equal ones.")
    encoder |= {"batch_norm": batch_norm, "classifier_dim": hidden[0]}
    if modules == _TIMM:
        encoder |= {"classifier": "slide", "activation": timm_arguments(config).get("act_layer", "relu")}
    networks: dict[str, Any] = {"encoder": encoder}
    classes = num_classes_of(shapes, modules[2])
    if classes is not None:
        networks["head"] = linear_head(classes)
    options = timm_options(config, r"vgg(11|13|16|19)(_bn)?") | (counter_options(shapes) if batch_norm else {})
    return Bundle(networks, timm_image_size(config, given), kernels[0][1], options)


def _rules(bundle: Bundle, modules: tuple[str, str, str]) -> list[Rule]:
    model, rules = _vgg(bundle), []
    for i, stage in enumerate(_places(model.sizes[0], model.batch_norm)):
        for j, place in enumerate(stage):
            rules += conv_rules(f"encoder/stage_{i}_conv_{j}", f"features.{place}", bias=True)
            if model.batch_norm:
                rules += batch_norm_rules(f"encoder/stage_{i}_norm_{j}", f"features.{place + 1}")
    convolved = modules == _TIMM
    if model.classifier_dim is not None:
        window = "o i h w -> h w i o" if convolved else "o (i h w) -> h w i o"
        kernel, bias = dense_rules("encoder/hidden_0", modules[0])
        rules += [kernel._replace(pattern=window, sizes={} if convolved else {"h": 7, "w": 7}), bias]
        kernel, bias = dense_rules("encoder/hidden_1", modules[1])
        flat = kernel._replace(pattern="o i h w -> (i h w) o", sizes={"h": 1, "w": 1})
        rules += [flat if convolved else kernel, bias]
    return rules + head_rules(bundle, {"head": modules[2]})


def _buffers(bundle: Bundle, modules: tuple[str, str, str]) -> list[Buffer]:
    return counters(bundle, _rules(bundle, modules)) if _vgg(bundle).batch_norm else []


def _timm_config(bundle: Bundle) -> dict[str, Any]:
    model, program = _vgg(bundle), "timm's VGG"
    depths, widths = model.sizes
    variant = next((name for name, row in DEPTHS.items() if row == depths), None)
    standard = variant is not None and widths == VGG(variant).sizes[1] and model.classifier_dim == 4096
    refuse(not standard, program, "depths and widths other than the paper's")
    refuse(model.classifier != "slide", program, 'classifier="pool" (it slides, which differs beyond 224 pixels)')
    refuse(model.norm_epsilon != 1e-5 or model.activation != "relu", program, "another norm_epsilon or activation")
    return timm_config(bundle, f"vgg{variant}{'_bn' * model.batch_norm}", 4096, {})


def _family(name: str, modules: tuple[str, str, str], config: Any = None) -> Family:
    other = _TORCHVISION if modules == _TIMM else _TIMM
    return Family(
        name,
        lambda config, shapes: (
            _matches(config, shapes) and f"{other[0]}.weight" not in shapes
            and (modules == _TORCHVISION or f"{modules[0]}.weight" in shapes)
        ),
        lambda config, shapes, given: _read(config, shapes, given, modules),
        lambda bundle: _rules(bundle, modules),
        lambda bundle: _buffers(bundle, modules),
        config,
    )  # fmt: skip


FAMILIES = (_family("timm/vgg", _TIMM, _timm_config), _family("torchvision/vgg", _TORCHVISION))
