"""BiT files of Hugging Face, timm, big_vision and the authors (.npz)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from vfm_jax.core.errors import UserError
from vfm_jax.models.bit import DEPTHS, BiT
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
from vfm_jax.weights.family import HALF, Config, Family
from vfm_jax.weights.rules import Bundle, Rule, Shapes
from vfm_jax.weights.vit import dense_rules, linear_head, norm_rules
from vfm_jax.weights.vit_hf import activation, num_classes_of, their_activation


class Naming(NamedTuple):
    """Names under PyTorch; {i} is the stage, {j} the block."""

    stem: str
    stem_norm: str
    block: str  # before the names of a block's parts
    norm: str
    head: str


def _hf_naming(prefix: str) -> Naming:
    embedder, block = f"{prefix}embedder", f"{prefix}encoder.stages.{{i}}.layers.{{j}}."
    return Naming(f"{embedder}.convolution", f"{embedder}.norm", block, f"{prefix}norm", "classifier.1")


_TIMM = Naming("stem.conv", "stem.norm", "stages.{i}.blocks.{j}.", "norm", "head.fc")


def _bit(bundle: Bundle) -> BiT:
    return BiT(**{key: value for key, value in bundle.networks["encoder"].items() if key != "name"})


def _sizes(depths: tuple[int, ...], widths: tuple[int, ...], stem: int) -> dict[str, Any]:
    for variant, row in DEPTHS.items():
        if row == depths and BiT(f"{variant}x{max(stem // 64, 1)}").sizes == (depths, widths, stem):
            return {"variant": f"{variant}x{stem // 64}"}
    return {"depths": depths, "widths": widths, "stem_width": stem}


def _encoder(shapes: Shapes, naming: Naming) -> dict[str, Any]:
    """What the shapes tell."""
    depths, widths = [], []
    while naming.block.format(i=len(depths), j=0) + "conv3.weight" in shapes:
        i, j = len(depths), 0
        widths.append(shapes[naming.block.format(i=i, j=0) + "conv3.weight"][0])
        while naming.block.format(i=i, j=j) + "conv3.weight" in shapes:
            j += 1
        depths.append(j)
    stem = shapes.get(f"{naming.stem}.weight")
    grouped = naming.block.format(i=0, j=0) + "norm1.running_mean" not in shapes
    if not depths or not stem or stem[2:] != (7, 7) or not grouped:
        raise UserError(
            "This ResNet-v2 is no BiT (7 x 7 stem, bottlenecks, group norm, weight standardisation); not known here."
        )
    return {"name": "bit", **_sizes(tuple(depths), tuple(widths), stem[0])}


def _bundle(
    encoder: Mapping[str, Any], shapes: Shapes, naming: Naming, image_size: tuple[int, int], options: dict[str, Any]
) -> Bundle:
    networks: dict[str, Any] = {"encoder": encoder}
    classes = num_classes_of(shapes, naming.head)
    if classes is not None:
        networks["head"] = linear_head(classes)
    return Bundle(networks, image_size, shapes[f"{naming.stem}.weight"][1], options)


def _rules(bundle: Bundle, naming: Naming, *, convolved_head: bool) -> list[Rule]:
    model = _bit(bundle)
    rules = conv_rules("encoder/stem", naming.stem)
    if not model.preactivation:
        rules += norm_rules("encoder/stem_norm", naming.stem_norm)
    for i, depth in enumerate(model.sizes[0]):
        for j in range(depth):
            leaf, block = f"encoder/stage_{i}/block_{j}", naming.block.format(i=i, j=j)
            for k in (1, 2, 3):
                rules += norm_rules(f"{leaf}/norm{k}", f"{block}norm{k}") + conv_rules(
                    f"{leaf}/conv{k}", f"{block}conv{k}"
                )
            if j == 0:
                rules += conv_rules(f"{leaf}/shortcut", f"{block}downsample.conv")
                if not model.preactivation:
                    rules += norm_rules(f"{leaf}/shortcut_norm", f"{block}downsample.norm")
    if model.preactivation:
        rules += norm_rules("encoder/norm", naming.norm)
    if "head" in bundle.networks:
        kernel, bias = dense_rules("head/logits", naming.head)
        if convolved_head:
            kernel = kernel._replace(pattern="o i h w -> (i h w) o", sizes={"h": 1, "w": 1})
        rules += [kernel, bias]
    return rules


# ---------------------------------------------------------------------------------------------------------------- HF


def _read_hf(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    assert config is not None  # it has the model_type
    del given
    options = hf_options(config, shapes, "bit.")
    naming = _hf_naming(options["prefix"])
    padding, dynamic = config.get("global_padding"), config.get("embedding_dynamic_padding", False)
    if padding is not None and padding.upper() == "VALID":
        raise UserError('config.json: global_padding "VALID" shrinks the maps of a block below its shortcut\'s.')
    same, preactivation = padding is not None, config.get("layer_type", "preactivation") == "preactivation"
    encoder = _encoder(shapes, naming) | {
        "groups": config.get("num_groups", 32),
        "padding": "same" if same else None,
        "stem_pool": {(1, 0): "none", (1, 1): "same", (0, 0): "zeros", (0, 1): "zeros_same"}[same, dynamic],
        "preactivation": preactivation,
        "activation": activation({"hidden_act": "relu", **config}),
        "output_stride": config.get("output_stride", 32),
        "dilate": not preactivation,  # theirs drops the dilation of pre-activation blocks
        "standardize_epsilon": 1e-8,
    }
    return _bundle(encoder, shapes, naming, hf_image_size(config), options)


def _hf_config(bundle: Bundle) -> dict[str, Any]:
    model, program = _bit(bundle), "transformers' BiT"
    depths, widths, stem = model.sizes
    _check_export(model, program)
    refuse(model.stem_pool == "symmetric", program, 'the stem_pool "symmetric"')
    same, dynamic = model.padding == "same", model.stem_pool.endswith("same")
    refuse(same == model.stem_pool.startswith("zeros"), program, "this pair of padding and stem_pool")
    dilated = any(dilation > 1 for _, dilation in model.strides)
    refuse(dilated and model.dilate == model.preactivation, program, "this dilation of blocks without stride")
    fields = {
        "embedding_size": stem,
        "hidden_sizes": list(widths),
        "depths": list(depths),
        "layer_type": "preactivation" if model.preactivation else "bottleneck",
        "hidden_act": their_activation(model.activation),
        "global_padding": "SAME" if same else None,
        "num_groups": model.groups,
        "embedding_dynamic_padding": dynamic,
        "output_stride": model.output_stride,
        "width_factor": 1,
        "drop_path_rate": model.drop_path,
    }
    return hf_config(bundle, "bit", "Bit", fields)


def _check_export(model: BiT, program: str) -> None:
    refuse(model.stem != "imagenet", program, f"the stem {model.stem!r}")
    refuse(model.norm_epsilon != 1e-5, program, f"a norm_epsilon of {model.norm_epsilon}")
    refuse(model.standardize_epsilon > 1e-8, program, f"a standardize_epsilon of {model.standardize_epsilon}")


# -------------------------------------------------------------------------------------------------------------- timm

_TIMM_NAMES = {("R50", 1), ("R50", 3), ("R101", 1), ("R101", 3), ("R152", 2), ("R152", 4)}


def _matches_timm(config: Config | None, shapes: Shapes) -> bool:
    return foreign_of(config) and {"stages.0.blocks.0.norm3.weight", "stages.0.blocks.0.conv3.weight"} <= set(shapes)


def _read_timm(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    arguments, name = timm_arguments(config), timm_name(config)
    if name.startswith("resnetv2") and "_bit" not in name:
        raise UserError(f"{name} has no weight standardisation, or another stem than BiT; it is not known here.")
    encoder = _encoder(shapes, _TIMM) | {
        "groups": arguments.get("num_groups", 32),
        "activation": arguments.get("act_layer", "relu"),
        "output_stride": arguments.get("output_stride", 32),
        "standardize_epsilon": 1e-8,
    }
    return _bundle(
        encoder, shapes, _TIMM, timm_image_size(config, given), timm_options(config, r"resnetv2_\d+x\d_bit")
    )


def _timm_config(bundle: Bundle) -> dict[str, Any]:
    model, program = _bit(bundle), "timm's BiT"
    depths, widths, stem = model.sizes
    _check_export(model, program)
    refuse(not model.preactivation, program, "blocks without pre-activation")
    refuse(model.padding is not None or model.stem_pool != "zeros", program, "padding other than the authors'")
    refuse(model.groups != 32, program, f"{model.groups} groups (32 in all of them)")
    refuse(model.output_stride < 32 and not model.dilate, program, "dilate=False")
    fitting = [
        (n, f) for n, f in sorted(_TIMM_NAMES) if DEPTHS[n] == depths and not (stem % f or any(w % f for w in widths))
    ]
    refuse(not fitting, program, f"{depths} blocks")
    name, factor = fitting[0]
    arguments = {
        "channels": [width // factor for width in widths],
        "stem_chs": stem // factor,
        "act_layer": model.activation,
        "output_stride": model.output_stride,
    }
    return timm_config(bundle, f"resnetv2_{name[1:]}x{factor}_bit", widths[-1], arguments)


# --------------------------------------------------------------------------------------------- big_vision and authors


class NpzNaming(NamedTuple):
    """Names of an .npz; {i} is the stage and {j} the block from 1 on, {k} the part."""

    stem: str
    block: str
    conv: tuple[str, str, str]
    norm: tuple[str, str, str]
    shortcut: str
    norm_leaves: tuple[str, str]  # scale, bias
    final_norm: str
    head: str
    axes: str  # of the norms' leaves

    def part(self, i: int, j: int, name: str) -> str:
        return self.block.format(i=i + 1, j=j + 1) + name


_BIG_VISION = NpzNaming(
    stem="root_block/conv_root/kernel",
    block="block{i}/unit{j:02d}/",
    conv=("conv1/kernel", "conv2/kernel", "conv3/kernel"),
    norm=("gn1/", "gn2/", "gn3/"),
    shortcut="conv_proj/kernel",
    norm_leaves=("scale", "bias"),
    final_norm="norm-pre-head/",
    head="head/",
    axes="b h w d -> (b h w d)",
)
_AUTHORS = NpzNaming(
    stem="resnet/root_block/standardized_conv2d/kernel",
    block="resnet/block{i}/unit{j:02d}/",
    conv=("a/standardized_conv2d/kernel", "b/standardized_conv2d/kernel", "c/standardized_conv2d/kernel"),
    norm=("a/group_norm/", "b/group_norm/", "c/group_norm/"),
    shortcut="a/proj/standardized_conv2d/kernel",
    norm_leaves=("gamma", "beta"),
    final_norm="resnet/group_norm/",
    head="resnet/head/conv2d/",
    axes="",
)


def _npz_prefix(shapes: Shapes, naming: NpzNaming) -> str | None:
    """What stands before the names ("params/"), or None for another file."""
    return next((name.removesuffix(naming.stem) for name in shapes if name.endswith(naming.stem)), None)


def _read_npz(config: Config | None, shapes: Shapes, given: Mapping[str, Any], naming: NpzNaming) -> Bundle:
    prefix = _npz_prefix(shapes, naming) or ""
    depths, widths = [], []
    while (name := prefix + naming.part(len(depths), 0, naming.conv[2])) in shapes:
        i, j = len(depths), 0
        if prefix + naming.part(i, 0, naming.shortcut) not in shapes:
            raise UserError(f"block{i + 1} of this BiT begins without a projection, which is not known here.")
        widths.append(shapes[name][3])
        while prefix + naming.part(i, j, naming.conv[2]) in shapes:
            j += 1
        depths.append(j)
    stem = shapes[prefix + naming.stem]
    encoder = {"name": "bit", **_sizes(tuple(depths), tuple(widths), stem[3])}
    if naming is _BIG_VISION:
        encoder["stem_pool"] = "symmetric"
    networks: dict[str, Any] = {"encoder": encoder}
    if f"{prefix}{naming.head}kernel" in shapes:
        networks["head"] = linear_head(shapes[f"{prefix}{naming.head}kernel"][-1])
    return Bundle(networks, timm_image_size(config, given), stem[2], {"prefix": prefix})


def _npz_rules(bundle: Bundle, naming: NpzNaming) -> list[Rule]:
    prefix = bundle.options.get("prefix", "")

    def norm(leaf: str, name: str) -> list[Rule]:
        sizes = {"b": 1, "h": 1, "w": 1} if naming.axes else {}
        pairs = zip(("scale", "bias"), naming.norm_leaves, strict=True)
        return [Rule(f"{leaf}/{ours}", (prefix + name + theirs,), naming.axes, sizes) for ours, theirs in pairs]

    rules = [Rule("encoder/stem/kernel", (prefix + naming.stem,))]
    for i, depth in enumerate(_bit(bundle).sizes[0]):
        for j in range(depth):
            leaf = f"encoder/stage_{i}/block_{j}"
            for k in range(3):
                rules += norm(f"{leaf}/norm{k + 1}", naming.part(i, j, naming.norm[k]))
                rules.append(Rule(f"{leaf}/conv{k + 1}/kernel", (prefix + naming.part(i, j, naming.conv[k]),)))
            if j == 0:
                rules.append(Rule(f"{leaf}/shortcut/kernel", (prefix + naming.part(i, j, naming.shortcut),)))
    rules += norm("encoder/norm", naming.final_norm)
    if "head" in bundle.networks:
        convolved = "" if naming is _BIG_VISION else "h w i o -> (h w i) o"
        sizes = {"h": 1, "w": 1} if convolved else {}
        rules.append(Rule("head/logits/kernel", (f"{prefix}{naming.head}kernel",), convolved, sizes))
        rules.append(Rule("head/logits/bias", (f"{prefix}{naming.head}bias",)))
    return rules


def _npz_family(name: str, naming: NpzNaming) -> Family:
    return Family(
        name,
        lambda config, shapes: _npz_prefix(shapes, naming) is not None,
        lambda config, shapes, given: _read_npz(config, shapes, given, naming),
        lambda bundle: _npz_rules(bundle, naming),
        mean_std=HALF,
    )


FAMILIES = (
    Family(
        "hf/bit",
        lambda config, shapes: config is not None and config.get("model_type") == "bit",
        _read_hf,
        lambda bundle: _rules(bundle, _hf_naming(hf_prefix(bundle, "bit.")), convolved_head=False),
        config=_hf_config,
        mean_std=HALF,
    ),
    Family(
        "timm/bit",
        _matches_timm,
        _read_timm,
        lambda bundle: _rules(bundle, _TIMM, convolved_head=True),
        config=_timm_config,
        mean_std=HALF,
    ),
    _npz_family("big_vision/bit", _BIG_VISION),
    _npz_family("original/bit", _AUTHORS),
)
