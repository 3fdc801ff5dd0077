"""ViTs in their authors' own files: a state dict, mostly inside a training checkpoint, with no config beside it.

What such a file leaves open (attention heads, epsilon, how positions are resampled) is the authors' code's, and is
listed among the assumptions of the account.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.models.vit import ViT
from vfm_jax.weights.family import Config, Family
from vfm_jax.weights.rules import Buffer, Bundle, Rule, Shapes
from vfm_jax.weights.vit import (
    block_rules,
    count_blocks,
    dense_rules,
    head_rules,
    linear_head,
    mae_decoder_rules,
    norm_rules,
    vit,
    vit_rules,
)
from vfm_jax.weights.vit_timm import NAMES, is_timm_vit, names_for, read_encoder

# Where checkpoints keep the network that their authors evaluate, the best first. "/" enters a dict, "." is a module.
WRAPPERS = (
    "target_encoder/module.",
    "target_encoder/",
    "teacher/module.backbone.",
    "teacher/backbone.",
    "model_ema/",
    "state_dict/module.base_encoder.",
    "state_dict/module.",
    "state_dict/",
    "model/",
    "encoder/module.",
    "encoder/",
    "module.",
    "backbone.",
    "",
)


class Origin(NamedTuple):
    """What the authors' code fixes and their files do not hold.

    Attributes:
        heads: by width.
        fields: of the ViT.
        names: where they differ from timm's.
    """

    heads: Mapping[int, int]
    fields: Mapping[str, Any]
    names: Mapping[str, str] = {}


_VIT_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
_TIMM_PLUS = {"mask_token:axes": "1 d -> d"}
DINO = Origin(_VIT_HEADS, {"position_resampling": "bicubic_offset"})
IBOT = Origin(_VIT_HEADS, {"position_resampling": "bicubic_offset"}, {"mask_token": "masked_embed", **_TIMM_PLUS})
MAE = Origin(_VIT_HEADS, {"position_resampling": "bicubic"})
MOCO_V3 = Origin({384: 12, 768: 12, 1024: 16, 1280: 16}, {"position_resampling": "bicubic"})
IJEPA = Origin(_VIT_HEADS | {1408: 16, 1664: 16}, {"position_resampling": "bicubic", "pooling": "mean"})
DINOV2 = Origin(
    {384: 6, 768: 12, 1024: 16, 1536: 24},
    {"position_resampling": "bicubic_offset"},
    {
        "registers": "register_tokens",
        "gate_up": "blocks.{i}.mlp.w12",
        "down:swiglu": "blocks.{i}.mlp.w3",
        **_TIMM_PLUS,
    },
)
DINOV3 = Origin(
    {384: 6, 768: 12, 1024: 16, 1280: 20, 4096: 32},
    {"positions": "rope", "rope_rescale": 2.0, "norm_epsilon": 1e-5},
    {
        "registers": "storage_tokens",
        "gate": "blocks.{i}.mlp.w1",
        "up:swiglu": "blocks.{i}.mlp.w2",
        "down:swiglu": "blocks.{i}.mlp.w3",
        "class_norm": "cls_norm",
        "local_class_norm": "local_cls_norm",
        **_TIMM_PLUS,
    },
)


_SAY = 'heads={"encoder": N, "decoder": M} (or "predictor")'


def wrapper_of(shapes: Shapes) -> str:
    """What stands before the names of the network that the authors evaluate."""
    return next((prefix for prefix in WRAPPERS if is_timm_vit(below(shapes, prefix))), "")


def below(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


# timm's reader asks for timm's names; the authors' differ in a few.
_AS_TIMM = {"register_tokens": "reg_token", "storage_tokens": "reg_token", "masked_embed": "mask_token"}
_MLP_AS_TIMM = {"mlp.w12.": "mlp.fc1.", "mlp.w3.": "mlp.fc2.", "mlp.w1.": "mlp.fc1_g.", "mlp.w2.": "mlp.fc1_x."}


def _as_timm(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    renamed = {}
    for name, shape in shapes.items():
        for theirs, timm in _MLP_AS_TIMM.items():
            name = name.replace(theirs, timm)
        renamed[_AS_TIMM.get(name, name)] = shape
    return renamed


def _read(origin: Origin, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    wrapper = wrapper_of(shapes)
    own = below(shapes, wrapper)
    width = own["patch_embed.proj.weight"][0]
    known = {"heads": origin.heads.get(width), **given}
    spec, image_size = read_encoder(_as_timm(own), known, given.get("image_size"))
    spec |= {
        "pooling": "class" if spec["class_token"] else "mean",
        "class_norm": "cls_norm.weight" in own,
        "local_class_norm": "local_cls_norm.weight" in own,
        **origin.fields,
        **{field: given[field] for field in ("activation", "norm_epsilon") if field in given},
    }
    if "fc_norm.weight" in own:
        spec |= {"pooling": "mean", "norm_pooled": True}
    networks: dict[str, Any] = {"encoder": spec}
    if own.get("head.weight", (0,))[0] and len(own.get("head.weight", ())) == 2:
        networks["head"] = linear_head(own["head.weight"][0])
    if "head_dist.weight" in own:
        networks["distillation_head"] = linear_head(own["head_dist.weight"][0])
    heads = vit(spec).sizes[3]
    assumed = [f"{heads} attention heads" + ("" if "heads" in given else f" (the authors' for width {width})")]
    assumed += [f"{field} {spec[field]!r}" for field in ("activation", "norm_epsilon", "position_resampling")]
    return Bundle(
        networks, image_size, own["patch_embed.proj.weight"][1], {"wrapper": wrapper, "assumed": tuple(assumed)}
    )


def _rules(origin: Origin, bundle: Bundle) -> list[Rule]:
    encoder = bundle.networks["encoder"]
    names = names_for(encoder) | {k: v for k, v in origin.names.items() if ":" not in k or k.endswith("axes")}
    if encoder.get("mlp") == "swiglu":
        names |= {k.split(":")[0]: v for k, v in origin.names.items() if k.endswith(":swiglu")}
        if "gate" in origin.names:
            names.pop("gate_up", None)
    for part in ("query_bias", "key_bias", "value_bias"):  # one vector, and a mask beside it where keys have none
        names.pop(part, None)
    wrapper = bundle.options.get("wrapper", "")
    names = {part: name if ":" in part else wrapper + name for part, name in names.items()}
    rules = vit_rules(encoder, names, bundle.image_size)
    return rules + head_rules(bundle, {"head": f"{wrapper}head", "distillation_head": f"{wrapper}head_dist"})


# ---------------------------------------------------------------------------------------- which authors' file it is


def _has(shapes: Shapes, *names: str) -> bool:
    own = below(shapes, wrapper_of(shapes))
    return is_timm_vit(own) and all(name in own for name in names)


def _is_dinov3(config: Config | None, shapes: Shapes) -> bool:
    return config is None and _has(shapes, "rope_embed.periods")


def _is_dinov2(config: Config | None, shapes: Shapes) -> bool:
    return config is None and _has(shapes, "mask_token", "pos_embed", "blocks.0.ls1.gamma")


def _is_ijepa(config: Config | None, shapes: Shapes) -> bool:
    inside = wrapper_of(shapes).startswith(("target_encoder/", "encoder/"))
    return config is None and inside and _has(shapes, "pos_embed") and not _has(shapes, "cls_token")


def _is_moco_v3(config: Config | None, shapes: Shapes) -> bool:
    return config is None and wrapper_of(shapes).endswith("base_encoder.")


def _is_mae(config: Config | None, shapes: Shapes) -> bool:
    if config is not None or not _has(shapes, "cls_token", "pos_embed"):
        return False
    return _has(shapes, "decoder_pos_embed") or (wrapper_of(shapes) == "model/" and not _has(shapes, "head.weight"))


def _is_ibot(config: Config | None, shapes: Shapes) -> bool:
    if config is not None or not _has(shapes, "cls_token", "pos_embed") or _is_dinov2(config, shapes):
        return False
    released = wrapper_of(shapes) == "state_dict/" and not _has(shapes, "head.weight")
    return _has(shapes, "masked_embed") or released


def _is_dino(config: Config | None, shapes: Shapes) -> bool:
    plain = wrapper_of(shapes) in ("", "teacher/module.backbone.", "teacher/backbone.", "module.", "backbone.")
    others = (_is_dinov2, _is_ibot, _is_mae)
    return (
        config is None
        and plain
        and _has(shapes, "cls_token", "pos_embed", "norm.weight")
        and not _has(shapes, "head.weight")
        and not any(other(config, shapes) for other in others)
    )


def _is_deit(config: Config | None, shapes: Shapes) -> bool:
    """Any other classifier under timm's names: DeiT's own files, a state dict of timm's, MAE's fine-tuned ones."""
    return (
        config is None and _has(shapes, "head.weight") and len(below(shapes, wrapper_of(shapes))["head.weight"]) == 2
    )


# -------------------------------------------------------------------------------------------- what differs by author


def _reader(origin: Origin):
    return lambda config, shapes, given: _read(origin, shapes, given)


def _ruler(origin: Origin):
    return lambda bundle: _rules(origin, bundle)


def _read_dinov2(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    del config
    bundle = _read(DINOV2, shapes, given)
    encoder = dict(bundle.networks["encoder"])
    if encoder["registers"]:  # these were released with antialiasing and without the offset
        encoder["position_resampling"] = "bicubic_antialias"
    return bundle._replace(networks={**bundle.networks, "encoder": encoder})


def _read_dinov3(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    del config
    bundle = _read(DINOV3, shapes, given)
    # their qkv.bias is multiplied by bias_mask, which is zero for the keys
    encoder = dict(bundle.networks["encoder"])
    masked = any(name.endswith("attn.qkv.bias_mask") for name in shapes)
    encoder |= {"key_bias": not masked}
    return bundle._replace(networks={**bundle.networks, "encoder": encoder})


def _dinov3_buffers(bundle: Bundle) -> Sequence[Buffer]:
    model = vit(bundle.networks["encoder"])
    width, depth, _, heads = model.sizes
    wrapper = bundle.options.get("wrapper", "")
    quarter = width // heads // 4
    periods = model.rope_base ** (np.arange(quarter) * 4 / (width // heads))
    mask = np.repeat(np.array([1.0, 0.0, 1.0], np.float32), width)
    masks = [Buffer(f"{wrapper}blocks.{i}.attn.qkv.bias_mask", mask) for i in range(depth)]
    return [Buffer(f"{wrapper}rope_embed.periods", periods.astype(np.float32), checked=True), *masks]


def _read_mae(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    del config
    bundle = _read(MAE, shapes, given)
    own = below(shapes, bundle.options["wrapper"])
    if "decoder_pos_embed" not in own:
        return bundle
    encoder = {k: v for k, v in bundle.networks["encoder"].items() if k != "mask_token"}  # that is the decoder's
    width = own["decoder_embed.weight"][0]
    heads = given.get("decoder_heads") or 16
    if width % heads:
        raise UserError(f"The decoder's {width} channels do not divide into MAE's {heads} heads: say {_SAY}.")
    decoder = {
        "name": "masked_decoder",
        "width": width,
        "depth": count_blocks(own, "decoder_blocks.{i}.norm1.weight"),
        "heads": heads,
        "mlp_dim": own["decoder_blocks.0.mlp.fc1.weight"][0],
        "positions": "learned",
        "prefix_positions": 1,
    }
    assumed = (*bundle.options["assumed"], f"{heads} attention heads in the decoder")
    return bundle._replace(
        networks={"encoder": encoder, "decoder": decoder}, options={**bundle.options, "assumed": assumed}
    )


def _mae_rules(bundle: Bundle) -> list[Rule]:
    rules = _rules(MAE, bundle)
    if "decoder" in bundle.networks:
        wrapper = bundle.options.get("wrapper", "")
        block = {part: wrapper + name.replace("blocks.", "decoder_blocks.") for part, name in NAMES.items()}
        rules += mae_decoder_rules(bundle, block, wrapper)
    return rules


# ------------------------------------------------------------------------------ what was trained beside the encoder


def _predictor_prefix(shapes: Shapes) -> str | None:
    return next((p for p in ("predictor/module.", "predictor/") if f"{p}predictor_embed.weight" in shapes), None)


def _read_ijepa(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    del config
    bundle = _read(IJEPA, shapes, given)
    prefix = _predictor_prefix(shapes)
    if prefix is None:
        return bundle
    own = below(shapes, prefix)
    heads = given.get("predictor_heads") or 12
    if own["predictor_embed.weight"][0] % heads:
        raise UserError(f"The predictor's channels do not divide into I-JEPA's {heads} heads: say {_SAY}.")
    predictor = {
        "name": "jepa_predictor",
        "width": own["predictor_embed.weight"][0],
        "depth": count_blocks(own, "predictor_blocks.{i}.norm1.weight"),
        "heads": heads,
        "mlp_dim": own["predictor_blocks.0.mlp.fc1.weight"][0],
        "qkv_bias": "predictor_blocks.0.attn.qkv.bias" in own,
        "positions": "learned",
    }
    assumed = (*bundle.options["assumed"], f"{heads} attention heads in the predictor")
    return bundle._replace(
        networks={**bundle.networks, "predictor": predictor},
        options={**bundle.options, "assumed": assumed, "predictor_prefix": prefix},
    )


def _ijepa_rules(bundle: Bundle) -> list[Rule]:
    rules = _rules(IJEPA, bundle)
    if "predictor" not in bundle.networks:
        return rules
    spec, prefix = bundle.networks["predictor"], bundle.options.get("predictor_prefix", "predictor/module.")
    patch_size = vit(bundle.networks["encoder"]).patch_size
    grid = dict(zip("hw", (side // patch_size for side in bundle.image_size), strict=True))
    model = ViT(
        f"B/{patch_size}", spec["width"], spec["depth"], spec["mlp_dim"], spec["heads"], qkv_bias=spec["qkv_bias"]
    )
    rules += dense_rules("predictor/embed", f"{prefix}predictor_embed")
    rules.append(Rule("predictor/mask_token", (f"{prefix}mask_token",), "1 1 d -> d"))
    rules.append(Rule("predictor/positions", (f"{prefix}predictor_pos_embed",), "1 (h w) d -> h w d", grid))
    for i in range(spec["depth"]):
        names = {part: prefix + name.replace("blocks.{i}", f"predictor_blocks.{i}") for part, name in NAMES.items()}
        rules += block_rules(model, names, f"predictor/transformer/block_{i}")
    rules += norm_rules("predictor/norm", f"{prefix}predictor_norm")
    return rules + dense_rules("predictor/out", f"{prefix}predictor_proj")


def _head_prefix(shapes: Shapes) -> str | None:
    """Where DINO's head stands beside the encoder that is taken; iBOT shares one head between class and patches."""
    wrapper = wrapper_of(shapes)
    if not wrapper.endswith("backbone."):
        return None
    beside = wrapper.removesuffix("backbone.")
    heads = (f"{beside}head.", f"{beside}dino_head.")
    return next((p for p in heads if f"{p}last_layer.weight_v" in shapes and f"{p}mlp.0.weight" in shapes), None)


