"""ResNet files of Hugging Face, timm and torchvision (whose names timm's are)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from vfm_jax.core.errors import UserError
from vfm_jax.models.resnet import EXPANSION, SIZES, ResNet
from vfm_jax.weights.convolutions import (
    batch_norm_rules,
    conv_rules,
    counter_options,
    counters,
    foreign_of,
    hf_config,
    hf_image_size,
    hf_options,
    hf_prefix,
    refuse,
    timm_arguments,
    timm_config,
    timm_image_size,
    timm_options,
)
from vfm_jax.weights.family import Config, Family
from vfm_jax.weights.rules import Bundle, Rule, Shapes
from vfm_jax.weights.vit import head_rules, linear_head
from vfm_jax.weights.vit_hf import activation, num_classes_of, their_activation


class Naming(NamedTuple):
    """Foreign names; {i} is the stage, {j} the block, {k} the convolution, all from 0 on."""

    stem: tuple[str, str]  # convolution, norm
    block: str  # before the names of a block's parts
    layer: tuple[str, str]
    shortcut: tuple[str, str]
    head: str
    first: int  # number of the first stage and of the first convolution

    def part(self, kind: int, i: int, j: int, k: int | None = None) -> str:
        """Convolution (kind 0) or norm (kind 1) of a block; k None for the shortcut."""
        name = self.shortcut[kind] if k is None else self.layer[kind].format(k=k + self.first)
        return self.block.format(i=i + self.first, j=j) + name


def _hf_naming(prefix: str) -> Naming:
    stem = f"{prefix}embedder.embedder"
    return Naming(
        stem=(f"{stem}.convolution", f"{stem}.normalization"),
        block=f"{prefix}encoder.stages.{{i}}.layers.{{j}}.",
        layer=("layer.{k}.convolution", "layer.{k}.normalization"),
        shortcut=("shortcut.convolution", "shortcut.normalization"),
        head="classifier.1",
        first=0,
    )


_TIMM = Naming(
    stem=("conv1", "bn1"),
    block="layer{i}.{j}.",
    layer=("conv{k}", "bn{k}"),
    shortcut=("downsample.0", "downsample.1"),
    head="fc",
    first=1,
)


def _resnet(bundle: Bundle) -> ResNet:
    return ResNet(**{key: value for key, value in bundle.networks["encoder"].items() if key != "name"})


def _encoder(shapes: Shapes, naming: Naming) -> dict[str, Any]:
    """What the shapes tell.

    Raises:
        UserError: an architecture that shares the names and is another.
    """

    def kernel(i: int, j: int, k: int) -> tuple[int, ...]:
        """Its shape; empty where there is none."""
        return shapes.get(f"{naming.part(0, i, j, k)}.weight", ())

    stem = shapes.get(f"{naming.stem[0]}.weight")
    if not stem or stem[2:] != (7, 7) or f"{naming.stem[1]}.running_mean" not in shapes:
        raise UserError("This ResNet has another stem than one 7 x 7 convolution with batch norm; not known here.")
    depths, widths, layers = [], [], 3 if kernel(0, 0, 2) else 2
    while kernel(len(depths), 0, 0):
        i, j = len(depths), 0
        while kernel(i, j, 0):
            j += 1
        depths.append(j)
        widths.append(kernel(i, 0, layers - 1)[0])
    block = "bottleneck" if layers == 3 else "basic"
    inner = kernel(0, 0, 1)
    strange = [name for name in shapes if ".se." in name or ".downsample.2." in name or ".conv4." in name]
    pooled = [
        name for name, shape in shapes.items() if name.endswith(naming.shortcut[1] + ".weight") and len(shape) == 4
    ]
    if strange or pooled or not inner or inner[1] != kernel(0, 0, 0)[0]:
        raise UserError(
            "This is a relative of ResNet (grouped convolutions, pooled shortcuts or attention over channels), which "
            "is not known here. Known are basic and bottleneck blocks of version 1.5, wide ones included."
        )
    encoder = {"name": "resnet", **_sizes(block, tuple(depths), tuple(widths), stem[0])}
    if layers == 3 and inner[0] * 4 != widths[0]:
        encoder["bottleneck_width"] = inner[0] * 4 / widths[0]
    return encoder


def _sizes(block: str, depths: tuple[int, ...], widths: tuple[int, ...], stem: int) -> dict[str, Any]:
    for variant, row in SIZES.items():
        if row == (block, depths) and ResNet(variant, width=stem).sizes == (block, depths, widths, stem):
            return {"variant": variant} | ({} if stem == 64 else {"width": stem})
    return {"block": block, "depths": depths, "widths": widths, "stem_width": stem}


def _bundle(
    encoder: Mapping[str, Any], shapes: Shapes, naming: Naming, image_size: tuple[int, int], options: dict[str, Any]
) -> Bundle:
    networks: dict[str, Any] = {"encoder": encoder}
    classes = num_classes_of(shapes, naming.head)
    if classes is not None:
        networks["head"] = linear_head(classes)
    channels = shapes[f"{naming.stem[0]}.weight"][1]
    return Bundle(networks, image_size, channels, options | counter_options(shapes))


def _rules(bundle: Bundle, naming: Naming) -> list[Rule]:
    model = _resnet(bundle)
    block, depths, widths, before = model.sizes
    rules = [*conv_rules("encoder/stem", naming.stem[0]), *batch_norm_rules("encoder/stem_norm", naming.stem[1])]
    for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        for j in range(depth):
            leaf = f"encoder/stage_{i}/block_{j}"
            for k in range(3 if block == "bottleneck" else 2):
                rules += conv_rules(f"{leaf}/conv{k + 1}", naming.part(0, i, j, k))
                rules += batch_norm_rules(f"{leaf}/norm{k + 1}", naming.part(1, i, j, k))
            strides = i > 0 or model.downsample_first
            if j == 0 and (strides or width != before):
                rules += conv_rules(f"{leaf}/shortcut", naming.part(0, i, j))
                rules += batch_norm_rules(f"{leaf}/shortcut_norm", naming.part(1, i, j))
        before = width
    return rules + head_rules(bundle, {"head": naming.head})


def _check_export(model: ResNet, program: str) -> None:
    refuse(model.stem != "imagenet", program, f"the stem {model.stem!r}")
    refuse(model.norm_epsilon != 1e-5, program, f"a norm_epsilon of {model.norm_epsilon}")


def _read_hf(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    assert config is not None  # it has the model_type
    del given
    options = hf_options(config, shapes, "resnet.")
    naming = _hf_naming(options["prefix"])
    encoder = _encoder(shapes, naming)
    for theirs, ours in (
        ("downsample_in_first_stage", "downsample_first"),
        ("downsample_in_bottleneck", "stride_first"),
    ):
        if config.get(theirs, False):
            encoder[ours] = True
    act = activation({"hidden_act": "relu", **config})
    if act != "relu":  # theirs is of the stem and the sums alone
        encoder |= {"activation": act, "inner_activation": "relu"}
    return _bundle(encoder, shapes, naming, hf_image_size(config), options)


def _hf_config(bundle: Bundle) -> dict[str, Any]:
    model, program = _resnet(bundle), "transformers' ResNet"
    block, depths, widths, stem = model.sizes
    _check_export(model, program)
    refuse(model.bottleneck_width != 1, program, f"a bottleneck_width of {model.bottleneck_width}")
    inner = model.inner_activation or model.activation
    refuse(inner != "relu", program, f"the activation {inner!r} within blocks")
    fields = {
        "embedding_size": stem,
        "hidden_sizes": list(widths),
        "depths": list(depths),
        "layer_type": block,
        "hidden_act": their_activation(model.activation),
        "downsample_in_first_stage": model.downsample_first,
        "downsample_in_bottleneck": model.stride_first,
    }
    return hf_config(bundle, "resnet", "ResNet", fields)


_TIMM_KNOWN = r"resnet(18|34|26|50|101|152|200)|wide_resnet(50|101)_2"


def _matches_timm(config: Config | None, shapes: Shapes) -> bool:
    return foreign_of(config) and {"layer1.0.conv1.weight", "layer1.0.bn1.weight", "bn1.weight"} <= set(shapes)


def _read_timm(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    if timm_arguments(config).get("output_stride", 32) != 32:
        raise UserError("model_args: output_stride dilates the last stages, which is not known here.")
    encoder = _encoder(shapes, _TIMM)
    act = timm_arguments(config).get("act_layer")
    if act and act != "relu":
        encoder["activation"] = act
    return _bundle(encoder, shapes, _TIMM, timm_image_size(config, given), timm_options(config, _TIMM_KNOWN))


def _timm_config(bundle: Bundle) -> dict[str, Any]:
    model, program = _resnet(bundle), "timm's ResNet"
    block, depths, widths, stem = model.sizes
    _check_export(model, program)
    refuse(stem != 64, program, f"a stem of {stem} channels (64 in all of them)")
    refuse(len(depths) != 4, program, f"{len(depths)} stages")
    refuse(model.downsample_first or model.stride_first, program, "downsample_first or stride_first")
    refuse(model.inner_activation not in (None, model.activation), program, "an inner_activation of its own")
    arguments = {
        "layers": list(depths),
        "channels": [width // EXPANSION[block] for width in widths],
        "act_layer": model.activation,
    }
    if block == "bottleneck":
        arguments["base_width"] = round(64 * model.bottleneck_width)
    return timm_config(bundle, "resnet50" if block == "bottleneck" else "resnet18", widths[-1], arguments)


def _hf_rules(bundle: Bundle) -> list[Rule]:
    return _rules(bundle, _hf_naming(hf_prefix(bundle, "resnet.")))


FAMILIES = (
    Family(
        "hf/resnet",
        lambda config, shapes: config is not None and config.get("model_type") == "resnet",
        _read_hf,
        _hf_rules,
        lambda bundle: counters(bundle, _hf_rules(bundle)),
        _hf_config,
    ),
    Family(
        "timm/resnet",
        _matches_timm,
        _read_timm,
        lambda bundle: _rules(bundle, _TIMM),
        lambda bundle: counters(bundle, _rules(bundle, _TIMM)),
        _timm_config,
    ),
)
