"""ConvNeXt files of Hugging Face, timm and the authors (v1, v2 and DINOv3's)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from vfm_jax.core.errors import UserError
from vfm_jax.models.convnext import SIZES, ConvNeXt
from vfm_jax.weights.convolutions import (
    conv_rules,
    foreign_of,
    hf_config,
    hf_image_size,
    hf_options,
    hf_prefix,
    refuse,
    timm_arguments,
    timm_config,
    timm_image_size,
    timm_name,
    timm_options,
)
from vfm_jax.weights.family import Config, Family
from vfm_jax.weights.rules import Bundle, Rule, Shapes
from vfm_jax.weights.vit import dense_rules, head_rules, linear_head, norm_rules
from vfm_jax.weights.vit_hf import activation, num_classes_of, their_activation


class Naming(NamedTuple):
    """Foreign names; {i} is the stage, {j} the block."""

    stem: str
    stem_norm: str
    downsample_norm: str
    downsample: str
    block: str  # before the names of a block's parts
    depthwise: str
    norm: str
    up: str
    down: str
    gamma: str
    grn: tuple[str, str]  # scale, bias
    grn_axes: str
    final_norm: str
    head: str


def _hf_naming(prefix: str) -> Naming:
    layers = f"{prefix}encoder.stages.{{i}}."
    return Naming(
        stem=f"{prefix}embeddings.patch_embeddings",
        stem_norm=f"{prefix}embeddings.layernorm",
        downsample_norm=f"{layers}downsampling_layer.0",
        downsample=f"{layers}downsampling_layer.1",
        block=f"{layers}layers.{{j}}.",
        depthwise="dwconv",
        norm="layernorm",
        up="pwconv1",
        down="pwconv2",
        gamma="layer_scale_parameter",
        grn=("grn.weight", "grn.bias"),
        grn_axes="b h w d -> (b h w d)",
        final_norm=f"{prefix}layernorm",
        head="classifier",
    )


_HF_DINOV3 = Naming(
    stem="stages.0.downsample_layers.0",
    stem_norm="stages.0.downsample_layers.1",
    downsample_norm="stages.{i}.downsample_layers.0",
    downsample="stages.{i}.downsample_layers.1",
    block="stages.{i}.layers.{j}.",
    depthwise="depthwise_conv",
    norm="layer_norm",
    up="pointwise_conv1",
    down="pointwise_conv2",
    gamma="gamma",
    grn=("", ""),
    grn_axes="",
    final_norm="layer_norm",
    head="",
)
_TIMM = Naming(
    stem="stem.0",
    stem_norm="stem.1",
    downsample_norm="stages.{i}.downsample.0",
    downsample="stages.{i}.downsample.1",
    block="stages.{i}.blocks.{j}.",
    depthwise="conv_dw",
    norm="norm",
    up="mlp.fc1",
    down="mlp.fc2",
    gamma="gamma",
    grn=("mlp.grn.weight", "mlp.grn.bias"),
    grn_axes="",
    final_norm="head.norm",
    head="head.fc",
)
_ORIGINAL = Naming(
    stem="downsample_layers.0.0",
    stem_norm="downsample_layers.0.1",
    downsample_norm="downsample_layers.{i}.0",
    downsample="downsample_layers.{i}.1",
    block="stages.{i}.{j}.",
    depthwise="dwconv",
    norm="norm",
    up="pwconv1",
    down="pwconv2",
    gamma="gamma",
    grn=("grn.gamma", "grn.beta"),
    grn_axes="b h w d -> (b h w d)",
    final_norm="norm",
    head="head",
)


def _convnext(bundle: Bundle) -> ConvNeXt:
    return ConvNeXt(**{key: value for key, value in bundle.networks["encoder"].items() if key != "name"})


def _encoder(shapes: Shapes, naming: Naming) -> dict[str, Any]:
    """What the shapes tell."""
    depths, widths = [], []
    while (kernel := f"{naming.block.format(i=len(depths), j=0)}{naming.depthwise}.weight") in shapes:
        if shapes[kernel][2:] != (7, 7):
            raise UserError(f"{kernel} is {shapes[kernel][2]} x {shapes[kernel][3]}; a ConvNeXt here has 7 x 7.")
        widths.append(shapes[kernel][0])
        j = 0
        while f"{naming.block.format(i=len(depths), j=j)}{naming.depthwise}.weight" in shapes:
            j += 1
        depths.append(j)
    sizes: dict[str, Any] = {"depths": tuple(depths), "widths": tuple(widths)}
    for variant in "T", "S", "B", "L", "XL", "A", "F", "P", "N", "H":
        if SIZES[variant] == (tuple(depths), tuple(widths)):
            sizes = {"variant": variant}
    stem = shapes.get(f"{naming.stem}.weight")
    if not stem or len(stem) != 4 or stem[0] != widths[0] or f"{naming.stem_norm}.bias" not in shapes:
        raise UserError(
            "This ConvNeXt has not the stem of the paper (patches and a layer norm); it is not known here."
        )
    first = naming.block.format(i=0, j=0)
    return {
        "name": "convnext",
        **sizes,
        "stem_size": stem[2],
        "layer_scale": 1e-6 if first + naming.gamma in shapes else None,
        "grn": first + naming.grn[0] in shapes,
    }


def _bundle(
    encoder: Mapping[str, Any], shapes: Shapes, naming: Naming, image_size: tuple[int, int], options: dict[str, Any]
) -> Bundle:
    networks: dict[str, Any] = {"encoder": encoder}
    classes = num_classes_of(shapes, naming.head)
    if classes is not None:
        networks["head"] = linear_head(classes)
    return Bundle(networks, image_size, shapes[f"{naming.stem}.weight"][1], options)


def _rules(bundle: Bundle, naming: Naming) -> list[Rule]:
    model = _convnext(bundle)
    convolved = bundle.options.get("conv_mlp", False)  # 1x1 convolutions where others have linear layers
    depths, _ = model.sizes
    rules = [
        *conv_rules("encoder/stem", naming.stem, bias=True),
        *norm_rules("encoder/stem_norm", naming.stem_norm),
    ]
    for i, depth in enumerate(depths):
        stage = f"encoder/stage_{i}"
        if i > 0:
            rules += norm_rules(f"{stage}/downsample_norm", naming.downsample_norm.format(i=i))
            rules += conv_rules(f"{stage}/downsample", naming.downsample.format(i=i), bias=True)
        for j in range(depth):
            rules += _block_rules(model, f"{stage}/block_{j}", naming.block.format(i=i, j=j), naming, convolved)
    rules += norm_rules("encoder/norm", naming.final_norm)
    return rules + head_rules(bundle, {"head": naming.head})


def _block_rules(model: ConvNeXt, leaf: str, block: str, naming: Naming, convolved: bool) -> list[Rule]:
    rules = [
        *conv_rules(f"{leaf}/depthwise", block + naming.depthwise, bias=True),
        *norm_rules(f"{leaf}/norm", block + naming.norm),
    ]
    for part, name in (("up", naming.up), ("down", naming.down)):
        kernel, bias = dense_rules(f"{leaf}/{part}", block + name)
        rules += [
            kernel._replace(pattern="o i h w -> (i h w) o", sizes={"h": 1, "w": 1}) if convolved else kernel,
            bias,
        ]
    if model.grn:
        sizes = {"b": 1, "h": 1, "w": 1} if naming.grn_axes else {}
        for part, name in zip(("scale", "bias"), naming.grn, strict=True):
            rules.append(Rule(f"{leaf}/grn/{part}", (block + name,), naming.grn_axes, sizes))
    if model.layer_scale is not None:
        rules.append(Rule(f"{leaf}/scale/gamma", (block + naming.gamma,)))
    return rules


# ---------------------------------------------------------------------------------------------------------------- HF


def _read_hf(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    assert config is not None  # it has the model_type
    del given
    base = f"{config['model_type']}."
    options = hf_options(config, shapes, base)
    naming = _hf_naming(options["prefix"])
    encoder = _encoder(shapes, naming)
    epsilon = config.get("layer_norm_eps", 1e-12)
    encoder |= {"activation": activation(config), "final_norm_epsilon": None if epsilon == 1e-6 else epsilon}
    if encoder["layer_scale"] is not None:
        encoder["layer_scale"] = config.get("layer_scale_init_value", 1e-6)
    return _bundle(encoder, shapes, naming, hf_image_size(config), options)


def _hf_fields(bundle: Bundle) -> dict[str, Any]:
    model = _convnext(bundle)
    depths, widths = model.sizes
    return {
        "depths": list(depths),
        "hidden_sizes": list(widths),
        "hidden_act": their_activation(model.activation),
        "drop_path_rate": model.drop_path,
        "layer_scale_init_value": model.layer_scale or 0.0,
    }


def _hf_config(bundle: Bundle, version: int) -> dict[str, Any]:
    model, program = _convnext(bundle), "transformers' ConvNeXt"
    refuse(model.mean_token, program, "a token of the mean (it is DINOv3's, of the family hf/dinov3_convnext)")
    refuse(model.norm_epsilon != 1e-6, program, f"a norm_epsilon of {model.norm_epsilon}")
    refuse(model.grn != (version == 2), program, "grn in version 1, or version 2 without")
    refuse(model.grn and model.layer_scale is not None, program, "grn and layer_scale at once")
    epsilon = model.norm_epsilon if model.final_norm_epsilon is None else model.final_norm_epsilon
    fields = _hf_fields(bundle) | {
        "num_stages": len(model.sizes[0]),
        "patch_size": model.stem_size,
        "layer_norm_eps": epsilon,
    }
    if version == 2:
        del fields["layer_scale_init_value"]
    return hf_config(bundle, "convnextv2" if version == 2 else "convnext", f"ConvNext{'V2' * (version == 2)}", fields)


def _hf_family(version: int) -> Family:
    kind = "convnextv2" if version == 2 else "convnext"
    return Family(
        f"hf/{kind}",
        lambda config, shapes: config is not None and config.get("model_type") == kind,
        _read_hf,
        lambda bundle: _rules(bundle, _hf_naming(hf_prefix(bundle, f"{kind}."))),
        config=lambda bundle: _hf_config(bundle, version),
    )


def _read_hf_dinov3(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    assert config is not None  # it has the model_type
    del given
    encoder = _encoder(shapes, _HF_DINOV3) | {
        "mean_token": True,
        "layer_scale": config.get("layer_scale_init_value", 1e-6),
        "activation": activation(config),
        "norm_epsilon": config.get("layer_norm_eps", 1e-6),
    }
    return _bundle(encoder, shapes, _HF_DINOV3, hf_image_size(config), {})


def _hf_dinov3_config(bundle: Bundle) -> dict[str, Any]:
    model, program = _convnext(bundle), "transformers' DINOv3 ConvNeXt"
    refuse(not model.mean_token, program, "tokens without the mean's (mean_token=False)")
    refuse(model.grn or model.layer_scale is None, program, "grn, or blocks without layer_scale")
    refuse(model.stem_size != 4, program, f"a stem of {model.stem_size} pixels")
    refuse(model.final_norm_epsilon not in (None, model.norm_epsilon), program, "a final_norm_epsilon of its own")
    refuse("head" in bundle.networks, program, "a classifier")
    return hf_config(
        bundle, "dinov3_convnext", "DINOv3ConvNext", _hf_fields(bundle) | {"layer_norm_eps": model.norm_epsilon}
    )


# -------------------------------------------------------------------------------------------------------------- timm

_TIMM_KNOWN = r"convnext(v2)?_(atto|femto|pico|nano|tiny|small|base|large|xlarge|xxlarge|huge)"


def _matches_timm(config: Config | None, shapes: Shapes) -> bool:
    return foreign_of(config) and "stages.0.blocks.0.conv_dw.weight" in shapes


def _read_timm(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    arguments, name = timm_arguments(config), timm_name(config)
    if "head.pre_logits.fc.weight" in shapes or "head.norm.bias" not in shapes:
        raise UserError("This ConvNeXt has a head of its own (a hidden layer, or a norm of the map), not known here.")
    encoder = _encoder(shapes, _TIMM)
    if arguments.get("output_stride", 32) != 32 or encoder["stem_size"] != 4:
        raise UserError("This ConvNeXt has dilated stages (output_stride, or a stem of 8 pixels), not known here.")
    small = name == "convnext_xxlarge" or name.startswith("test_convnext")
    encoder["norm_epsilon"] = arguments.get("norm_eps") or (1e-5 if small else 1e-6)
    encoder["activation"] = arguments.get("act_layer") or (
        "gelu_tanh" if name.startswith("test_convnext") else "gelu"
    )
    if encoder["layer_scale"] is not None:
        encoder["layer_scale"] = arguments.get("ls_init_value", 1e-6)
    options = timm_options(config, _TIMM_KNOWN)
    if len(shapes["stages.0.blocks.0.mlp.fc1.weight"]) == 4:
        options["conv_mlp"] = True
    return _bundle(encoder, shapes, _TIMM, timm_image_size(config, given), options)


def _timm_config(bundle: Bundle) -> dict[str, Any]:
    model = _convnext(bundle)
    depths, widths = model.sizes
    refuse(len(depths) != 4, "timm's ConvNeXt", f"{len(depths)} stages")
    refuse(
        model.stem_size != 4, "timm's ConvNeXt", f"a stem of {model.stem_size} pixels in an otherwise equal network"
    )
    refuse(model.mean_token, "timm's ConvNeXt", "a token of the mean (mean_token)")
    refuse(model.final_norm_epsilon not in (None, model.norm_epsilon), "timm's ConvNeXt", "a final_norm_epsilon")
    arguments = {
        "depths": list(depths),
        "dims": list(widths),
        "patch_size": model.stem_size,
        "ls_init_value": model.layer_scale,
        "use_grn": model.grn,
        "conv_mlp": bundle.options.get("conv_mlp", False),
        "act_layer": model.activation,
        "norm_eps": model.norm_epsilon,
    }
    # timm drops arguments that are None: what is None must be so in the architecture named
    base = "convnextv2_tiny" if model.layer_scale is None else "convnext_tiny"
    return timm_config(bundle, base, widths[-1], arguments)


# ----------------------------------------------------------------------------------------------------------- authors


def _matches_original(config: Config | None, shapes: Shapes) -> bool:
    return foreign_of(config) and {"downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"} <= set(shapes)


def _read_original(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    encoder = _encoder(shapes, _ORIGINAL)
    last = len(_depths_of(encoder)) - 1
    repeated = f"norms.{last}.weight" in shapes  # DINOv3's modules list their final norm twice
    encoder["mean_token"] = bool(given.get("mean_token", repeated))
    options = {"repeated_norm": f"norms.{last}"} if repeated else {}
    return _bundle(encoder, shapes, _ORIGINAL, timm_image_size(config, given), options)


def _depths_of(encoder: Mapping[str, Any]) -> tuple[int, ...]:
    return ConvNeXt(**{key: value for key, value in encoder.items() if key != "name"}).sizes[0]


def _original_rules(bundle: Bundle) -> list[Rule]:
    rules = _rules(bundle, _ORIGINAL)
    repeated = bundle.options.get("repeated_norm")
    return rules + (norm_rules("encoder/norm", repeated) if repeated else [])


FAMILIES = (
    _hf_family(1),
    _hf_family(2),
    Family(
        "hf/dinov3_convnext",
        lambda config, shapes: config is not None and config.get("model_type") == "dinov3_convnext",
        _read_hf_dinov3,
        lambda bundle: _rules(bundle, _HF_DINOV3),
        config=_hf_dinov3_config,
    ),
    Family("timm/convnext", _matches_timm, _read_timm, lambda bundle: _rules(bundle, _TIMM), config=_timm_config),
    Family("original/convnext", _matches_original, _read_original, _original_rules),
)