def _with_head(read: Callable[..., Bundle]) -> Callable[..., Bundle]:
    """The reader of an encoder, for files that may hold the head it was trained with."""

    def both(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
        bundle, prefix = read(config, shapes, given), _head_prefix(shapes)
        if prefix is None:
            return bundle
        layers = sorted(name for name in shapes if re.fullmatch(rf"{re.escape(prefix)}mlp\.\d+\.weight", name))
        out_dim, bottleneck = shapes[f"{prefix}last_layer.weight_v"]
        projector = {
            "name": "dino_head",
            "out_dim": out_dim,
            "bottleneck_dim": bottleneck,
            "hidden_dim": shapes[f"{prefix}mlp.0.weight"][0],
            "num_layers": len(layers),
            "learned_scale": True,  # kept as in the file, where it may be one
        }
        networks = {**bundle.networks, "projector": projector}
        return bundle._replace(networks=networks, options={**bundle.options, "head_prefix": prefix})

    return both


def _with_head_rules(rules: Callable[[Bundle], list[Rule]]) -> Callable[[Bundle], list[Rule]]:
    def both(bundle: Bundle) -> list[Rule]:
        made = rules(bundle)
        if "projector" not in bundle.networks:
            return made
        prefix = bundle.options["head_prefix"]
        for i in range(bundle.networks["projector"]["num_layers"]):
            made += dense_rules(f"projector/layer_{i}", f"{prefix}mlp.{2 * i}")
        made.append(Rule("projector/prototypes/kernel", (f"{prefix}last_layer.weight_v",), "o i -> i o"))
        return [*made, Rule("projector/prototypes/scale", (f"{prefix}last_layer.weight_g",), "o 1 -> o")]

    return both


FAMILIES = (
    Family("original/dinov3", _is_dinov3, _read_dinov3, _ruler(DINOV3), buffers=_dinov3_buffers),
    Family("original/dinov2", _is_dinov2, _with_head(_read_dinov2), _with_head_rules(_ruler(DINOV2))),
    Family("original/ijepa", _is_ijepa, _read_ijepa, _ijepa_rules),
    Family("original/moco_v3", _is_moco_v3, _reader(MOCO_V3), _ruler(MOCO_V3)),
    Family("original/mae", _is_mae, _read_mae, _mae_rules),
    Family("original/ibot", _is_ibot, _with_head(_reader(IBOT)), _with_head_rules(_ruler(IBOT))),
    Family("original/dino", _is_dino, _with_head(_reader(DINO)), _with_head_rules(_ruler(DINO))),
    Family("original/deit", _is_deit, _reader(MAE), _ruler(MAE)),
)
